"""Read and write competition.yaml, the file in a data folder that describes the competition.

`make data` writes the slug; a person may add the rest.
"""

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
# of a public set: its name and source; the split of each image
SET_RECORD, SET_SPLITS = "dataset.json", "splits.csv"
NOTHING = ("", "null", "~")
TEMPLATE = """# What is known of this competition. train.py, inference.py, make score and make submit read it;
# flags win over it.
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
    """The values of competition.yaml. None or empty: the key is not set."""

    slug: str | None = None
    metric: str | None = None
    target: str | None = None
    positive_class: tuple[str, ...] = ()
    id_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    separator: str | None = None

    def asked(self, metric: str | None, kind: str | None, positive_class: tuple[str, ...]) -> Asked:
        """Combine the flags with this file: a flag wins, the file fills the gaps."""
        return Asked(
            metric or self.metric, kind or self.target, positive_class or self.positive_class, self.separator
        )


KEYS = tuple(field.name for field in fields(CompetitionFacts))


def read_facts(data_dir: Path) -> CompetitionFacts:
    """Read competition.yaml in `data_dir`; without it, the slug in competition.json of earlier versions; else
    empty facts.

    Raises:
        UserError: the file cannot be read, or holds a key or value that is not allowed. All problems are
            listed.
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
    """Write the slug of the competition into competition.yaml and return its path. Other keys of the file are
    kept.

    Raises:
        UserError: an existing competition.yaml cannot be read.
    """
    path = Path(data_dir) / FACTS_FILE
    # quotes a slug that YAML would read as a number or a boolean
    line = yaml.safe_dump({"slug": slug}).strip()
    if not path.is_file():
        write_text(path, TEMPLATE.format(slug=line))
        return path
    if read_facts(data_dir).slug != slug:
        write_text(path, _with_slug(path.read_text(encoding="utf-8-sig"), line))
    return path


def _with_slug(text: str, line: str) -> str:
    """Return the text of competition.yaml with the `line` of a slug: in place of its own, else as a key."""
    node = yaml.compose(text)
    if not isinstance(node, yaml.MappingNode):  # comments alone
        return f"{text.rstrip()}\n{line}\n".lstrip()
    own = next(((key, value) for key, value in node.value if key.value == "slug"), None)
    if own is not None:
        start, end = own[0].start_mark.index, own[1].end_mark.index
        end -= len(text[start:end]) - len(text[start:end].rstrip())  # a text of several lines ends in one
        return text[:start] + line + text[end:]
    start = node.start_mark.index
    if node.flow_style:  # {metric: roc_auc}
        return f"{text[: start + 1]}{line}, {text[start + 1 :]}"
    return f"{text[:start]}{line}\n{' ' * node.start_mark.column}{text[start:]}"


def own_files(data_dir: Path) -> tuple[str, ...]:
    """Return the names of files in `data_dir` that this project writes; they are not data.

    The two files of a public set are listed only if dataset.json is really of a public set.
    """
    path = Path(data_dir) / SET_RECORD
    try:
        value = read_json(path) if path.is_file() else None
    except UserError:  # another file of this name: whoever reads it as data reports the problem
        value = None
    of_set = isinstance(value, dict) and {"dataset", "archives"} <= value.keys()
    return (FACTS_FILE, OLD_FILE, LEDGER_FILE, *((SET_RECORD, SET_SPLITS) if of_set else ()))


def _checked(values: Any, path: Path) -> CompetitionFacts:
    if values in (None, ""):
        return CompetitionFacts()
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected keys and values ({', '.join(KEYS)}), found {type(values).__name__}"
        )
    problems, known = [], {}
    for key, value in values.items():
        if key not in KEYS:
            problems.append(f"unknown key {key!r}{nearest(str(key), KEYS)}; allowed: {', '.join(KEYS)}")
        elif key == "positive_class":
            names = value if isinstance(value, list) else [] if value in NOTHING else [value]
            if not all(isinstance(name, str) for name in names):
                problems.append(f"{key}: expected a text or a list of texts, found {value!r}")
            known[key] = tuple(names)
        elif not isinstance(value, str):
            problems.append(f"{key}: expected a text, found {value!r}")
        else:
            # a slug may be "null"
            known[key] = None if value in NOTHING and (key != "slug" or not value) else value
    raise_all(problems, f"{path}:")
    return CompetitionFacts(**known)
