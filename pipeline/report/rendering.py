"""Render a page from a template and values: every value is escaped, every image is embedded."""

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

SIZE_MARK = "\ue000size\ue000"  # placeholder in a page until its size is known
TEMPLATES = Path(__file__).parent / "templates"
Drawn = dict[str, tuple[Path, str]]  # figure name -> its file, and its alternative text


@dataclass(frozen=True)
class Script:
    """A script of this project: its text, and its digest for the Content-Security-Policy."""

    text: Markup
    digest: str


@cache
def script(name: str) -> Script:
    """Load a script from the templates folder."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Script(Markup(text), f"sha256-{digest}")


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template."""
    return _environment().get_template(template).render(**values)


def embedded(drawn: Drawn) -> dict[str, dict[str, Any]]:
    """Return figures for a page, at the size they were drawn for (96 CSS pixels per inch)."""
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
    environment.filters.update(
        number=measured, percent=percent, setting=setting, time=to_the_minute, brief=brief
    )
    return environment
