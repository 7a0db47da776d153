"""Peers on the sets of recipe_tables: Hugging Face Trainer + PEFT and timm's training, as documented and at
the best settings found.

    # ours
    python -m tests.benchmarks.recipe_tables --grid peft --rows 0 --competitions DIR --backbone BACKBONE
    # the peers, into the same table
    python -m tests.benchmarks.recipe_peers --competitions DIR --backbone BACKBONE
    python -m tests.benchmarks.recipe_tables --grid peft --table

The same backbone, training rows, epochs, batch and held-back images; half precision where the machine
multiplies in it, as ours. Images are decoded once and kept in memory; seconds are those of training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.held_back import Table, parser_of, read_column, read_split, side_by_side
from tests.benchmarks.recipe_tables import COLUMNS, OWN, ROWS, SMALLER, laid_out

GRID, SIZE, EPOCHS, BATCH = "peft", 112, 8, 32  # as grids/lora.yaml
SIX_ROLES = ("query", "key", "value", "output", "fc1", "fc2")


@dataclass(frozen=True)
class Peer:
    """Settings of one row. `roles` are the linear layers of LoRA or IA3 (none: full fine-tuning).

    A training crop has at least the share `crop` of the image.
    """

    train: Callable[[Peer, Any, Any, int, str], None]
    lr: float
    roles: tuple[str, ...] = ()
    method: str = "lora"
    schedule: str = "cosine"
    crop: float = 0.08
    dropout: float = 0.0


@dataclass(frozen=True)
class Job:
    """One peer on one set with one seed."""

    data: str
    seed: int
    row: str
    folder: Path
    backbone: Path


def by_trainer(peer: Peer, model: Any, rows: Any, seed: int, device: str) -> None:
    """Train by transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            learning_rate=peer.lr,
            lr_scheduler_type=peer.schedule,
            warmup_steps=0.1,  # a share of the steps
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=_half(),
            use_cpu=device == "cpu",
            remove_unused_columns=False,
            label_names=["labels"],
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train()


