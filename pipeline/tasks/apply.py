"""Predict the test images of a competition with a finished run.

inference.py and a Kaggle kernel both use it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engines import INT8, ON_CPU, TORCH
from pipeline.errors import UserError
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from pipeline.competition.facts import CompetitionFacts
    from pipeline.competition.rows import Competition, Row
    from pipeline.predictions import Predictions
    from pipeline.run import Run
    from pipeline.targets.target import Target
    from pipeline.tasks.build import Predictor
    from pipeline.training.compute import Compute

    Wrap = Callable[[Callable[..., object], Target], Callable[..., object]]


def read_for(run: Run, data_dir: Path, facts: CompetitionFacts | None = None) -> Competition:
    """Return the test part of a competition, read in the same way as the run's training part.

    `facts` replace a competition.yaml in `data_dir`.

    Raises:
        UserError: it cannot be read, or needs another kind of prediction than the run makes.
    """
    from pipeline.competition.facts import read_facts
    from pipeline.competition.layout import read_layout

    data, facts = run.record.data_settings if run.record else {}, facts or read_facts(data_dir)
    competition = read_layout(
        data_dir,
        need="test",
        id_column=data.get("id_column") or facts.id_column,
        label_column=data.get("label_column") or facts.label_column,
        asked=facts.asked(None, data.get("target"), ()),
        known=(run.target, run.metric if run.record else None) if run.target and run.task != "vqa" else None,
    )
    if run.task != competition.task:
        raise UserError(
            f"{data_dir} is for {competition.task}, but {run.path} was trained for {run.task}: name another "
            "--model or --data"
        )
    return competition


def predict(
    run: Run,
    competition: Competition,
    batch_size: int,
    precision: str,
    wrap: Wrap | None = None,
    given: Sequence[Row] | None = None,
    engine: str = TORCH,
    built: Predictor | None = None,
) -> tuple[Predictions, list[Path]]:
    """Predict the test ids in the order of the submission form (or the rows `given`).

    Returns also the images that could not be decoded, for the caller to report. `wrap` replaces the model's
    logits function, for example by a mean over views. `engine`: one of `pipeline.engines`. `built`: the run's
    model as `built_for` returns it; without it the model is built here. The model is described in a line; not
    for `given` rows, which are predicted many times to choose views.

    Raises:
        UserError: the model cannot be rebuilt, or no test image can be decoded.
    """
    from pipeline.tasks.registry import task_module

    rows = list(competition.test if given is None else given)
    target = target_of(run, competition, task_module(run.task).num_outputs_of(run))
    computed = compute_rows(
        run,
        target,
        rows,
        batch_size,
        precision,
        wrap=wrap,
        engine=engine,
        describe=given is None,
        built=built,
    )
    assembled = assemble(run, target, rows, computed)
    return assembled.predictions, assembled.unreadable


class BatchTooLarge(UserError):
    """The device has no memory for a batch of several rows."""


@dataclass(frozen=True)
class Computed:
    """Logits for N rows: `logits` (N, O) float32, NaN in rows that were not `reached` (N,) bool.

    `bad` (N,) bool: rows whose image cannot be decoded.
    """

    logits: np.ndarray
    reached: np.ndarray
    bad: np.ndarray


@dataclass(frozen=True)
class Assembled:
    """Predictions of ids.

    `unreached`: ids without a computed image; their rows hold the class frequencies. `unreadable`: images
    that could not be decoded.
    """

    predictions: Predictions
    unreached: frozenset[str]
    unreadable: list[Path]


def compute_rows(
    run: Run,
    target: Target,
    rows: Sequence[Row],
    batch_size: int,
    precision: str,
    go_on: Callable[[int], bool] = lambda _: True,
    wrap: Wrap | None = None,
    share: tuple[int, int] | None = None,
    engine: str = TORCH,
    describe: bool = True,
    built: Predictor | None = None,
) -> Computed:
    """Return the logits of `rows`, computed on the best available device.

    `go_on` is called before each batch with the number of rows handed out so far; when it returns False, no
    more batches are computed. `share`: (r, n) computes only the batches of process r of n; None: torchrun's
    processes share all of them. `describe`: print a line about model and device, and a
    warning about the range of grey levels. `built`: the model, if the caller has built it with `built_for`,
    for the same precision and engine.

    Raises:
        UserError: the model cannot be rebuilt, its output is not a number, or the GPU's memory is too small
            (`BatchTooLarge` if a smaller batch may fit).
    """
    import numpy as np
    import torch

    from pipeline.data.intensity import deep_images_without_range
    from pipeline.training.compute import choose_compute
    from pipeline.training.predict import not_finite, predict_logits

    compute = choose_compute(precision, engine)
    predictor = built or built_for(run, target.num_outputs, compute)
    if describe:
        if warning := deep_images_without_range(
            [row.path for row in rows], predictor.preprocessing.intensity
        ):
            print(f"WARNING: {warning}", file=sys.stderr)
        where = f"{compute.describe()}{_other_precision(run, precision, compute.precision)}"
        print(f"  {target.describe()}, {predictor.describe()}, {where}", flush=True)

    bad, reached = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)

    def batches() -> Iterator[dict]:
        """Yield batches until `go_on` says stop; note the rows that are reached and the bad images."""
        handed_out = 0
        for batch in predictor.batches(rows, batch_size, share or compute.processes.share):
            if not go_on(handed_out):
                return
            numbers = batch["row"].numpy()
            reached[numbers], bad[numbers] = True, batch["bad"].numpy()
            refuse_gone([rows[row].path for row in numbers if bad[row]])
            handed_out += len(numbers)
            yield batch

    logits_of = predictor.logits if wrap is None else wrap(predictor.logits, target)
    try:
        logits = predict_logits(
            predictor.model,
            logits_of,
            batches(),
            len(rows),
            target.num_outputs,
            compute,
            "predicting",
            reached=reached,
        )
    except torch.OutOfMemoryError as error:
        rows_at_once = min(batch_size, len(rows))
        kind = BatchTooLarge if rows_at_once > 1 else UserError
        raise kind(_too_large(run, compute, rows_at_once, error)) from None
    compute.processes.add_up(bad.view(np.uint8))
    if problem := not_finite(logits[reached], compute.precision):
        raise UserError(f"the output of the model in {run.path} is {problem}")
    return Computed(logits, reached, bad)


def _too_large(run: Run, compute: Compute, batch_size: int, error: Exception) -> str:
    """Return the message when the device has no memory for the model (`batch_size` 0) or for a batch."""
    what = f"the model of {run.path}"
    what += f" with {counted(batch_size, 'row')} at a time" if batch_size else ""
    advice = (
        f"use --batch-size {batch_size // 2} (in a kernel BATCH_SIZE)"
        if batch_size > 1
        else "end other programs that use its memory"
    )
    return f"out of memory on {compute.device} for {what}; {advice}: {(str(error).splitlines() or [''])[0]}"


def check_engine(run: Run, engine: str) -> None:
    """Check that `engine` can compute the model of `run`.

    Raises:
        UserError: it is OpenVINO, and the run answers questions.
    """
    if engine in ON_CPU and run.task != "classification":
        raise UserError(
            f"--engine {engine} is for images, but {run.path} answers questions: leave --engine out"
        )


def built_for(run: Run, num_outputs: int, compute: Compute) -> Predictor:
    """Return the model as `ready` does.

    Raises:
        UserError: as `ready`, or the GPU's memory is too small for the model.
    """
    import torch

    try:
        return ready(run, num_outputs, compute)
    except torch.OutOfMemoryError as error:
        raise UserError(_too_large(run, compute, 0, error)) from None


_made: list[bool] = []  # not empty once `ready` has built a model


def ready(run: Run, num_outputs: int, compute: Compute) -> Predictor:
    """Return the rebuilt model on its device, or computed by OpenVINO; models before it are freed.

    Frozen weights are in half precision where that is allowed.

    Raises:
        UserError: the model cannot be rebuilt, or the engine of `compute` cannot run it.
    """
    from pipeline.models.cpu_prediction import attend_in_pieces, pack_frozen
    from pipeline.models.half_weights import use_half_weights
    from pipeline.tasks.registry import task_module
    from pipeline.training.compute import free_unused

    check_engine(run, compute.engine)
    if _made:  # the first model need not wait for a search of all objects, which takes 0.2 s
        free_unused()
    predictor: Predictor = task_module(run.task).rebuild(run, num_outputs)
    _made.append(True)
    if compute.engine == INT8:
        from pipeline.tasks.quantized import load

        predictor.model = load(run, compute.precision)
        return predictor
    if compute.engine in ON_CPU:
        from pipeline.models.openvino_model import to_openvino

        size = predictor.preprocessing.height, predictor.preprocessing.width
        predictor.model = to_openvino(predictor.model, predictor.extra, size, compute.precision)
        return predictor
    if compute.half is not None:
        use_half_weights(predictor.model, compute.half)
    predictor.model.to(compute.device)
    if compute.device.type == "cpu" and compute.half is not None:
        pack_frozen(predictor.model)
        if run.task == "classification":
            attend_in_pieces(predictor.model)
    return predictor


def assemble(run: Run, target: Target, rows: Sequence[Row], computed: Computed) -> Assembled:
    """Return predictions of the ids of `rows`; several images of an id become one prediction.

    Raises:
        UserError: none of the reached images can be decoded.
    """
    import numpy as np

    from pipeline.predictions import Predictions

    logits, reached, bad = computed.logits, computed.reached, computed.bad
    merged = run.record.data_settings.get("views", "mean") if run.record else "mean"
    ids = [row.id for row in rows]
    if reached.all() and not bad.any():
        return Assembled(Predictions.of_images(ids, logits, target, merged), frozenset(), [])
    values = target.activate(np.nan_to_num(logits) if not reached.all() else logits)
    values[bad | ~reached] = (run.record and run.record.prior) or np.full(
        target.num_outputs, 1 / target.num_outputs
    )
    lost = list(dict.fromkeys(rows[row].path for row in np.flatnonzero(bad)))
    total = len({rows[row].path for row in np.flatnonzero(reached)})
    if lost and len(lost) == total:
        raise UserError(f"none of the {total} test images can be decoded, such as {lost[0]}")
    known = {rows[row].id for row in np.flatnonzero(reached)}
    trusted = np.flatnonzero(reached & ~bad)
    return Assembled(
        Predictions.of_values(ids, values, target, merged, trusted=trusted), frozenset(ids) - known, lost
    )


def _other_precision(run: Run, asked: str, used: str) -> str:
    """Return why a run is predicted in another precision than it was trained in.

    "" if not, or if the user chose it.
    """
    trained = run.record.values.get("precision") if run.record else None
    if asked != "auto" or trained in (None, used):
        return ""
    return (
        f" (trained in {trained}; --precision auto takes the fastest for this machine, --precision "
        f"{trained} predicts as in training)"
    )


def target_of(run: Run, competition: Competition, num_outputs: int) -> Target:
    """Return the run's target.

    For a release without class names: the competition's classes, if their number fits.

    Raises:
        UserError: the names cannot be known; a file of names like LABEL_7 would score 0.
    """
    from pipeline.targets.target import multiclass

    if run.target is not None and run.target.num_outputs == num_outputs:
        return run.target
    # The order of torchvision's ImageFolder and datasets' imagefolder
    names = tuple(sorted(competition.class_names))
    if len(names) == num_outputs:
        print(
            f"  the release names no classes: using the {num_outputs} of {competition.root}, in sorted order"
        )
        return multiclass(names)
    raise UserError(
        f"{run.path}: the release distinguishes {num_outputs} classes but names them only "
        f"LABEL_0..LABEL_{num_outputs - 1}, and {competition.root} has {len(names)} class names. Put the "
        "training images (train/<class>/) or a sample_submission with one column per class into "
        f"{competition.root}, or write the names into id2label of {run.backbone_dir / 'config.json'}"
    )


def refuse_gone(paths: list[Path]) -> None:
    """Check that the images of `paths`, which could not be decoded, still exist.

    Raises:
        UserError: they do not, for example because a drive was unmounted. Rows of class frequencies would
            look like predictions.
    """
    if gone := [path for path in paths if not path.exists()]:
        raise UserError(
            f"{gone[0]} disappeared during prediction: nothing is written. Restore the test images (is their "
            "disk still mounted?), then run the command again"
        )


def report_bad(paths: Sequence[Path], total: int, images: str = "test images") -> None:
    """Print a warning that lists images that could not be decoded; nothing for no `paths`.

    To be called once for all models, which read the same images.
    """
    if not paths:
        return
    print(
        f"WARNING: {len(paths)} of {total} {images} cannot be decoded; their rows hold the class "
        "frequencies of training:",
        file=sys.stderr,
    )
    for path in paths[:20]:
        print(f"  {path}", file=sys.stderr)
