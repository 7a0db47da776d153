"""The preprocessing against transformers' own image processors (Pillow backend), and the statistics of
augmentation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoImageProcessor

from pipeline.data.transforms import FILE_NAME, Preprocessing, augmenter, read_preprocessing, to_tensor
from pipeline.errors import UserError
from pipeline.recipe_sections import Augmentation

SIZES = [(60, 40), (33, 47), (20, 90), (224, 224), (7, 5)]  # width, height
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# Files as they lie on the hub, old and new, at sizes that are quick.
FILES: dict[str, dict[str, Any]] = {
    "beit 2022": {
        "crop_size": 32,
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "BeitFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 32,
    },
    "beit 2023": {
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "do_normalize": True,
        "do_reduce_labels": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "BeitImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 32, "width": 32},
    },
    "beit, size and resample left out": {
        "image_processor_type": "BeitImageProcessor",
        "do_center_crop": False,
    },
    "vit 2022": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 32,
        "resample": 2,
    },
    "vit fast": {
        "image_processor_type": "ViTImageProcessorFast",
        "size": {"height": 24, "width": 40},
        "resample": 3,
        **IMAGENET,
    },
    "vit, resample left out": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
    },
    "swin 2022": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "resample": 3,
        "size": 32,
        **IMAGENET,
    },
    "deit: stretched, then cropped": {
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "image_processor_type": "DeiTImageProcessor",
        "resample": 3,
        "size": {"height": 32, "width": 32},
        **IMAGENET,
    },
    "deit 2022": {
        "crop_size": 28,
        "do_center_crop": True,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "resample": 3,
        "size": 32,
        **IMAGENET,
    },
    "dinov2: shorter side, then cropped": {
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "size": {"shortest_edge": 33},
        **IMAGENET,
    },
    "a crop larger than the image": {
        "crop_size": {"height": 41, "width": 38},
        "do_center_crop": True,
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 24},
        **IMAGENET,
    },
    "convnext 2022": {
        "crop_pct": 0.875,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "resample": 3,
        "size": 28,
        **IMAGENET,
    },
    "convnext, crop_pct left out": {
        "image_processor_type": "ConvNextImageProcessor",
        "resample": 3,
        "size": {"shortest_edge": 28},
        **IMAGENET,
    },
    "convnext 384 stretches": {
        "crop_pct": 0.875,
        "image_processor_type": "ConvNextImageProcessor",
        "resample": 3,
        "size": {"shortest_edge": 384},
        **IMAGENET,
    },
    "not normalised": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_normalize": False,
        "resample": 0,
    },
    "not rescaled": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_rescale": False,
        "resample": 1,
    },
}


def write(folder: Path, values: Any) -> Path:
    (folder / FILE_NAME).write_text(json.dumps(values))
    return folder / FILE_NAME


def picture(size: tuple[int, int]) -> Image.Image:
    """Smooth colours with noise: a wrong filter, a crop beside the middle or swapped sides change it."""
    wide, high = size
    x, y = np.meshgrid(np.linspace(0, 1, wide), np.linspace(0, 1, high))
    values = np.stack([255 * x, 255 * y, 255 * (1 - x) * y], axis=2)
    noise = np.random.default_rng(wide * high).normal(0, 30, values.shape)
    return Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))


def ours(rule: Preprocessing, image: Image.Image) -> np.ndarray:
    return rule.normalize(to_tensor(rule.resize(image))[None])[0].numpy()


@pytest.mark.parametrize("name", FILES)
def test_pixel_values_are_transformers_own(tmp_path: Path, name: str) -> None:
    rule = read_preprocessing(write(tmp_path, FILES[name]), default_size=224)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for size in SIZES[:2] if rule.height > 100 else SIZES:
        expected = processor(picture(size), return_tensors="np")["pixel_values"][0]
        found = ours(rule, picture(size))
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(
            found, expected, atol=2e-6 * max(1, abs(expected).max()), err_msg=f"{name} {size}"
        )


@pytest.mark.parametrize("name", FILES)
def test_a_saved_rule_means_the_same_to_transformers_and_to_us(tmp_path: Path, name: str) -> None:
    rule = read_preprocessing(write(tmp_path, FILES[name]), default_size=224)
    (tmp_path / "saved").mkdir()
    rule.save(tmp_path / "saved")
    assert read_preprocessing(tmp_path / "saved" / FILE_NAME, default_size=1) == rule
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    expected = processor(picture((60, 40)), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(
        ours(rule, picture((60, 40))), expected, atol=2e-6 * max(1, abs(expected).max())
    )


def test_the_ordinary_auto_class_loads_what_we_save(tmp_path: Path) -> None:
    Preprocessing(32, 32).save(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded).__name__.startswith("BeitImageProcessor")
    assert loaded.size == {"height": 32, "width": 32} and loaded.resample == Image.Resampling.BICUBIC
    assert loaded(picture((60, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_the_size_comes_from_the_model_where_the_file_has_none(tmp_path: Path) -> None:
    rule = read_preprocessing(write(tmp_path, {"image_processor_type": "ViTImageProcessor"}), default_size=48)
    assert (rule.height, rule.width, rule.resize_to) == (48, 48, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, r"do_resize: false \(images of any size cannot be batched\)"),
        ({"do_flip_channel_order": True, "do_pad": True}, r"do_flip_channel_order: true .*; do_pad: true"),
        ({"image_processor_type": "EfficientNetImageProcessor", "include_top": True}, r"include_top: true"),
        ({"resample": 9}, r"resample: 9 is not one of Pillow's filters"),
        ({"image_processor_type": "LevitImageProcessor"}, r"LevitImageProcessor"),
    ],
)
def test_steps_that_are_not_ours_are_refused(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"{FILE_NAME}: {message}"):
        read_preprocessing(write(tmp_path, values), 32)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("size: 32")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_preprocessing(tmp_path / FILE_NAME, 32)


def test_another_image_size_keeps_the_share_that_is_cut_off() -> None:
    assert Preprocessing(224, 224).at_size(384) == Preprocessing(384, 384)
    cropped = Preprocessing(224, 224, resize_to=256).at_size(448)
    assert (cropped.height, cropped.width, cropped.resize_to) == (448, 448, 512)
    assert Preprocessing(224, 224, resize_to=(256, 288)).at_size(112).resize_to == (128, 144)


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("beit 2023", 32),
        ("vit fast", 40),
        ("deit: stretched, then cropped", 32),
        ("dinov2: shorter side, then cropped", 33),
    ],
)
def test_a_recipe_can_ask_for_the_middle_or_the_whole_image(tmp_path: Path, name: str, shorter: int) -> None:
    rule = read_preprocessing(write(tmp_path, FILES[name]), default_size=224)
    assert rule.resized(None) == rule and (rule.height, rule.width) == (
        rule.resized("crop").height,
        rule.resized("crop").width,
    )
    for how in ("crop", "square"):  # what is saved means the same to transformers
        changed = rule.resized(how)
        (tmp_path / how).mkdir()
        changed.save(tmp_path / how)
        processor = AutoImageProcessor.from_pretrained(tmp_path / how, backend="pil")
        for size in SIZES[:3]:
            expected = processor(picture(size), return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(
                ours(changed, picture(size)), expected, atol=2e-6 * max(1, abs(expected).max())
            )
    assert rule.resized("square").resize_to is None and rule.resized("crop").resize_to == shorter


def test_the_middle_is_what_torchvision_crops() -> None:
    rule = Preprocessing(32, 32, resample=Image.Resampling.BILINEAR).resized("crop")
    crop = v2.Compose([v2.Resize(32, v2.InterpolationMode.BILINEAR), v2.CenterCrop(32)])
    for size in ((60, 40), (33, 47), (64, 32), (32, 32)):
        assert np.array_equal(rule.resize(picture(size)), crop(picture(size))), size


def test_normalize_leaves_the_pixels_it_was_given() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = pixels.clone()
    values = Preprocessing(4, 4, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)).normalize(pixels)
    assert torch.equal(pixels, before) and values.dtype == torch.float32
    expected = (before[1, 2, 3, 3].item() / 255 - 0.3) / 4
    assert values[1, 2, 3, 3].item() == pytest.approx(expected, abs=1e-6)


def test_crops_cover_the_area_and_shapes_of_the_recipe() -> None:
    """The image tells where each crop came from: red is x, green is y."""
    x, y = np.meshgrid(np.linspace(0, 255, 256), np.linspace(0, 255, 256))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    augment = augmenter(Augmentation(crop_scale=(0.25, 0.5)), Preprocessing(24, 24, resample=2))
    torch.manual_seed(0)
    areas, ratios, flips, lefts = [], [], [], []
    for _ in range(400):
        pixels = np.asarray(augment(image), dtype=np.float64)
        wide, high = pixels[..., 0].max() - pixels[..., 0].min(), pixels[..., 1].max() - pixels[..., 1].min()
        areas.append(wide * high / 255**2)
        ratios.append(wide / high)
        lefts.append(pixels[..., 0].min())
        flips.append(pixels[0, 0, 0] > pixels[0, -1, 0])
    assert augment(image).size == (24, 24)
    # The resized edge pixels are means: a little inside
    assert 0.2 < min(areas) < 0.27 and 0.44 < max(areas) < 0.52
    assert 0.33 < np.mean(areas) < 0.39  # uniform in area
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.4
    assert 0.4 < np.mean(flips) < 0.6
    assert min(lefts) < 15 and max(lefts) > 100


def test_augmentation_can_be_switched_off_part_by_part() -> None:
    rule, image = Preprocessing(24, 24), picture((60, 40))
    nothing = augmenter(Augmentation(random_resized_crop=False, horizontal_flip=False), rule)
    assert np.array_equal(nothing(image), rule.resize(image))
    flips = augmenter(Augmentation(random_resized_crop=False), rule)
    torch.manual_seed(0)
    seen = {np.asarray(flips(image)).tobytes() for _ in range(20)}
    mirrored = rule.resize(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert seen == {np.asarray(rule.resize(image)).tobytes(), np.asarray(mirrored).tobytes()}
    turned = augmenter(
        Augmentation(random_resized_crop=False, horizontal_flip=False, rotation_degrees=45), rule
    )
    # A corner came in
    assert turned(Image.new("RGB", (40, 40), (255, 255, 255))).getpixel((0, 0)) != (255, 255, 255)


@pytest.mark.parametrize("resample", range(6))
def test_every_filter_can_augment(resample: int) -> None:
    rule = Preprocessing(16, 16, resample=resample)
    assert augmenter(Augmentation(), rule)(picture((60, 40))).size == (16, 16)


@pytest.mark.parametrize("size", [(3, 700), (700, 3), (2, 701)])
def test_the_ends_of_a_very_long_image_are_not_resized(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    across = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels = np.broadcast_to(across[None] if size[0] > size[1] else across[:, None], size[::-1])
    image, rule = Image.fromarray(pixels).convert("RGB"), Preprocessing(16, 16, resize_to=20)
    whole = np.asarray(rule.resize(image)).astype(int)
    monkeypatch.setattr("pipeline.data.transforms.MAX_SIDE", 1_000)
    assert np.abs(np.asarray(rule.resize(image)) - whole).max() <= 1


def test_a_line_of_pixels_needs_no_gigabytes() -> None:
    """Resized as a whole it would have 256 x 51 million pixels."""
    assert Preprocessing(224, 224, resize_to=256).resize(Image.new("RGB", (1, 200_000))).size == (224, 224)
