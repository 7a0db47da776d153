"""The embedded example's two competitions, made on the spot: letters and digits drawn from fonts, and handwritten digits.

A small backbone learns shapes from the first and is adapted to the second, so the whole job runs without a download or an account.
"""

from __future__ import annotations

import csv
import json
import shutil
import string
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

MARKER = "made_by_demo.json"  # written last, inside the folder: names what made it, so that it is recognised later
IMAGE_PX, COARSE_PX = 32, 8  # scikit-learn's digits are 8 x 8 counts of a 32 x 32 bitmap; every image is enlarged to 32 again

NUM_TEST_DIGITS = 360
GLYPHS_PER_CLASS = 400

# Of matplotlib's fonts, those with all letters and digits; the others hold symbols or sizes of brackets.
FONT_FILES = tuple(
    f"{name}.ttf"
    for name in (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
        *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
    )
)

CELL_PX, GLYPH_PX = 64, 40  # a glyph's distance field: the longer side of the glyph takes 40 of 64 pixels
DRAWN_PX = 4 * CELL_PX  # distances are measured at four times that, then averaged


def glyph_classes() -> dict[str, str]:
    """The character of every class folder. Folder names differ in more than case: `lower_a` and `upper_A`, never `a` and `A`."""
    classes = {f"digit_{char}": char for char in string.digits}
    classes |= {f"lower_{char}": char for char in string.ascii_lowercase}
    return classes | {f"upper_{char}": char for char in string.ascii_uppercase}


def distance_fields(chars: Sequence[str]) -> np.ndarray:
    """How far each pixel lies inside (+) or outside (-) each character's outline, (fonts, chars, 64, 64) float32 in pixels.

    A glyph is scaled until its longer side is 40 pixels and put in the middle, as handwritten digits are. Thresholding the
    field at another level than 0 makes the strokes thicker or thinner.
    """
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import distance_transform_edt

    font_dir = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(font_dir / name, 256, layout_engine=ImageFont.Layout.BASIC) for name in FONT_FILES]
    fields = np.empty((len(fonts), len(chars), CELL_PX, CELL_PX), np.float32)
    per_pixel = DRAWN_PX // CELL_PX
    for i, font in enumerate(fonts):
        for j, char in enumerate(chars):
            glyph = Image.new("L", (768, 768))
            ImageDraw.Draw(glyph).text((256, 128), char, fill=255, font=font)
            glyph = glyph.crop(glyph.getbbox())
            scale = GLYPH_PX * per_pixel / max(glyph.size)
            size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
            canvas = Image.new("L", (DRAWN_PX, DRAWN_PX))
            canvas.paste(glyph.resize(size, Image.Resampling.BILINEAR), ((DRAWN_PX - size[0]) // 2, (DRAWN_PX - size[1]) // 2))
            inside = np.asarray(canvas) > 127
            field = distance_transform_edt(inside) - distance_transform_edt(~inside)
            fields[i, j] = field.reshape(CELL_PX, per_pixel, CELL_PX, per_pixel).mean((1, 3)) / per_pixel
    return fields
