"""Killed, interrupted, resumed: what comes out is bit-identical to the run that was left alone."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, colour_patch, make_competition

import train
from pipeline.errors import Interrupted, UserError, run_command
from pipeline.training import compute
from pipeline.training.checkpoint import StateStore

ROOT = Path(__file__).resolve().parents[1]
SAME = (
    "metrics.jsonl",
    "val_predictions.csv",
    "val_probs.npy",
    "model_lora/adapter_model.safetensors",
    "model_beit/model.safetensors",
)


def flags(competition: Path, backbone: Path, output: Path) -> list[str]:
    """Augmentation, accumulation, dropout and stochastic depth all on."""
    recipe = "--epochs 3 --batch-size 2 --accumulation-steps 3 --lr 0.01 --precision fp32".split()
    recipe += ["--set", "data.val_fraction=0.25", "--set", "augmentation.noise=0.05"]
    return ["--data", str(competition), "--backbone", str(backbone), "--output", str(output), *recipe]


def resume(competition: Path, output: Path) -> int:
    return train.main(["--data", str(competition), "--output", str(output), "--resume"])


def assert_same(a: Path, b: Path) -> None:
    for name in SAME:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def interrupt_after(monkeypatch: pytest.MonkeyPatch, micro_batches: int) -> None:
    """A SIGTERM during the given micro-batch of the process."""
    seen = iter(range(10_000))
    original = compute.Compute.move

    def move(self: compute.Compute, batch: compute.Batch) -> compute.Batch:
        if "label" in batch and next(seen) == micro_batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(compute.Compute, "move", move)


@pytest.mark.parametrize("micro_batch", [2, 5, 9, 17, 26])  # inside a group, between groups, in another epoch
def test_interrupted_anywhere_and_resumed_is_bit_identical(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys, micro_batch: int
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, micro_batch)
        with pytest.raises(Interrupted, match=r"SIGTERM.*the state is saved.*--resume"):
            train.main(flags(whole / "data", tiny_backbone, output))
    assert not (output / "run.json").exists()
    assert resume(whole / "data", output) == 0
    assert "resuming in epoch" in capsys.readouterr().out
    assert_same(output, whole / "run")


def test_interrupted_twice_with_other_workers_is_bit_identical(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """Workers only decode: what a row yields depends on (seed, epoch, row) alone, so their number may differ
    between the parts of a run.
    """
    from pipeline.tasks import classification_task

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 7)
        with pytest.raises(Interrupted):
            train.main(flags(whole / "data", tiny_backbone, output))
    monkeypatch.setattr(classification_task, "resolve_workers", lambda *_: 2)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 6)
        with pytest.raises(Interrupted):
            resume(whole / "data", output)
    resume(whole / "data", output)
    assert_same(output, whole / "run")


def test_half_precision_and_checkpointing_resume_bit_for_bit(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    more = ["--precision", "bf16", "--epochs", "2", "--set", "activation_checkpointing=true"]
    train.main([*flags(whole / "data", tiny_backbone, tmp_path / "a"), *more])
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interrupted):
            train.main([*flags(whole / "data", tiny_backbone, tmp_path / "b"), *more])
    resume(whole / "data", tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_max_minutes_saves_and_exits_130(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted, match="--max-minutes"):
        train.main([*flags(whole / "data", tiny_backbone, output), "--max-minutes", "0"])
    state, _ = StateStore(output / "state").load()
    assert state["position"]["row"] == 2  # the micro-batch at hand was finished
    assert resume(whole / "data", output) == 0
    assert_same(output, whole / "run")


def test_max_minutes_counts_the_time_before_the_first_step_too(
    whole: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A session that ends does not wait until the images were checked and the model was built."""
    args = train.parse([*flags(whole / "data", tiny_backbone, tmp_path / "run"), "--max-minutes", "30"])
    with pytest.raises(Interrupted, match="--max-minutes"):
        train.train_one(args, "python train.py", started=time.perf_counter() - 3600)
    state, _ = StateStore(tmp_path / "run" / "state").load()
    assert state["position"]["row"] == 2  # the micro-batch at hand was finished


