"""The ways to write the id of an image: its file name, its stem, a path, a number, a folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pipeline.competition.folders import IMAGE_SUFFIXES, suffix_of


def file_name(image: str) -> str:
    """Return the last part of the path, `1.jpg` for `train/cat/1.jpg`."""
    return image.rsplit("/", 1)[-1]


def inside(image: str) -> str:
    """Return the path below the first folder: `cat/1.jpg` for `train/cat/1.jpg`."""
    return image.split("/", 1)[-1]


def without_suffix(path: str) -> str:
    """Return `cat/1` for `cat/1.jpg`; a path without an image suffix is returned unchanged."""
    return path.rpartition(".")[0] if suffix_of(path) in IMAGE_SUFFIXES else path


def stem(image: str) -> str:
    """Return `1` for `train/cat/1.jpg`."""
    return without_suffix(file_name(image))


def number_of(text: str) -> str:
    """Return `7` for `0007` and `7.0`; text that is not a number is returned unchanged."""
    text = re.sub(r"^([0-9]+)\.0+$", r"\1", text)
    return (text.lstrip("0") or "0") if text.isascii() and text.isdigit() else text


def _bare(path: str) -> str:
    """Reduce a path to its name without folder, extensions and case.

    Ids that any style can match are equal in this form.
    """
    name = file_name(path)
    while (shorter := without_suffix(name)) != name:
        name = shorter
    return name.casefold()


def composed(text: str) -> str:
    """Return the text in NFC: each accented letter is one code point."""
    # macOS writes "é" as two code points, most tables as one; both are the same name.
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Style:
    """One way to write the id of an image. `says` describes it in messages."""

    says: str
    of_image: Callable[[str], str]
    of_id: Callable[[str], str] = str


NAME = Style("file names", file_name)
STEM = Style("file names without extension", stem)
INSIDE = Style("paths in the image folder", inside)
STYLES = (
    NAME,
    STEM,
    INSIDE,
    Style("paths in the image folder without extension", lambda image: without_suffix(inside(image))),
    Style("paths in the data folder", str),
    Style("paths in the data folder without extension", without_suffix),
    Style("file names with another extension", stem, without_suffix),
)
DEEPEST = 60  # folders in a path
ENDS = Style("file names or ends of paths", str)  # of several keys an image
UPLOADED = r"[0-9a-f]{8}-."  # how names begin that Label Studio gives
# one id, several images
FOLDERS, PREFIXES = Style("folders of images", str), Style("file names up to a separator", str)
NUMBERS = Style(
    "the numbers of files without leading zeros",
    lambda image: number_of(stem(image)),
    lambda text: number_of(without_suffix(text.strip())),
)
NO_CASE = Style(
    "file names in upper or lower case",
    lambda image: stem(image).casefold(),
    lambda text: without_suffix(text.strip()).casefold(),
)
LINKED = Style("led to images by another table", str)
SEVERAL_EACH = (FOLDERS, PREFIXES, LINKED)
LOOSE = Style("alike", lambda image: _bare(image), lambda text: _bare(text.strip().replace("\\", "/")))


def styles_of_paths(ids: Sequence[str]) -> list[Style]:
    """Return more styles for ids with folders: they are the ends of the paths of images.

    Folders that begin all ids may be those of another machine (`/kaggle/input/x/train/1.jpg`), absent here;
    the last folder of an id must be there.
    """
    steps = [image_id.split("/")[:-1] for image_id in ids if image_id.count("/") <= DEEPEST]
    if len(steps) < len(ids):
        return []  # such a text is no path, and each beginning of it would be a style
    depths = {len(folders) for folders in steps}
    if depths == {0}:
        return []
    styles = list(_tails(len(steps[0]))) if len(depths) == 1 else [ENDS]
    shared = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*steps, strict=False))]
    for count in range(1, min(len(shared), len(steps[0]) - 1) + 1) if len(depths) == 1 else ():
        styles += _tails(len(steps[0]) - count, f"{'/'.join(shared[:count])}/")
    return styles


def _tails(depth: int, absent: str = "") -> tuple[Style, Style]:
    """Return styles for paths without their first folders: `images/1.jpg` for `imgs/train/images/1.jpg`.

    `absent`: what ids have before that.
    """

    def tail(image: str) -> str:
        return "/".join(image.split("/")[-depth - 1 :])

    says = f"ends of paths, {depth + 1} parts" + (f", after {absent}" if absent else "")
    return Style(says, tail, lambda text: text.removeprefix(absent)), Style(
        f"{says}, without extension",
        lambda image: without_suffix(tail(image)),
        lambda text: text.removeprefix(absent),
    )


def behind(shared: str, of_id: Callable[[str], str], begin: int) -> Style:
    """Return the style of file names behind folders that are not here; `begin`: where the name begins."""
    of_image = stem if of_id is without_suffix else file_name
    return Style(
        f"file names behind {shared}/{'1a2b3c4d-' if begin else ''}"
        + (", with another extension" if of_image is stem else ""),
        of_image,
        lambda text: of_id(file_name(text.strip())[begin:]),
    )


def ends_of(image: str) -> list[str]:
    """Return all ends of a path: `1.jpg`, `train/1.jpg`."""
    steps = image.split("/")
    return ["/".join(steps[place:]) for place in range(len(steps))]


def folders_of(image: str) -> list[str]:
    """Return the names of the folders around an image: `train` and `cat` for `train/cat/1.jpg`."""
    return list(dict.fromkeys(image.split("/")[:-1]))


def prefixes_of(image: str) -> list[str]:
    """Return the beginnings of its name up to a separator: `p1` and `p1_left` for `p1_left_2.jpg`."""
    name = stem(image)
    return [name[: found.start()] for found in re.finditer(r"[_\-. ]", name) if found.start()]


def short_ids(images: Sequence[str]) -> tuple[list[str], str]:
    """Return one unique id per image and their style: stems, else file names, else paths below the folder,
    else full paths.
    """
    for style in (STEM, NAME, INSIDE):
        ids = [style.of_image(image) for image in images]
        if len(set(ids)) == len(ids):
            return ids, style.says
    return list(images), "paths in the data folder"