def by_timm(peer: Peer, model: Any, rows: Any, seed: int, device: str) -> None:
    """Train by the optimizer, schedule and loss of timm's train.py: one epoch of warm-up in place of five,
    for there are eight.

    https://github.com/huggingface/pytorch-image-models/blob/main/train.py
    """
    import torch
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    loader = torch.utils.data.DataLoader(
        rows, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    name, decay = ("sgd", 2e-5) if peer.method == "sgd" else ("adamw", 0.05)
    optimizer = create_optimizer_v2(model, opt=name, lr=peer.lr, weight_decay=decay, momentum=0.9)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        EPOCHS,
        warmup_epochs=1,
        warmup_lr=1e-6,
        updates_per_epoch=len(loader),
        step_on_epochs=False,
    )
    loss_of, step = LabelSmoothingCrossEntropy(0.1), 0
    model.train()
    for _ in range(EPOCHS):
        for batch in loader:
            with torch.autocast(device, torch.bfloat16, enabled=_half()):
                logits = model(batch["pixel_values"].to(device)).logits
            loss_of(logits.float(), batch["labels"].to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            scheduler.step_update(step)


PEERS = {
    # https://huggingface.co/docs/peft/task_guides/image_classification_lora; its batch of 128 and five epochs
    # are replaced by ours
    "Trainer + PEFT, documented": Peer(by_trainer, 5e-3, ("query", "value"), schedule="linear", dropout=0.1),
    "Trainer + PEFT, best found": Peer(by_trainer, 1e-3, SIX_ROLES, crop=0.35),
    # Liu et al. 2022, arXiv:2205.05638: keys, values and the hidden layer are scaled
    "Trainer + PEFT, IA3, 5e-3": Peer(by_trainer, 5e-3, ("key", "value", "fc2"), method="ia3", crop=0.35),
    "timm, defaults (SGD, 0.1 for a batch of 256)": Peer(by_timm, 0.1 * BATCH / 256, method="sgd"),
    "timm, best found (AdamW, 5e-5)": Peer(by_timm, 5e-5, method="adamw"),
}


def main() -> int:
    """Measure what is missing; the exit code."""
    parser = parser_of(__doc__, "recipe-tables", list(ROWS), [0, 1, 2])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    side_by_side(measure, list(jobs(args, table)), args.workers, lambda cells: table.add(*cells))
    return 0


def jobs(args: argparse.Namespace, table: Table) -> Sequence[Job]:
    """What is not measured yet."""
    return [
        Job(name, seed, row, laid_out(name, seed, args), args.backbone)
        for seed in args.seeds
        for name in args.data
        for row in PEERS
        if not table.has(GRID, name, seed, row)
    ]


def measure(job: Job) -> tuple[Any, ...]:
    """The cells of one row of the table."""
    import torch

    peer, device = PEERS[job.row], "cuda" if torch.cuda.is_available() else "cpu"
    paths = read_split(job.folder, job.seed)
    names = sorted({path.parent.name for path in paths})
    model, processor = adapted(job, names)
    model.to(device)
    flips = OWN.get(job.data, {}).get("augmentation.horizontal_flip", True)
    training, testing = transforms(peer, processor, SIZE // SMALLER.get(job.data, 1), flips)
    images = [decoded(path) for path in paths]

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {"pixel_values": training(images[row]), "labels": names.index(paths[row].parent.name)}

    started = time.perf_counter()
    peer.train(peer, model, Rows(), job.seed, device)
    seconds = time.perf_counter() - started
    truth, tests, right = read_column(job.folder / "solution.csv"), sorted((job.folder / "test").iterdir()), 0
    model.eval()
    for path in tests:
        with torch.no_grad():
            logits = model(testing(decoded(path))[None].to(device)).logits
        right += names[int(logits.argmax())] == truth[path.stem]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return GRID, job.data, job.seed, job.row, 0.0, right / len(tests), seconds, trained


def adapted(job: Job, names: Sequence[str]) -> tuple[Any, Any]:
    """The backbone with a new head and, where the peer has roles, PEFT's adapter; and its image processor."""
    from peft import IA3Config, LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, set_seed

    from pipeline.models.roles import modules_of

    peer = PEERS[job.row]
    set_seed(job.seed)
    config = AutoConfig.from_pretrained(job.backbone)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    model = AutoModelForImageClassification.from_pretrained(
        job.backbone, config=config, ignore_mismatched_sizes=True
    )
    if peer.roles:
        targets = modules_of(model, peer.roles)
        if peer.method == "ia3":
            inner = modules_of(model, peer.roles[-1:])
            adapter = IA3Config(
                target_modules=targets, feedforward_modules=inner, modules_to_save=["classifier"]
            )
        else:
            adapter = LoraConfig(
                r=16,
                lora_alpha=16,
                lora_dropout=peer.dropout,
                target_modules=targets,
                modules_to_save=["classifier"],
            )
        model = get_peft_model(model, adapter)
    return model, AutoImageProcessor.from_pretrained(job.backbone)


def transforms(
    peer: Peer, processor: Any, size: int, flips: bool
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Of training and of testing: image -> (3, size, size) float32. timm's own for timm, for Trainer those of
    PEFT's example.
    """
    import torch
    from torchvision.transforms import v2

    mean, std = processor.image_mean, processor.image_std
    if peer.train is by_timm:
        from timm.data import create_transform

        training = create_transform(size, is_training=True, hflip=0.5 if flips else 0.0, mean=mean, std=std)
        return training, create_transform(size, interpolation="bicubic", mean=mean, std=std)
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    flip = [v2.RandomHorizontalFlip()] if flips else []
    training = v2.Compose([v2.RandomResizedCrop(size, scale=(peer.crop, 1.0)), *flip, *end])
    return training, v2.Compose([v2.Resize(size), v2.CenterCrop(size), *end])


def decoded(path: Path) -> Any:
    """The image, RGB."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _half() -> bool:
    from pipeline.training.compute import choose_compute

    return choose_compute("auto").precision == "bf16"


if __name__ == "__main__":
    sys.exit(main())
