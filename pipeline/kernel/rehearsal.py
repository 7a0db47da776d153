"""Rehearse: run the exact script that would be pushed under Kaggle's conditions; its file must equal that of
inference.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.competition.rows import Competition
from pipeline.errors import UserError
from pipeline.fetch.originals import ORIGINALS
from pipeline.files import human_time, sha256, write_text
from pipeline.folds.team import Team
from pipeline.folds.views import averaged_logits
from pipeline.kernel.bundle import Bundle, Options
from pipeline.kernel.placeholder import ROWS, make_placeholder
from pipeline.kernel.script import Settings, code_of
from pipeline.kernel.sealed import Ended, describe, run_sealed
from pipeline.kernel.slugs import Names
from pipeline.run import Run

ROOT = Path(__file__).resolve().parents[2]
# Achieved speed of vision transformers in operations per second: assumptions, from published figures of other
# machines.
CPU = {"4 CPU cores": 0.1e12}  # two physical cores of about 2 GHz with AVX-512, fp32
MACHINES = {
    "one T4": 26e12,  # 40 % of its nominal 65e12 in fp16
    "two T4": 52e12,  # each computes half of the images
    **CPU,
}
_RATES = re.compile(r"^took .*, peak memory (.+), rows a second ([\d.e+ -]+)$", re.MULTILINE)
_CONVERTED = re.compile(r"^.+ converted in ([\d.]+) s$", re.MULTILINE)
TELLING_SECONDS = 1.0  # of a conversion: a shorter one is mostly imports
_SHOWN = 15  # number of last log lines in a message


@dataclass(frozen=True)
class Rehearsed:
    """The result of the rehearsal. `rate`: rows per second over all members; 0 if not measured. `converting`:
    seconds for one row that the conversion to images took; 0: there was none, or it was too short to tell.
    """

    file: Path  # submission.csv of the whole test set
    rate: float
    memory: str
    notes: tuple[str, ...]
    converting: float = 0.0


def rehearse(
    folder: Path,
    code_file: Path,
    bundle: Bundle,
    names: Names,
    settings: Settings,
    team: Team,
    competition: Competition,
    options: Options,
) -> Rehearsed:
    """Run `code_file` on three placeholder rows, then on the whole test set, once in each of Kaggle's two
    folder layouts. The whole test set has its original form, if `make data` kept that.

    The content of `folder` is replaced.

    Raises:
        UserError: the script fails, changes its inputs, or writes another file than inference.py; the message
            shows the end of the log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    script = folder / "kernel.py"
    write_text(script, code_of(code_file))
    slug, base = settings.competition, names.dataset.partition("/")[2]
    before = _snapshot(competition.root, bundle.folder)

    first = folder / "placeholder"
    make_placeholder(competition, first / "input" / slug)
    (first / "input" / base).symlink_to(bundle.folder.resolve())
    placeholder = _run(script, first, competition, bundle)
    second = folder / "whole"
    originals = competition.root / ORIGINALS
    whole_set = originals if originals.is_dir() else competition.root
    for place, target in (("competitions", whole_set), (f"datasets/{names.owner}", bundle.folder)):
        (second / "input" / place).mkdir(parents=True)
        link = slug if place == "competitions" else base
        (second / "input" / place / link).symlink_to(target.resolve())
    whole = _run(script, second, competition, bundle)
    write_text(folder / "log.txt", f"{placeholder.output}\n---- the whole test set ----\n{whole.output}")
    if changed := _snapshot(competition.root, bundle.folder) ^ before:
        raise UserError(
            "the script changed its inputs, which are read-only on Kaggle: "
            f"{', '.join(sorted(str(item[0]) for item in changed)[:5])}"
        )

    made = folder / "submission.csv"
    (second / "work" / "submission.csv").replace(made)
    reference = folder / "reference.csv"
    _reference(team, competition, reference, settings, options)
    if sha256(made) != sha256(reference):
        raise UserError(
            f"the script's file differs from inference.py's for the same models ({made}, {reference}): "
            f"{_difference(made, reference)}. Was {code_file} edited? Delete it, `make kernel` writes a new "
            "one"
        )
    found = _RATES.search(whole.output)
    rates = [float(rate) for rate in found[2].split()] if found else []
    rate = 1 / sum(1 / rate for rate in rates) if rates and all(rates) else 0.0
    notes = (
        f"{min(ROWS, len(competition.test))} placeholder rows and {len(competition.test):,} rows: a valid "
        f"submission.csv; {describe()}",
        f"the file is inference.py's, byte for byte ({sha256(made)[:12]})",
        f"{rate:.3g} rows a second here, peak memory {found[1] if found else 'not known'}",
    )
    seconds = _CONVERTED.search(whole.output)
    if seconds:
        notes = (f"the test set was converted from its original form, as on Kaggle: {seconds[0]}", *notes)
    elif bundle.manifest["converted"]:
        notes = ("NOT REHEARSED: converting the test set; its original files are not kept here", *notes)
    took = float(seconds[1]) if seconds else 0.0
    converting = took / len(competition.test) if took >= TELLING_SECONDS else 0.0
    return Rehearsed(made, rate, found[1] if found else "", notes, converting)


