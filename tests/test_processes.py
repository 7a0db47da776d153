"""Several processes, started by torchrun: the bits of one process, one message, and nothing lost when one of
them ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_competition
from safetensors.torch import load_file
from test_vqa import SAME as OF_QUESTIONS
from test_vqa import make_questions
from test_vqa import recipe as question_recipe
from transformers import BeitForImageClassification

import inference
import train
from pipeline.errors import Interrupted, UserError
from pipeline.ranks import NAMES
from pipeline.training import estimate
from pipeline.training.checkpoint import StateStore
from pipeline.training.memory import Memory
from pipeline.training.processes import ALONE, Processes, card

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ADAPTER = "model_lora/adapter_model.safetensors"
SAME = ("metrics.jsonl", "val_predictions.csv", "val_probs.npy", ADAPTER)


def flags(root: Path, backbone: Path, output: str, *more: str) -> list[str]:
    """Augmentation of every kind, noise, dropout, stochastic depth; groups of four micro-batches, the last of
    an epoch of two and a smaller one.
    """
    recipe = "--epochs 2 --batch-size 2 --accumulation-steps 4 --lr 0.01 --precision fp32".split()
    recipe += [
        *"--set data.val_fraction=0.25 --set augmentation.noise=0.05".split(),
        *"--set optimizer.max_grad_norm=1".split(),
    ]
    every = (
        "augmentation.policy=rand_augment",
        "augmentation.erasing=0.5",
        "augmentation.mixup=0.4",
        "augmentation.cutmix=1",
    )
    recipe += [
        word
        for key in (*every, "data.sampling=classes", "optimizer.loss=focal", "optimizer.ema=0.9")
        for word in ("--set", key)
    ]
    return [
        *("--data", str(root / "data"), "--backbone", str(backbone), "--output", str(root / output)),
        *recipe,
        *more,
    ]


def torchrun(count: int, *words: str, **env: str) -> subprocess.Popen:
    command = [*TORCHRUN, str(count), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )


def together(count: int, commands: list[list], fault: str = "") -> tuple[int, str, str]:
    """The exit code, output and messages of commands that `count` processes run, see several.py."""
    process = torchrun(count, "tests/several.py", json.dumps(commands), *([fault] if fault else []))
    out, err = process.communicate()
    return process.returncode, out, err


def in_one_thread(main, words: list[str]) -> int:
    """`main(words)` with as many threads as a process of torchrun has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(words)
    finally:
        torch.set_num_threads(threads)


def resume(root: Path, output: str, *more: str) -> None:
    assert (
        in_one_thread(
            train.main, ["--data", str(root / "data"), "--output", str(root / output), "--resume", *more]
        )
        == 0
    )


def assert_same(a: Path, b: Path, names: tuple[str, ...] = SAME) -> None:
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[Path]:
    """A folder with the results of the same commands in one process and in two processes.

    one/ two/: the same run. stopped/: stopped in two processes. half/: stopped in one process inside a group,
    then finished in two. full-one/ full-two/: full fine-tuning, gradients reduced. whole/ parts/: full
    fine-tuning in two processes, without and with sharded weights. one.csv two.csv: predictions. killed/: one
    of its two processes was killed. out.txt err.txt code.txt: output and exit code of two processes.
    """
    root = make_competition(tmp_path_factory.mktemp("several") / "data").parent
    in_one_thread(train.main, flags(root, tiny_backbone, "one"))
    full = ["--lora-rank", "0", "--lr", "0.001", "--set", "gradient_sum=reduced"]
    in_one_thread(train.main, flags(root, tiny_backbone, "full-one", *full))
    shared = [*full, "--set", "optimizer.ema=0"]
    in_one_thread(train.main, flags(root, tiny_backbone, "whole", *shared))
    predict = [
        *("--model", str(root / "one"), "--data", str(root / "data"), "--batch-size", "2"),
        *("--precision", "fp32"),
    ]
    in_one_thread(inference.main, [*predict, "--output", str(root / "one.csv")])
    for path in (root / "one").glob("test.*"):
        path.unlink()
    with pytest.raises(Interrupted):
        in_one_thread(train.main, flags(root, tiny_backbone, "half", "--max-minutes", "0"))
    commands = [
        ["train", *flags(root, tiny_backbone, "two")],
        ["train", *flags(root, tiny_backbone, "stopped", "--max-minutes", "0")],
        ["train", "--output", str(root / "half"), "--resume"],
        ["train", *flags(root, tiny_backbone, "full-two", *full)],
        ["inference", *predict, "--output", str(root / "two.csv")],
        ["train", *flags(root, tiny_backbone, "parts", *shared, "--set", "shard=true")],
        ["train", *flags(root, tiny_backbone, "killed", "--set", "checkpoint.every_minutes=0.00001")],
    ]
    code, out, err = together(2, commands, "killed:1:9")
    for name, text in (("out", out), ("err", err), ("code", str(code))):
        (root / f"{name}.txt").write_text(text)
    assert (root / "parts/run.json").exists(), out + err
    return root


