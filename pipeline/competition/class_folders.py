"""Read classes from the folder of an image (one folder per class) or from its name (`cat.0.jpg`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.competition.folders import DataFolder, check_whole, natural_key, plain_name
from pipeline.competition.id_styles import file_name, short_ids, stem, without_suffix
from pipeline.competition.ids import adds_a_word
from pipeline.competition.label_table import Labelled
from pipeline.competition.parts import words_of
from pipeline.competition.spelling import class_name
from pipeline.errors import UserError
from pipeline.targets.evidence import LabelEvidence
from pipeline.wording import counted, listed, quoted


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Sibling folders with such names hold kinds of files, not classes.
KINDS = _words(
    "image images img imgs mask masks label labels segmentation segmentations annotation annotations photo "
    "photos picture pictures data dataset jpg jpeg png tif tiff raw original originals crops cropped "
    "resized thumbnails train test val valid validation"
)
DATE = r"(19|20)\d\d([-_. ]?)(0[1-9]|1[0-2])(\2(0[1-9]|[12]\d|3[01]))?"  # 2023-05-01, 20230501, 2023_05
# Beside class folders: a few images to look at
SAMPLES = _words("sample samples example examples demo preview previews thumbnail thumbnails")
# With the same sub-folders in each: all images in several versions
VERSIONS = KINDS | _words(
    "color colour coloured colored rgb grayscale greyscale gray grey segmented augmented preprocessed "
    "processed enhanced small large full dataset"
)
PHOTOS = _words("image images img imgs photo photos")  # beside folders of masks with the same files
# with a number: parts of one download
SHARES = _words("part parts chunk shard batch archive images imgs fold")
# So many folders of one image each are no classes, the first number if each image is called as its folder
MANY_SINGLE = (5, 10)
NO_CLASS = KINDS | _words("dsc dscn dscf dcim file frame screenshot wp pxl sample id unknown untitled")


@dataclass(frozen=True)
class ClassFolders:
    """Sub-folders of `base` with their images, and images directly in `base`.

    `trouble`: why they are not classes.
    """

    base: str  # `train`, `imgs/train`, `train/train` when nested; empty: the data folder
    groups: dict[str, list[str]]
    loose: list[str]
    trouble: str = ""
    left: str = ""  # what is left out: masks, a copy of all classes
    bases: tuple[str, ...] = ()  # the folders that share the classes: train_1, train_2; then `base` is empty
    held_base: str = ""  # `valid` beside `train`, with folders of the same classes
    held: Mapping[str, Sequence[str]] = field(default_factory=dict)  # its images

    @property
    def where(self) -> str:
        """The base folder, for messages."""
        if self.bases:
            return " and ".join(f"{name}/" for name in self.bases)
        return f"{self.base}/" if self.base else "the data folder"

    @property
    def plausible(self) -> bool:
        """True if there are two class folders or more, no loose images and no trouble."""
        return len(self.groups) > 1 and not self.loose and not self.trouble


def class_folders(folder: DataFolder, asked: Collection[str] = ()) -> list[ClassFolders]:
    """Return every training folder with class folders; if there is none, the first training folder or an
    empty entry.

    Without a training folder, the folders beside the test images are taken. `asked`: labels that the sample
    submission names.
    """
    bases = folder.parts.named("train")
    grouped = [_grouped(base, _images_in(folder, base), asked) for base in bases]
    if not bases:
        grouped = [_grouped("", folder.of_part(""), asked)]
    several = [entry for entry in grouped if len(entry.groups) > 1]
    found = _together(several) or grouped[:1] or [ClassFolders("train", {}, [])]
    return [_with_validation(found[0], folder, asked)] if len(found) == 1 and bases else found


def _with_validation(classes: ClassFolders, folder: DataFolder, asked: Collection[str]) -> ClassFolders:
    """Return the class folders with the one folder of validation images that has the same classes, or some
    of them.
    """
    bases = folder.parts.named("val")
    if len(bases) != 1 or not classes.plausible:
        return classes
    held = _grouped(bases[0], _images_in(folder, bases[0]), asked)
    if held.loose or held.trouble or not held.groups or not held.groups.keys() <= classes.groups.keys():
        return classes
    return replace(classes, held_base=held.base, held=held.groups)


def _images_in(folder: DataFolder, base: str) -> list[str]:
    return [image for image in folder.scans[base.split("/")[0]].images if image.startswith(base + "/")]


def _together(found: list[ClassFolders]) -> list[ClassFolders]:
    """Join folders that share the images of the same classes (`train_1`, `train_2`), and leave out a copy
    with a word more in its name (`train_resized` beside `train`). Other folders are returned unchanged.
    """
    if len(found) < 2 or not all(entry.plausible for entry in found):
        return found
    paths = {
        entry.base: {
            without_suffix(image[len(entry.base) + 1 :]) for group in entry.groups.values() for image in group
        }
        for entry in found
    }
    first = min(found, key=lambda entry: len(entry.base))
    others = [entry for entry in found if entry is not first]
    if all(
        paths[entry.base] == paths[first.base] and adds_a_word(first.base, entry.base) for entry in others
    ):
        note = (
            f"{listed(f'{entry.base}/' for entry in others)} holds the same names as {first.where}, not used"
        )
        return [replace(first, left="; ".join(filter(None, (first.left, note))))]
    numbered = {re.sub(r"\d+", "", entry.base) for entry in found}
    small = min(map(len, paths.values()))
    shared = sum(map(len, paths.values())) - len(set().union(*paths.values()))
    if len(numbered) > 1 or len({frozenset(entry.groups) for entry in found}) > 1 or shared * 2 > small:
        return found
    groups = {name: [image for entry in found for image in entry.groups[name]] for name in first.groups}
    left = "; ".join(dict.fromkeys(filter(None, (entry.left for entry in found))))
    return [ClassFolders("", groups, [], left=left, bases=tuple(entry.base for entry in found))]


def _grouped(base: str, images: Sequence[str], asked: Collection[str] = ()) -> ClassFolders:
    while True:
        groups: dict[str, list[str]] = {}
        loose = []
        begin = len(base) + 1 if base else 0
        for image in images:
            head, slash, _ = image[begin:].partition("/")
            if slash:
                groups.setdefault(head, []).append(image)
            else:
                loose.append(image)
        # A single folder that holds only folders is a wrapper (train/train/...), not a class.
        inner = base.count("/") + 3 if base else 2
        if loose or len(groups) != 1 or any(image.count("/") < inner for image in images):
            break
        base = f"{base}/{next(iter(groups))}" if base else next(iter(groups))
    notes = []
    if others := _no_classes(base, groups):
        groups = {name: group for name, group in groups.items() if name not in others}
        shown = ", ".join(f"{name}/" for name in others)
        notes.append(f"{shown} beside the class folders is no class and is not used")
    plain = {name: _without_masks(group) for name, group in groups.items()}
    if masks := sum(map(len, groups.values())) - sum(map(len, plain.values())):
        groups = plain
        notes.append(f"{counted(masks, 'mask')} beside images left out")
    left = "; ".join(notes)
    ordered = _in_order(groups)
    if trouble := _versions(base, ordered):
        return ClassFolders(base, ordered, loose, trouble, left)
    if shared := _inner_classes(base, ordered, asked):
        return ClassFolders(base, shared, loose, left=left)
    return ClassFolders(base, ordered, loose, _trouble(base, ordered) if len(ordered) > 1 else "", left)


def _without_masks(images: Sequence[str]) -> list[str]:
    """Return the images that are no masks of others: not `a_mask.png` beside `a.png`, nor `masks/a.png`
    beside `images/a.png`.
    """
    if not any("mask" in image.lower() for image in images):
        return list(images)
    known = {without_suffix(image) for image in images}
    kept = []
    for image in images:
        path = without_suffix(image)
        marked = re.fullmatch(r"(.+?)[ _-]*mask(?:[ _-]?\d+)?", path, re.IGNORECASE)
        steps = path.split("/")
        twins = (
            "/".join([*steps[:place], name, *steps[place + 1 :]])
            for place, step in enumerate(steps[:-1])
            if step.lower() in ("mask", "masks")
            for name in (*PHOTOS, *(photo.capitalize() for photo in PHOTOS))
        )
        if not (marked and marked[1] in known) and known.isdisjoint(twins):
            kept.append(image)
    return kept


def _no_classes(base: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the folders beside two class folders or more that are none themselves: with folders that are
    called like those beside them (`augmented/cat`, a copy), or called samples (`sample_images`).
    """
    begin = len(base) + 1 if base else 0
    inner = {name: {image[begin:].split("/")[1] for image in group} for name, group in groups.items()}
    found = [
        name
        for name in groups
        if (len(inner[name]) > 1 and name not in inner[name] and inner[name] <= groups.keys())
        or (SAMPLES & (words := set(words_of(name))) and words <= SAMPLES | KINDS and len(words) > 1)
    ]
    return found if len(groups) - len(found) > 1 else []


