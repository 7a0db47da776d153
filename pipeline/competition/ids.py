"""Find the image file of each id in a table.

Ids are text and match exactly; one style of writing holds for a whole column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pipeline.competition.folders import DataFolder, hide_command
from pipeline.competition.id_styles import (
    ENDS,
    FOLDERS,
    LOOSE,
    NAME,
    NO_CASE,
    NUMBERS,
    PREFIXES,
    SEVERAL_EACH,
    STYLES,
    UPLOADED,
    Style,
    behind,
    composed,
    ends_of,
    file_name,
    folders_of,
    number_of,
    prefixes_of,
    stem,
    styles_of_paths,
    without_suffix,
)
from pipeline.competition.parts import BESIDE, part_of_name, words_of
from pipeline.wording import MAX_NAMED, capped, counted, listed


@dataclass(frozen=True)
class Match:
    """For each id the images that it may mean under one style: none, one, or several (ambiguous)."""

    style: Style
    images: tuple[tuple[str, ...], ...]

    @property
    def different(self) -> set[tuple[str, ...]]:
        """The different entries of `images`."""
        return set({id(found): found for found in self.images}.values())

    @property
    def num_unique(self) -> int:
        """Number of different images among the ids with exactly one image."""
        return len({found[0] for found in self.images if len(found) == 1})

    @property
    def num_single(self) -> int:
        """Number of ids with exactly one image."""
        return sum(len(found) == 1 for found in self.images)

    @property
    def num_found(self) -> int:
        """Number of ids with at least one image."""
        return sum(bool(found) for found in self.images)

    def problems(
        self, ids: Sequence[str], lines: Sequence[int], index: ImageIndex, advice: str, groups: bool = False
    ) -> list[str]:
        """List the ids without an image and, unless `groups`, the ids with several.

        `lines`: row numbers of the ids.
        """
        missing = [row for row, images in enumerate(self.images) if not images]
        several = [row for row, images in enumerate(self.images) if len(images) > 1 and not groups]
        problems = []
        if missing:
            shown = [
                f"{ids[row]!r} in row {lines[row]}{index.alike(ids[row])}" for row in missing[:MAX_NAMED]
            ]
            more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
            unread = (
                f" ({listed(index.unread)} in the folder are not read: `make data FROM=` converts what "
                "it can, else convert them to .png)"
                if index.unread
                else ""
            )
            problems.append(
                f"{len(missing):,} of {counted(len(ids), 'id')} without an image{unread}: "
                f"{', '.join(shown)}{more}; {advice}"
            )
        groups = {found for found in self.different if len(found) > 1 and several}
        tops = sorted({image.split("/")[0] for found in groups for image in found if "/" in image})
        if len(tops) > 1:
            both = " and ".join(f"{name}/" for name in tops)
            return [
                *problems,
                f"{counted(len(several), 'id')} found in {both}; {hide_command(index.root, tops)}",
            ]
        twice = [
            f"row {lines[row]}: {ids[row]!r} may be {_either(self.images[row])}: keep one, or write ids "
            "as paths"
            for row in several[: MAX_NAMED + 1]
        ]
        return problems + capped(twice, "ids may be several images", len(several))


class ImageIndex:
    """Finds images (paths in the data folder) by id."""

    def __init__(self, folder: DataFolder, images: Iterable[str]):
        self.root, self.images, self.part_of = folder.root, list(images), folder.parts.of
        self.unread = folder.unread
        self._keys: dict[str, dict[str, list[str]]] = {}
        self._has_backslash = any("\\" in image for image in self.images)

    def match(self, ids: Sequence[str]) -> Match:
        """Match `ids` in the style that finds the most unique images; the earlier style wins a tie."""
        best, best_rank = Match(NAME, ((),) * len(ids)), (0, 0)
        # Most columns hold no ids. One look-up shows that, seven would be slow.
        loose = self._keys_of(LOOSE)
        if not any(composed(LOOSE.of_id(image_id)) in loose for image_id in ids):
            uploaded = ids and re.match(UPLOADED, file_name(self._as_path(ids[0])))
            return self._match_loosely(ids) if uploaded else best
        for style in (*STYLES, *styles_of_paths([self._as_path(image_id) for image_id in ids])):
            match = self._read(ids, style)
            rank = (match.num_unique, match.num_found)
            if rank > best_rank:
                best, best_rank = match, rank
            if rank[0] == len(ids):
                break
        return best if best.num_found else self._match_loosely(ids)

    def _match_loosely(self, ids: Sequence[str]) -> Match:
        """Match ids that no style finds, as the only image that differs in case (`img_1.jpg` for
        `IMG_1.JPG`), or behind folders or an address that all ids share and this folder lacks
        (`https://x/y/1.jpg`).

        Nothing is found unless every id is another image; numbers (`1.jpg`) of another folder must be all
        images. Label Studio puts eight characters before the name of a file.
        """
        folders = {self._as_path(text).strip().rpartition("/")[0] for text in ids}
        styles = [NO_CASE]
        if len(folders) == 1 and (shared := folders.pop()):
            steps = set(shared.casefold().split("/"))
            held = {part_of_name(step) for step in shared.split("/")} - {""}
            parts = {self.part_of(image) for image in self.images} - {""}
            known = {step.casefold() for image in self.images for step in image.split("/")[:-1]}
            names = [file_name(self._as_path(text).strip()) for text in ids]
            uploaded = all(re.match(UPLOADED, name) for name in names)
            cut = len("1a2b3c4d-") if uploaded else 0
            styles = [behind(shared, of_id, begin) for of_id in (str, without_suffix) for begin in {0, cut}]
            numbered_ones = len(set(ids)) < len(self.images) and all(
                without_suffix(name[cut:]).isdecimal() for name in names
            )
            if (held and held != parts) or steps & known or numbered_ones:
                styles = []
        for style in styles:
            found = self._read(ids, style)
            if found.num_unique == len(set(ids)) and found.num_single == len(ids):
                return found
        return Match(NAME, ((),) * len(ids))

    def is_row(self, header: str, ids: Sequence[str]) -> bool:
        """Return True if the name of a column of ids is an image that none of the ids is: the file has no
        header.
        """
        if not self.match([header]).num_found:
            return False
        first, *others = self.match([header, *ids]).images
        return len(first) == 1 and first not in others and any(others)

    def match_numbers(self, ids: Sequence[str]) -> Match:
        """Match numbers that lost their leading zeros, as spreadsheets write them (`7` for `0007.jpg`)."""
        return self._read(ids, NUMBERS)

    def match_endings(self, ids: Sequence[str]) -> Match:
        """Match numbers to names of one word and a number (`7` for `train_7.jpg`, `image_7` for `7.jpg`).

        Nothing is found unless all images have names of the same word, all ids too, and each id is one of
        them: such names say nothing else, and ids that count rows from another number do not fit.
        """
        texts = [without_suffix(text.strip()) for text in ids]
        heads = {re.sub(r"\d+$", "", stem(image)) for image in self.images}
        own = {re.sub(r"\d+(\.0+)?$", "", text) for text in texts}
        nothing = Match(NAME, ((),) * len(ids))
        if len(heads) != 1 or len(own) != 1 or heads == own or any("/" in head for head in own):
            return nothing
        head, word = heads.pop(), own.pop()
        behind = f", behind {word!r} in ids" if word else ""
        style = Style(
            f"the numbers behind {head!r} in file names{behind}" if head else f"the numbers behind {word!r}",
            lambda image: number_of(stem(image)[len(head) :]),
            lambda text: NUMBERS.of_id(text.strip()[len(word) :]),
        )
        found = self._read(ids, style)
        return found if found.num_unique == len(ids) else nothing

    def match_groups(self, ids: Sequence[str]) -> Match:
        """Match ids with several images each: a folder of that name, or file names that begin so
        (`<id>_red.png`).

        Beginnings of names are no ids where files of one name lie in several folders below the same top one.
        An image has one id: see `_one_id_each`.
        """
        best = Match(FOLDERS, ((),) * len(ids))
        for style, keys_of in ((FOLDERS, folders_of), (PREFIXES, prefixes_of)):
            if style.says not in self._keys:
                keys: dict[str, list[str]] = {}
                for image in self.images:
                    for key in keys_of(image):
                        keys.setdefault(composed(key), []).append(image)
                self._keys[style.says] = keys
            match = self._read(ids, style)
            if style is PREFIXES:  # `B03_s1.png` of each plate: `B03` names no image without its plate
                kept = {images: () if _repeats_a_name(images) else images for images in match.different}
                match = Match(style, tuple(kept[images] for images in match.images))
            match = _one_id_each(ids, match)
            if match.num_found > best.num_found:
                best = match
        return best

    def alike(self, image_id: str) -> str:
        """Return ` (nearest: 'x.jpg')` if an image differs from the id only in folder, extension or case;
        else "".
        """
        found = self._read([image_id], LOOSE).images[0]
        return f" (nearest: {found[0]!r})" if found else ""

    def _read(self, ids: Sequence[str], style: Style) -> Match:
        keys = self._keys.get(style.says) or self._keys_of(style)
        found: dict[str, tuple[str, ...]] = {}  # rows of one id share its images: there may be thousands
        for image_id in ids:
            if image_id not in found:
                key = composed(style.of_id(self._as_path(image_id)))
                found[image_id] = tuple(keys.get(key) or keys.get(key.strip()) or ())
        return Match(style, tuple(found[image_id] for image_id in ids))

    def _as_path(self, image_id: str) -> str:
        """Return the id with `/` for the backslashes of Windows paths."""
        return image_id if self._has_backslash else image_id.replace("\\", "/")

    def _keys_of(self, style: Style) -> dict[str, list[str]]:
        if style.says not in self._keys:
            keys: dict[str, list[str]] = {}
            for image in self.images:
                for key in ends_of(image) if style is ENDS else [style.of_image(image)]:
                    keys.setdefault(composed(key), []).append(image)
            self._keys[style.says] = keys
        return self._keys[style.says]


def _either(images: Sequence[str]) -> str:
    more = f" or {len(images) - MAX_NAMED} more" if len(images) > MAX_NAMED else ""
    return " or ".join(images[:MAX_NAMED]) + more


def settled(match: Match, part_of: Callable[[str], str]) -> tuple[Match, str]:
    """Choose one folder for ids that were found in several. Returns the match and a note (empty: nothing to
    choose).

    Training folders come before folders of no known part. Among them wins the plainest name, to which the
    others only add a word (`train` beside `trainResized`). If that leaves an id with several images, the
    match is returned unchanged.
    """
    several = {images for images in match.different if len(images) > 1}
    if not several or match.style in SEVERAL_EACH:
        return match, ""
    named = {
        top: part_of(next(image for images in several for image in images if _top(image) == top))
        for top in _tops(several)
    }
    trained = [top for top in named if named[top] in ("train", "test")]
    plainest = [top for top in trained if all(other == top or adds_a_word(top, other) for other in trained)]
    chosen = plainest[0] if plainest else ""
    kept = {images: tuple(image for image in images if _top(image) == chosen) for images in several}
    if not chosen or any(len(images) != 1 for images in kept.values()):
        return match, ""
    left = sorted(set(named) - {chosen})
    note = f"{' and '.join(f'{name}/' for name in left)} holds the same names as {chosen}/ and is not used"
    return Match(match.style, tuple(kept.get(images, images) for images in match.images)), note


def _top(image: str) -> str:
    return image.split("/")[0] if "/" in image else ""


def _tops(groups: Iterable[Sequence[str]]) -> list[str]:
    return sorted({_top(image) for images in groups for image in images})


def _plain_top(name: str) -> str:
    """Return the words of a folder's name without general image words: `train` for `train_images`,
    `trainmasks` for `train_masks`.
    """
    return "".join(
        word
        for word in words_of(name)
        if word not in BESIDE or word in ("resized", "small", "cropped", "crops", "additional")
    )


def adds_a_word(folder: str, other: str) -> bool:
    """Return True if `other` is the name `folder` plus a word of three letters or more: `train_resized`
    beside `train`, but not `train2` or `trainb`.
    """
    name, longer = _plain_top(folder), _plain_top(other)
    return longer.startswith(name) and re.fullmatch(r"[^\W\d_]{3,}", longer[len(name) :]) is not None


def _one_id_each(ids: Sequence[str], match: Match) -> Match:
    """Return the match with no image under two ids.

    Of two beginnings of its name the longer one is its id (`p1_left` beside `p1`). For folders see
    `_folder_each`.
    """
    images_of = dict(zip((composed(text.strip()) for text in ids), match.images, strict=True))
    owners: dict[str, list[str]] = {}
    for name, images in images_of.items():
        for image in images:
            owners.setdefault(image, []).append(name)
    if all(len(names) == 1 for names in owners.values()):
        return match
    if match.style is PREFIXES:
        own = {image: max(names, key=len) for image, names in owners.items()}
    else:
        own = _folder_each({name for name, images in images_of.items() if images}, owners)
    kept = {
        name: tuple(image for image in images if own[image] == name) for name, images in images_of.items()
    }
    return Match(match.style, tuple(kept[composed(text.strip())] for text in ids))


def _folder_each(names: set[str], owners: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return image -> the one of its `owners`, folders around it (patient 3, series 1), that is its id.

    It is the folder at the depth where all `names` are, each once: a series 1 may be in every patient.
    Without such a depth, the nearest one. "" for the images of unsure ids: several depths hold all names.
    """
    folders = {image: composed(image).split("/")[:-1] for image in owners}
    at_depth = zip_longest(*folders.values())
    depths = [depth for depth, steps in enumerate(at_depth) if names <= set(steps)]
    paths = {depth: {tuple(steps[: depth + 1]) for steps in folders.values()} for depth in depths}
    once = [
        depth
        for depth in depths
        if sum(len(path) > depth and path[depth] in names for path in paths[depth]) == len(names)
    ]
    depths = once or depths
    if len(depths) > 1:
        unsure = {name for found in owners.values() if len(found) > 1 for name in found}
        return {image: "" if unsure & set(found) else found[0] for image, found in owners.items()}
    if depths:
        return {image: "".join(steps[depths[0] : depths[0] + 1]) for image, steps in folders.items()}
    return {
        image: next(step for step in reversed(steps) if step in names) for image, steps in folders.items()
    }


def _repeats_a_name(images: Sequence[str]) -> bool:
    """Return True if two images have the same top folder and the same file name."""
    return len({(_top(image), file_name(image)) for image in images}) < len(images)


def link_advice(id_column: str) -> str:
    """Return how to tell which images an id has where no column of the tables does."""
    return (
        f"if no column names images, add images.csv with the columns {id_column},image and a row for each "
        "image: its path in the data folder"
    )
