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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pipeline.data.dataset import cut_turns
from pipeline.data.images import LostImage
from pipeline.errors import Interrupted, UserError
from pipeline.models.adapter_starts import put_starts, starts_of
from pipeline.stopping import stop_requests
from pipeline.training.checkpoint import StateStore, check_fits, seed_micro_batch
from pipeline.training.compute import Batch, Compute, peak_memory
from pipeline.training.gradients import gradient_sum
from pipeline.training.means import Means, Soup, WeightMeans, exchanged, greedy_soup
from pipeline.training.optim import lr_at, set_lr
from pipeline.training.position import EpochReport, Position
from pipeline.training.predict import Task, evaluate
from pipeline.training.processes import OtherEnded
from pipeline.training.resume import rows_digest
from pipeline.training.sharding import part_of, parted_state, whole, whole_in_place, whole_state
from pipeline.unfinished import resume_command

NONE = Means()
REFRESH_SECONDS = 0.5  # how often the loss is read from the device, to show it and to check for NaN


def fit(
    task: Task,
    optimizer: torch.optim.Optimizer,
    schedule: dict[str, Any],
    compute: Compute,
    store: StateStore,
    on_epoch: Callable[[EpochReport], None],
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
        task,
        optimizer,
        schedule,
        compute,
        store,
        micro_batch_size,
        seed,
        sums,
        max_grad_norm,
        save_minutes,
        max_minutes,
        keep_last,
        means,
    )
    position = loop.position
    # Before the first state is saved: another program may stop the run once it sees one
    with stop_requests(loop.request_stop):
        if state is None:
            loop.save()  # so a resumed run never depends on files of a first, unfinished epoch
        else:
            loop.restore(state)
            print(loop.greeting())
        while position.epoch < epochs:
            try:
                loop.begin_epoch()
                if prepare is not None and not loop.is_prepared:
                    loop.prepare(prepare)
                loop.train_epoch(epochs)
                report = loop.finish_epoch()
            except LostImage:  # between two micro-batches or in validation, so the state is consistent
                if compute.processes.count > 1:
                    loop.rewind()  # other processes have computed a micro-batch of this turn
                loop.read_sums()
                loop.save()
                raise
            except Interrupted:
                with loop.in_place():
                    on_stop(position)
                compute.processes.wait_for_all()
                raise
            except OtherEnded as error:
                go_on = f"; the last state is saved. Continue with: {resume_command(store.folder.parent)}"
                raise UserError(f"{error}{'' if 'ontinue with: ' in str(error) else go_on}") from None
            with loop.in_place():
                on_epoch(report)
            loop.save()
        if prepare is not None and means.soup and not loop.is_prepared:  # resumed after the last epoch
            loop.prepare(prepare)
        loop.cook(on_soup)
    return position