def _inner_classes(
    base: str, groups: dict[str, list[str]], asked: Collection[str] = ()
) -> dict[str, list[str]]:
    """Group by the innermost folder if the outer folders hold the same few names:
    `train/<patient>/<class>/1.png`, or if some of them and no outer ones are `asked`.
    """
    depth = base.count("/") + (1 if base else 0)
    if len(groups) < 2 or any(image.count("/") != depth + 2 for group in groups.values() for image in group):
        return {}
    inner: dict[str, list[str]] = {}
    outer: Counter[str] = Counter()
    for group in groups.values():
        found = {image.split("/")[-2] for image in group}
        outer.update(found)
        for image in group:
            inner.setdefault(image.split("/")[-2], []).append(image)
    names = {class_name(name) for name in inner}
    if len(inner) > 1 and names & set(asked) and not set(groups) & set(asked):
        return _in_order(inner)
    if len(groups) < 3:
        return {}
    if not 1 < len(inner) < len(groups) or any(count * 2 < len(groups) for count in outer.values()):
        return {}
    if all(plain_name(name) in KINDS for name in inner):
        return {}
    return _in_order(inner)


def _in_order(groups: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the images of each class, with the classes in natural order.

    Folders whose names differ only in the way they are stored are one class.
    """
    classes: dict[str, list[str]] = {}
    for folder, images in groups.items():
        classes.setdefault(class_name(folder), []).extend(images)
    return dict(sorted(classes.items(), key=lambda group: natural_key(group[0])))


def _versions(base: str, groups: Mapping[str, Sequence[str]]) -> str:
    """Return why folders are versions of all images (`rgb/scab`, `gray/scab`), not classes; else ""."""
    begin = len(base) + 1 if base else 0
    inner = {
        frozenset(image[begin:].split("/")[1] for image in group if image[begin:].count("/") > 1)
        for group in groups.values()
    }
    named = len(groups) > 1 and all(set(words_of(name)) <= VERSIONS for name in groups)
    if not named or len(inner) > 1 or len(shared := next(iter(inner))) < 2:
        return ""
    where = f"{base}/" if base else "the data folder"
    return (
        f"the folders {quoted(list(groups))} in {where} hold the same folders, such as {min(shared)!r}: "
        "versions of the images, not classes (to use one of them, put a dot before the names of the others)"
    )


def _trouble(base: str, groups: dict[str, list[str]]) -> str:
    """Return why folders are not classes: they only distribute files, or hold kinds of files; else ""."""
    names = list(groups)
    begin = len(base) + 1 if base else 0
    shown = f"{base}/" if base else ""
    kinds = [name for name in names if plain_name(name) in KINDS]
    shares = [name for name in names if SHARES & set(words_of(name)) and re.search(r"\d", name)]
    if len(kinds) == len(names) or len(shares) == len(names) or ((kinds or len(shares) > 1) and not base):
        return f"the folders {quoted(names)} hold kinds of files, not classes"
    if all(re.fullmatch(DATE, name) for name in names):
        return f"the folders {quoted(names)} are called by dates, they are no classes"
    images = [image for group in groups.values() for image in group]
    if all(re.fullmatch(r"[0-9a-fA-F]{1,4}", name) for name in names):
        steps = [image[begin:].split("/") for image in images]
        if all(len(parts) > 2 and re.fullmatch(r"[0-9a-fA-F]{1,4}", parts[1]) for parts in steps):
            return (
                f"the folders such as {'/'.join([*filter(None, [base]), *steps[0][:2]])} only distribute "
                "the files, they are no classes"
            )
        if all(_begins_so(without_suffix(parts[-1]).lower(), parts[0].lower()) for parts in steps):
            return (
                f"the folders such as {shown}{names[0]} only distribute the files by the beginning of "
                "their names, they are no classes"
            )
    return ""


def _begins_so(stem: str, folder: str) -> bool:
    """Return True for a hexadecimal file name that begins with its folder's name: `0a/0a9f31.jpg`."""
    return (
        stem.startswith(folder)
        and len(stem) >= max(6, len(folder) + 2)
        and re.fullmatch(r"[0-9a-f]+", stem) is not None
    )


def classes_in_names(images: Iterable[str]) -> dict[str, list[str]]:
    """Return class -> images from the text beside the number in file names: `cat.0.jpg`, `dog_12.png`,
    `7_frog.png`.

    Empty unless there are few classes with many images each.
    """
    groups: dict[str, list[str]] = {}
    count = 0
    for image in images:
        stem = without_suffix(file_name(image))
        found = (
            re.fullmatch(r"(.*[^\W\d_])[\W_]*\d+", stem)
            or re.fullmatch(r"(.*[^\W_])[\W_]+\d+", stem)
            or re.fullmatch(r"\d+[\W_]+([^\W\d_].*[^\W\d_])", stem)
        )
        if not found:
            return {}
        groups.setdefault(found.group(1), []).append(image)
        count += 1
        if len(groups) > 1000 or (count > 100 and len(groups) * 3 > count):
            return {}
    sizes = [len(group) for group in groups.values()]
    if len(groups) < 2 or len(groups) * 5 > count or min(sizes) < 3:
        return {}
    if all(plain_name(name) in VERSIONS for name in groups):
        return {}
    if any(plain_name(re.sub(r"[\d\W_]+", "", name)) in NO_CLASS or name.isdigit() for name in groups):
        return {}
    return dict(sorted(groups.items(), key=lambda group: natural_key(group[0])))


def from_folders(folder: DataFolder, classes: ClassFolders) -> Labelled:
    """Label every image by the name of its class folder.

    Raises:
        UserError: the folders hold archives that are not unpacked, or broken links; or each holds one image,
            so that they are no classes.
    """
    base = classes.base
    single = all(len(group) == 1 for group in classes.groups.values()) and not classes.held
    own = all(stem(group[0]) == name for name, group in classes.groups.items())
    if single and len(classes.groups) >= MANY_SINGLE[0 if own else 1]:
        shown = quoted([group[0] for group in classes.groups.values()][:2])
        raise UserError(
            f"{folder.root}: each folder in {classes.where} holds one image, such as {shown}: these are no "
            "classes; write the labels into train.csv with the columns image,label (a file name or path, and "
            "its label)"
        )
    every = (*classes.groups.values(), *classes.held.values())
    tops = sorted({image.split("/")[0] for group in every for image in group})
    check_whole(folder, tops)
    images = [image for group in classes.groups.values() for image in group]
    labels = [name for name, group in classes.groups.items() for _ in group]
    held = [image for group in classes.held.values() for image in group]
    ids, _ = short_ids(
        [_below(base, image) for image in images] + [_below(classes.held_base, image) for image in held]
    )
    labels += [name for name, group in classes.held.items() for _ in group]
    without = [
        path for name in tops for path in folder.scans[name].without_images if path.rpartition("/")[0] == base
    ]
    notes = [f"no images in {listed(without)}: not a class"] if without else []
    notes += [classes.left] if classes.left else []
    stored = {
        folder: name
        for name, group in classes.groups.items()
        for image in group
        for folder in image[len(base) :].split("/")[:-1]
        if folder != name and class_name(folder) == name
    }
    notes += [f"the class folder {folder!r} is the class {name!r}" for folder, name in stored.items()][:1]
    where = f"one folder per class in {classes.where}"
    evidence = LabelEvidence("folders", f"class folders in {classes.where}", texts=tuple(labels))
    labelled = Labelled(ids, [(image,) for image in [*images, *held]], evidence, where, notes)
    if held:
        labelled.split = dict.fromkeys(ids[len(images) :], "val")
        labelled.split |= dict.fromkeys(ids[: len(images)], "train")
        labelled.split_from = f"those in {classes.held_base}/"
    return labelled


def _below(base: str, image: str) -> str:
    """Return the path of an image with the top folder of `base` alone: `train/cat/1.jpg`."""
    return f"{base.split('/')[0]}/{image[len(base) + 1 :]}" if base else image


def from_names(folder: DataFolder, groups: dict[str, list[str]]) -> Labelled:
    """Label every image of `groups` (see `classes_in_names`) by the class in its name.

    Raises:
        UserError: the folders hold archives that are not unpacked, or broken links.
    """
    images = [image for group in groups.values() for image in group]
    check_whole(folder, sorted({image.split("/")[0] for image in images if "/" in image}))
    ids, _ = short_ids(images)
    labels = tuple(name for name, group in groups.items() for _ in group)
    evidence = LabelEvidence("names", f"file names such as {images[0]}", texts=labels)
    return Labelled(
        ids, [(image,) for image in images], evidence, f"the beginning of file names, such as {images[0]}"
    )
