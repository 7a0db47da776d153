"""Which image file an id in a table means. Ids are text and are matched exactly, a whole column in one way of writing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.competition.folders import IMAGE_SUFFIXES, DataFolder, hide_command, suffix_of
from pipeline.competition.parts import BESIDE, words_of
from pipeline.wording import MAX_NAMED, capped, counted


def file_name(image: str) -> str:
    """`1.jpg` for `train/cat/1.jpg`."""
    return image.rsplit("/", 1)[-1]


def inside(image: str) -> str:
    """The path below the first folder: `cat/1.jpg` for `train/cat/1.jpg`."""
    return image.split("/", 1)[-1]


def without_suffix(path: str) -> str:
    """`cat/1` for `cat/1.jpg`; a path that does not end like an image file stays as it is."""
    return path.rpartition(".")[0] if suffix_of(path) in IMAGE_SUFFIXES else path


def _stem(image: str) -> str:
    return without_suffix(file_name(image))


def _number_of(text: str) -> str:
    """`7` for `0007`; what is no number stays as it is."""
    return (text.lstrip("0") or "0") if text.isascii() and text.isdigit() else text


def _bare(path: str) -> str:
    """What is left of a name without folder, extension and case: equal for whatever any style can match."""
    name = file_name(path)
    while (shorter := without_suffix(name)) != name:
        name = shorter
    return name.casefold()


def composed(text: str) -> str:
    """The text with accents as one code point each (NFC)."""
    # macOS writes "é" as two code points, most tables as one: the same name to a person.
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Style:
    """One way to write the id of an image."""

    says: str
    of_image: Callable[[str], str]
    of_id: Callable[[str], str] = str


NAME, STEM, INSIDE = (
    Style("file names", file_name),
    Style("file names without extension", _stem),
    Style("paths in the image folder", inside),
)
STYLES = (
    NAME,
    STEM,
    INSIDE,
    Style("paths in the image folder without extension", lambda image: without_suffix(inside(image))),
    Style("paths in the data folder", str),
    Style("paths in the data folder without extension", without_suffix),
    Style("file names with another extension", _stem, without_suffix),
)
FOLDERS, PREFIXES = Style("folders of images", str), Style("file names up to a separator", str)  # one id, several images
NUMBERS = Style("the numbers of files without leading zeros", lambda image: _number_of(_stem(image)), lambda text: _number_of(text.strip()))
LINKED = Style("led to images by another table", str)
SEVERAL_EACH = (FOLDERS, PREFIXES, LINKED)
LOOSE = Style("alike", lambda image: _bare(image), lambda text: _bare(text.strip().replace("\\", "/")))


@dataclass(frozen=True)
class Match:
    """For every id the images it may mean (none, one, or several: ambiguous), under one style."""

    style: Style
    images: tuple[tuple[str, ...], ...]

    @property
    def num_unique(self) -> int:
        """How many different images are meant by an id that means no other image."""
        return len({found[0] for found in self.images if len(found) == 1})

    @property
    def num_single(self) -> int:
        """How many ids mean one image."""
        return sum(len(found) == 1 for found in self.images)

    @property
    def num_found(self) -> int:
        """How many ids mean an image, or several."""
        return sum(bool(found) for found in self.images)

    def problems(self, ids: Sequence[str], lines: Sequence[int], index: ImageIndex, advice: str, groups: bool = False) -> list[str]:
        """Which of the ids have no image, and (unless an id may have several: `groups`) which may be several; `lines` are their rows."""
        missing = [row for row, images in enumerate(self.images) if not images]
        several = [row for row, images in enumerate(self.images) if len(images) > 1 and not groups]
        problems = []
        if missing:
            shown = [f"{ids[row]!r} in row {lines[row]}{index.alike(ids[row])}" for row in missing[:MAX_NAMED]]
            more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
            problems.append(f"{len(missing):,} of {counted(len(ids), 'id')} without an image: {', '.join(shown)}{more}; {advice}")
        tops = sorted({image.split("/")[0] for row in several for image in self.images[row] if "/" in image})
        if len(tops) > 1:
            both = " and ".join(f"{name}/" for name in tops)
            return [*problems, f"{counted(len(several), 'id')} found in {both}; {hide_command(index.root, tops)}"]
        twice = [
            f"row {lines[row]}: {ids[row]!r} may be {' or '.join(self.images[row])}: keep one, or write ids as paths" for row in several
        ]
        return problems + capped(twice, "ids may be several images")


class ImageIndex:
    """Finds images (paths in the data folder) by id."""

    def __init__(self, folder: DataFolder, images: Iterable[str]):
        self.root, self.images, self.part_of = folder.root, list(images), folder.parts.of
        self._keys: dict[str, dict[str, list[str]]] = {}

    def match(self, ids: Sequence[str]) -> Match:
        """The reading of `ids` that finds the most images, each by its own id; the earlier style wins a tie."""
        best, best_rank = Match(NAME, ((),) * len(ids)), (0, 0)
        # Most columns hold no ids at all; one look-up tells, seven would be slow.
        loose = self._keys_of(LOOSE)
        if not any(composed(LOOSE.of_id(image_id)) in loose for image_id in ids):
            return best
        depth = ids[0].count("/")
        for style in (*STYLES, *_tails(depth)) if depth else STYLES:
            match = self._read(ids, style)
            rank = (match.num_unique, match.num_found)
            if rank > best_rank:
                best, best_rank = match, rank
            if rank[0] == len(ids):
                break
        return best

    def match_numbers(self, ids: Sequence[str]) -> Match:
        """`ids` as numbers that lost their leading zeros (`7` for `0007.jpg`), as spreadsheets write them."""
        return self._read(ids, NUMBERS)

    def match_groups(self, ids: Sequence[str]) -> Match:
        """The reading of `ids` as several images each, those in a folder of that name or whose names begin so (`<id>_red.png`)."""
        best = Match(FOLDERS, ((),) * len(ids))
        for style, keys_of in ((FOLDERS, _folders_of), (PREFIXES, _prefixes_of)):
            if style.says not in self._keys:
                keys: dict[str, list[str]] = {}
                for image in self.images:
                    for key in keys_of(image):
                        keys.setdefault(composed(key), []).append(image)
                self._keys[style.says] = keys
            match = self._read(ids, style)
            if match.num_found > best.num_found:
                best = match
        return best

    def alike(self, image_id: str) -> str:
        """` (nearest: 'x.jpg')` for an image whose name differs from the id only in folder, extension or case; else empty."""
        found = self._read([image_id], LOOSE).images[0]
        return f" (nearest: {found[0]!r})" if found else ""

    def _read(self, ids: Sequence[str], style: Style) -> Match:
        keys = self._keys.get(style.says) or self._keys_of(style)
        found = []
        for image_id in ids:
            key = composed(style.of_id(image_id))
            found.append(tuple(keys.get(key) or keys.get(key.strip()) or ()))
        return Match(style, tuple(found))

    def _keys_of(self, style: Style) -> dict[str, list[str]]:
        if style.says not in self._keys:
            keys: dict[str, list[str]] = {}
            for image in self.images:
                keys.setdefault(composed(style.of_image(image)), []).append(image)
            self._keys[style.says] = keys
        return self._keys[style.says]


def settled(match: Match, part_of: Callable[[str], str]) -> tuple[Match, str]:
    """The match with one image for each id that was found in several folders, and what is to be said of it (empty: nothing was to settle).

    Training folders outrank folders of which nothing tells; then the folder whose name the others only add a word to (`train` beside
    `trainResized`). Where that does not settle every id, the match stays as it was.
    """
    several = {images for images in match.images if len(images) > 1}
    if not several or match.style in SEVERAL_EACH:
        return match, ""
    named = {top: part_of(next(image for images in several for image in images if _top(image) == top)) for top in _tops(several)}
    trained = [top for top in named if named[top] in ("train", "test")]
    plainest = [top for top in trained if all(other == top or _adds_a_word(_plain_top(top), _plain_top(other)) for other in trained)]
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
    """The words of a folder's name that are not about images as such: `train` for `train_images`, `trainmasks` for `train_masks`."""
    return "".join(word for word in words_of(name) if word not in BESIDE or word in ("resized", "small", "cropped", "crops", "additional"))


