"""A template and values to a page: every value escaped, every image inside the page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from pipeline.report import figures
from pipeline.report.words import brief, measured, percent, setting, to_the_minute

SIZE_MARK = "\ue000size\ue000"  # in a page until it is known how large it is
TEMPLATES = Path(__file__).parent / "templates"
Drawn = dict[str, tuple[Path, str]]  # a figure's name -> its file, and words for who cannot see it


@dataclass(frozen=True)
class Script:
    """A script of ours for a page: its text, and its digest as a Content-Security-Policy names it."""

    text: Markup
    digest: str


@cache
def script(name: str) -> Script:
    """The script in a file of this folder's templates."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Script(Markup(text), f"sha256-{digest}")


def render(template: str, **values: Any) -> str:
    """The HTML of a template in this folder."""
    return _environment().get_template(template).render(**values)


def embedded(drawn: Drawn) -> dict[str, dict[str, Any]]:
    """Figures for a page, at the size they were drawn for (96 CSS pixels an inch)."""
    return {name: _image(path, alt) for name, (path, alt) in drawn.items()}


def _image(path: Path, alt: str) -> dict[str, Any]:
    with Image.open(path) as image:
        width, height = (round(side * 96 / figures.DPI) for side in image.size)
    return {
        "src": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}",
        "alt": alt,
        "width": width,
        "height": height,
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=measured, percent=percent, setting=setting, time=to_the_minute, brief=brief)
    return environment