def test_two_processes_give_the_bits_of_one(root: Path) -> None:
    assert_same(root / "one", root / "two")
    record = json.loads((root / "two" / "run.json").read_text())
    assert (record["processes"], record["threads"]) == (2, 1) and record["command"].startswith(
        "torchrun --standalone --nproc-per-node 2 "
    )
    assert json.loads((root / "one" / "run.json").read_text())["processes"] == 1


def test_stopped_by_two_and_finished_by_one(root: Path) -> None:
    state, _ = StateStore(root / "stopped" / "state").load()
    assert state["position"]["row"] == 4 and state["gradients"]  # a micro-batch of each, inside a group
    resume(root, "stopped")
    assert_same(root / "stopped", root / "one")


def test_stopped_by_one_and_finished_by_two(root: Path) -> None:
    assert_same(root / "half", root / "one")


def test_reduced_gradients_are_equal_to_rounding(root: Path) -> None:
    one, two = (
        load_file(root / name / "model_beit" / "model.safetensors") for name in ("full-one", "full-two")
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    losses = [
        [json.loads(line)["train_loss"] for line in (root / name / "metrics.jsonl").open()]
        for name in ("full-one", "full-two")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_shared_out_weights_are_equal_to_rounding_and_saved_as_ordinary_ones(root: Path) -> None:
    one, two = (load_file(root / name / "model_beit" / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    assert (root / "parts/model_beit/config.json").read_bytes() == (
        root / "whole/model_beit/config.json"
    ).read_bytes()
    model, info = BeitForImageClassification.from_pretrained(
        root / "parts" / "model_beit", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(
        model.classifier.weight.detach(), one["classifier.weight"], rtol=1e-4, atol=1e-5
    )
    predictions = [np.load(root / name / "val_probs.npy") for name in ("whole", "parts")]
    np.testing.assert_allclose(predictions[1], predictions[0], atol=1e-5)


def test_one_file_with_the_same_bytes(root: Path) -> None:
    assert (root / "one.csv").read_bytes() == (root / "two.csv").read_bytes()


def test_only_the_first_prints(root: Path) -> None:
    printed = (root / "out.txt").read_text()
    assert printed.count("epoch 2/2  loss") == 4 and printed.count(f"{root / 'two.csv'}: 5 rows") == 1
    assert printed.count("2 processes of 1 thread each") >= 4 and "idle" not in printed


def test_a_killed_process_ends_the_other_with_one_message(root: Path) -> None:
    code, err = ((root / name).read_text() for name in ("code.txt", "err.txt"))
    assert code == "1" and err.count("error: ") == 1
    assert "error: another process of this command has ended" in err
    assert f"torchrun --standalone --nproc-per-node 2 train.py --output {root / 'killed'} --resume\n" in err
    resume(root, "killed")
    assert_same(root / "killed", root / "one")


@pytest.mark.slow
def test_processes_that_see_different_data_say_which(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    (tmp_path / "data" / "train" / "red" / "red_3.png").unlink()
    words = flags(root, tiny_backbone, "differing")
    words[1] = [words[1], str(tmp_path / "data")]
    words[words.index("0.01")] = ["0.01", "0.02"]
    code, _, err = together(2, [["train", *words]])
    (message,) = [line for line in err.splitlines() if line.startswith("  - ")]
    assert code == 1
    assert message.startswith("  - process 1 on ")
    assert "other flags or recipe and images or labels" in message
    assert err.count("error: ") == 1 and not (root / "differing").exists()


@dataclass(frozen=True)
class FirstOfSeveral(Processes):
    """The first of several processes that see and want what it does: nothing has to be sent."""

    def agree(self, failure: Exception | None, wishes: Sequence[bool] = ()) -> list[bool]:
        return ALONE.agree(failure, wishes)

    def texts(self, own: str | None) -> list[str | None]:
        return [own] * self.count

    def least(self, number: int) -> int:
        return number

    def first_says(self, number: float) -> float:
        return number


def among(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """This process is the first of `count`."""
    monkeypatch.setattr("pipeline.training.compute.current", lambda: FirstOfSeveral(0, count))
    monkeypatch.setattr("pipeline.training.processes.current", lambda: FirstOfSeveral(0, count))


def test_memory_and_the_largest_micro_batch_are_counted_for_each_process(
    root: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    counted, check = [], estimate.check_fits

    def spy(memory: Memory, *rest: object) -> None:
        counted.append(memory)
        check(memory, *rest)

    monkeypatch.setattr(estimate, "check_fits", spy)
    said = []
    for count in (1, 3):
        among(monkeypatch, count)
        assert train.main(flags(root, tiny_backbone, "unused", "--dry-run", "--batch-size", "auto")) == 0
        said.append(capsys.readouterr().out)
    alone, several = counted
    # Its own, what is sent, what comes from three
    assert several == replace(alone, gradients=5 * alone.gradients)
    assert "of 32 images (32 at a time)" in said[0] and "idle" not in said[0]
    # A step is 32 images whatever the number of processes: 4 micro-batches of 10 at most, so the second turn
    # leaves two of three idle.
    assert "of 32 images (10 at a time)" in said[1] and "33% of the processes' time is idle" in said[1]


def test_more_processes_than_rows(root: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    among(monkeypatch, 19)
    with pytest.raises(UserError, match="19 processes for 18 training rows: --nproc-per-node 18 at most"):
        train.main(flags(root, tiny_backbone, "unused", "--dry-run"))
    with pytest.raises(UserError, match="19 processes for 5 test images: --nproc-per-node 5 at most"):
        inference.main(
            ["--model", str(root / "one"), "--data", str(root / "data"), "--output", str(root / "unused.csv")]
        )
    assert not (root / "unused").exists() and not (root / "unused.csv").exists()


@pytest.mark.slow
def test_questions_are_answered_with_the_bits_of_one_process(tmp_path: Path, tiny_backbone: Path) -> None:
    make_questions(tmp_path / "data")
    recipe = question_recipe(
        tmp_path, tiny_backbone, epochs="2", accumulation_steps="3", augmentation="{noise: 0.05}"
    )
    words = {
        name: ["--recipe", str(recipe), "--data", str(tmp_path / "data"), "--output", str(tmp_path / name)]
        for name in ("one", "two")
    }
    predict = {
        name: ["--model", str(tmp_path / "one"), *words[name][2:4], "--output", str(tmp_path / f"{name}.csv")]
        for name in words
    }
    in_one_thread(train.main, words["one"])
    in_one_thread(inference.main, [*predict["one"], "--batch-size", "4", "--precision", "fp32"])
    for path in (tmp_path / "one").glob("test.*"):
        path.unlink()
    code, out, err = together(
        2,
        [
            ["train", *words["two"]],
            ["inference", *predict["two"], "--batch-size", "4", "--precision", "fp32"],
        ],
    )
    assert code == 0, out + err
    assert_same(tmp_path / "one", tmp_path / "two", OF_QUESTIONS)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert json.loads((tmp_path / "two/run.json").read_text())["processes"] == 2


def test_more_processes_than_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "3" if name.endswith("SIZE") else "2")
    monkeypatch.delenv("SHARE_CARDS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"3 processes, .* 2 GPUs: --nproc-per-node 2"):
        card()
    monkeypatch.setenv("SHARE_CARDS", "1")  # for tests: the third process works on the first card
    assert card() == 0


WAYS = {  # of training that the run of all tests above has not
    "average": ["checkpoint.keep=average", "checkpoint.average_last=2"],
    "soup": ["checkpoint.keep=soup"],
    "start": [
        "lora.init=olora",
        "lora.use_rslora=true",
        "optimizer.logit_adjustment=1",
        "optimizer.loss=auto",
        "data.sampling=rows",
    ],
    "probe": ["head.init=probe", "lora.variant=dora", "lora.also_train=[norms]"],
    "head": ["lora.rank=0", "head_only=true", "augmentation.random_resized_crop=false"],
    "full fine-tuning": [
        "lora.rank=0",
        "optimizer.lr=1e-3",
        "drop_path=0.1",
        "optimizer.layer_decay=0.8",
        "gradient_sum=exact",
    ],
    "half": ["activation_checkpointing=true", "data.workers=2"],
}


@pytest.mark.slow
def test_every_way_of_training_has_the_bits_of_one_process(tmp_path: Path, tiny_backbone: Path) -> None:
    make_competition(tmp_path / "data")

    def words(name: str, count: int) -> list[str]:
        given = flags(
            tmp_path,
            tiny_backbone,
            f"{name}-{count}",
            *(word for key in WAYS[name] for word in ("--set", key)),
        )
        return ["train", *given, "--epochs", "3", *(["--precision", "bf16"] if name == "half" else [])]

    for name in WAYS:
        in_one_thread(train.main, words(name, 1)[1:])
    for count in (2, 3):
        code, out, err = together(count, [words(name, count) for name in WAYS])
        assert code == 0, out + err
        for name in WAYS:
            one, several = tmp_path / f"{name}-1", tmp_path / f"{name}-{count}"
            weights = [str(path.relative_to(one)) for path in one.rglob("*.safetensors")]
            assert weights
            assert_same(one, several, ("metrics.jsonl", "val_predictions.csv", "val_probs.npy", *weights))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_any_moment_and_resumed_by_another_number(
    root: Path, tiny_backbone: Path, tmp_path: Path, count: int, seed: int
) -> None:
    draw = np.random.default_rng((seed, count))
    words = ["--set", "checkpoint.every_minutes=0.00001"]
    before, rank = int(draw.integers(2, 5)), int(draw.integers(0, 2))
    output = tmp_path / "run"
    train_words = [*flags(root, tiny_backbone, "unused", *words)]
    train_words[train_words.index("--output") + 1] = str(output)
    code, _, _ = together(
        before, [["train", *train_words]], f"killed:{min(rank, before - 1)}:{draw.integers(3, 7)}"
    )
    assert code == 1 and not (output / "run.json").exists()
    code, out, err = together(count, [["train", *train_words, "--resume"]])
    assert code == 0, out + err
    assert_same(output, root / "one")


@pytest.mark.slow
def test_a_lost_image_is_said_once_and_the_state_is_good(root: Path, tiny_backbone: Path) -> None:
    code, _, err = together(2, [["train", *flags(root, tiny_backbone, "lost")]], "lost:1:4")
    assert code == 1 and err.count("error: ") == 1 and "error: red_3.png cannot be decoded any more" in err
    resume(root, "lost")
    assert_same(root / "lost", root / "one")


@pytest.mark.slow
def test_out_of_memory_in_one_process_halves_the_micro_batch_of_all(root: Path, tiny_backbone: Path) -> None:
    """From the first row of the open group on: as one process that runs out of memory there."""
    code, out, err = together(2, [["train", *flags(root, tiny_backbone, "halved")]], "memory:1:4")
    assert code == 0 and (out + err).count("out of memory: continuing with 1 images at a time") == 1
    record = [json.loads(line) for line in (root / "halved" / "metrics.jsonl").open()]
    assert [line["step"] for line in record] == [3, 6]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_told_to_stop_stops_all(root: Path, tiny_backbone: Path, rank: int) -> None:
    output = f"told-{rank}"
    code, _, err = together(2, [["train", *flags(root, tiny_backbone, output)]], f"stopped:{rank}:5")
    # several.py takes 130 for done
    assert code == 0 and err.count("stopped (SIGTERM) in epoch") == 1 and "--resume" in err
    resume(root, output)
    assert_same(root / output, root / "one")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_told_to_stop_keeps_the_state(
    root: Path, tiny_backbone: Path, number: signal.Signals
) -> None:
    output = root / f"ended-{number.name}"
    process = torchrun(
        2,
        "train.py",
        *flags(root, tiny_backbone, output.name),
        *"--epochs 10000 --set checkpoint.every_minutes=0.001 --set compile=false".split(),
    )
    while len(list((output / "state").glob("[0-9]*.json"))) < 2 and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate()
    assert err.count(f"stopped ({number.name}) in epoch") == 1 and process.returncode != 0
    with pytest.raises(Interrupted):
        resume(root, output.name, "--max-minutes", "0")


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_one_message(root: Path, tiny_backbone: Path) -> None:
    words = ["--set", "optimizer.name=sgd", "--set", "optimizer.max_grad_norm=0", "--lr", "1e30"]
    code, _, err = together(2, [["train", *flags(root, tiny_backbone, "nan", *words)]])
    assert code == 1 and err.count("error: ") == 1 and "NaN or infinite" in err


@pytest.mark.slow
def test_what_nobody_foresaw_has_its_traceback(root: Path, tiny_backbone: Path) -> None:
    code, _, err = together(2, [["train", *flags(root, tiny_backbone, "broken")]], "broken:1:4")
    assert code == 1 and "ZeroDivisionError: nobody foresaw this" in err and err.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, says",
    [
        (["--batch-size", "0"], "batch_size"),
        (["--folds", "3"], "--parallel 20: "),
        (["--bad-flag"], "unrecognized arguments: --bad-flag"),
        ([], "20 processes for 18 training rows: --nproc-per-node 18 at most"),
    ],
)
def test_bad_input_is_one_message(root: Path, tiny_backbone: Path, words: list[str], says: str) -> None:
    code, _, err = together(
        20 if says.count("20") else 2, [["train", *flags(root, tiny_backbone, "bad", *words)]]
    )
    assert code == 1 and err.count(says) == 1 and err.count("error: ") == 1 and not (root / "bad").exists()


@pytest.mark.slow
def test_other_commands_are_for_one_process() -> None:
    process = torchrun(2, "-m", "pipeline.experiments.ablation", "--grid", "ranks")
    _, err = process.communicate()
    assert process.returncode == 1 and err.count("error: this command is for one process") == 1


@pytest.mark.slow
def test_without_torchrun_its_processes_end(root: Path, tiny_backbone: Path) -> None:
    """torchrun was killed, and nobody is left who could end them."""
    output = root / "orphans"
    process = torchrun(
        2,
        "train.py",
        *flags(root, tiny_backbone, output.name),
        *"--epochs 10000 --set checkpoint.every_minutes=0.001 --set compile=false".split(),
    )
    while len(list((output / "state").glob("[0-9]*.json"))) < 2 and process.poll() is None:
        time.sleep(0.2)
    process.kill()
    _, err = process.communicate()  # returns when they have closed their outputs
    assert err.count("stopped (SIGTERM) in epoch") == 1
