"""Read the tables and JSON files beside the images; their names say what role each may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.competition.folders import DataFolder, plain_name
from pipeline.competition.json_tables import load_json_table
from pipeline.competition.line_tables import text_table
from pipeline.competition.parts import words_of
from pipeline.errors import UserError
from pipeline.tables import Table, load_table

TRAIN_TABLES = tuple(
    "train labels label trainlabels trainlabel traininglabels training trainset traindata".split()
)
MAX_TABLES, MAX_TEXTS, MAX_JSON = 60, 20, 20  # more files of one kind: each probably describes a single image


@dataclass(frozen=True)
class Source:
    """A table, or a JSON file as a table. `name` is its path in the data folder."""

    name: str
    table: Table
    is_json: bool = False

    @property
    def role(self) -> str:
        """The role that the name suggests: "train", "test", "sample", "answers" (solutions, predictions), or
        "".
        """
        return role_of(self.name)


@dataclass(frozen=True)
class Sources:
    """All tables that could be read. `broken`: name -> its error. `seen`: files that are not read at all."""

    found: tuple[Source, ...]
    broken: dict[str, UserError]
    seen: tuple[str, ...]

    def of_role(self, *roles: str) -> list[Source]:
        """Return the tables with one of these roles."""
        return [source for source in self.found if source.role in roles]


def role_of(name: str) -> str:
    """Return the role that a file's name suggests; see `Source.role`."""
    stem = Path(name).name
    words = words_of(stem)
    plain = plain_name(stem)
    trains = any(word.startswith("train") for word in words)
    if is_sample_name(stem):
        return "sample"
    if trains or plain in TRAIN_TABLES:
        return "train"
    if (
        any(word.startswith(("solution", "prediction", "submission", "answers")) for word in words)
        or plain == "submit"
    ):
        return "answers"
    return "test" if words and any(word in ("test", "tests", "testing", "testset") for word in words) else ""


def is_sample_name(name: str) -> bool:
    """Return True for the spellings of `sample_submission.csv`: `SubmissionFormat.csv`,
    `kaggle_sample_submission_v2 (1).csv`, `solution_template.csv`.
    """
    plain = plain_name(Path(name).name)
    about = any(word in plain for word in ("sample", "example", "format", "template"))
    plain = plain.replace("subset", "").replace("subject", "").replace("resolution", "")
    return about and any(word in plain for word in ("sub", "solution", "prediction", "answer"))


def read_sources(folder: DataFolder, skip: Sequence[str] = ()) -> Sources:
    """Read every table, JSON file and list of lines in the data folder, at any depth, except the names in
    `skip`.
    """
    found: list[Source] = []
    broken: dict[str, UserError] = {}
    seen = [name for name in folder.files("seen") if name not in skip]
    for kind, most in (("tables", MAX_TABLES), ("json_files", MAX_JSON), ("texts", MAX_TEXTS)):
        names = [name for name in folder.files(kind) if name not in skip]  # type: ignore[arg-type]
        if len(names) > most:
            upper = [name for name in names if "/" not in name][:most]
            seen.append(f"{len(names) - len(upper):,} files such as {names[-1]}")
            names = upper
        for name in names:
            path = folder.root / name
            try:
                table = _load(path, kind)
            except UserError as error:
                broken[name] = error
                continue
            if table is None:
                seen.append(name)
            else:
                found.append(Source(name, table, kind == "json_files"))
    return Sources(tuple(found), broken, tuple(seen))


def headerless(table: Table) -> Table:
    """Return the table with its first line as a row, for a file without a header."""
    columns = tuple(f"column {number}" for number in range(1, len(table.columns) + 1))
    note = "no header: its first line is read as a row"
    return replace(
        table,
        columns=columns,
        cells=(table.columns, *table.cells),
        lines=(1, *table.lines),
        notes=(*table.notes, note),
    )


def _load(path: Path, kind: str) -> Table | None:
    if kind == "json_files":
        return load_json_table(path)
    return load_table(path) if kind == "tables" else text_table(path)
