"""Which epoch is kept, clipping, weight decay, precision: held-back accuracy over seeds, beside Hugging Face
Trainer + PEFT with the same settings.

    # measures what is missing, then the table
    python -m tests.benchmarks.kept_epoch --competitions COMPETITIONS --backbone BACKBONE
    python -m tests.benchmarks.kept_epoch --table  # the table alone

Seed s draws ROWS of the labelled rows for training and for a held-back part, both stratified; 5 % of the
former validate, and Trainer leaves them out too.
LoRA of rank 16 on query and key, learning rate 1e-3, batch 32, 10 epochs, linear with 5 % warm-up, the size
of the backbone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.held_back import (
    DIGITS,
    Table,
    lay_out,
    parser_of,
    read_column,
    read_split,
    run_train,
    score_of,
    with_error,
)

EPOCHS, BATCH, LR, RANK = 10, 32, 1e-3, 16
ROWS = 280, 290  # for training, held back
ARMS = {  # clipping at, weight decay, precision, how prediction sees an image (the backbone: the whole)
    "clip 0, decay 0.01 (as shipped)": (0.0, 0.01, "fp32", "null"),
    "clip 1, decay 0": (1.0, 0.0, "fp32", "null"),
    "Trainer + PEFT, clip 1, decay 0": (1.0, 0.0, "fp32", "null"),
    "clip 1, decay 0.01": (1.0, 0.01, "fp32", "null"),
    "clip 0, decay 0": (0.0, 0.0, "fp32", "null"),
    "clip 1, decay 0, bf16": (1.0, 0.0, "bf16", "null"),
    "clip 0, decay 0.01, resize crop": (0.0, 0.01, "fp32", "crop"),
}
TRAINER = "Trainer + PEFT, clip 1, decay 0"
COLUMNS = ("data", "seed", "arm", "kept", "epoch", "accuracy")


def main() -> int:
    """Measure what is missing, and print the table; the exit code."""
    parser = parser_of(__doc__, "kept-epoch", ["produce", DIGITS, "clothing"], [0, 1, 2, 3, 4])
    parser.add_argument("--backbone", type=Path)
    parser.add_argument(
        "--arms",
        type=int,
        nargs="+",
        default=list(range(len(ARMS))),
        help="by number, in the order of the file",
    )
    args = parser.parse_args()
    table = Table(args.results, COLUMNS)
    if not args.table:
        arms = [list(ARMS)[number] for number in args.arms]
        for name in args.data:
            for seed in args.seeds:
                for arm in arms:
                    if not table.has(name, seed, arm):
                        measure(args, table, name, seed, arm)
    show(table)
    return 0


def measure(args: argparse.Namespace, table: Table, name: str, seed: int, arm: str) -> None:
    """Train one arm, and add its rows: the accuracy of the last epoch, of the best by validation, and of the
    last three averaged.
    """
    data = lay_out(name, args.competitions, args.work, ROWS, seed)
    folder = args.work / f"run-{name}-{seed}-{list(ARMS).index(arm)}"
    log = folder.with_suffix(".log")
    clip, decay, precision, resize = ARMS[arm]
    if arm == TRAINER:
        split = read_split(data, seed)
        for kept, value in peer(args, data, split, seed, clip, decay).items():
            table.add(name, seed, arm, kept, EPOCHS, value)
        return
    run_train(log, *flags(args, data, folder, seed, clip, decay, precision, resize))
    use = ["--precision", precision]
    table.add(name, seed, arm, "last", EPOCHS, score_of(log, [folder], data, *use))
    best = best_epoch(folder)
    copies = [folder / "checkpoints" / f"epoch_{epoch:04d}" for epoch in range(1, EPOCHS + 1)]
    table.add(name, seed, arm, "best", best, score_of(log, [copies[best - 1]], data, *use))
    table.add(name, seed, arm, "mean of the last 3", EPOCHS, score_of(log, copies[-3:], data, *use))
    shutil.rmtree(folder / "checkpoints")


def flags(
    args: argparse.Namespace,
    data: Path,
    folder: Path,
    seed: int,
    clip: float,
    decay: float,
    precision: str,
    resize: str,
) -> list[Any]:
    """The command line of train.py."""
    own = {
        "lora.rank": RANK,
        "lora.alpha": RANK,
        "lora.targets": "[query,key]",
        "optimizer.max_grad_norm": clip,
        "optimizer.weight_decay": decay,
        "augmentation.horizontal_flip": str(DIGITS not in data.name).lower(),
        "checkpoint.keep": "last",
        "resize": resize,
        "checkpoint.keep_every": 1,
        "data.workers": 0,
    }
    words: list[Any] = [
        *("--data", data, "--output", folder, "--backbone", args.backbone, "--seed", seed),
        *("--precision", precision),
    ]
    words += ["--epochs", EPOCHS, "--batch-size", BATCH, "--accumulation-steps", 1, "--lr", LR]
    return [*words, *(word for key, value in own.items() for word in ("--set", f"{key}={value}"))]


def best_epoch(folder: Path) -> int:
    """The epoch that `checkpoint.keep=best` keeps: the highest validation accuracy, of equal ones the lowest
    loss, then the first.
    """
    from pipeline.files import read_json_lines

    lines = read_json_lines(folder / "metrics.jsonl")
    return int(
        max(lines, key=lambda line: (line["val_accuracy"], -line["val_loss"], -line["epoch"]))["epoch"]
    )


def peer(
    args: argparse.Namespace, data: Path, split: list[Path], seed: int, clip: float, decay: float
) -> dict[str, float]:
    """Held-back accuracy of Trainer + PEFT after the last epoch, with test images made as PEFT's example
    makes them (shorter side, then the middle) and as the image processor does (the whole image).
    https://huggingface.co/docs/peft/task_guides/image_classification_lora
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from torchvision.transforms import v2
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    names = sorted({path.parent.name for path in split})
    set_seed(seed)
    config = AutoConfig.from_pretrained(args.backbone)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    model = AutoModelForImageClassification.from_pretrained(
        args.backbone, config=config, ignore_mismatched_sizes=True
    )
    processor = AutoImageProcessor.from_pretrained(args.backbone)
    size = processor.size["height"]
    lora = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.1,
        target_modules=targets(model),
        modules_to_save=["classifier"],
        bias="none",
    )
    model = get_peft_model(model, lora)
    end = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(processor.image_mean, processor.image_std),
    ]
    flip = [] if DIGITS in data.name else [v2.RandomHorizontalFlip()]
    training = v2.Compose([v2.RandomResizedCrop(size), *flip, *end])
    documented = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *end])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, row: int) -> dict[str, Any]:
            with Image.open(split[row]) as image:
                return {
                    "pixel_values": training(image.convert("RGB")),
                    "labels": names.index(split[row].parent.name),
                }

    arguments = TrainingArguments(
        str(args.work / "trainer"),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=LR,
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        max_grad_norm=clip,
        weight_decay=decay,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    Trainer(model=model, args=arguments, train_dataset=Images()).train()
    model.eval()
    truth = read_column(data / "solution.csv")
    right: dict[str, list[bool]] = {"last": [], "last, centre crop": []}
    for path in sorted((data / "test").iterdir()):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        whole = processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(torch.cat([whole, documented(image)[None]])).logits
        for kept, row in zip(right, logits, strict=True):
            right[kept].append(names[int(row.argmax())] == truth[path.stem])
    return {kept: float(np.mean(values)) for kept, values in right.items()}


def targets(model: Any) -> list[str]:
    """The layers that our arms adapt."""
    from pipeline.models.roles import modules_of

    return modules_of(model, ("query", "key"))


def show(table: Table) -> None:
    """Means over seeds, and paired differences from Trainer with their standard errors."""
    found = {
        (row["data"], int(row["seed"]), row["arm"], row["kept"]): float(row["accuracy"])
        for row in table.rows()
    }
    data = list(dict.fromkeys(key[0] for key in found))
    print(
        "| settings | epoch kept | "
        + " | ".join(f"{name} | less Trainer" for name in data)
        + " | less Trainer, all |"
    )
    print("|---|---|" + "---|" * (2 * len(data) + 1))
    for arm, kept in dict.fromkeys((arm, kept) for arm in ARMS for *_, other, kept in found if other == arm):
        cells, every = [], []
        for name in data:
            seeds = sorted(key[1] for key in found if key[0] == name and key[2:] == (arm, kept))
            values = [found[name, seed, arm, kept] for seed in seeds]
            paired = [
                found[name, seed, arm, kept] - found[name, seed, TRAINER, "last"]
                for seed in seeds
                if (name, seed, TRAINER, "last") in found
            ]
            every += paired
            cells.append(f"{np.mean(values):.4f} ({len(values)})" if values else "")
            cells.append(with_error(paired) if paired else "")
        print(f"| {arm} | {kept} | " + " | ".join(cells) + f" | {with_error(every) if every else ''} |")


if __name__ == "__main__":
    sys.exit(main())
