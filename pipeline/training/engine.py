"""fit: one training loop for every task, exactly resumable at any micro-batch.

An optimizer step is the mean over one group of `effective_batch_size` rows of the epoch's order, however the
group is cut into micro-batches. (The last group of an epoch may be smaller and is averaged over its own
rows.) The random draws of a micro-batch depend only on (seed, epoch, its first row). Position, sums and
gradients of an open group are in the state. So a resumed run computes the same as an uninterrupted one.

Rows are processed in turns. In each turn one process computes one micro-batch; several processes compute one
each, of the same group; see `gradients.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.data.dataset import cut_turns
from pipeline.data.images import LostImage
from pipeline.errors import Interrupted, UserError
from pipeline.stopping import stop_requests
from pipeline.training.checkpoint import StateStore, seed_micro_batch
from pipeline.training.compute import Batch, Compute, peak_memory
from pipeline.training.failures import (
    nan_logits,
    nan_loss,
    one_image_too_large,
    other_ended,
    overflowing_gradients,
    smaller_micro_batch,
    stopped,
)
from pipeline.training.loop_state import LoopState
from pipeline.training.means import Means, Soup, exchanged, greedy_soup
from pipeline.training.optim import lr_at, set_lr
from pipeline.training.position import EpochReport, Position
from pipeline.training.predict import Task
from pipeline.training.processes import OtherEnded
from pipeline.training.validating import Validation

NONE = Means()
# In fp16 the loss is scaled by 65536 at first, and by half as much after each step that overflows. So it is
# smaller than this after 33 such steps in a row.
SMALLEST_SCALE = 2**-16
REFRESH_SECONDS = 0.5  # how often the loss is read from the device, to show it and to check for NaN


def fit(
    task: Task,
    optimizer: torch.optim.Optimizer,
    schedule: dict[str, Any],
    compute: Compute,
    store: StateStore,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    *,
    epochs: int,
    micro_batch_size: int,
    seed: int = 0,
    sums: Literal["auto", "exact", "reduced"] = "auto",
    max_grad_norm: float = 0.0,
    save_minutes: float = 10.0,
    max_minutes: float | None = None,
    keep_last: bool = False,
    means: Means = NONE,
    on_soup: Callable[[Soup], None] = lambda soup: None,
    state: dict[str, Any] | None = None,
    on_stop: Callable[[Position], None] = lambda position: None,
    prepare: Callable[[int, Callable[[], bool]], bool] | None = None,
) -> Position:
    """Train to the end of `epochs` from `state` (or from the start). Return the final position.

    `on_epoch` is called after each epoch, `on_stop` once the state of an interrupted run is saved. `sums`:
    how several processes add up their gradients. `prepare(micro_batch_size, go_on)` computes what epochs
    need, and returns False if `go_on()` returned False. `means`: means of weights; they are in the model when
    `on_epoch`, `on_stop` and, at the end, `on_soup` are called.

    Raises:
        Interrupted: Ctrl-C, SIGTERM, SIGHUP, a closed output or `max_minutes`; the micro-batch was finished
            and the state saved.
        UserError: the loss became NaN or infinite, an image was lost, or another process has ended; the last
            good state is kept.
    """
    loop = _Loop(
        task=task,
        schedule=schedule,
        compute=compute,
        store=store,
        kept=LoopState(task, optimizer, schedule, compute, sums, means),
        micro_batch_size=micro_batch_size,
        seed=seed,
        max_grad_norm=max_grad_norm,
        save_seconds=save_minutes * 60,
        deadline=time.monotonic() + max_minutes * 60 if max_minutes is not None else math.inf,
        keep_last=keep_last,
    )
    position = loop.position
    # Handle signals before the first state is saved: from then on another program may stop the run
    with stop_requests(loop.request_stop):
        if state is None:
            loop.save()  # so a resumed run never depends on files of a first, unfinished epoch
        else:
            loop.kept.restore(state)
            print(
                f"resuming in epoch {position.epoch + 1} at row {position.row}, after {position.step} "
                "optimizer steps"
            )
        try:
            while position.epoch < epochs:
                report = loop.epoch(epochs, prepare)
                with loop.kept.in_place():
                    on_epoch(report)
                loop.save()
            if prepare is not None and means.soup and not loop.is_prepared:  # resumed after the last epoch
                loop.begin_epoch()
                loop.prepare(prepare)
            loop.make_soup(on_soup)
        except Interrupted:
            with loop.kept.in_place():
                on_stop(position)
            compute.processes.wait_for_all()
            raise
        except OtherEnded as error:
            told = str(error) if error.is_told else other_ended(loop.folder, str(error))
            raise UserError(told) from None
    return position


@dataclass
class _Loop:
    """The variables and steps of `fit`. `kept` is saved in states; the rest is set up again on resume."""

    task: Task
    schedule: dict[str, Any]
    compute: Compute
    store: StateStore
    kept: LoopState
    micro_batch_size: int
    seed: int
    max_grad_norm: float
    save_seconds: float
    deadline: float  # of time.monotonic()
    keep_last: bool
    stop_reason: str | None = None
    checked_step: int = 0  # the loss was finite up to here
    epoch_started: float = 0.0
    scale: float | None = None  # of the loss, for the next step; 1 without a scaler, None: not read yet
    is_prepared: bool = False
    preparing_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.processes, self.folder = self.compute.processes, self.store.folder.parent
        self.position, self.means, self.gradients = self.kept.position, self.kept.means, self.kept.gradients
        self.optimizer, self.scaler = self.kept.optimizer, self.kept.scaler
        self.trainable = self.kept.trainable
        self.validation = Validation(self.task, self.compute)
        self.last_save = time.monotonic()

    def epoch(self, epochs: int, prepare: Callable[[int, Callable[[], bool]], bool] | None) -> EpochReport:
        """Train and validate the rest of this epoch. If an image is lost, save what is done."""
        try:
            self.begin_epoch()
            if prepare is not None and not self.is_prepared:
                self.prepare(prepare)
            self.train_epoch(epochs)
            return self.finish_epoch()
        except LostImage:  # between two micro-batches or in validation, so the state is consistent
            if self.processes.count > 1:
                self.rewind()  # other processes have computed a micro-batch of this turn
            self.read_sums()
            self.save()
            raise

    def begin_epoch(self) -> None:
        """Set the clock and the sums for this epoch."""
        position = self.position
        self.epoch_started = time.perf_counter() - position.seconds
        # The sums stay on the device and are not reset within an epoch. So the order of additions, and the
        # rounding, does not depend on when they are read.
        exact = torch.float32 if self.compute.device.type == "mps" else torch.float64
        self.sums = torch.tensor(
            [position.loss_sum, position.score_sum], dtype=exact, device=self.compute.device
        )

    def prepare(self, work: Callable[[int, Callable[[], bool]], bool]) -> None:
        """Let `work` compute what epochs need, with smaller micro-batches if memory runs out.

        A stop ends it early.

        Raises:
            Interrupted: it was stopped.
        """
        started, done = time.perf_counter(), None
        while done is None:
            try:
                done = work(self.micro_batch_size, self.goes_on)
            except torch.OutOfMemoryError as error:
                self.halve_micro_batch(error)
        self.is_prepared, self.preparing_seconds = done, time.perf_counter() - started
        if not done:
            self.save()
            raise self.interrupted()

    def goes_on(self) -> bool:
        """Return False if a stop was requested or the time is over."""
        if time.monotonic() > self.deadline:
            self.stop_reason = self.stop_reason or "--max-minutes reached"
        return self.stop_reason is None

    def train_epoch(self, epochs: int) -> None:
        """Train on the rest of this epoch's rows, with smaller micro-batches if memory runs out."""
        position = self.position
        self.task.model.train()
        title = f"epoch {position.epoch + 1}/{epochs}"
        with tqdm(
            total=self.task.num_train,
            initial=position.row,
            desc=title,
            unit="img",
            leave=False,
            dynamic_ncols=True,
        ) as bar:
            while position.row < self.task.num_train:
                try:
                    self.run_turns(bar)
                except torch.OutOfMemoryError as error:
                    self.halve_micro_batch(error)
                    bar.n = position.row

    def run_turns(self, bar: tqdm) -> None:
        """Process the rest of the epoch's rows, turn by turn: backward passes, optimizer steps, states."""
        position, task, processes = self.position, self.task, self.processes
        group_size = self.schedule["effective_batch_size"]
        cutting = self.micro_batch_size, group_size
        batches = iter(task.train_batches(position.epoch, position.row, *cutting, processes.share))
        refreshed = time.monotonic()
        # A turn: one micro-batch for each process, all of one group. A group is one optimizer step.
        for turn in cut_turns(task.num_train, *cutting, position.row, processes.count):
            group_end = min((position.row // group_size + 1) * group_size, task.num_train)
            completes = turn[-1].stop == group_end
            failure, sums = None, torch.zeros_like(self.sums)
            self.gradients.begin(completes)
            # 1. Forward and backward pass of this process's micro-batch. The last turn of a group may have
            #    fewer micro-batches than processes: then some processes have nothing to compute.
            try:
                # With sharded weights every process must compute, if need be a batch of no rows
                if processes.rank < len(turn) or processes.shares_out:
                    own = turn[min(processes.rank, len(turn) - 1)]
                    sums = self.pass_micro_batch(next(batches), own.start, group_end)
            except Exception as error:
                failure = error
            # 2. All processes agree: did one fail, must the run stop, is it time to save?
            now = time.monotonic()
            # Reading a sum makes the CPU wait for the device. Twice per second is enough to show it, and to
            # find a NaN.
            due, refresh = now - self.last_save > self.save_seconds, now - refreshed > REFRESH_SECONDS
            wishes = not self.goes_on(), due, refresh
            stop, due, refresh = processes.agree(failure, wishes)  # raises a failure in all processes
            # 3. Add up gradients, losses and scores in the order of processes: then all have the same bits
            self.gradients.finish(len(turn))
            for part in processes.gather(sums)[: len(turn)]:
                self.sums += part
            bar.update(turn[-1].stop - position.row)
            position.row = turn[-1].stop
            if completes:
                self.optimizer_step()
            # 4. Save or stop. `reduced` gradients of an open group cannot be saved, because each process has
            #    its own sum: wait until the group is complete.
            stop, due = (wish and (self.gradients.whole or completes) for wish in (stop, due))
            if refresh or stop or due or position.row == task.num_train:
                refreshed = now
                self.read_sums()
                loss = position.loss_sum / position.row
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{self.last_lr():.1e}", refresh=False)
            if stop:
                self.save()
                raise self.interrupted()
            if due:
                self.save()

    def pass_micro_batch(self, batch: Batch, first: int, group_end: int) -> torch.Tensor:
        """Run forward and backward pass of the rows from `first` on.

        Return the sums of losses and scores, (2,).
        """
        group_size, task = self.schedule["effective_batch_size"], self.task
        batch = self.compute.move(batch)
        rows, group_rows = len(batch["row"]), group_end - first // group_size * group_size
        seed_micro_batch(self.compute.device, self.seed, self.position.epoch, first)
        with self.compute.autocast():
            loss, logits = task.loss(batch)
        # `loss` is the mean over these rows, a step the mean over the group. So each micro-batch is weighted
        # by its share of the group: every row has the same weight, for any micro-batch size and also in a
        # smaller last group.
        self.scaler.scale(loss * (rows / group_rows)).backward()
        return torch.stack(
            [(loss.detach().float() * rows).to(self.sums), task.score(logits.detach(), batch).to(self.sums)]
        )

    def read_sums(self) -> None:
        """Copy the sums from the device to the position.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        position = self.position
        position.loss_sum, position.score_sum = self.sums.tolist()
        position.seconds = time.perf_counter() - self.epoch_started
        if math.isfinite(position.loss_sum):
            self.checked_step = position.step
            return
        steps = self.checked_step, position.step
        raise UserError(nan_loss(self.folder, steps, self.last_lr(), self.schedule["lr"]))

    def last_lr(self) -> float:
        """Return the learning rate of the last step."""
        return lr_at(max(self.position.step - 1, 0), self.schedule)

    def halve_micro_batch(self, error: torch.OutOfMemoryError) -> None:
        """Halve the micro-batch after running out of memory, and compute the open group again.

        The effective batch stays.

        Raises:
            UserError: even one image at a time needs too much memory.
        """
        device, rows = self.compute.device, self.micro_batch_size
        if self.processes.shares_out and rows > 1:
            group = self.schedule["effective_batch_size"]
            raise UserError(smaller_micro_batch(self.folder, str(device), rows, group)) from None
        if rows == 1:
            raise UserError(one_image_too_large(str(device), error)) from None
        self.micro_batch_size //= 2
        self.rewind()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tqdm.write(
            f"out of memory: continuing with {self.micro_batch_size} images at a time; the effective batch "
            "size does not change"
        )

    def rewind(self) -> None:
        """Go back to the start of the open group and drop its gradients."""
        position = self.position
        self.gradients.give_up()
        self.optimizer.zero_grad(set_to_none=True)
        position.row = position.group_row
        position.loss_sum, position.score_sum = position.group_loss_sum, position.group_score_sum
        self.sums.copy_(torch.tensor([position.loss_sum, position.score_sum], dtype=self.sums.dtype))

    def optimizer_step(self) -> None:
        """Do one optimizer step with the schedule's learning rate.

        In fp16 a step with overflowing gradients is skipped, and does not count for the schedule.

        Raises:
            UserError: the gradients overflow however small the loss is scaled.
        """
        set_lr(self.optimizer, lr_at(self.position.step, self.schedule))
        if self.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trainable.values(), self.max_grad_norm)
        if self.scale is None:
            self.scale = self.scaler.get_scale()
        before, position = self.scale, self.position
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # In fp16 the CPU waits for the GPU here, because it must know if the step was skipped
        if self.scaler.is_enabled():
            self.scale = self.scaler.get_scale()
        if self.scale < min(before, SMALLEST_SCALE):
            raise UserError(overflowing_gradients(self.folder, position.step))
        if self.scale >= before:
            position.step += 1
            self.means.after_step(position.step)
        position.group_row = position.row
        position.group_loss_sum, position.group_score_sum = self.sums.clone()

    def finish_epoch(self) -> EpochReport:
        """Validate, add this epoch to the history, and move to the next one."""
        position, task = self.position, self.task
        train_seconds = time.perf_counter() - self.epoch_started - self.preparing_seconds
        metrics: dict[str, Any] = {
            "epoch": position.epoch + 1,
            "step": position.step,
            "lr": self.last_lr(),
            "train_loss": position.loss_sum / position.row,
            f"train_{task.train_score}": position.score_sum / position.row,
        }
        self.means.before_validation(metrics["epoch"])
        with self.means.in_place():
            logits, scores = self.validation.run(self.micro_batch_size) if task.num_val else (None, {})
        if logits is not None and not np.isfinite(logits).all():
            raise UserError(nan_logits(self.folder, position.step))
        metrics |= scores
        is_best = self.choose(metrics)
        timing = {
            "epoch": metrics["epoch"],
            "seconds": round(time.perf_counter() - self.epoch_started, 3),
            "images_per_second": round(task.num_train / train_seconds, 2),
            "peak_memory_bytes": peak_memory(self.compute.device),
        }
        if self.preparing_seconds:  # a part of `seconds`, only in one epoch
            timing["preparing_seconds"], self.preparing_seconds = round(self.preparing_seconds, 3), 0.0
        position.history.append(metrics)
        position.start_epoch(position.epoch + 1)
        return EpochReport(metrics, timing, logits, is_best)

    def choose(self, metrics: dict[str, Any]) -> bool:
        """Return True if the weights of this epoch are kept. Without validation the last epoch is."""
        position, higher_is_better = self.position, self.task.higher_is_better
        value = float(metrics["epoch"])
        is_best = True
        if self.task.num_val:
            value, loss = metrics[self.task.best_metric], metrics["val_loss"]
            self.means.after_validation(metrics["epoch"], value, loss, higher_is_better)
            is_best = self.keep_last or position.is_better(value, loss, higher_is_better)
        if is_best:
            position.best_epoch, position.best_value = metrics["epoch"], value
        return is_best

    def make_soup(self, on_soup: Callable[[Soup], None]) -> None:
        """Average the weights of the best epochs (a "soup") if the recipe asks for it.

        If the mean of several epochs scores best, it is in the model while `on_soup` is called.

        Raises:
            Interrupted: a stop was requested; the state of the last epoch is saved.
        """
        task, position = self.task, self.position
        if not self.means.means.soup or not task.num_val:
            return

        def scored() -> tuple[np.ndarray, float, dict[str, float]]:
            if self.processes.agree(None, (self.stop_reason is not None,))[0]:
                raise self.interrupted()
            logits, scores = self.validation.run(self.micro_batch_size)
            return logits, scores[task.best_metric], scores

        soup = greedy_soup(self.means, scored, task.higher_is_better, position.best_value)
        if soup is not None:
            position.best_value = soup.value
            with exchanged(self.trainable, self.means.mean(soup.epochs)):
                on_soup(soup)

    def save(self) -> None:
        """Save the state.

        All processes have the same one, or bring their parts of it; the first process writes it.
        """
        state = self.kept.saved()
        if self.processes.rank == 0:
            self.store.save(state, {name: getattr(self.position, name) for name in ("epoch", "row", "step")})
        self.last_save = time.monotonic()

    def interrupted(self) -> Interrupted:
        """Return the exception once all processes have agreed to stop: why, where, and how to continue."""
        self.stop_reason = next(filter(None, self.processes.texts(self.stop_reason)))
        position = self.position
        epoch, row, step = position.epoch + 1, position.row, position.step
        where = f"epoch {epoch}, row {row} of {self.task.num_train}, step {step}"
        return Interrupted(stopped(self.folder, self.stop_reason, where))

    def request_stop(self, reason: str, at_once_if_again: bool) -> None:
        """Ask to stop after this micro-batch and save; a second Ctrl-C stops at once."""
        if self.stop_reason is not None and at_once_if_again:
            raise KeyboardInterrupt
        self.stop_reason = self.stop_reason or reason
