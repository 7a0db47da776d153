"""Learning rates against transformers' and torch's schedulers, and which parameters get what."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    ConvNextV2Config,
    PreTrainedConfig,
    RegNetConfig,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from pipeline.config import validate_recipe
from pipeline.errors import UserError
from pipeline.models.lora import attach
from pipeline.recipe import Recipe
from pipeline.training.optim import build_optimizer, epochs_of, lr_at, lr_scales, plan_schedule, set_lr


def recipe(**overrides: object) -> Recipe:
    return validate_recipe({"backbone": "b"}, overrides, "here")


def stepped(make, steps: int, lr: float) -> list[float]:
    """Return the learning rates that a torch scheduler gives to `steps` optimizer steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
@pytest.mark.parametrize(
    ("ratio", "rows", "epochs"), [(0.05, 551, 25), (0.0, 100, 3), (0.3, 64, 7), (0.5, 1, 2)]
)
def test_rates_are_transformers(name: str, reference, ratio: float, rows: int, epochs: int) -> None:
    plan = plan_schedule(
        recipe(**{"schedule.name": name, "schedule.warmup_ratio": ratio, "epochs": epochs}), rows
    )
    steps = plan["total_steps"]
    expected = stepped(lambda optimizer: reference(optimizer, math.ceil(ratio * steps), steps), steps, 5e-5)
    assert [lr_at(step, plan) for step in range(steps)] == pytest.approx(expected, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(("epochs", "end_lr"), [(15, 1e-6), (2, 0.0), (1, 1e-6)])
def test_stepped_cosine_is_torchs_stepped_once_an_epoch(epochs: int, end_lr: float) -> None:
    settings = {"schedule.name": "stepped_cosine", "schedule.warmup_ratio": 0, "schedule.end_lr": end_lr}
    plan = plan_schedule(recipe(**settings, epochs=epochs, **{"optimizer.lr": 2e-5}), 1000)
    per_epoch = plan["steps_per_epoch"]

    def reference(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs - 1, 1), eta_min=end_lr)

    expected = stepped(reference, epochs, 2e-5)
    found = [lr_at(step, plan) for step in range(plan["total_steps"])]
    assert found == pytest.approx([rate for rate in expected for _ in range(per_epoch)], rel=1e-9)
    assert found[0] == 2e-5 and (epochs == 1 or found[-1] == pytest.approx(end_lr, abs=1e-12))


