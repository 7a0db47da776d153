"""The work that every contender of `benchmark` gets, and our own training and prediction as contenders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # --help answers at once
    import numpy as np
    import torch

    from pipeline.training.compute import Compute
    from pipeline.training.position import EpochReport
    from pipeline.training.predict import Task

SIZES: dict[str, dict[str, Any]] = {  # BEiT with random weights, which do not change the speed
    "small-224": {
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "image_size": 224,
    },
    "beit-base-224": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
    },
    "beit-large-384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 384,
    },
}
NUM_CLASSES = 4
DISTINCT = 32  # number of different images; the others are copies of them
LR, RANK, TARGETS, MAX_GRAD_NORM = 1e-4, 16, ("query", "key"), 1.0


@dataclass(frozen=True)
class Work:
    """The input of every contender.

    `pixels` (N, 3, H, W) uint8 and `labels` (N,) are the training rows, in their order.
    """

    data_dir: Path  # train/<class>/*.jpg: the images of `paths`
    paths: Sequence[Path]
    model_dir: Path  # a backbone with its head, for from_pretrained
    image_size: int
    batch_size: int
    precision: str
    device: torch.device
    pixels: torch.Tensor
    labels: torch.Tensor
    engine: str = "torch"  # for our own prediction

    def normalized(self) -> torch.Tensor:
        """Return `pixels` as the model takes them: (N, 3, H, W) float32."""
        return self.pixels.float().div_(255).sub_(0.5).div_(0.5)


Contender = Callable[[Work], Callable[[], Any]]


def titled(kind: str, title: str) -> Callable[[Contender], Contender]:
    """Return a decorator that sets a contender's kind of work (see `KINDS`) and its name in the table."""

    def mark(contender: Contender) -> Contender:
        contender.kind, contender.title = kind, title  # type: ignore[attr-defined]
        return contender

    return mark


@titled("training", "ours")
def our_training(work: Work) -> Callable[[], float]:
    """Train LoRA with the engine's own loop, without writing files."""
    return timed_training(work)


@titled("training", "ours, compiled")
def our_compiled_training(work: Work) -> Callable[[], float]:
    """Do the same with `compile: true`; the time for compiling is not counted."""
    return timed_training(work, compiled=True)


def timed_training(work: Work, compiled: bool = False, **values: Any) -> Callable[[], float]:
    """Return one epoch of training with recipe `values`, which returns its mean loss."""
    from pipeline.training.attending import choose_attention, time_blocks
    from pipeline.training.compilation import run_step
    from pipeline.training.compute import Compute

    task, many = our_task(work, **values), 1_000_000  # as in a long run, which tries both ways of attention
    size, rows = work.batch_size, len(work.labels)
    batches = [
        {
            "pixels": work.pixels[start : start + size],
            "label": work.labels[start : start + size],
            "row": work.labels[start : start + size],
        }
        for start in range(0, rows, size)
    ]
    if work.device.type == "cuda":  # as the loader's batches are: else each copy waits for the GPU
        batches = [{name: part.pin_memory() for name, part in batch.items()} for batch in batches]
    task.train_batches = lambda *_: batches
    optimizer = plain_optimizer(task.model)
    compute = Compute(work.device, work.precision)
    blocks = time_blocks(task, compute, size)
    _, note = choose_attention(task, compute, "auto", blocks, many, many, None, lambda more: None)
    print(f"    {note}" if note else "", end="\n" if note else "")
    if compiled:
        task.compile(size)
        run_step(task, compute, compute.move(batches[0]))

    return lambda: train(task, optimizer, compute, size, MAX_GRAD_NORM)[0].metrics["train_loss"]


@titled("inference", "ours")
def our_inference(work: Work) -> Callable[[], np.ndarray]:
    """Compute logits from image files, as inference.py does."""
    from pipeline.competition.rows import Row
    from pipeline.run import load_run
    from pipeline.tasks.apply import ready
    from pipeline.training.compute import Compute
    from pipeline.training.predict import predict_logits

    compute = Compute(work.device, work.precision, engine=work.engine)
    classifier = ready(load_run(work.model_dir.parent), NUM_CLASSES, compute)
    rows = [Row(path.name, path, None) for path in work.paths]

    def run() -> np.ndarray:
        batches = classifier.batches(rows, work.batch_size)
        return predict_logits(
            classifier.model, classifier.logits, batches, len(rows), NUM_CLASSES, compute, "ours", leave=False
        )

    return run


