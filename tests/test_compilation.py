"""torch.compile: the same step as without it, in every architecture with rewrites, and one graph for all
blocks; and when it is used at all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pretended_gpu
import pytest
import torch
from test_autograd import LABELS, PIXELS, build, step
from test_train import arguments
from torch import nn
from torch._dynamo.utils import counters
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

import train
from pipeline.errors import Interrupted, UserError
from pipeline.models import compiled_blocks
from pipeline.models.compiled_blocks import compile_blocks, leave_uncompiled
from pipeline.models.half_weights import use_half_weights
from pipeline.models.lora import attach
from pipeline.training.compilation import MIN_SECONDS, run_step, try_compile
from pipeline.training.compute import Compute

CPU = Compute(torch.device("cpu"), "fp32")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture
def without_code_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, and differentiated by the compiler's own tools; only its code generator is left out."""
    whole = torch.compile
    monkeypatch.setattr(
        compiled_blocks.torch,
        "compile",
        lambda function, **_: whole(function, backend="aot_eager", fullgraph=True, dynamic=False),
    )
    torch.compiler.reset()
    counters.clear()


@pytest.mark.parametrize(
    ("name", "lora", "half"),
    [
        ("beit", True, torch.bfloat16),
        ("beit", False, None),
        ("vit", True, None),
        ("swin", True, torch.bfloat16),
        ("convnext", False, torch.bfloat16),
    ],
)
@pytest.mark.usefixtures("without_code_generator")
def test_the_step_is_the_same_without_a_break(name: str, lora: bool, half: torch.dtype | None) -> None:
    model = build(name, lora, dropout=0.1)
    if half is not None:
        use_half_weights(model, half)
    expected_logits, expected = step(model, half)
    compile_blocks(model, len(LABELS))
    logits, grads = step(model, half)
    assert counters["stats"]["unique_graphs"] > 0
    expected_loss, loss = (
        nn.functional.cross_entropy(found, LABELS).item() for found in (expected_logits, logits)
    )
    tolerance = 1e-5 if half is None else 2e-2
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert grads.keys() == expected.keys() and grads
    largest = max(grad.abs().max() for grad in expected.values())
    for parameter, grad in grads.items():
        torch.testing.assert_close(
            grad, expected[parameter], rtol=0, atol=tolerance * largest.item(), msg=parameter
        )


def assert_blocks_share_a_graph(model: nn.Module, count: int) -> None:
    """And compute the same step. The first block has a graph of its own: its input needs no gradient."""
    expected_logits, expected = step(model, None)
    assert compile_blocks(model, len(LABELS)) == count
    logits, grads = step(model, None)
    assert counters["stats"]["unique_graphs"] == 2
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(grads, expected)


@pytest.mark.usefixtures("without_code_generator")
def test_all_blocks_share_a_graph_and_other_batches_and_prediction_use_none() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 64}
    config = BeitConfig(**shape, image_size=32, patch_size=8, num_labels=5, drop_path_rate=0.3)
    model = attach(BeitForImageClassification(config), 4, 8, 0.0, ("query", "key")).train()
    assert_blocks_share_a_graph(model, 12)
    model(pixel_values=PIXELS[:4])
    model.eval()
    with torch.no_grad():
        predicted = model(pixel_values=PIXELS).logits
    assert counters["stats"]["unique_graphs"] == 2
    leave_uncompiled(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(pixel_values=PIXELS).logits, predicted)


@pytest.mark.usefixtures("without_code_generator")
def test_blocks_of_timm_share_a_graph_too() -> None:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "depth": 6, "embed_dim": 32, "num_heads": 2}
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=shape, num_labels=5)
    model = attach(TimmWrapperForImageClassification(config), 4, 8, 0.1, ("fc1",)).train()
    assert_blocks_share_a_graph(model, 6)


@pytest.mark.slow  # half a minute of compiling
@needs_compiler
def test_a_compiled_run_trains_as_a_plain_one_and_resumes_bit_for_bit(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def run(name: str, *more: str) -> Path:
        train.main(arguments(competition, tiny_backbone, tmp_path / name, "--set", "lora.dropout=0.2", *more))
        return tmp_path / name

    compiled = run("compiled", "--set", "compile=true")
    assert "torch.compile: training steps are" in capsys.readouterr().out
    plain = run("plain")
    assert json.loads((compiled / "run.json").read_text())["compiled"] is True
    assert json.loads((plain / "run.json").read_text())["compiled"] is False
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (compiled, plain)
    )
    assert [line["train_loss"] for line in ours] == pytest.approx(
        [line["train_loss"] for line in theirs], rel=1e-4
    )

    with pytest.raises(Interrupted):
        run("stopped", "--set", "compile=true", "--max-minutes", "0")
    resumed = run("stopped", "--set", "compile=true", "--resume")
    for file in ("metrics.jsonl", "val_probs.npy", "model_lora/adapter_model.safetensors"):
        assert (resumed / file).read_bytes() == (compiled / file).read_bytes(), file


