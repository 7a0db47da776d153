"""What the accuracy benchmarks share: competitions with a held-back part, this project's commands on them, a
table that goes on after a stop.

A competition's own test images have no labels here, so a part of its labelled rows is held back: the folder
that train.py gets has the others under train/<class>/, the held-back images under test/ (by neutral names, in
random order), and solution.csv. No model sees a held-back label.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

import inference
import train

DIGITS = "digits"  # made on the spot, as `make demo` does
IN_ONE = 4  # photographs in an image of a set with several labels an image, two by two
PART = 112  # the side of each of them


def parser_of(
    words: str | None, name: str, data: Sequence[str], seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """The flags that the benchmarks have in common; `name` is that of their folder and table under runs/."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--competitions", type=Path, help="the folder that holds produce/, clothing/ and others"
    )
    parser.add_argument("--data", nargs="+", default=list(data))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--work", type=Path, default=Path("runs") / name)
    parser.add_argument("--results", type=Path, default=Path("runs") / f"{name}.csv")
    parser.add_argument(
        "--table", action="store_true", help="print the table of what was measured, and measure nothing"
    )
    return parser


def labelled(name: str, competitions: Path, work: Path) -> tuple[list[Path], list[str]]:
    """Image and label of every labelled row of the competition `name`, a folder in `competitions`; `digits`
    is made in `work`.
    """
    from pipeline.competition.layout import read_layout
    from pipeline.demo_data import lay_out_digits

    source = competitions / name
    if name == DIGITS:
        source = work / "digits-source"
        lay_out_digits(source)
    rows = sorted(read_layout(source, need="train").train, key=lambda row: str(row.path))
    return [row.path for row in rows], [row.label for row in rows]


def lay_out(
    name: str, competitions: Path, work: Path, rows: tuple[int, int], seed: int, tail: float = 1
) -> Path:
    """The competition `name` with so many training `rows`, and so many held back as its test part: both
    stratified and drawn by `seed`.

    `tail` above 1 cuts the training part to a long tail: of the classes, in an order drawn by `seed`, the
    first keeps all of its rows and the last one in `tail`, by the same factor from each to the next (at least
    two: one may validate). Nothing is done where the folder is there.
    """
    from sklearn.model_selection import train_test_split

    folder = work / f"data-{name}-{seed}{'' if tail == 1 else f'-tail{tail:g}'}"
    if folder.exists():
        return folder
    paths, labels = labelled(name, competitions, work)
    train, held = train_test_split(
        range(len(labels)), train_size=rows[0], test_size=rows[1], stratify=labels, random_state=seed
    )
    return _laid_out(paths, labels, _long_tail(train, labels, tail, seed), held, folder, seed)


def _long_tail(rows: Sequence[int], labels: Sequence[str], tail: float, seed: int) -> list[int]:
    """The rows that are kept; see `lay_out`."""
    names = sorted({labels[row] for row in rows})
    kept = []
    for rank, number in enumerate(np.random.default_rng(seed).permutation(len(names)).tolist()):
        own = [row for row in rows if labels[row] == names[number]]
        kept += own[: max(2, round(len(own) * tail ** (-rank / max(1, len(names) - 1))))]
    return sorted(kept)


def _laid_out(
    paths: Sequence[Path],
    labels: Sequence[str],
    train: Sequence[int],
    held: Sequence[int],
    folder: Path,
    seed: int,
) -> Path:
    with laying_out(folder) as root:
        for row in train:
            link(paths[row], root / "train" / labels[row] / f"{row:05d}{paths[row].suffix}")
        order = np.random.default_rng(seed).permutation(sorted(held)).tolist()
        ids = [f"image_{number:05d}" for number in range(len(order))]
        for name, row in zip(ids, order, strict=True):
            link(paths[row], root / "test" / f"{name}{paths[row].suffix}")
        first = sorted(set(labels))[0]
        write_rows(root / "sample_submission.csv", [("id", "label"), *((name, first) for name in ids)])
        write_rows(
            root / "solution.csv",
            [("id", "label"), *((name, labels[row]) for name, row in zip(ids, order, strict=True))],
        )
        (root / "competition.yaml").write_text("metric: accuracy\n", encoding="utf-8")
    return folder