def forecast(
    cost: float, num_rows: int, hours: float, has_gpu: bool = True, converting: float = 0.0
) -> list[str]:
    """Return lines that estimate the time for `num_rows` rows at `cost` floating-point operations a row (all
    members). Without a GPU only the CPU is named. `converting`: seconds of a row, measured here.
    """
    lines = [
        f"ESTIMATE for {num_rows:,} hidden rows at {cost / 1e9:,.3g} GFLOP each, without decoding; speeds "
        "are assumed, not measured:"
    ]
    for machine, rate in (MACHINES if has_gpu else CPU).items():
        seconds = num_rows * cost / rate
        beyond = ""
        if seconds > hours * 3600:
            beyond = f", beyond the limit of {hours:g} h: the rest would get class frequencies"
        needed = human_time(seconds) if seconds >= 1 else "under 1 s"
        lines.append(f"  {machine} ({rate / 1e12:g} TFLOP/s): {needed}{beyond}")
    if converting:
        seconds = human_time(num_rows * converting)
        lines.append(
            f"  before that, converting them to images: at most {seconds}, at the speed of the few here"
        )
    return lines


def cost_of(runs: Sequence[Run], competition: Competition, views: Sequence[str] = ()) -> float:
    """Return the floating-point operations for one test row, counted while one is computed (all members and
    views).

    Raises:
        UserError: a run cannot be rebuilt.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.tasks.registry import task_module

    total = 0.0
    for run in runs:
        task = task_module(run.task)
        predictor = task.rebuild(run, run.target.num_outputs)
        batch = next(iter(predictor.batches(competition.test[:1], 1)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            averaged_logits(predictor.logits, run.target, views)(batch)
        total += counter.get_total_flops()
    return total


def _run(script: Path, place: Path, competition: Competition, bundle: Bundle) -> Ended:
    work = place / "work"
    work.mkdir()
    ended = run_sealed(
        script.resolve(), work.resolve(), (place / "input").resolve(), [competition.root, bundle.folder]
    )
    tail = "\n".join(f"  {line}" for line in ended.output.splitlines()[-_SHOWN:])
    if ended.code != 0:
        write_text(place.parent / "log.txt", ended.output)
        raise UserError(
            f"the script failed in rehearsal ({place.name}, exit code {ended.code}); nothing was pushed. Its "
            f"last lines:\n{tail}"
        )
    if not (work / "submission.csv").is_file():
        raise UserError(
            f"the script ended without writing submission.csv ({place.name}); nothing was pushed. Its last "
            f"lines:\n{tail}"
        )
    return ended


def _reference(
    team: Team, competition: Competition, output: Path, settings: Settings, options: Options
) -> None:
    """Write the file of inference.py for the same folders, with their adapters."""
    command = [
        sys.executable,
        str(ROOT / "inference.py"),
        "--model",
        *(str(one.path.resolve()) for one in team.named),
        "--data",
        str(competition.root.resolve()),
    ]
    command += [
        *("--output", str(output.resolve()), "--batch-size", str(settings.batch_size)),
        *("--precision", settings.precision),
        *options.flags(),
    ]
    done = subprocess.run(
        command, cwd=output.parent, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        raise UserError(f"inference.py failed on the same models: {done.stderr.strip()[-1000:]}")


def _difference(one: Path, other: Path) -> str:
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (one, other)]
    if len(lines[0]) != len(lines[1]):
        return f"{len(lines[0])} lines and {len(lines[1])}"
    differ = [number for number, pair in enumerate(zip(*lines, strict=True), start=1) if pair[0] != pair[1]]
    first = differ[0]
    return (
        f"{len(differ)} lines, first line {first}: {lines[0][first - 1]!r:.80} and "
        f"{lines[1][first - 1]!r:.80}"
    )


def _snapshot(*folders: Path) -> set[tuple[Path, int, int]]:
    """Return every file with its size in bytes and time of change in ns."""
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {(path, status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]}
