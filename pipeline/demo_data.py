"""Make the two competitions of the embedded example: letters and digits drawn from fonts, and handwritten
digits.

A small backbone learns strokes from the first and is fine-tuned on the second, so no download and no account
are needed.
"""

from __future__ import annotations

import csv
import string
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.shapes import read_object

if TYPE_CHECKING:
    import numpy as np

# Written last into the folder: how it was made. Hidden, and without a suffix that competition readers look
# for.
MARKER = ".made_by_demo"
# scikit-learn's digits are 8 x 8 counts of ink in a 32 x 32 bitmap; they are enlarged to 32 x 32
IMAGE_PX, COARSE_PX = 32, 8

NUM_TEST_DIGITS = 360
GLYPHS_PER_CLASS = 500

# The fonts of matplotlib that have all letters and digits; its other fonts hold symbols and brackets.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
CELL_PX, GLYPH_PX = 64, 40  # side of the image of a drawn glyph, and the longer side of the glyph


def lay_out_digits(data_dir: Path) -> None:
    """Make `data_dir` a competition of scikit-learn's 1,797 handwritten digits.

    1,437 are labelled, 360 are to be predicted, and solution.csv holds their labels. Does nothing when the
    folder is already complete.

    Raises:
        UserError: `data_dir` holds anything else.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    made = {
        "made": "digits",
        "source": "sklearn.datasets.load_digits: the test part of UCI's Optical Recognition of Handwritten "
        "Digits (E. Alpaydin, C. Kaynak)",
        "images": 1797,
    }
    data_dir = Path(data_dir)
    if _is_laid_out(data_dir, made):
        return
    digits = load_digits()
    images, labels = enlarge(digits.images / 16), [str(label) for label in digits.target]
    train, test = train_test_split(
        range(len(labels)), test_size=NUM_TEST_DIGITS, stratify=labels, random_state=0
    )
    with tempfile.TemporaryDirectory(prefix=f".{data_dir.name}.", dir=_parent(data_dir)) as temporary:
        folder = Path(temporary) / data_dir.name
        _save_classes(folder / "train", ((labels[index], images[index]) for index in train))
        # The order of the split is random, so ids do not reveal the digits.
        ids = [f"digit_{number:03d}" for number in range(1, len(test) + 1)]
        (folder / "test").mkdir()
        for name, index in zip(ids, test, strict=True):
            _save_png(folder / "test" / f"{name}.png", images[index])
        _save_csv(folder / "sample_submission.csv", ids, ["0"] * len(ids))
        _save_csv(folder / "solution.csv", ids, [labels[index] for index in test])
        _move_in(folder, data_dir, made)


def lay_out_glyphs(data_dir: Path, per_class: int = GLYPHS_PER_CLASS, seed: int = 0) -> None:
    """Make `data_dir` a folder of `train/<class>/` images of letters and digits, `per_class` of each
    class.

    The fonts come with matplotlib. Slant, width, stroke, position and bends differ from image to image; most
    images are as coarse as the handwritten digits. Does nothing when the folder is already complete.

    Raises:
        UserError: `data_dir` holds anything else, or matplotlib lacks one of the fonts.
    """
    import numpy as np

    classes = glyph_classes()
    made = {
        "made": "glyphs",
        "source": "fonts of matplotlib",
        "per_class": per_class,
        "seed": seed,
        "images": per_class * len(classes),
    }
    data_dir = Path(data_dir)
    if _is_laid_out(data_dir, made):
        return
    fields = distance_fields(list(classes.values()))
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix=f".{data_dir.name}.", dir=_parent(data_dir)) as temporary:
        folder = Path(temporary) / data_dir.name
        for number, name in enumerate(classes):
            images = draw(fields[rng.integers(len(FONTS), size=per_class), number], rng)
            _save_classes(folder / "train", ((name, image) for image in images))
        _move_in(folder, data_dir, made)


def glyph_classes() -> dict[str, str]:
    """Return the character of every class folder.

    The names differ in more than case: `lower_a` and `upper_A`, never `a` and `A`. Characters that look alike
    at equal size are left out: o, I, and capitals such as C and S.
    """
    digits = {f"digit_{char}": char for char in string.digits}
    lower = {f"lower_{char}": char for char in "abcdefghijklmnpqrstuvwxyz"}
    return digits | lower | {f"upper_{char}": char for char in "ABDEFGHJLMNQRTY"}


def distance_fields(chars: Sequence[str]) -> np.ndarray:
    """Return how far each pixel is inside (+) or outside (-) a character's outline, in pixels.

    (fonts, chars, 64, 64) float32. Every glyph is scaled until its longer side is 40 pixels, and centred, as
    handwritten digits fill their frame. A level other than 0 gives the same glyph with thicker or thinner
    strokes.

    Raises:
        UserError: matplotlib lacks one of the fonts.
    """
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import distance_transform_edt

    font_dir = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in FONTS if not (font_dir / f"{name}.ttf").is_file()]
    if missing:
        raise UserError(
            f"{font_dir} has no {', '.join(missing)}: install the version of matplotlib in constraints.txt"
        )
    fields = np.empty((len(FONTS), len(chars), CELL_PX, CELL_PX), np.float32)
    fine = 2  # drawn and measured at twice the size, then averaged
    for i, name in enumerate(FONTS):
        font = ImageFont.truetype(font_dir / f"{name}.ttf", 128, layout_engine=ImageFont.Layout.BASIC)
        for j, char in enumerate(chars):
            glyph = Image.new("L", (384, 384))
            ImageDraw.Draw(glyph).text((128, 96), char, fill=255, font=font)
            glyph = glyph.crop(glyph.getbbox())
            scale = GLYPH_PX * fine / max(glyph.size)
            glyph = glyph.resize(
                [max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BILINEAR
            )
            cell = Image.new("L", (CELL_PX * fine, CELL_PX * fine))
            cell.paste(glyph, tuple((CELL_PX * fine - side) // 2 for side in glyph.size))
            inside = np.asarray(cell) > 127
            field = (distance_transform_edt(inside) - distance_transform_edt(~inside)) / fine
            fields[i, j] = field.reshape(CELL_PX, fine, CELL_PX, fine).mean((1, 3))
    return fields


def draw(fields: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one image of each distance field (N, 64, 64), all different: (N, 32, 32) uint8, light strokes
    on black.
    """
    import numpy as np

    num, per_px = len(fields), GLYPH_PX / IMAGE_PX
    along = np.arange(IMAGE_PX, dtype=np.float32) - (IMAGE_PX - 1) / 2
    places = np.stack(np.meshgrid(along, along), -1).reshape(1, -1, 2)  # (1, 1024, xy), from the centre
    places = places + _bends(num, rng) + rng.uniform(-1.5, 1.5, (num, 1, 2))
    depth = _sample(fields, places @ (np.linalg.inv(_slants(num, rng)) * per_px).transpose(0, 2, 1)) / per_px

    # Squeezing a glyph makes its depth steeper across the squeezed strokes. Dividing by the slope keeps all
    # strokes equally thick.
    slope = np.hypot(*np.gradient(depth, axis=(1, 2)))
    # About half a stroke's width
    stroke = np.array([2 * np.median(field[field > 0]) for field in fields]) / per_px
    thicker = np.maximum(rng.uniform(1.8, 4.2, num) - stroke, -0.2 * stroke)
    softness = rng.uniform(0.8, 2.0, num)
    ink = (depth / np.clip(slope, 0.7, 2.0) + thicker[:, None, None]) / softness[:, None, None] + 0.5
    ink = np.clip(ink, 0, 1) * rng.uniform(0.85, 1.0, (num, 1, 1))

    cell = IMAGE_PX // COARSE_PX
    coarse = ink.reshape(num, COARSE_PX, cell, COARSE_PX, cell).mean((2, 4))
    as_digits = enlarge(np.round(coarse * 16) / 16)
    as_drawn = np.round(ink * 255).astype(np.uint8)
    return np.where(rng.random((num, 1, 1)) < 0.8, as_digits, as_drawn)