@contextmanager
def laying_out(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which gets its name at the end of the block."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".laying-out-", dir=folder.parent) as temporary:
        root = Path(temporary) / folder.name
        root.mkdir()
        yield root
        try:
            root.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has laid out the same rows
                raise


def lay_out_several(name: str, competitions: Path, work: Path, rows: tuple[int, int], seed: int) -> Path:
    """A competition with several labels an image: each image shows `IN_ONE` images of the competition `name`,
    and its labels are their classes.

    So many training `rows` and so many held back, drawn by `seed`, from two halves of the images of `name`:
    no photograph is in both parts. Nothing is done where the folder is there.
    """
    from sklearn.model_selection import train_test_split

    folder = work / f"data-{name}-{seed}-several"
    if folder.exists():
        return folder
    paths, labels = labelled(name, competitions, work)
    names, generator = sorted(set(labels)), np.random.default_rng(seed)
    halves = train_test_split(range(len(labels)), test_size=0.5, stratify=labels, random_state=seed)
    with laying_out(folder) as root:
        for part, half, count in zip(("train", "test"), halves, rows, strict=True):
            lines = []
            (root / part).mkdir()
            for number in range(count):
                chosen = generator.choice(half, IN_ONE, replace=False)
                key, shown = f"{part}_{number:05d}", {labels[row] for row in chosen}
                _beside([paths[row] for row in chosen]).save(root / part / f"{key}.png")
                lines.append((key, *(int(name in shown) for name in names)))
            table = root / ("train.csv" if part == "train" else "solution.csv")
            write_rows(table, [("id", *names), *lines])
        write_rows(
            root / "sample_submission.csv",
            [("id", *names), *((line[0], *[0.5] * len(names)) for line in lines)],
        )
        (root / "competition.yaml").write_text("metric: average_precision\n", encoding="utf-8")
    return folder


def _beside(paths: Sequence[Path]) -> Any:
    """One RGB image of four, each `PART` px wide and high."""
    from PIL import Image

    image = Image.new("RGB", (2 * PART, 2 * PART))
    for number, path in enumerate(paths):
        with Image.open(path) as one:
            image.paste(one.convert("RGB").resize((PART, PART)), (number % 2 * PART, number // 2 * PART))
    return image


def link(source: Path, target: Path) -> None:
    """The file `source` at `target` too: the same file where the disk allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """A csv file of `rows`, its header the first."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_column(path: Path, column: str = "label") -> dict[str, str]:
    """id -> the cell of `column`."""
    return {name: row[column] for name, row in read_rows(path).items()}


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """id -> the other cells of its row, by column."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row.pop("id"): row for row in csv.DictReader(file)}


@contextmanager
def logged(log: Path) -> Iterator[None]:
    """What is printed goes to the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file):
        yield


def read_split(data: Path, seed: int) -> list[Path]:
    """The training images of a laid-out competition, without the 5 % that validate in a run of `seed`."""
    from pipeline.competition.layout import read_layout
    from pipeline.competition.splits import train_val_split

    rows = read_layout(data, need="train").train
    chosen, _, _ = train_val_split([row.label for row in rows], 0.05, seed)
    return [rows[row].path for row in chosen]


def run_train(log: Path, *words: str | Path) -> None:
    """`python train.py` in this process; what was trained before is not trained again. The last --output is
    the run's folder.
    """
    words = [str(word) for word in words]
    output = Path(words[words.index("--output") + 1])
    begun = output.exists() and any(output.iterdir())
    if (output / "run.json").exists():
        return
    with logged(log):
        print("$ python train.py", *words)
        train.main([*words, *(["--resume"] if begun else [])])


def score_of(log: Path, models: Sequence[Path], data: Path, *flags: str) -> float:
    """The share of the held-back images in `data` that `python inference.py --model ...` gets right; for
    several labels an image the mean of their average precisions.
    """
    with tempfile.TemporaryDirectory() as temporary, logged(log):
        output = Path(temporary) / "predictions.csv"
        words = ["--model", *map(str, models), "--data", str(data), "--output", str(output), *flags]
        print("$ python inference.py", *words)
        inference.main(words)
        said, truth = read_rows(output), read_rows(data / "solution.csv")
    if "label" in next(iter(truth.values())):
        return sum(said[name]["label"] == row["label"] for name, row in truth.items()) / len(truth)
    from sklearn.metrics import average_precision_score

    numbers = [
        np.array([[float(cell) for cell in table[name].values()] for name in truth])
        for table in (truth, said)
    ]
    return float(average_precision_score(*numbers, average="macro"))


class Table:
    """Rows in a csv file, each written as soon as it is known; what is there is not computed again."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_rows(path, [self.columns])

    def rows(self) -> list[dict[str, str]]:
        """Every row, as texts."""
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def has(self, *key: object) -> bool:
        """True where a row begins with `key`."""
        wanted = tuple(map(str, key))
        return any(tuple(row[name] for name in self.columns[: len(wanted)]) == wanted for row in self.rows())

    def add(self, *cells: object) -> None:
        """Append a row, and show it."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in cells])
        print(*cells, file=sys.stderr, flush=True)


def side_by_side(
    run: Callable[[Any], Any], jobs: Sequence[Any], workers: int, add: Callable[[Any], None]
) -> None:
    """`run` every job, so many at a time, each in a process of its own; `add` is given what came out, as soon
    as it is known.
    """
    print(f"{len(jobs)} runs, {workers} at a time", file=sys.stderr)
    if workers == 1:
        for job in jobs:
            add(run(job))
        return
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            if (error := done.exception()) is None:
                add(done.result())
            else:  # one run that fails costs itself
                print(f"{type(error).__name__}: {error}", file=sys.stderr)


def with_error(values: Sequence[float]) -> str:
    """`mean ± standard error of the mean`."""
    values = np.array(values, dtype=float)
    if len(values) < 2:
        return f"{values.mean():+.4f}"
    return f"{values.mean():+.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"