class _Loop:
    """The state of `fit` while it runs."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: dict[str, Any],
        compute: Compute,
        store: StateStore,
        micro_batch_size: int,
        seed: int,
        sums: Literal["auto", "exact", "reduced"],
        max_grad_norm: float,
        save_minutes: float,
        max_minutes: float | None,
        keep_last: bool,
        means: Means,
    ) -> None:
        self.task, self.optimizer, self.schedule, self.compute, self.store = (
            task,
            optimizer,
            schedule,
            compute,
            store,
        )
        self.processes = compute.processes
        self.micro_batch_size, self.seed, self.max_grad_norm = micro_batch_size, seed, max_grad_norm
        self.keep_last = keep_last
        self.save_seconds = save_minutes * 60
        self.deadline = time.monotonic() + max_minutes * 60 if max_minutes is not None else math.inf
        self.last_save = time.monotonic()
        self.position = Position()
        self.stop_reason: str | None = None
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        # A position inside an epoch is only valid for the same rows in the same order, and the same step
        # size.
        self.order = {
            "rows": rows_digest(task.split_rows()),
            "effective_batch_size": schedule["effective_batch_size"],
        }
        self.trainable = {
            name: weight for name, weight in task.model.named_parameters() if weight.requires_grad
        }
        self.means = WeightMeans(means, self.trainable)
        self.gradients = gradient_sum(sums, self.processes, list(self.trainable.values()))
        self.checked_step = 0
        self.epoch_started = 0.0
        self.is_prepared, self.preparing_seconds = False, 0.0

    def begin_epoch(self) -> None:
        """Set the clock and the sums for this epoch."""
        position = self.position
        self.epoch_started = time.perf_counter() - position.seconds
        # On the device, and not reset within an epoch: so reading them does not change the order of
        # additions.
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
                    self.pass_rows(bar)
                except torch.OutOfMemoryError as error:
                    self.halve_micro_batch(error)
                    bar.n = position.row

    def pass_rows(self, bar: tqdm) -> None:
        """Run the loop over turns, to the end of the epoch."""
        position, task, processes, group_size = (
            self.position,
            self.task,
            self.processes,
            self.schedule["effective_batch_size"],
        )
        cutting = self.micro_batch_size, group_size
        batches = iter(task.train_batches(position.epoch, position.row, *cutting, processes.share))
        refreshed = time.monotonic()
        for turn in cut_turns(task.num_train, *cutting, position.row, processes.count):
            group_end = min((position.row // group_size + 1) * group_size, task.num_train)
            completes, failure, sums = turn[-1].stop == group_end, None, torch.zeros_like(self.sums)
            self.gradients.begin(completes)
            try:
                if processes.rank < len(turn) or processes.shares_out:  # then the batch may have no rows
                    own = turn[min(processes.rank, len(turn) - 1)]
                    sums = self.pass_micro_batch(next(batches), own.start, group_end)
            except Exception as error:
                failure = error
            now = time.monotonic()
            # Reading a sum makes the CPU wait for the device. Twice per second is enough to show it, and to
            # find a NaN.
            wishes = (
                not self.goes_on(),
                now - self.last_save > self.save_seconds,
                now - refreshed > REFRESH_SECONDS,
            )
            stop, due, refresh = processes.agree(failure, wishes)  # raises a failure in all processes
            self.gradients.finish(len(turn))
            for part in processes.gather(sums)[: len(turn)]:
                self.sums += part
            bar.update(turn[-1].stop - position.row)
            position.row = turn[-1].stop
            if completes:
                self.optimizer_step()
            stop, due = (wish and (self.gradients.whole or completes) for wish in (stop, due))
            if refresh or stop or due or position.row == task.num_train:
                refreshed = now
                self.read_sums()
                lr = lr_at(max(position.step - 1, 0), self.schedule)
                bar.set_postfix(loss=f"{position.loss_sum / position.row:.3f}", lr=f"{lr:.1e}", refresh=False)
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
        rate = lr_at(max(position.step - 1, 0), self.schedule)
        raise UserError(
            f"the loss became NaN or infinite within steps [{self.checked_step}, {position.step}] at "
            f"learning rate {rate:.2e}; the last state is saved. Likely causes: the learning rate is too "
            "high, or half precision. Continue with one of\n"
            f"  {self.go_on_changed('--lr', f'{rate / 3:.0e}')}\n  "
            f"{self.go_on_changed('--precision', 'fp32')}"
        )

    def halve_micro_batch(self, error: torch.OutOfMemoryError) -> None:
        """Halve the micro-batch after running out of memory, and compute the open group again.

        The effective batch stays.

        Raises:
            UserError: even one image at a time needs too much memory.
        """
        device = self.compute.device
        if self.processes.shares_out and self.micro_batch_size > 1:
            raise UserError(self.smaller_micro_batch()) from None
        if self.micro_batch_size == 1:
            advice = (
                "use --set activation_checkpointing=true, LoRA (--lora-rank 16), a smaller "
                "--image-size or a smaller --backbone"
            )
            raise UserError(
                f"out of memory on {device} with one image at a time; {advice}: {str(error).splitlines()[0]}"
            ) from None
        self.micro_batch_size //= 2
        self.rewind()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tqdm.write(
            f"out of memory: continuing with {self.micro_batch_size} images at a time; the effective batch "
            "size does not change"
        )

    def smaller_micro_batch(self) -> str:
        """Return the error message for processes that share out the weights, which cannot halve it
        themselves.
        """
        rows, group = self.micro_batch_size, self.schedule["effective_batch_size"]
        smaller = max(size for size in range(1, rows // 2 + 1) if group % size == 0)
        changed = self.go_on_changed(
            "--batch-size", str(smaller), "--accumulation-steps", str(group // smaller)
        )
        return (
            f"out of memory on {self.compute.device} with {rows} images at a time; the last state is "
            f"saved. Continue with: {changed}"
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model has the weights that are validated and saved, the first process all of
        them.
        """
        with self.means.in_place(), whole_in_place(self.task.model, self.processes):
            yield

    def rewind(self) -> None:
        """Go back to the start of the open group and drop its gradients."""
        position = self.position
        self.gradients.give_up()
        self.optimizer.zero_grad(set_to_none=True)
        position.row, position.loss_sum, position.score_sum = (
            position.group_row,
            position.group_loss_sum,
            position.group_score_sum,
        )
        self.sums.copy_(torch.tensor([position.loss_sum, position.score_sum], dtype=self.sums.dtype))

    def optimizer_step(self) -> None:
        """Do one optimizer step with the schedule's learning rate.

        In fp16 a step with overflowing gradients is skipped, and does not count for the schedule.
        """
        set_lr(self.optimizer, lr_at(self.position.step, self.schedule))
        if self.max_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.trainable.values(), self.max_grad_norm)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        position = self.position
        if not self.scaler.is_enabled() or self.scaler.get_scale() >= scale:
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
            "lr": lr_at(max(position.step - 1, 0), self.schedule),
            "train_loss": position.loss_sum / position.row,
            f"train_{task.train_score}": position.score_sum / position.row,
        }
        self.means.before_validation(metrics["epoch"])
        with self.means.in_place():
            logits = evaluate(task, self.compute, 2 * self.micro_batch_size) if task.num_val else None
        if logits is not None:
            if not np.isfinite(logits).all():
                raise UserError(
                    f"validation after step {position.step} gave NaN or infinite logits; the last state is "
                    f"saved (half precision?). Continue with: {self.go_on_changed('--precision', 'fp32')}"
                )
            metrics |= {f"val_{name}": value for name, value in task.scores(logits).items()}
        if logits is None:  # without validation the last epoch counts as the best
            value, is_best = float(metrics["epoch"]), True
        else:
            value = metrics[task.best_metric]
            self.means.after_validation(metrics["epoch"], value, metrics["val_loss"], task.higher_is_better)
            is_best = self.keep_last or position.best_epoch == 0 or self.is_better(value, metrics["val_loss"])
        if is_best:
            position.best_epoch, position.best_value = metrics["epoch"], value
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

    def cook(self, on_soup: Callable[[Soup], None]) -> None:
        """Make the soup if the recipe asks for it.

        If it is more than the best epoch, put it into the model for `on_soup`.

        Raises:
            Interrupted: a stop was requested; the state of the last epoch is saved.
        """
        task, position = self.task, self.position
        if not self.means.means.soup or not task.num_val:
            return

        def validate() -> tuple[np.ndarray, float, dict[str, float]]:
            if self.processes.agree(None, (self.stop_reason is not None,))[0]:
                raise self.interrupted()
            logits = evaluate(task, self.compute, 2 * self.micro_batch_size)
            scores = {f"val_{name}": value for name, value in task.scores(logits).items()}
            return logits, scores[task.best_metric], scores

        soup = greedy_soup(self.means, validate, task.higher_is_better, position.best_value)
        if soup is not None:
            position.best_value = soup.value
            with exchanged(self.trainable, self.means.mean(soup.epochs)):
                on_soup(soup)

    def is_better(self, value: float, loss: float) -> bool:
        """Return True if an epoch with this metric value beats the kept one.

        For equal values the lower loss wins.
        """
        position = self.position
        if value == position.best_value:
            kept = next((line for line in position.history if line["epoch"] == position.best_epoch), {})
            return loss < kept.get("val_loss", -math.inf)
        return value > position.best_value if self.task.higher_is_better else value < position.best_value

    def save(self) -> None:
        """Save the state. All processes have the same one, or bring their parts of it, and the first process
        writes it.
        """
        state = self.state()
        if self.processes.rank == 0:
            self.store.save(state, {name: getattr(self.position, name) for name in ("epoch", "row", "step")})
        self.last_save = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        position = self.position
        position.group_loss_sum, position.group_score_sum = (
            float(position.group_loss_sum),
            float(position.group_score_sum),
        )
        gradients = {
            name: whole(weight.grad) for name, weight in self.trainable.items() if weight.grad is not None
        }
        return {
            "position": asdict(position),
            "order": self.order,
            "weights": {name: whole(weight.detach()) for name, weight in self.trainable.items()},
            "gradients": gradients,
            "optimizer": whole_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "means": self.means.state(),
            "starts": starts_of(self.task.model),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was saved.

        If other rows or groups were accepted since, start that epoch again.

        Raises:
            UserError: the state does not fit this model.
        """
        check_fits(state, self.trainable, self.optimizer, self.means.problems(state.get("means")))
        put_starts(self.task.model, state.get("starts", {}))
        with torch.no_grad():
            for name, weight in self.trainable.items():
                weight.copy_(part_of(state["weights"][name], weight))
        settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(parted_state(state["optimizer"], self.optimizer))
        for group, setting in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(setting)  # from the recipe, because a change of weight decay may have been accepted
        self.means.restore(state.get("means"))
        if state["scaler"]:  # empty if the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])
        vars(self.position).update(state["position"])
        if state["order"] == self.order:
            if not self.gradients.whole and self.processes.rank > 0:
                return  # each process has its own sum: only the first gets the saved gradients
            for name, gradient in state["gradients"].items():
                self.trainable[name].grad = part_of(gradient, self.trainable[name]).to(
                    self.trainable[name].device
                )
            return
        self.position.start_epoch(self.position.epoch)
        self.position.step = self.position.epoch * self.schedule["steps_per_epoch"]
        # The best value of other validation rows cannot be compared
        if state["order"]["rows"] != self.order["rows"]:
            self.position.best_epoch = 0
            self.means.forget()

    def go_on_changed(self, *flags: str) -> str:
        """Return the command that continues with other `flags`."""
        return resume_command(self.store.folder.parent, "changed", *flags)

    def greeting(self) -> str:
        """Return where a resumed run continues."""
        position = self.position
        return (
            f"resuming in epoch {position.epoch + 1} at row {position.row}, after {position.step} "
            "optimizer steps"
        )

    def interrupted(self) -> Interrupted:
        """Return the exception once all processes have agreed to stop: why, where, and how to continue."""
        self.stop_reason = next(filter(None, self.processes.texts(self.stop_reason)))
        position = self.position
        where = (
            f"epoch {position.epoch + 1}, row {position.row} of {self.task.num_train}, step {position.step}"
        )
        again = resume_command(self.store.folder.parent)
        return Interrupted(
            f"stopped ({self.stop_reason}) in {where}; the state is saved. Continue with: {again}"
        )

    def request_stop(self, reason: str, at_once_if_again: bool) -> None:
        """Ask to stop after this micro-batch and save; a second Ctrl-C stops at once."""
        if self.stop_reason is not None and at_once_if_again:
            raise KeyboardInterrupt
        self.stop_reason = self.stop_reason or reason