def _adds_a_word(name: str, longer: str) -> bool:
    """True where `longer` is `name` and a word: `trainresized`, and not `train2` or `trainb`."""
    return longer.startswith(name) and re.fullmatch(r"[^\W\d_]{3,}", longer[len(name) :]) is not None


def _tails(depth: int) -> tuple[Style, Style]:
    """Paths of which the first folders are not written: `images/1.jpg` for `imgs/train/images/1.jpg`."""

    def tail(image: str) -> str:
        return "/".join(image.split("/")[-depth - 1 :])

    says = f"ends of paths, {depth + 1} parts"
    return Style(says, tail), Style(f"{says}, without extension", lambda image: without_suffix(tail(image)))


def _folders_of(image: str) -> list[str]:
    return list(dict.fromkeys(image.split("/")[:-1]))


def _prefixes_of(image: str) -> list[str]:
    stem = _stem(image)
    return [stem[: found.start()] for found in re.finditer(r"[_\-. ]", stem) if found.start()]


def short_ids(images: Sequence[str]) -> tuple[list[str], str]:
    """One id for every image, and how it is written: stems, or file names where stems collide, or paths where names collide."""
    for style in (STEM, NAME, INSIDE):
        ids = [style.of_image(image) for image in images]
        if len(set(ids)) == len(ids):
            return ids, style.says
    return list(images), "paths in the data folder"
