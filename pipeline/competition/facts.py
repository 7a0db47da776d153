"""competition.yaml in a data folder: what somebody knows of the competition. `make data` writes what it knows, a person may edit the rest."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError, raise_all
from pipeline.files import read_json, read_yaml, write_text
from pipeline.targets.evidence import Asked
from pipeline.wording import nearest

FACTS_FILE, OLD_FILE = "competition.yaml", "competition.json"
LEDGER_FILE = "submissions.csv"
SET_RECORD, SET_SPLITS = "dataset.json", "splits.csv"  # of a public set: which one it is, and where its images were in it
NOTHING = ("", "null", "~")
TEMPLATE = """# What is known of this competition. train.py, inference.py, make score and make submit read it; flags win over it.
{slug}
# metric: roc_auc              # how the competition's page says it is scored
# target: binary               # multiclass, binary, multilabel, ordinal or continuous
# positive_class: dog          # whose probability is graded; several as a list
# id_column: image_id          # of the table of labels
# label_column: label
# group_column: patient_id     # rows of one group are never split
# separator: " "               # between several labels in one cell
"""


@dataclass(frozen=True)
class CompetitionFacts:
    """What competition.yaml says; None and empty: nothing."""

    slug: str | None = None
    metric: str | None = None
    target: str | None = None
    positive_class: tuple[str, ...] = ()
    id_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    separator: str | None = None

    def asked(self, metric: str | None, kind: str | None, positive_class: tuple[str, ...]) -> Asked:
        """What the flags say, and where they say nothing, this file."""
        return Asked(metric or self.metric, kind or self.target, positive_class or self.positive_class, self.separator)


KEYS = tuple(field.name for field in fields(CompetitionFacts))


def read_facts(data_dir: Path) -> CompetitionFacts:
    """What competition.yaml in `data_dir` says (competition.json of earlier versions: its slug); nothing where there is neither.

    Raises:
        UserError: it cannot be read, or holds a key or value that is not allowed; every problem at once.
    """
    path, old = Path(data_dir) / FACTS_FILE, Path(data_dir) / OLD_FILE
    if path.is_file():
        return _checked(read_yaml(path, as_texts=True), path)
    if old.is_file():
        value = read_json(old)
        slug = value.get("slug") if isinstance(value, dict) else None
        if not isinstance(slug, str) or not slug:
            raise UserError(f'{old} should hold {{"slug": "<competition>"}}: repair or delete it')
        return CompetitionFacts(slug=slug)
    return CompetitionFacts()


def write_slug(data_dir: Path, slug: str) -> Path:
    """Write down which competition `data_dir` holds; what competition.yaml says besides stays as it is. The file's path.

    Raises:
        UserError: there is a competition.yaml that cannot be read.
    """
    path = Path(data_dir) / FACTS_FILE
    line = yaml.safe_dump({"slug": slug}).strip()  # quotes what YAML would read as a number or as yes and no
    if not path.is_file():
        write_text(path, TEMPLATE.format(slug=line))
        return path
    if read_facts(data_dir).slug != slug:
        lines = [text for text in path.read_text(encoding="utf-8").splitlines() if not text.startswith("slug:")]
        write_text(path, "\n".join([line, *lines]) + "\n")
    return path


def own_files(data_dir: Path) -> tuple[str, ...]:
    """Names of the files that this project writes into `data_dir`: they tell nothing of images. Those of a public set only where it is one."""
    path = Path(data_dir) / SET_RECORD
    try:
        value = read_json(path) if path.is_file() else None
    except UserError:  # not ours; what it is shows where it is read as data
        value = None
    of_set = isinstance(value, dict) and {"dataset", "archives"} <= value.keys()
    return (FACTS_FILE, OLD_FILE, LEDGER_FILE, *((SET_RECORD, SET_SPLITS) if of_set else ()))


def _checked(values: Any, path: Path) -> CompetitionFacts:
    if values in (None, ""):
        return CompetitionFacts()
    if not isinstance(values, dict):
        raise UserError(f"{path}: keys and values are expected ({', '.join(KEYS)}), found {type(values).__name__}")
    problems, known = [], {}
    for key, value in values.items():
        if key not in KEYS:
            problems.append(f"unknown key {key!r}{nearest(str(key), KEYS)}; allowed: {', '.join(KEYS)}")
        elif key == "positive_class":
            known[key] = tuple(map(str, value)) if isinstance(value, list) else () if value in NOTHING else (value,)
        elif not isinstance(value, str):
            problems.append(f"{key}: a text is expected, found {value!r}")
        else:
            known[key] = None if value in NOTHING and (key != "slug" or not value) else value  # a slug is remembered as it is
    raise_all(problems, f"{path}:")
    return CompetitionFacts(**known)
