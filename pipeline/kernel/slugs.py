"""Write and check the two metadata files of the kaggle command; some mistakes in them fail without a
message.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json
from pipeline.wording import quoted

KERNEL_METADATA = "kernel-metadata.json"
UNKNOWN_OWNER = "your-kaggle-name"  # placeholder without a signed-in account
CODE_SUFFIXES = (".py", ".ipynb", ".r", ".rmd")
# Length limits of a dataset's title and slug, as the kaggle command checks them; a kernel's title needs 5 at
# least.
SHORTEST, LONGEST = 6, 50
# Values of `kaggle kernels push --accelerator` (docs/kernels.md of Kaggle/kaggle-cli, September 2026); some
# are only available in certain competitions. NvidiaTeslaT4 means two T4 (Kaggle/kaggle-cli#1198, 2026-09-17).
GPUS = ("NvidiaTeslaT4", "NvidiaTeslaA100", "NvidiaL4", "NvidiaL4X1", "NvidiaH100", "NvidiaRtxPro6000")
ACCELERATORS = ("none", *GPUS)


@dataclass(frozen=True)
class Names:
    """Names of the dataset and the kernel on Kaggle."""

    owner: str
    base: str

    @property
    def dataset(self) -> str:
        """The bundle's reference, owner/slug."""
        return f"{self.owner}/{self.base}-bundle"

    @property
    def kernel(self) -> str:
        """The kernel's reference, owner/slug."""
        return f"{self.owner}/{self.base}"


def slug_of(text: str) -> str:
    """Return the slug that Kaggle makes from a title: small letters and digits, with single dashes
    between.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def make_names(owner: str, competition: str, run_name: str, wanted: str | None = None) -> Names:
    """Make the names for a run's kernel, from `wanted` or else from competition and run.

    Raises:
        UserError: `wanted` is not a valid name.
    """
    longest = LONGEST - len("-bundle")
    if wanted is None:
        base = slug_of(f"{competition} {run_name}")[:longest].strip("-")
        return Names(owner, base if len(base) >= SHORTEST else f"{base}-kernel".strip("-"))
    if slug_of(wanted) != wanted or not SHORTEST <= len(wanted) <= longest:
        raise UserError(
            f"--name {wanted}: expected {SHORTEST} to {longest} small letters, digits and single dashes, "
            f"such as {slug_of(wanted)!r}"
        )
    return Names(owner, wanted)


def title_of(reference: str) -> str:
    """Return the title whose slug is that of `reference`; with another title Kaggle would make another
    kernel.
    """
    return reference.partition("/")[2].replace("-", " ")


def dataset_metadata(names: Names) -> dict[str, Any]:
    """Return the content of dataset-metadata.json."""
    return {"title": title_of(names.dataset), "id": names.dataset, "licenses": [{"name": "other"}]}


def kernel_metadata(names: Names, competition: str, code_file: str, accelerator: str) -> dict[str, Any]:
    """Return the content of kernel-metadata.json.

    All settings are explicit, so Kaggle's defaults do not matter.
    """
    values: dict[str, Any] = {
        "id": names.kernel,
        "title": title_of(names.kernel),
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
        "is_private": True,
        "enable_gpu": accelerator != "none",
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [names.dataset],
        "competition_sources": [competition],
        "kernel_sources": [],
        "model_sources": [],
    }
    return values if accelerator == "none" else values | {"machine_shape": accelerator}


def check_kernel(folder: Path, names: Names, competition: str) -> dict[str, Any]:
    """Check the kernel folder and return its kernel-metadata.json.

    The checks find mistakes that Kaggle does not report.

    Raises:
        UserError: lists all mistakes.
    """
    path = folder / KERNEL_METADATA
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; delete it, `make kernel` writes a new one")
    problems = [*_setting_problems(values, names, competition), *_file_problems(folder, values)]
    raise_all(problems, f"{folder} would not run correctly, so nothing was pushed:")
    return values


def _setting_problems(values: dict[str, Any], names: Names, competition: str) -> list[str]:
    problems = []
    if _switch(values, "enable_internet") is not False:
        found = (
            repr(values["enable_internet"]) if "enable_internet" in values else "no value, which means true"
        )
        problems.append(
            f"enable_internet: expected false, found {found}: a version with internet cannot be submitted"
        )
    if _switch(values, "is_private") is not True:
        problems.append(
            f"is_private: expected true, found {values.get('is_private')!r}: everybody would see the kernel"
        )
    if values.get("id") != names.kernel:
        problems.append(
            f"id: expected {names.kernel!r}, found {values.get('id')!r}: another kernel, or another account's"
        )
    title = str(values.get("title") or "")
    if slug_of(title) != str(values.get("id")).rpartition("/")[2]:
        problems.append(
            f"title {title!r} has the slug {slug_of(title)!r}, but the id has another: Kaggle would make "
            "another kernel"
        )
    if names.dataset not in (values.get("dataset_sources") or []):
        problems.append(
            f"dataset_sources: {names.dataset!r} is not in {values.get('dataset_sources')!r}: the model "
            "would be missing"
        )
    if competition not in (values.get("competition_sources") or []):
        problems.append(
            f"competition_sources: {competition!r} is not in {values.get('competition_sources')!r}: the "
            "images would be missing"
        )
    return problems


def _file_problems(folder: Path, values: dict[str, Any]) -> list[str]:
    code_file = str(values.get("code_file") or "")
    problems = []
    if not code_file or not (folder / code_file).is_file():
        problems.append(f"code_file: {code_file!r} is not in {folder}")
    kind = "notebook" if code_file.endswith(".ipynb") else "script"
    if values.get("kernel_type") != kind:
        problems.append(
            f"kernel_type: expected {kind!r} for {code_file}, found {values.get('kernel_type')!r}"
        )
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in CODE_SUFFIXES and path.name != code_file
    )
    if others:
        problems.append(
            f"only {code_file} is pushed, without {quoted(others)}: copy the needed code into {code_file}"
        )
    return problems


def _switch(values: dict[str, Any], key: str) -> bool | None:
    value = values.get(key)
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    if isinstance(value, bool):
        return value
    return None
