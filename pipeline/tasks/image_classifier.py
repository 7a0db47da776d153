"""An image model with its preprocessing, for training and prediction; rebuild it from a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.competition.rows import Row
from pipeline.data.dataset import ALL, ImageDataset, cut, make_loader, resolve_workers
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError, raise_all
from pipeline.models.adapter_files import head_classes
from pipeline.models.backbones import (
    Backbone,
    head_name,
    native_image_size,
    rebuild_backbone,
    takes_interpolation,
)
from pipeline.models.half_weights import cache_frozen_bias, exact_head
from pipeline.models.lora import load_adapter, merge
from pipeline.run import Run
from pipeline.shapes import read_object
from pipeline.training.compute import Batch


@dataclass
class ImageClassifier:
    """The model with its preprocessing: batches of uint8 pixels in, logits out.

    Training, validation and prediction all use it.
    """

    model: nn.Module
    preprocessing: Preprocessing
    extra: dict[str, Any]  # forward arguments beside pixel_values
    # The same for images of another size than that of the preprocessing
    extra_at_other_sizes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, backbone: Backbone) -> ImageClassifier:
        """Return the classifier of `model` (the backbone's own model, or an adapter around it).

        At an image size other than the pretrained one position embeddings are interpolated. From then on the
        head is computed in float32, see `exact_head`.
        """
        exact_head(model, head_name(backbone.model))
        other_size = native_image_size(backbone.model) != backbone.preprocessing.height
        interpolating = {"interpolate_pos_encoding": True} if takes_interpolation(backbone.model) else {}
        return cls(model, backbone.preprocessing, interpolating if other_size else {}, interpolating)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, C) for `batch["pixels"]` (B, 3, H, W) uint8."""
        return self.forward(self.model, self.preprocessing.normalize(batch["pixels"]))

    def forward(self, model: Callable[..., Any], pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of `model` for normalised `pixel_values`."""
        extra = (
            self.extra if pixel_values.shape[-1] == self.preprocessing.width else self.extra_at_other_sizes
        )
        return model(pixel_values=pixel_values, **extra).logits

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Check that the model takes images of each of `sizes` (the last is its own), and is the same model
        afterwards.

        One image of each size is computed.

        Raises:
            UserError: it needs one size, or computes its own size otherwise once it has seen another.
        """
        problems, was_training = [], self.model.training
        # Noise: on an image of one colour Swin's windows give the same wherever they lie
        generator = torch.Generator().manual_seed(0)
        *others, own = (torch.randn(1, 3, size, size, generator=generator) for size in sizes)
        self.model.eval()
        with torch.no_grad():
            before = self.forward(self.model, own)
            for image in others:
                try:
                    self.forward(self.model, image)
                # Each architecture has its own
                except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    problems.append(f"{image.shape[-1]} px: {reason}")
            if not problems and not torch.equal(before, self.forward(self.model, own)):
                problems.append(f"{sizes[-1]} px gives other logits after images of another size")
        self.model.train(was_training)
        raise_all(
            problems,
            f"schedule.image_sizes: {type(self.model).__name__} cannot be trained with images of several "
            "sizes; leave it out (--set schedule.image_sizes=[]), or use a --backbone that interpolates its "
            "position embedding:",
        )

    def describe(self) -> str:
        """Return the input size as text."""
        return f"{self.preprocessing.width} x {self.preprocessing.height} px"

    def batches(self, rows: Sequence[Row], batch_size: int, share: tuple[int, int] = ALL) -> Iterable[Batch]:
        """Yield batches of the images of `rows`, in order, preprocessed as in validation.

        `share`: the part of the batches that this process computes.
        """
        paths = [row.path for row in rows]
        return in_order(
            ImageDataset(paths, None, self.preprocessing), batch_size, resolve_workers("auto", paths), share
        )


def rebuild(run: Run, num_outputs: int) -> ImageClassifier:
    """Return the classifier of a finished run or release: float32, adapter merged and checked, eval mode.

    Raises:
        UserError: weights that are missing, damaged or unsafe, or that do not belong together.
    """
    backbone = rebuild_backbone(run.backbone_dir, num_outputs)
    cache_frozen_bias(backbone.model.requires_grad_(False))
    if run.adapter_dir is None:
        if backbone.new_head:
            raise UserError(
                f"{run.backbone_dir} has no trained head for {num_outputs} outputs, and {run.path} has no "
                "adapter with one"
            )
        return ImageClassifier.of(backbone.model, backbone)
    adapted = load_adapter(backbone.model, run.adapter_dir)
    classifier = ImageClassifier.of(adapted, backbone)
    probe = torch.randn(
        1,
        3,
        backbone.preprocessing.height,
        backbone.preprocessing.width,
        generator=torch.Generator().manual_seed(0),
    )
    classifier.model = merge(adapted, lambda model: classifier.forward(model, probe)).eval()
    return classifier


def num_outputs_of(run: Run) -> int:
    """Return the number of outputs of a run or release, from its weight files.

    Raises:
        UserError: the files are damaged, or the adapter holds no head.
    """
    if run.adapter_dir is not None:
        return head_classes(run.adapter_dir)
    if run.target is not None:
        return run.target.num_outputs
    if run.class_names is not None:
        return len(run.class_names)
    names = read_object(run.backbone_dir / "config.json").get("id2label")
    return len(names) if isinstance(names, dict) else 0


def in_order(dataset: ImageDataset, batch_size: int, workers: int, share: tuple[int, int]) -> Iterable[Batch]:
    """Return the batches of all rows of `dataset`, in order. `share`: this process's part of them."""
    return make_loader(dataset, cut(range(len(dataset)), batch_size, len(dataset), share=share), 0, workers)
