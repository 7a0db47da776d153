"""Which image file an id in a table means. Ids are text and are matched exactly, a whole column in one way of writing."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.competition.folders import IMAGE_SUFFIXES, DataFolder, hide_command, plain_name, suffix_of
from pipeline.errors import UserError
from pipeline.tables import Table
from pipeline.wording import MAX_NAMED, capped, counted, nearest, quoted

ID_NAMES = (
    *(
        "id",
        "ids",
        "idcode",
        "image",
        "imageid",
        "imageids",
        "images",
        "img",
        "imgid",
        "imagename",
        "imgname",
        "imagefile",
        "imagefilename",
    ),
    *(
        "file",
        "filename",
        "filenames",
        "fileid",
        "fname",
        "name",
        "path",
        "filepath",
        "imagepath",
        "imgpath",
        "photo",
        "photoid",
        "picture",
    ),
)
PROBED_ROWS = 500  # enough to tell an id column from another


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
    def num_found(self) -> int:
        """How many ids mean an image, or several."""
        return sum(bool(found) for found in self.images)

    def problems(self, ids: Sequence[str], lines: Sequence[int], index: ImageIndex, advice: str) -> list[str]:
        """Which of the ids have no image, and which may be several; `lines` are their row numbers."""
        missing = [row for row, images in enumerate(self.images) if not images]
        several = [row for row, images in enumerate(self.images) if len(images) > 1]
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
        self.root, self.images = folder.root, list(images)
        self._keys: dict[str, dict[str, list[str]]] = {}

    def match(self, ids: Sequence[str]) -> Match:
        """The reading of `ids` that finds the most images, each by its own id; the earlier style wins a tie."""
        best, best_rank = Match(NAME, ((),) * len(ids)), (0, 0)
        # Most columns hold no ids at all; one look-up tells, seven would be slow.
        if not any(self._read([image_id], LOOSE).images[0] for image_id in ids):
            return best
        for style in STYLES:
            match = self._read(ids, style)
            rank = (match.num_unique, match.num_found)
            if rank > best_rank:
                best, best_rank = match, rank
            if rank[0] == len(ids):
                break
        return best

    def alike(self, image_id: str) -> str:
        """` (nearest: 'x.jpg')` for an image whose name differs from the id only in folder, extension or case; else empty."""
        found = self._read([image_id], LOOSE).images[0]
        return f" (nearest: {found[0]!r})" if found else ""

    def _read(self, ids: Sequence[str], style: Style) -> Match:
        keys = self._keys_of(style)
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


def short_ids(images: Sequence[str]) -> tuple[list[str], str]:
    """One id for every image, and how it is written: stems, or file names where stems collide, or paths where names collide."""
    for style in (STEM, NAME, INSIDE):
        ids = [style.of_image(image) for image in images]
        if len(set(ids)) == len(ids):
            return ids, style.says
    return list(images), "paths in the data folder"


def find_ids(table: Table, index: ImageIndex, given: str | None = None) -> tuple[str, Match]:
    """The id column of a table (`given`, or the one whose cells find the most images), and the images that its ids mean.

    Raises:
        UserError: there is no column `given`, or two columns find different images.
    """
    flag = "--set data.id_column=NAME"
    if given:
        name = column_called(table, given, flag)
        return name, index.match(table.column(name))
    probes = {name: index.match(table.column(name)[:PROBED_ROWS]) for name in table.columns}
    ranks = {name: (match.num_unique, match.num_found) for name, match in probes.items()}
    most = max(ranks.values())
    best = [name for name in probes if ranks[name] == most]
    best = [name for name in best if plain_name(name) in ID_NAMES] or best
    if most > (0, 0) and len({probes[name].images for name in best}) > 1:
        raise UserError(f"{table.path}: the columns {quoted(best)} name different images; say which is the id with {flag}")
    return best[0], index.match(table.column(best[0]))


def column_called(table: Table, name: str, flag: str) -> str:
    """The column `name` of a table; spaces around the names in the file do not matter.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    for column in table.columns:
        if name in (column, column.strip()):
            return column
    raise UserError(
        f"{table.path} has no column {name!r}{nearest(name, table.columns)}; its columns: {quoted(table.columns)}; {flag} names one"
    )