def test_a_rate_to_end_at_and_a_constant_one() -> None:
    plan = plan_schedule(recipe(**{"schedule.end_lr": 1e-5, "schedule.warmup_ratio": 0}), 6400)
    last = plan["total_steps"]
    assert lr_at(0, plan) == 5e-5
    assert lr_at(last, plan) == pytest.approx(1e-5)
    assert lr_at(last + 99, plan) == pytest.approx(1e-5)
    assert lr_at(last // 2, plan) == pytest.approx(3e-5)
    constant = plan_schedule(
        recipe(**{"schedule.name": "constant", "schedule.warmup_ratio": 0.1, "epochs": 10}), 640
    )
    rates = [lr_at(step, constant) for step in range(100)]
    assert rates[:10] == pytest.approx([5e-6 * step for step in range(10)]) and set(rates[10:]) == {5e-5}


def test_the_plan_counts_optimizer_steps() -> None:
    plan = plan_schedule(recipe(), 551)  # 8 x 8 images a step, the last group of an epoch smaller
    assert plan == {
        "name": "linear",
        "lr": 5e-5,
        "end_lr": 0.0,
        "warmup_steps": 12,
        "total_steps": 225,
        "steps_per_epoch": 9,
        "effective_batch_size": 64,
    }
    assert plan_schedule(recipe(batch_size=64, accumulation_steps=1), 551) == plan  # however the group is cut
    one_step = plan_schedule(recipe(epochs=1), 20)
    # Warmed up, the only step would change nothing
    assert one_step["total_steps"] == 1 and lr_at(0, one_step) == 5e-5


def test_few_rows_get_the_epochs_that_the_floor_in_steps_asks_for() -> None:
    floor = {"schedule.min_steps": 300, "epochs": 8, "batch_size": 32, "accumulation_steps": 1}
    # 15 and 1,563 steps an epoch
    few, many = (plan_schedule(recipe(**floor), rows) for rows in (460, 50_000))
    assert (few["total_steps"], epochs_of(few)) == (300, 20)
    assert (many["total_steps"], epochs_of(many)) == (8 * 1563, 8)


def model() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
            self.header = nn.Linear(4, 4)  # its name begins like the head's
            self.head = nn.Linear(4, 2)

    return Net()


def test_groups_by_decay_and_head() -> None:
    net = model()
    net.body[0].weight.requires_grad_(False)
    settings = {"optimizer.weight_decay": 0.1, "optimizer.head_lr": 1e-3, "optimizer.lr": 1e-4}
    optimizer = build_optimizer(net.named_parameters(), recipe(**settings), "head")
    names = {id(weight): name for name, weight in net.named_parameters()}
    found = {
        names[id(weight)]: (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert found == {
        "body.0.bias": (0.0, 1.0),
        "body.1.weight": (0.0, 1.0),
        "body.1.bias": (0.0, 1.0),
        "header.weight": (0.1, 1.0),
        "header.bias": (0.0, 1.0),
        "head.weight": (0.1, 10.0),
        "head.bias": (0.0, 10.0),
    }
    set_lr(optimizer, 2e-5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([2e-5, 2e-4])


def tiny(kind: str) -> nn.Module:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    configs = {
        "beit": BeitConfig(**small, image_size=32, patch_size=8, use_relative_position_bias=True),
        "swinv2": Swinv2Config(**swin, window_size=4),
        "convnextv2": ConvNextV2Config(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32),
    }
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(configs[kind])


NO_DECAY = (
    r"(bias|norm\w*\.weight|sampling_layer\.0\.weight|grn\.weight|lambda_\d|gamma|cls_token|logit_scale)$"
)


@pytest.mark.parametrize("kind", ["beit", "swinv2", "convnextv2"])
def test_no_weight_decay_for_vectors_of_any_shape(kind: str) -> None:
    """ConvNeXt-V2's norm and its bias have the shape (1, 1, 1, D), a class token (1, 1, D), SwinV2's scale of
    the heads (heads, 1, 1).
    """
    net = tiny(kind)
    optimizer = build_optimizer(net.named_parameters(), recipe(), "classifier")
    names = {id(weight): name for name, weight in net.named_parameters()}
    free = {
        names[id(weight)]
        for group in optimizer.param_groups
        for weight in group["params"]
        if not group["weight_decay"]
    }
    assert free == {name for name in names.values() if re.search(NO_DECAY, name)}


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_a_matrix_of_one_row_or_column_has_weight_decay(shape: tuple[int, int]) -> None:
    """A head with one output, an adapter of rank 1."""
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = build_optimizer([("m.weight", weight)], recipe(), "head")
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def names_of(kind: str) -> list[str]:
    """The parameters of a small model, in the order of the model."""
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 32,
        "patch_size": 8,
    }
    config = (
        BeitConfig(**small)
        if kind == "beit"
        else SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2])
    )
    with torch.device("meta"):
        return [name for name, _ in AutoModelForImageClassification.from_config(config).named_parameters()]


def test_layer_decay_gives_each_block_a_share_of_the_next_blocks_learning_rate() -> None:
    """unilm/beit/optim_factory.py: layer ids 0 for embeddings, i + 1 for block i, n + 1 for the rest; scale
    decay ** (n + 1 - id).
    """
    names = names_of("beit")
    scales = lr_scales(
        names,
        recipe(**{"optimizer.layer_decay": 0.8, "optimizer.lr": 1e-4, "optimizer.head_lr": 1e-3}),
        "classifier",
    )
    for name in names:
        block = re.match(r"beit\.layers\.(\d)", name)
        layer_id = int(block[1]) + 1 if block else 0 if "embeddings" in name else 4
        expected = 10 if name.startswith("classifier") else 0.8 ** (4 - layer_id)
        assert scales[name] == pytest.approx(expected), name
    assert set(lr_scales(names, recipe(), "classifier").values()) == {1.0}


def test_stages_and_towers_count_their_own_blocks() -> None:
    swin = names_of("swin")
    scales = lr_scales(swin, recipe(**{"optimizer.layer_decay": 0.5}), "classifier")
    stages = [
        f"swin.encoder.layers.{part}"
        for part in ("0.blocks.0.", "0.downsample", "1.blocks.0.", "1.blocks.1.")
    ]
    found = [
        {scales[name] for name in swin if name.startswith(start)}
        for start in ("swin.embeddings", *stages, "swin.layernorm")
    ]
    assert found == [{0.5**5}, {0.5**4}, {0.5**3}, {0.5**2}, {0.5}, {1.0}]
    two = [
        f"{tower}.{name}"
        for tower in ("text", "image")
        for name in ("embeddings.w", "layers.0.w", "layers.1.w", "pooler.w")
    ]
    scales = lr_scales(
        [*two, "head.answer.w"], recipe(**{"optimizer.layer_decay": 0.5, "optimizer.head_lr": 5e-5}), "head"
    )
    assert [scales[name] for name in two] == [0.125, 0.25, 0.5, 1.0] * 2 and scales["head.answer.w"] == 1.0


ISOTROPIC = (
    *("vit_tiny_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224", "hiera_tiny_224"),
    *("eva02_tiny_patch14_224", "deit3_small_patch16_224"),
)


@pytest.mark.parametrize("architecture", ISOTROPIC)
def test_layer_decay_is_timms(architecture: str) -> None:
    """Except for the last norm, which timm counts with the last block, and unilm with the head."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=3)
    ids = timm.models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    names = {f"timm_model.{name}": place for name, place in ids.items() if not name.startswith("norm.")}
    head = f"timm_model.{model.pretrained_cfg['classifier']}"
    scales = lr_scales(list(names), recipe(**{"optimizer.layer_decay": 0.5}), head)
    assert scales == {name: 0.5 ** (max(names.values()) - place) for name, place in names.items()}


@pytest.mark.parametrize("architecture", ["swinv2_tiny_window8_256", "convnextv2_atto"])
def test_numbered_parts_of_a_block_are_no_blocks(architecture: str) -> None:
    """SwinV2 has an MLP of layers 0 and 2 in each block, ConvNeXt a stem and a downsampling of 0 and 1."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=3)
    names = [f"timm_model.{name}" for name, _ in model.named_parameters()]
    scales = lr_scales(names, recipe(**{"optimizer.layer_decay": 0.5}), "timm_model.head.fc")
    depth = 12 + 3  # blocks, and a downsampling before each stage but the first
    blocks = [scales[name] for name in names if re.search(r"blocks\.\d+\.norm", name)]
    assert sorted(set(scales.values())) == [0.5**above for above in range(depth + 1, -1, -1)]
    assert len(set(blocks)) == 12 and all(scales[name] == min(scales.values()) for name in names[:4])


@pytest.mark.parametrize(("config", "blocks"), [(ResNetConfig(), 16), (RegNetConfig(), 22)])
def test_convolutions_of_a_residual_block_are_no_blocks(config: PreTrainedConfig, blocks: int) -> None:
    """transformers' ResNet-50 has 3 + 4 + 6 + 3 blocks of three convolutions each."""
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    names = [name for name, _ in model.named_parameters()]
    scales = lr_scales(names, recipe(**{"optimizer.layer_decay": 0.5}), "classifier.1")
    assert sum(config.depths) == blocks
    assert sorted(set(scales.values())) == [0.5**above for above in range(blocks + 1, -1, -1)]


def test_layer_decay_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.layer_decay.*no numbered blocks"):
        lr_scales(["features.0.weight", "head.weight"], recipe(**{"optimizer.layer_decay": 0.5}), "head")


def test_lora_plus_multiplies_the_learning_rate_of_b() -> None:
    """Hayou et al. 2024 (arXiv:2402.12354): the learning rate of B is a multiple of A's."""
    names = [
        "m.layers.0.q.lora_A.default.weight",
        "m.layers.0.q.lora_B.default.weight",
        "m.classifier.weight",
    ]
    assert list(lr_scales(names, recipe(**{"lora.b_lr_scale": 16}), "classifier").values()) == [
        1.0,
        16.0,
        1.0,
    ]


def test_the_head_of_an_adapted_model_is_found(tiny_backbone) -> None:
    from transformers import AutoModelForImageClassification

    net = attach(AutoModelForImageClassification.from_pretrained(tiny_backbone), 2, 2, 0.0, ("query",))
    optimizer = build_optimizer(net.named_parameters(), recipe(**{"optimizer.head_lr": 1e-3}), "classifier")
    sizes = {1: 0, 20: 0}
    for group in optimizer.param_groups:
        sizes[round(group["lr_scale"])] += sum(weight.numel() for weight in group["params"])
    assert sizes == {20: 32 * 5 + 5, 1: 2 * 2 * (2 * 32)}


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_a_step_is_the_plain_optimizers(name: str, kind: type) -> None:
    torch.manual_seed(0)
    ours, plain = model(), model()
    plain.load_state_dict(ours.state_dict())
    settings = {"optimizer.name": name, "optimizer.lr": 0.01, "optimizer.weight_decay": 0.1}
    optimizer = build_optimizer(ours.named_parameters(), recipe(**settings), "head")
    assert type(optimizer) is kind
    matrices = [weight for weight in plain.parameters() if weight.ndim > 1]
    vectors = [weight for weight in plain.parameters() if weight.ndim == 1]
    options = {"momentum": 0.9} if name == "sgd" else {}
    reference = kind(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        **options,
    )
    for _ in range(3):
        for net, steps in ((ours, optimizer), (plain, reference)):
            x = torch.ones(2, 4)
            (net.head(net.header(net.body(x))) ** 2).sum().backward()
            steps.step()
            steps.zero_grad()
    for found, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
