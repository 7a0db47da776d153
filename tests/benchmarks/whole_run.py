"""Seconds of a whole run over few images, from the command to its end: train.py (imports, checks, training,
adapter, run.json, page) against a script that does what PEFT's example of image classification does.

    python -m tests.benchmarks.whole_run --size beit-base-224 --images 120 --rounds 3

https://huggingface.co/docs/peft, image classification with LoRA: images from folders, torchvision's
transforms, Trainer in its own precision, one epoch with a validation part, the adapter saved. `--half` lets
it train in bf16. Both are processes of their own and take turns.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.benchmarks.baselines import LR, MAX_GRAD_NORM, RANK, SIZES, prepare

ROOT = Path(__file__).resolve().parents[2]
VAL_FRACTION = 0.05


def main() -> int:
    """Print the seconds of both, round by round, and the ratio of the medians; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=SIZES, default="beit-base-224")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--half", action="store_true", help="the peer trains in bf16")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)  # the child process
    args = parser.parse_args()
    if args.peer:
        train_by_trainer(args.peer, args.batch_size, args.half)
        return 0
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args)
    return 0


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Train with both in turn, and print the seconds."""
    import torch

    from pipeline.training.compute import Compute

    work = prepare(folder, args.size, args.images, args.batch_size, Compute(torch.device("cpu"), "fp32"))
    ours = [
        *(sys.executable, "train.py", "--data", str(folder), "--backbone", str(work.model_dir)),
        *("--output", str(folder / "run"), "--epochs", "1", "--batch-size", str(args.batch_size)),
        *("--accumulation-steps", "1", "--lr", str(LR), "--lora-rank", str(RANK)),
        *("--set", f"data.val_fraction={VAL_FRACTION}", "--set", f"optimizer.max_grad_norm={MAX_GRAD_NORM}"),
    ]
    peer = [sys.executable, "-m", "tests.benchmarks.whole_run", "--peer", str(folder)]
    peer += ["--batch-size", str(args.batch_size), *(["--half"] if args.half else [])]
    seconds: dict[str, list[float]] = {"ours": [], "Trainer + PEFT": []}
    for number in range(args.rounds):
        for (who, found), command in zip(seconds.items(), (ours, peer), strict=True):
            found.append(seconds_of(command, folder / f"{number} {who}.log"))
            print(f"round {number + 1}, {who}: {found[-1]:.1f} s", flush=True)
            for output in ("run", "trainer"):
                shutil.rmtree(folder / output, ignore_errors=True)
    medians = [statistics.median(found) for found in seconds.values()]
    print(
        f"a whole run over {args.images} images, {args.size}: ours {medians[0]:.1f} s, Trainer + PEFT "
        f"{medians[1]:.1f} s: {medians[1] / medians[0]:.2f} x"
    )


def seconds_of(command: list[str], log: Path) -> float:
    """The seconds of `command`; what it prints goes to `log`.

    Raises:
        SystemExit: it failed; its last words are in the message.
    """
    with open(log, "w", encoding="utf-8") as file:
        started = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        spent = time.perf_counter() - started
    if code:
        raise SystemExit("\n".join(log.read_text(encoding="utf-8").splitlines()[-20:]))
    return spent


def train_by_trainer(folder: Path, batch_size: int, half: bool) -> None:
    """What PEFT's example does, on the images and the backbone of `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    from pipeline.models.lora import modules_of

    model = AutoModelForImageClassification.from_pretrained(folder / "model_beit")
    side = (model.config.image_size,) * 2
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    training = v2.Compose([v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip(), *to_tensor])
    images = ImageFolder(str(folder / "train"), training)
    num_val = max(1, round(VAL_FRACTION * len(images)))
    train, val = torch.utils.data.random_split(images, [len(images) - num_val, num_val])
    targets = modules_of(model, ("query", "key"))
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, modules_to_save=["classifier"])

    def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([pixel_values for pixel_values, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        }

    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=LR,
        max_grad_norm=MAX_GRAD_NORM,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        bf16=half,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=arguments,
        train_dataset=train,
        eval_dataset=val,
        data_collator=collate,
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "trainer" / "adapter")


if __name__ == "__main__":
    sys.exit(main())
