"""Write kernel.py or kernel.ipynb, the one code file that Kaggle runs, from a template; its parts are the
notebook's cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json

TEMPLATE = Path(__file__).with_name("kernel.py.txt")
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
# Packages that prediction imports. Their oldest versions are in requirements.txt.
NEEDED = tuple("torch torchvision transformers safetensors pandas numpy pillow tqdm pyyaml pydantic".split())
TIMM = ("timm", "1.0.22")
READERS = {"pydicom": "3.0", "pylibjpeg": "2.0"}  # of packages that convert images; others: any version
_CELL = re.compile(r"^# %%(\+?) (.+)\n", re.MULTILINE)


@dataclass(frozen=True)
class Settings:
    """The values for the template."""

    competition: str
    dataset: str  # owner/slug
    runs: tuple[str, ...]
    digest: str  # of the bundle
    hours: float = 9.0
    batch_size: int = 32
    precision: str = "auto"
    needs_timm: bool = False
    wheels: tuple[str, ...] = ()  # requirements shipped in the bundle
    readers: tuple[str, ...] = ()  # packages that convert the test set to images


def script_text(settings: Settings) -> str:
    """Return the text of kernel.py."""
    return _filled(
        "".join(f"# %% {title}\n{code}" if title else code for title, code in _parts(notebook=False)),
        settings,
    )


def notebook_text(settings: Settings) -> str:
    """Return the text of kernel.ipynb (format 4): a heading and a code cell per part, and two more cells to
    look at data and predictions.

    Raises:
        UserError: nbformat is not installed.
    """
    try:
        import nbformat
        from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    except ImportError:
        raise UserError("--notebook needs the package nbformat: python -m pip install nbformat") from None
    cells = []
    for title, code in _parts(notebook=True):
        text = _filled(code, settings).strip()
        if not title:
            cells.append(new_markdown_cell("\n".join(line.removeprefix("# ") for line in text.splitlines())))
            continue
        cells += [new_markdown_cell(f"## {title}"), new_code_cell(text)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # nbformat draws random ids; equal settings must give an equal file
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    notebook = new_notebook(cells=cells, metadata=kernel)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def code_of(path: Path) -> str:
    """Return the Python code of kernel.py, or of all code cells of kernel.ipynb in order.

    Raises:
        UserError: the notebook is damaged.
    """
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    value = read_json(path)
    try:
        cells = [cell["source"] for cell in value["cells"] if cell["cell_type"] == "code"]
        return "\n\n".join(cell if isinstance(cell, str) else "".join(cell) for cell in cells) + "\n"
    except (KeyError, TypeError):
        raise UserError(
            f"{path} is not a notebook of format 4 with cells: delete it, `make kernel` writes a new one"
        ) from None


def oldest_versions(needs_timm: bool) -> dict[str, str]:
    """Return package -> oldest version, for the packages that prediction imports."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    known = dict(found.groups() for line in lines if (found := re.match(r"([a-z0-9_-]+)>=([\d.]+)", line)))
    return {name: known[name] for name in NEEDED} | (dict([TIMM]) if needs_timm else {})


def check_edited(path: Path, settings: Settings) -> None:
    """Check that an edited code file uses the bundle of `settings`, or checks no digest.

    Raises:
        UserError: it names an earlier bundle, and would stop on Kaggle with NOT MOUNTED or ANOTHER VERSION.
    """
    found = re.search(r'^BUNDLE = "(\w*)"', code_of(path), re.MULTILINE)
    if found and found[1] != settings.digest:
        raise UserError(
            f"{path} was edited and is kept, but it was made for an earlier bundle: write this line into it, "
            f'or delete the file and `make kernel` writes a new one:\n  BUNDLE = "{settings.digest}"'
        )


def _parts(notebook: bool) -> list[tuple[str, str]]:
    """Return (title, code) of the template's parts; the first has no title and is the comment at the top."""
    pieces = _CELL.split(TEMPLATE.read_text(encoding="utf-8"))
    found = [("", pieces[0])]
    for mark, title, code in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if notebook or not mark:
            found.append((title, code))
    return found


def _filled(text: str, settings: Settings) -> str:
    values: dict[str, object] = {
        "@HOURS@": settings.hours,
        "@BATCH_SIZE@": settings.batch_size,
        "@PRECISION@": settings.precision,
        "@COMPETITION@": settings.competition,
        "@BUNDLE@": settings.digest,
        "@NEEDS@": oldest_versions(settings.needs_timm)
        | {name: READERS.get(name, "0") for name in settings.readers}
        | _shipped(settings.wheels),
    }
    for mark, value in values.items():
        text = text.replace(mark, repr(value).replace("'", '"'))
    texts = {
        "@COMPETITION_TEXT@": settings.competition,
        "@RUNS@": _one_line(settings.runs),
        "@DATASET@": settings.dataset,
    }
    for mark, value in texts.items():
        text = text.replace(mark, value)
    return text


def _shipped(wheels: Sequence[str]) -> dict[str, str]:
    """Return package -> oldest version of requirements such as `timm>=1.0.22`; "0" without a version."""
    found = (re.match(r"([\w.-]+)(?:\[.*\])?\s*(?:[=~>]=\s*([\d.]+))?", wheel) for wheel in wheels)
    return {match[1]: match[2] or "0" for match in found if match}


def _one_line(runs: Sequence[str]) -> str:
    """Return the runs' names on one line for a comment; unsafe characters become "?"."""
    return " + ".join(re.sub(r"[^\w .()+-]", "?", run) for run in runs)[:100]
