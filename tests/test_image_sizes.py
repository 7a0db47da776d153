"""Small images first, large ones last: which size in which epoch, resumed exactly, and refused where a
backbone takes one size.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_other_backbones import tiny
from test_resume import assert_same, flags, interrupt_after, resume
from transformers import SwinConfig, SwinForImageClassification

import train
from pipeline.config import load_recipe
from pipeline.errors import Interrupted, UserError
from pipeline.files import read_json, read_json_lines
from pipeline.models.backbones import load_backbone, takes_interpolation
from pipeline.tasks.image_classifier import ImageClassifier
from pipeline.training.deadline import Pace, Rows
from pipeline.training.image_sizes import LARGEST, describe_sizes, relative_cost, size_of_epoch

SIZES = (112, 168, 224)
KEYS = [
    *"--set schedule.image_sizes=[16,24,32] --set augmentation.mixup=0.2".split(),
    *"--set augmentation.cutmix=1".split(),
]
KEYS += ["--set", "augmentation.erasing=0.5", "--set", "data.cache_gb=0.1"]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (9, [112] * 3 + [168] * 3 + [224] * 3),
        (8, [112] * 2 + [168] * 3 + [224] * 3),  # what is left over goes to the later sizes
        (4, [112, 168, 224, 224]),
        (2, [168, 224]),
        (1, [224]),
    ],
)
def test_each_size_has_its_share_of_whole_epochs(epochs: int, expected: list[int]) -> None:
    found = [size_of_epoch(epoch, epochs, SIZES) for epoch in range(epochs)]
    assert sorted(found) == found and found == expected
    assert size_of_epoch(LARGEST, epochs, SIZES) == 224
    assert relative_cost(epochs, SIZES) == pytest.approx(
        sum(size * size for size in expected) / epochs / 224**2
    )
    assert relative_cost(epochs, ()) == 1


def test_a_line_says_which_size_comes_when() -> None:
    line = describe_sizes(4, SIZES)
    assert all(
        part in line for part in ("112 px in epoch 1,", "168 px in epoch 2,", "224 px in epochs 3 to 4")
    )


def test_a_plan_counts_small_images_as_cheaper() -> None:
    rows = Rows(train=800, val=200, a_step=40)
    pace = Pace(224, train=0.1, predict=0.02, start=10, image_sizes=(112, 224))
    assert pace.seconds(rows, 8, None) == pytest.approx(10 + 4 * (800 * 0.1 / 4 + 4) + 4 * (800 * 0.1 + 4))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule.image_sizes": [224]}, r"schedule\.image_sizes: expected two or more sizes"),
        ({"schedule.image_sizes": [224, 112]}, "each larger than the one before"),
        ({"schedule.image_sizes": [112, 224], "image_size": 384}, "the last must be image_size 384"),
        ({"schedule.image_sizes": [192, 384], "compile": True}, "compile: expected auto or false"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe("beit-large-384-lora", values)


def test_the_last_size_is_the_models() -> None:
    recipe = load_recipe("beit-large-384-lora", {"schedule.image_sizes": [112, 224], "image_size": None})
    assert recipe.image_size == 224


@pytest.fixture(scope="module")
def whole_run(
    whole: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[int]]:
    """Data, a run of three epochs at three sizes, and the size of each training batch."""
    output, seen = tmp_path_factory.mktemp("sizes") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(output.parent / "cache"))
        original = ImageClassifier.forward

        def forward(self: ImageClassifier, model, pixel_values: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and type(pixel_values) is torch.Tensor:
                seen.append(pixel_values.shape[-1])
            return original(self, model, pixel_values)

        patch.setattr(ImageClassifier, "forward", forward)
        train.main([*flags(whole / "data", tiny_backbone, output), *KEYS])
    return whole / "data", output, seen


def test_epochs_have_their_sizes_and_validation_the_last(
    whole_run: tuple[Path, Path, list[int]], capsys
) -> None:
    _, output, seen = whole_run
    sizes = [size for number, size in enumerate(seen) if number == 0 or size != seen[number - 1]]
    assert sizes[-3:] == [16, 24, 32] and set(sizes[:-3]) == {32}  # before: memory and speed, of the largest
    # 2 of 18 images at a time, three epochs
    assert [seen[-27:].count(size) for size in (16, 24, 32)] == [9, 9, 9]
    lines = read_json_lines(output / "metrics.jsonl")
    assert len(lines) == 3 and all("val_accuracy" in line for line in lines)
    model = next(output.glob("model_beit"))
    assert read_json(model / "preprocessor_config.json")["size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize("micro_batch", [4, 22])  # in an epoch of small images, in the last one
def test_resumed_it_is_bit_identical(
    whole_run: tuple[Path, Path, list[int]], tmp_path: Path, tiny_backbone: Path, monkeypatch, micro_batch
):
    data, output, _ = whole_run
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with monkeypatch.context() as patched:
        interrupt_after(patched, micro_batch)
        with pytest.raises(Interrupted):
            train.main([*flags(data, tiny_backbone, tmp_path / "run"), *KEYS])
    resume(data, tmp_path / "run")
    assert_same(output, tmp_path / "run")


@pytest.mark.parametrize("kind", ["dinov2", "convnextv2", "siglip", "timm-vit", "timm-eva02", "timm-relpos"])
def test_backbones_that_take_several_sizes(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path)
    sizes = {"dinov2": (28, 56), "convnextv2": (32, 64)}.get(kind, (16, 32))
    names = ("blue", "green")
    if kind == "timm-relpos":  # made for one size
        with pytest.raises(UserError, match=r"--image-size 16: timm's .* does not run at this size"):
            load_backbone(str(tmp_path), names, sizes[-1], other_sizes=sizes[:-1])
        return
    backbone = load_backbone(str(tmp_path), names, sizes[-1], other_sizes=sizes[:-1])
    ImageClassifier.of(backbone.model, backbone).check_sizes(sizes)


def test_a_backbone_that_takes_one_size_is_refused_with_its_reason(tmp_path: Path) -> None:
    tiny("siglip").save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), ("blue", "green"))
    classifier = ImageClassifier.of(backbone.model, backbone)
    assert takes_interpolation(backbone.model)
    classifier.extra_at_other_sizes = {}  # as one whose position embedding cannot be interpolated
    with pytest.raises(UserError, match=r"SiglipForImageClassification [^$]*- 16 px: "):
        classifier.check_sizes((16, 32))


def test_a_swin_that_forgets_its_shifted_windows_is_refused(tmp_path: Path) -> None:
    """transformers' Swin shifts no window as large as the feature map, and from then on in no other image."""
    torch.manual_seed(0)
    shape = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2]}
    model = SwinForImageClassification(SwinConfig(**shape, window_size=4)).eval()
    model.save_pretrained(tmp_path)
    noise = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(noise, interpolate_pos_encoding=True).logits
        model(noise[..., :32, :32])
        assert not torch.equal(model(noise, interpolate_pos_encoding=True).logits, before)
    backbone = load_backbone(str(tmp_path), ("blue", "green"), 64)
    with pytest.raises(UserError, match="64 px gives other logits after images of another size"):
        ImageClassifier.of(backbone.model, backbone).check_sizes((32, 64))
