"""Apply the models of a bundle to test rows, in this process or in one process per GPU.

Each process gets whole batches, the same ones as a single process would compute, so the predictions are
bit-identical.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.competition.rows import Competition, Row
from pipeline.data.dataset import ALL, cut
from pipeline.errors import Interrupted, UserError, run_command
from pipeline.folds.parallel import Child, run_children
from pipeline.folds.views import averaged_logits
from pipeline.kernel.carried import Carried, open_bundle
from pipeline.kernel.pace import Pace
from pipeline.tasks.apply import BatchTooLarge, Computed, compute_rows, read_for
from pipeline.training.compute import choose_compute, peak_memory

Clock = Callable[[], float]
AUTO = "auto"  # one process per GPU
DONE = "done.json"  # in a process's folder, written last: rows per second, peak memory


@dataclass(frozen=True)
class Output:
    """The outputs of all models.

    `rates`: rows per second of each model; `memory`: peak bytes of the largest process.
    """

    computed: list[Computed]
    rates: list[float]
    memory: int


def apply_models(
    carried: Carried,
    competition: Competition,
    batch_size: int,
    precision: str,
    until: float,
    cards: int | str = AUTO,
    clock: Clock = time.monotonic,
) -> Output:
    """Apply each model of the bundle to the test rows. No batch starts after `until` (on `clock`).

    `cards`: number of processes. Each has its own GPU or, without GPUs, a share of the CPU threads.

    Raises:
        UserError: a model cannot be rebuilt.
    """
    rows = list(competition.test)
    batches = -(-len(rows) // batch_size)
    processes = min(_number_of_gpus() if cards == AUTO else int(cards), batches)
    if processes > 1:
        try:
            return _apply_apart(carried, competition, batch_size, precision, until - clock(), processes)
        except UserError as error:
            print(
                f"WARNING: {error}\nWARNING: predicting in {processes} processes failed; continuing with one",
                flush=True,
            )
    return _apply_here(carried, rows, batch_size, precision, until, clock)


def _number_of_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 1


def _apply_here(
    carried: Carried,
    rows: Sequence[Row],
    batch_size: int,
    precision: str,
    until: float,
    clock: Clock,
    share: tuple[int, int] = ALL,
) -> Output:
    """Apply one model after the other, each with an equal share of the remaining time, to a `share` of the
    batches (`dataset.cut`).

    If the GPU has no memory for a batch, all rows are computed in smaller ones: Kaggle runs a kernel on few
    rows when it is committed, so that would show only when it is scored.

    Raises:
        BatchTooLarge: there is no memory, and other processes have batches of this size.
    """
    computed, rates, leaves = [], [], carried.team.leaves
    num_own = sum(map(len, cut(range(len(rows)), batch_size, len(rows), share=share)))
    title = "questions" if carried.team.first.task == "vqa" else "images"
    for number, leaf in enumerate(leaves):
        now = clock()
        until_here = now + (until - now) / (len(leaves) - number)
        model = title + (f" (model {number + 1} of {len(leaves)})" if len(leaves) > 1 else "")
        wrap, found = partial(averaged_logits, views=carried.views), None
        while found is None:
            pace = Pace(num_own, until_here, model, clock)
            given = leaf.run, leaf.run.target, rows, batch_size, precision, pace, wrap, share
            try:
                found = compute_rows(*given, carried.engine)
            except BatchTooLarge as error:
                if share != ALL:  # the other processes have batches of this size
                    raise
                batch_size = min(batch_size, len(rows)) // 2
                print(f"WARNING: {error}\nWARNING: continuing with BATCH_SIZE {batch_size}", flush=True)
        computed.append(found)
        pace.done = int(found.reached.sum())
        rates.append(pace.rate())
    return Output(computed, rates, peak_memory(choose_compute(precision, carried.engine).device))


def _apply_apart(
    carried: Carried,
    competition: Competition,
    batch_size: int,
    precision: str,
    seconds: float,
    processes: int,
) -> Output:
    """Apply the models in several processes and combine the results."""
    import numpy as np

    rows = list(competition.test)
    stop_at = time.time() + seconds  # wall clock, shared by all processes
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            *("-m", "pipeline.kernel.cards", "--bundle", str(carried.folder.resolve())),
            *("--data", str(competition.root.resolve())),
        ]
        command += [
            *("--batch-size", str(batch_size), "--precision", precision, "--stop-at", repr(stop_at)),
            *("--parts", str(processes)),
        ]
        places = [Path(temporary) / str(part) for part in range(processes)]
        given = [[*command, "--part", str(part), "--output", str(place)] for part, place in enumerate(places)]
        children = [partial(Child, f"part {part + 1} of {processes}", one) for part, one in enumerate(given)]
        try:
            run_children(children, processes)
        except Interrupted:
            raise Interrupted("stopped while predicting; nothing was written") from None
        reports = [json.loads((place / DONE).read_text(encoding="utf-8")) for place in places]
        computed = []
        for number, leaf in enumerate(carried.team.leaves):
            whole = Computed(
                np.full((len(rows), leaf.run.target.num_outputs), np.nan, dtype=np.float32),
                np.zeros(len(rows), dtype=bool),
                np.zeros(len(rows), dtype=bool),
            )
            for place in places:
                with np.load(place / f"{number}.npz", allow_pickle=False) as found:
                    its = found["reached"]
                    whole.logits[its] = found["logits"][its]
                    whole.reached[its] = True
                    whole.bad[its] = found["bad"][its]
            computed.append(whole)
    rates = [sum(one["rates"][number] for one in reports) for number in range(len(carried.team.leaves))]
    return Output(computed, rates, max(one["memory"] for one in reports))


def main(argv: list[str] | None = None) -> int:
    """Run one process: apply the models of a bundle to a share of the test rows and save the outputs.

    Returns the exit code.

    Raises:
        UserError: the bundle or the competition cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.kernel.cards", description=main.__doc__, allow_abbrev=False
    )
    for name in ("bundle", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    for name in ("batch-size", "part", "parts"):
        parser.add_argument(f"--{name}", type=int, required=True, metavar="N")
    parser.add_argument("--precision", required=True, metavar="NAME")
    parser.add_argument(
        "--stop-at", type=float, required=True, metavar="SECONDS", help="since 1970; no batch starts after it"
    )
    args = parser.parse_args(argv)

    import numpy as np

    carried = open_bundle(args.bundle)
    competition = read_for(carried.team.first, args.data, carried.facts)
    until = time.monotonic() + args.stop_at - time.time()
    share = args.part, args.parts
    output = _apply_here(
        carried, competition.test, args.batch_size, args.precision, until, time.monotonic, share
    )
    args.output.mkdir(parents=True)
    for number, computed in enumerate(output.computed):
        np.savez(
            args.output / f"{number}.npz", logits=computed.logits, reached=computed.reached, bad=computed.bad
        )
    (args.output / DONE).write_text(
        json.dumps({"rates": output.rates, "memory": output.memory}), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