def test_the_same_command_with_resume_goes_on(
    whole: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    """As the farewell says; a recipe and a backbone named again are the run's own."""
    command = [*flags(whole / "data", tiny_backbone, tmp_path / "run"), "--recipe", "beit-large-384-lora"]
    with pytest.raises(Interrupted, match="--resume"):
        train.main([*command, "--max-minutes", "0"])
    assert train.main([*command, "--resume"]) == 0
    assert "resuming in epoch 1 at row 2" in capsys.readouterr().out
    assert_same(tmp_path / "run", whole / "run")


def test_a_damaged_newest_state_falls_back_to_the_one_before(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 22)
        with pytest.raises(Interrupted):
            train.main(flags(whole / "data", tiny_backbone, output))
    newest = max((output / "state").glob("[0-9]*.pt"))
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert resume(whole / "data", output) == 0
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and "resuming in epoch" in printed
    assert_same(output, whole / "run")


@pytest.fixture(scope="module")
def interrupted_once(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data in data/ and a run of them in run/ that was stopped in the second epoch, inside a group."""
    root = tmp_path_factory.mktemp("interrupted")
    data = make_competition(root / "data")
    with pytest.MonkeyPatch.context() as patched:
        interrupt_after(patched, 16)
        with pytest.raises(Interrupted):
            train.main(flags(data, tiny_backbone, root / "run"))
    return root


@pytest.fixture
def interrupted(interrupted_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(interrupted_once, tmp_path / "interrupted")


def go_on(folder: Path, *arguments: str) -> dict:
    """The record of the run after `--resume`."""
    assert (
        train.main(["--data", str(folder / "data"), "--output", str(folder / "run"), "--resume", *arguments])
        == 0
    )
    return json.loads((folder / "run" / "run.json").read_text())


def test_a_changed_recipe_is_refused_with_the_differences_unless_accepted(interrupted: Path, capsys) -> None:
    with pytest.raises(UserError, match=r"--resume changed\):\n  - optimizer\.lr: 0\.01 -> 0\.5") as caught:
        go_on(interrupted, "--lr", "0.5")
    assert "epochs" not in str(caught.value)
    record = go_on(interrupted, "changed", "--lr", "0.002", "--set", "optimizer.weight_decay=0.2")
    printed = capsys.readouterr().out
    assert "  - optimizer.lr: 0.01 -> 0.002\n  - optimizer.weight_decay: 0.01 -> 0.2" in printed
    # Inside a group, as saved: no row is done twice
    assert "resuming in epoch 2 at row 10, after 4 optimizer steps" in printed
    assert record["recipe"]["optimizer"]["lr"] == 0.002 and record["last"]["lr"] < 0.002
    assert record["changes"][0]["changed"] == [
        "optimizer.lr: 0.01 -> 0.002",
        "optimizer.weight_decay: 0.01 -> 0.2",
    ]


def test_changes_are_not_stored_where_no_state_can_be_read(interrupted: Path) -> None:
    start = interrupted / "run" / "state" / "start.json"
    before = start.read_bytes()
    for state in start.parent.glob("[0-9]*.pt"):
        state.write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        go_on(interrupted, "changed", "--lr", "0.002")
    assert start.read_bytes() == before


def test_an_accepted_weight_decay_reaches_the_optimizer(interrupted: Path) -> None:
    state, _ = StateStore(interrupted / "run" / "state").load()
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.0, 0.01}
    with pytest.raises(Interrupted):
        go_on(interrupted, "changed", "--set", "optimizer.weight_decay=0.2", "--max-minutes", "0")
    state, _ = StateStore(interrupted / "run" / "state").load()
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.0, 0.2}


def test_more_epochs_accepted_are_the_run_that_had_them_from_the_start(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """With a constant learning rate nothing else depends on the number of epochs."""
    constant = ["--set", "schedule.name=constant", "--set", "schedule.warmup_ratio=0"]
    train.main([*flags(whole / "data", tiny_backbone, tmp_path / "four"), *constant, "--epochs", "4"])
    with monkeypatch.context() as patched:
        interrupt_after(patched, 17)
        with pytest.raises(Interrupted):
            train.main([*flags(whole / "data", tiny_backbone, tmp_path / "run"), *constant])
    train.main(
        [
            *("--data", str(whole / "data"), "--output", str(tmp_path / "run"), "--resume", "changed"),
            *("--epochs", "4"),
        ]
    )
    assert_same(tmp_path / "run", tmp_path / "four")


def test_other_groups_begin_the_epoch_again(interrupted: Path, capsys) -> None:
    record = go_on(interrupted, "changed", "--accumulation-steps", "2")
    # 18 rows: 3 steps of 6 were 5 of 4
    assert "resuming in epoch 2 at row 0, after 5 optimizer steps" in capsys.readouterr().out
    assert [line["step"] for line in metrics(interrupted / "run")] == [3, 10, 15] and record["schedule"][
        "total_steps"
    ] == 15


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_what_decides_nothing_needs_no_word(interrupted: Path, whole: Path) -> None:
    record = go_on(interrupted, "--set", "data.workers=1", "--set", "checkpoint.every_minutes=1")
    assert record["changes"] == []
    assert_same_but_paths(interrupted / "run", whole / "run")


def assert_same_but_paths(a: Path, b: Path) -> None:
    for name in ("metrics.jsonl", "val_probs.npy", "model_lora/adapter_model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize(
    "argument",
    [
        *("--lora-rank=4", "--seed=1", "--image-size=64", "--set=lora.targets=[value]"),
        # Other groups of weights, and saved moments are matched to weights by their order
        *("--set=optimizer.layer_decay=0.5", "--set=lora.b_lr_scale=16"),
    ],
)
def test_what_the_weights_do_not_fit_is_refused_even_so(interrupted: Path, argument: str) -> None:
    before = (interrupted / "run/state/start.json").read_bytes()
    with pytest.raises(UserError, match=r"weights do not fit"):
        go_on(interrupted, "changed", argument)
    assert (interrupted / "run/state/start.json").read_bytes() == before  # it can still be resumed


def test_a_batch_size_given_on_resume_is_that_of_the_next_one_too(
    whole: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    words = ["--data", str(whole / "data"), "--output", str(tmp_path / "run"), "--max-minutes", "0"]
    auto = [*words, "--backbone", str(tiny_backbone), "--batch-size", "auto", "--accumulation-steps", "3"]
    for more in (auto, [*words, "--resume", "changed", "--batch-size", "2"], [*words, "--resume"]):
        with pytest.raises(Interrupted):
            train.main([*more, "--epochs", "3", "--precision", "fp32"])
    assert capsys.readouterr().out.count("(2 at a time)") == 2


def test_an_image_less_of_an_id_with_several_is_no_exact_continuation(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for patient in range(4):
            for view in range(2):
                path = data / "train" / f"{name}{patient}_{view}.png"
                colour_patch(path, colour, 100 * number + 10 * patient + view)
    labels = [f"{name}{patient},{name}" for name in COLOURS for patient in range(4)]
    (data / "train.csv").write_text("\n".join(["id,label", *labels]) + "\n")
    words = flags(data, tiny_backbone, tmp_path / "run")
    with pytest.raises(Interrupted):
        train.main([*words, "--max-minutes", "0"])
    (data / "train/red1_0.png").unlink()
    with pytest.raises(UserError, match=r"1 id with more or fewer images: 'red1' from 2 to 1"):
        resume(data, tmp_path / "run")
    with pytest.raises(Interrupted):
        train.main([*words, "--resume", "changed", "--max-minutes", "0"])


def test_changed_data_is_refused_row_by_row_unless_accepted(interrupted: Path, capsys) -> None:
    train_dir = interrupted / "data" / "train"
    split_of = {row["id"]: row["split"] for row in rows_of(interrupted / "run" / "state" / "rows.csv")}
    gone = next(name for name, split in split_of.items() if split == "train" and name.startswith("red"))
    moved = next(name for name, split in split_of.items() if split == "val" and name.startswith("blue"))
    (train_dir / "red" / f"{gone}.png").unlink()
    (train_dir / "blue" / f"{moved}.png").rename(train_dir / "green" / f"{moved}.png")
    shutil.copy(next((train_dir / "green").glob("*.png")), train_dir / "green" / "later.png")
    with pytest.raises(UserError) as caught:
        go_on(interrupted)
    lines = [
        f"1 row gone: '{gone}'",
        "1 row new, for training: 'later'",
        f"1 label changed: '{moved}' from 'blue' to 'green'",
    ]
    assert [line.strip(" -") for line in str(caught.value).splitlines()[1:]] == lines
    record = go_on(interrupted, "changed")
    assert "resuming in epoch 2 at row 0, after 3 optimizer steps" in capsys.readouterr().out
    # Epoch 1 was measured on other labels
    assert record["changes"][0]["changed"] == lines and record["best"]["epoch"] > 1
    after = {
        row["id"]: row["split"] for row in rows_of(interrupted / "run" / "val_predictions.csv", split="val")
    }
    # Nothing that trained validates
    assert set(after) == {name for name, split in split_of.items() if split == "val"}


def rows_of(path: Path, **more: str) -> list[dict]:
    with path.open(newline="") as file:
        return [{**row, **more} for row in csv.DictReader(file)]


def test_other_classes_are_refused_even_so(interrupted: Path) -> None:
    shutil.copytree(interrupted / "data" / "train" / "red", interrupted / "data" / "train" / "pink")
    for path in (interrupted / "data" / "train" / "pink").iterdir():
        path.rename(path.with_name(path.name.replace("red", "pink")))
    with pytest.raises(UserError, match=r"the classes have changed .*--output:\n  - 'pink' is new"):
        go_on(interrupted, "changed")


def test_labels_in_another_order_of_lines_go_on_exactly(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """A run keeps its own order and split of rows."""
    pictures = sorted((whole / "data" / "train").glob("*/*.png"))
    (tmp_path / "data" / "images").mkdir(parents=True)
    for path in pictures:
        shutil.copy(path, tmp_path / "data" / "images")
    table = tmp_path / "data" / "train.csv"
    lines = [f"{path.stem},{path.parent.name}\n" for path in pictures]
    table.write_text("id,label\n" + "".join(lines))
    train.main(flags(tmp_path / "data", tiny_backbone, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, 16)
        with pytest.raises(Interrupted):
            train.main(flags(tmp_path / "data", tiny_backbone, tmp_path / "run"))
    table.write_text("id,label\n" + "".join(reversed(lines)))
    resume(tmp_path / "data", tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_resume_without_a_state_starts_and_says_so(
    whole: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    assert train.main([*flags(whole / "data", tiny_backbone, tmp_path / "run"), "--resume"]) == 0
    assert "no state in" in capsys.readouterr().out
    assert_same(tmp_path / "run", whole / "run")


@pytest.mark.parametrize("saved", [False, True])
def test_killed_before_the_first_state_nothing_looks_like_a_release(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, saved: bool
) -> None:
    """The untrained model that a run begins with must never be predicted with."""
    from pipeline.run import load_run
    from pipeline.tasks.classification_task import ClassificationTask

    save = ClassificationTask.save

    def killed(self: ClassificationTask, output: Path, initial: bool = False) -> None:
        if saved:
            save(self, output, initial)
        raise KeyboardInterrupt

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(ClassificationTask, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(flags(whole / "data", tiny_backbone, output))
    with pytest.raises(UserError, match="unfinished run" if saved else "no model to load"):
        load_run(output)
    assert (
        train.main(flags(whole / "data", tiny_backbone, output)) == 0
    )  # nothing was trained, so nothing is lost: no --resume is asked for
    assert_same(output, whole / "run")


def test_resuming_a_complete_run_changes_nothing_but_a_missing_page(
    whole: Path, tmp_path: Path, capsys
) -> None:
    output = shutil.copytree(whole / "run", tmp_path / "run")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert resume(whole / "data", output) == 0
    assert "is complete: nothing to resume" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    (output / "report.html").unlink()  # killed in its last second
    assert resume(whole / "data", output) == 0
    assert (output / "report.html").exists()


@pytest.mark.parametrize("how", [["--resume"], ["--resume", "changed"]])
def test_other_settings_for_a_complete_run_are_refused(whole: Path, tmp_path: Path, how: list[str]) -> None:
    """Nothing would be trained with them, so exit code 0 would be a lie."""
    output = shutil.copytree(whole / "run", tmp_path / "run")
    words = ["--data", str(whole / "data"), "--output", str(output), *how]
    with pytest.raises(UserError, match=r"is complete(.|\n)*epochs: \d+ -> 77"):
        train.main([*words, "--epochs", "77"])
    assert train.main([*words, "--set", "data.workers=1"]) == 0  # decides nothing


def test_a_loss_that_is_not_a_number_stops_with_the_step_range(
    whole: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"NaN .*steps \[\d+, \d+\] .*learning rate (?s:.*)--lr"):
        train.main(
            [
                *flags(whole / "data", tiny_backbone, tmp_path / "run"),
                *"--lr 1e30 --set optimizer.name=sgd".split(),
            ]
        )


def test_out_of_memory_halves_the_micro_batch_and_changes_no_step(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The second micro-batch of a group fails: the group is done again in smaller pieces and its mean is the
    same.
    """
    from pipeline.tasks.classification_task import ClassificationTask

    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.0}))

    def losses(name: str) -> list[float]:
        arguments = [
            *flags(whole / "data", backbone, tmp_path / name),
            *"--set optimizer.name=sgd --set lora.dropout=0".split(),
        ]
        train.main([*arguments, "--set", "augmentation.noise=0"])
        return [
            json.loads(line)["train_loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]

    undisturbed = losses("a")
    original, micro_batch_sizes = ClassificationTask.train_batches, []

    def train_batches(
        self: ClassificationTask,
        epoch: int,
        start: int,
        micro_batch_size: int,
        group_size: int,
        share: tuple[int, int] = (0, 1),
    ):
        micro_batch_sizes.append(micro_batch_size)
        for number, batch in enumerate(original(self, epoch, start, micro_batch_size, group_size, share)):
            if epoch == 1 and micro_batch_size == 2 and number == 4:
                raise torch.OutOfMemoryError("simulated")
            yield batch

    monkeypatch.setattr(ClassificationTask, "train_batches", train_batches)
    np.testing.assert_allclose(losses("b"), undisturbed, rtol=1e-5)
    assert micro_batch_sizes[-3:] == [2, 1, 1]  # the epoch that failed, its rest, and the one after
    assert "out of memory: continuing with 1 images at a time" in capsys.readouterr().out


def test_a_full_disk_keeps_the_last_good_state_and_says_so(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The third state does not fit: half of it is written, then comes what torch.save raises on a file system
    without space.
    """
    original, saved = torch.save, []

    def save(state: dict, file: io.BufferedWriter) -> None:
        saved.append(file)
        if len(saved) == 3:
            file.write(b"half of it")
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")  # noqa: B904
        original(state, file)

    output = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        assert run_command(lambda: train.main(flags(whole / "data", tiny_backbone, output))) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert (
        sorted(path.name for path in (output / "state").iterdir())
        == "000001.json 000001.pt 000002.json 000002.pt kept.json rows.csv start.json".split()
    )
    assert resume(whole / "data", output) == 0
    assert_same(output, whole / "run")


def test_a_run_that_will_not_fit_on_the_disk_does_not_start(
    whole: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("pipeline.training.estimate.shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"write .* 1\.0 MB"):
        train.main(flags(whole / "data", tiny_backbone, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def run_in_a_process(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_sigint_in_a_process_exits_130_with_the_state(
    whole: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    long_run = [
        *flags(whole / "data", tiny_backbone, output),
        *"--epochs 100000 --set checkpoint.every_minutes=0.001 --set compile=false".split(),
    ]
    process = run_in_a_process(long_run)
    wait_for_state(output, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "the state is saved" in printed and "Traceback" not in printed
    state, _ = StateStore(output / "state").load()
    assert state is not None and not list(output.glob("run.json"))


def wait_for_state(output: Path, process: subprocess.Popen) -> None:
    while process.poll() is None:
        if list((output / "state").glob("[0-9]*.json")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no state; exit code {process.returncode}; printed:\n{process.communicate()[0]}")


def kill_runs(whole: Path, backbone: Path, folder: Path, first: int, count: int) -> list[dict]:
    """What `tests/killed.py` says of runs that were killed and resumed; it compares each with the run that
    was left alone.
    """
    command = [
        sys.executable,
        "tests/killed.py",
        str(whole / "data"),
        str(backbone),
        str(folder),
        str(first),
        str(count),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    runs = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(runs) == count and all(run["exit"] == 0 for run in runs)
    return runs


def test_killed_inside_a_state_is_bit_identical(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    (run,) = kill_runs(whole, tiny_backbone, tmp_path / "runs", 2, 1)
    assert run["moment"] == "half a state" and run["kills"]


@pytest.mark.slow
def test_killed_at_random_moments_is_bit_identical(whole: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """SIGKILL at start-up, inside epochs, state writes, renames and validation, and after the end; up to
    three times a run (KILLED_RUNS=20).
    """
    runs = kill_runs(whole, tiny_backbone, tmp_path / "runs", 0, int(os.environ.get("KILLED_RUNS", "20")))
    kills = sum(len(run["kills"]) for run in runs)
    print(f"{len(runs)} runs, {kills} kills, all bit-identical")
    assert kills >= len(runs)