class Steps:
    """A task of one layer whose "compiled" step does what a test wants."""

    num_train = 8

    def __init__(self, compiled_step: object = None) -> None:
        torch.manual_seed(0)
        self.model, self.compiled_step, self.compiled = nn.Linear(4, 3), compiled_step, False

    def compile(self, rows: int | None) -> None:
        self.compiled = rows is not None

    def train_batches(self, *_: int) -> list[dict[str, torch.Tensor]]:
        return [{"pixels": torch.ones(4, 4), "label": torch.tensor([0, 1, 2, 0]), "row": torch.arange(4)}]

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(batch["pixels"])
        loss = nn.functional.cross_entropy(logits, batch["label"])
        return (self.compiled_step(loss) if self.compiled else loss), logits


def refuse(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("Failed to find C compiler\nmany more lines")


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (refuse, "RuntimeError: Failed to find C compiler"),
        (lambda loss: loss * 1.01, "its loss is"),
        (lambda loss: loss.detach() + 1.01 * (loss - loss.detach()), "its grad norm is"),
        (lambda loss: loss * float("nan"), "its loss is nan"),
    ],
)
def test_what_fails_or_computes_something_else_is_not_used(step: object, problem: str) -> None:
    task = Steps(step)
    compiled, note = try_compile(task, CPU, "auto", 4, 0.0, before=True)
    assert not compiled
    assert note.startswith("torch.compile is not used: ")
    assert problem in note
    assert "many more" not in note
    assert not task.compiled and all(weight.grad is None for weight in task.model.parameters())
    with pytest.raises(UserError, match=r"compile: true .*compile=auto"):
        try_compile(task, CPU, True, 4, 0.0)


def test_a_micro_batch_that_does_not_fit_is_left_to_the_loop_which_halves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Steps()
    monkeypatch.setattr(
        task, "loss", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    assert try_compile(task, CPU, "auto", 4, 0.0, before=True) == (
        False,
        "torch.compile is not used: OutOfMemoryError: CUDA out of memory",
    )
    with pytest.raises(UserError, match=r"compile: true .*out of memory\); --batch-size below 4"):
        try_compile(task, CPU, True, 4, 0.0)


def test_the_trial_waits_twice_a_step_for_the_gpu_not_for_each_weight() -> None:
    with pretended_gpu.pretended_gpu() as gpu:
        compute, task = Compute(torch.device("cuda"), "bf16"), Steps()
        task.model.to("cuda")
        batch = compute.move(task.train_batches()[0])
        gpu.waits.clear()
        run_step(task, compute, batch)
    assert len(gpu.waits) == 4  # the loss and the norm, of two steps


def test_a_short_run_bf16_on_a_cpu_and_a_no_do_not_try() -> None:
    task, long = Steps(refuse), 2 * MIN_SECONDS["cpu", "fp32"]
    assert try_compile(task, CPU, "auto", 4, long / 4) == (False, None)
    assert try_compile(task, Compute(CPU.device, "bf16"), "auto", 4, long) == (False, None)
    assert try_compile(task, CPU, False, 4, long) == (False, None)
    assert try_compile(task, CPU, "auto", 4, long, before=False) == (False, None)
    assert try_compile(task, CPU, "auto", 4, long) == (
        False,
        "torch.compile is not used: RuntimeError: Failed to find C compiler",
    )
    assert try_compile(task, CPU, True, 16, long) == (
        False,
        "torch.compile is not used: 8 rows do not fill a micro-batch of 16",
    )


def test_a_step_that_is_no_faster_is_used_only_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.training import compilation

    task = Steps(lambda loss: loss)
    monkeypatch.setattr(compilation, "MIN_GAIN", 1e9)
    compiled, note = try_compile(task, CPU, "auto", 4, MIN_SECONDS["cpu", "fp32"])
    assert not compiled and "x as fast once compiled" in note
    compiled, note = try_compile(task, CPU, True, 4, 1.0)
    assert compiled and task.compiled and note.startswith("torch.compile: training steps are")


def test_questions_are_not_compiled() -> None:
    from pipeline.config import load_recipe

    with pytest.raises(UserError, match="compile: expected auto or false"):
        load_recipe("vqa-bert-vit", {"compile": True})