def enlarge(coarse: np.ndarray) -> np.ndarray:
    """Return images (N, 8, 8) of values in 0..1 as (N, 32, 32) uint8, by bicubic interpolation."""
    import numpy as np

    weights = _enlarging(COARSE_PX)
    return np.round(np.clip(weights @ coarse @ weights.T, 0, 1) * 255).astype(np.uint8)


def _slants(num: int, rng: np.random.Generator) -> np.ndarray:
    """Return random turn x slant x width and height, (num, 2, 2) on (x, y) columns."""
    import numpy as np

    turn, slant = np.deg2rad(rng.uniform(-12, 12, num)), rng.uniform(-0.3, 0.3, num)
    wide, high = rng.uniform(0.5, 1.0, num), rng.uniform(0.85, 1.1, num)
    cos, sin = np.cos(turn), np.sin(turn)
    rows = [[cos * wide, (cos * slant - sin) * high], [sin * wide, (sin * slant + cos) * high]]
    return np.array(rows).transpose(2, 0, 1)


def _bends(num: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth random shifts of every pixel, (num, 1024, xy): 4 x 4 shifts of up to about two pixels,
    interpolated.
    """
    weights = _enlarging(4)
    knots = rng.normal(size=(num, 2, 4, 4)) * rng.uniform(0, 2, (num, 1, 1, 1))
    return (weights @ knots @ weights.T).reshape(num, 2, -1).transpose(0, 2, 1)


def _enlarging(size: int) -> np.ndarray:
    """Return the (32, size) matrix of Pillow's bicubic interpolation along one axis."""
    import numpy as np
    from PIL import Image

    return np.asarray(
        Image.fromarray(np.eye(size, dtype=np.float32)).resize((size, IMAGE_PX), Image.Resampling.BICUBIC)
    )


def _sample(fields: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return each of `fields` (N, 64, 64) at its own `places` (N, 1024, xy) from the centre, bilinear, as
    (N, 32, 32).
    """
    import numpy as np

    places = places + (CELL_PX - 1) / 2
    corner = np.clip(np.floor(places).astype(int), 0, CELL_PX - 2)
    right, down = np.clip(places - corner, 0, 1).transpose(2, 0, 1)
    of, x, y = np.arange(len(fields))[:, None], corner[..., 0], corner[..., 1]
    above = fields[of, y, x] * (1 - right) + fields[of, y, x + 1] * right
    below = fields[of, y + 1, x] * (1 - right) + fields[of, y + 1, x + 1] * right
    return (above * (1 - down) + below * down).reshape(-1, IMAGE_PX, IMAGE_PX)


def _is_laid_out(data_dir: Path, made: dict[str, Any]) -> bool:
    """Return True when `data_dir` is complete and was made so; False when it is absent or empty."""
    if data_dir.is_file():
        raise UserError(f"{data_dir} is a file: move it away, or name another folder")
    if not data_dir.exists() or not any(data_dir.iterdir()):
        return False
    marker = data_dir / MARKER
    if not marker.is_file():
        raise UserError(
            f"{data_dir} holds files that the demo did not make: move it away, or name another folder"
        )
    found = read_object(marker)
    if found != made:
        what = ", ".join(
            f"{key} {found.get(key)} instead of {value}"
            for key, value in made.items()
            if found.get(key) != value
        )
        raise UserError(f"{data_dir} was made by the demo with {what}: move it away, or name another folder")
    num_images = sum(1 for _ in data_dir.glob("train/*/*.png")) + sum(1 for _ in data_dir.glob("test/*.png"))
    if num_images != made["images"]:
        raise UserError(
            f"{data_dir} has {num_images} images where the demo made {made['images']}: move it away, then "
            "run this again"
        )
    return True


def _parent(data_dir: Path) -> Path:
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    return data_dir.parent


def _move_in(folder: Path, data_dir: Path, made: dict[str, Any]) -> None:
    write_json(folder / MARKER, made)
    if data_dir.exists():
        data_dir.rmdir()  # empty, or this fails and nothing is lost
    folder.rename(data_dir)


def _save_classes(train_dir: Path, labelled: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write each image as `train_dir/<class>/NNNN.png`, numbered from 1 in every class."""
    counts: dict[str, int] = {}
    for name, image in labelled:
        if name not in counts:
            (train_dir / name).mkdir(parents=True)
        counts[name] = counts.get(name, 0) + 1
        _save_png(train_dir / name / f"{counts[name]:04d}.png", image)


def _save_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)


def _save_csv(path: Path, ids: Sequence[str], labels: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "label"))
        writer.writerows(zip(ids, labels, strict=True))