def make_images(folder: Path, count: int, side: int) -> list[Path]:
    """Write JPEGs of `side` x 3/4 `side` pixels into class folders, and return their paths.

    They have the spectrum of photographs (amplitude 1 / frequency).
    """
    import numpy as np
    from PIL import Image

    height, width = side * 3 // 4, side
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    paths = []
    for number in range(count):
        path = folder / f"class_{number % NUM_CLASSES}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(path)
        if number >= DISTINCT:  # drawing one takes a tenth of a second
            shutil.copyfile(paths[number % DISTINCT], path)
            continue
        rng = np.random.default_rng((side, number))
        common, *planes = (
            np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.4).real
            for _ in range(4)
        )
        values = np.stack([common + 0.3 * plane for plane in planes], axis=2)
        Image.fromarray(np.clip(128 + 50 * values / values.std(), 0, 255).astype(np.uint8)).save(
            path, quality=85
        )
    return sorted(paths)


def prepare(folder: Path, size: str, images: int, batch_size: int, compute: Compute) -> Work:
    """Return the images, the saved backbone and the training rows for all contenders."""
    import torch
    from transformers import BeitConfig, BeitForImageClassification

    from pipeline.data.dataset import ImageDataset
    from pipeline.data.transforms import Preprocessing

    torch.manual_seed(0)
    shape = {
        "patch_size": 16,
        "use_relative_position_bias": True,
        "use_mean_pooling": True,
        "layer_scale_init_value": 0.1,
    }
    names = {"id2label": {number: f"class_{number}" for number in range(NUM_CLASSES)}}
    model_dir = folder / "model_beit"
    BeitForImageClassification(
        BeitConfig(**SIZES[size], **shape, **names, drop_path_rate=0.0)
    ).save_pretrained(model_dir)
    image_size = SIZES[size]["image_size"]
    preprocessing = Preprocessing(image_size, image_size, resample=2)
    preprocessing.save(model_dir)
    paths = make_images(folder / "train", images, 500)
    rows = [ImageDataset(paths, None, preprocessing)[0, row]["pixels"] for row in range(images)]
    labels = torch.tensor([int(path.parent.name.removeprefix("class_")) for path in paths])
    return Work(
        folder,
        paths,
        model_dir,
        image_size,
        batch_size,
        compute.precision,
        compute.device,
        torch.stack(rows),
        labels,
    )


def train(
    task: Task,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    batch_size: int,
    max_grad_norm: float,
    epochs: int = 1,
) -> list[EpochReport]:
    """Train with the engine's own loop at a constant learning rate, without files.

    Return the report of each epoch.
    """
    from pipeline.training.engine import fit

    schedule = {
        "name": "constant",
        "lr": LR,
        "end_lr": 0.0,
        "warmup_steps": 0,
        "effective_batch_size": batch_size,
    }
    schedule["steps_per_epoch"] = -(-task.num_train // batch_size)
    schedule["total_steps"] = epochs * schedule["steps_per_epoch"]
    reports: list[EpochReport] = []
    options = {"epochs": epochs, "micro_batch_size": batch_size, "max_grad_norm": max_grad_norm}
    fit(task, optimizer, schedule, compute, NoStore(), reports.append, **options)
    return reports


def plain_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that train.py would build: AdamW, without weight decay, one learning rate for
    adapter and head.
    """
    from pipeline.recipe import Recipe
    from pipeline.recipe_sections import Optimizer
    from pipeline.training.optim import build_optimizer

    recipe = Recipe(backbone="any", optimizer=Optimizer(lr=LR, weight_decay=0))
    return build_optimizer(model.named_parameters(), recipe, head="")


def our_task(work: Work, **values: Any) -> Any:
    """Return our training task on the backbone of `work`: LoRA without dropout, unless recipe `values`
    differ.
    """
    from pipeline.competition.layout import read_layout
    from pipeline.config import validate_recipe
    from pipeline.tasks.classification import build
    from pipeline.training.compute import Compute

    lora = {"rank": RANK, "alpha": RANK, "dropout": 0.0, "targets": list(TARGETS)}
    usual = {
        "backbone": str(work.model_dir),
        "lora": lora,
        "data": {"val_fraction": 0, "workers": 0},
        "precision": work.precision,
    }
    recipe = validate_recipe(usual | values, {}, where="benchmark")
    task = build(recipe, read_layout(work.data_dir, need="train")).task
    task.to_device(Compute(work.device, work.precision), fresh=False)
    return task


class NoStore:
    """Replaces a run's state folder: the loop's files are not part of a step."""

    folder = Path("benchmark") / "state"

    def save(self, *_: Any) -> None:
        """Write nothing."""
