"""The peers of `make bench`: each as its documentation shows it, and at the best settings found. See
pipeline/benchmarks/benchmark.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from pipeline.benchmarks.baselines import (
    LR,
    MAX_GRAD_NORM,
    NUM_CLASSES,
    RANK,
    Work,
    our_inference,
    timed_training,
    titled,
)
from pipeline.engines import INT8

warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about Trainer's own calls
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
RECIPE_SEED = 42  # ours, which draws the adapter from the one after it


@titled("input", "ImageFolder + v2, documented")
def image_folder_documented(work: Work) -> Callable[[], None]:
    """https://docs.pytorch.org/vision/stable/transforms.html, the classification example."""
    steps = [
        v2.ToImage(),
        v2.RandomResizedCrop(size=(work.image_size,) * 2, antialias=True),
        v2.RandomHorizontalFlip(p=0.5),
    ]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    return _one_epoch(ImageFolder(str(work.data_dir / "train"), v2.Compose(steps)), work)


@titled("input", "ImageFolder + v2, best: torchvision's decoder")
def image_folder_best(work: Work) -> Callable[[], None]:
    """Decoded by torchvision itself, which is faster than Pillow at full size."""
    steps = [
        v2.RandomResizedCrop(size=(work.image_size,) * 2, antialias=True),
        v2.RandomHorizontalFlip(p=0.5),
    ]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    loader = lambda path: decode_image(path, mode=ImageReadMode.RGB)  # noqa: E731
    return _one_epoch(ImageFolder(str(work.data_dir / "train"), v2.Compose(steps), loader=loader), work)


@titled("training", "Trainer + PEFT, documented")
def trainer_documented(work: Work) -> Callable[[], float]:
    """https://huggingface.co/docs/peft, image classification with LoRA, in Trainer's own precision:
    float32.
    """
    return _trainer(work)


@titled("training", "Trainer + PEFT, best")
def trainer_best(work: Work) -> Callable[[], float]:
    """The same in half precision where the machine has it, with pinned memory left to Trainer and SDPA
    attention.
    """
    return _trainer(work, bf16=work.precision == "bf16", fp16=work.precision == "fp16")


@titled("training", "Trainer + PEFT, best, torch_compile")
def trainer_compiled(work: Work) -> Callable[[], float]:
    """The same with `torch_compile=True`. Compiling is not timed: it trains once before, and begins again
    from the first weights.
    """
    return _trainer(work, torch_compile=True, bf16=work.precision == "bf16", fp16=work.precision == "fp16")


@titled("training", "timm + plain AMP loop, LoRA on attn.proj")
def timm_loop(work: Work) -> Callable[[], None]:
    """timm's BEiT with PEFT: a neighbour, not the same function, so its loss is not compared.

    On attn.proj, because timm's BEiT reads the weight of its fused qkv without calling it: an adapter there
    would do nothing.
    """
    import timm
    from peft import LoraConfig, get_peft_model

    model = timm.create_model(
        "beit_base_patch16_224", pretrained=False, num_classes=NUM_CLASSES, **_shape(work)
    )
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=r".*attn\.proj", modules_to_save=["head"])
    )
    model.to(work.device)
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=LR, weight_decay=0
    )
    scaler = torch.amp.GradScaler(work.device.type, enabled=work.precision == "fp16")
    pixel_values, labels = work.normalized(), work.labels

    def run() -> None:
        model.train()
        for start in range(0, len(labels), work.batch_size):
            rows = slice(start, start + work.batch_size)
            with torch.autocast(work.device.type, HALF.get(work.precision), enabled=work.precision in HALF):
                logits = model(pixel_values[rows].to(work.device))
                loss = torch.nn.functional.cross_entropy(logits, labels[rows].to(work.device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    return run


@titled("training", "ours, LoRA on the same layer as timm's loop")
def ours_on_proj(work: Work) -> Callable[[], None]:
    """Our loop with the adapter on attention's output layer: the work of `timm_loop`."""
    lora = {"rank": RANK, "alpha": RANK, "dropout": 0.0, "targets": ["output"]}
    epoch = timed_training(work, lora=lora)

    def run() -> None:
        epoch()

    return run


@titled("inference", "pipeline, documented")
def pipeline_documented(work: Work) -> Callable[[], np.ndarray]:
    """https://huggingface.co/docs/transformers/main_classes/pipelines: one image at a time, float32."""
    return _pipeline(work)


@titled("inference", "pipeline, best: batched, half precision where the machine has it")
def pipeline_best(work: Work) -> Callable[[], np.ndarray]:
    return _pipeline(work, dtype=HALF.get(work.precision), batch_size=work.batch_size)


@titled("inference", "ours, with plain weights and torch's attention")
def ours_plain(work: Work) -> Callable[[], np.ndarray]:
    """Without what `pipeline.models.cpu_prediction` does on a CPU in bfloat16."""
    prediction = "pipeline.models.cpu_prediction"
    with patch(f"{prediction}.pack_frozen"), patch(f"{prediction}.attend_in_pieces"):
        return our_inference(work)


@titled("inference", "ours, --engine openvino")
def ours_by_openvino(work: Work) -> Callable[[], np.ndarray]:
    """Files to logits, as `inference.py --engine openvino` does it, on the CPU."""
    return our_inference(replace(work, engine="openvino"))


@titled("inference", "ours, --engine openvino-int8")
def ours_by_int8(work: Work) -> Callable[[], np.ndarray]:
    """The same in 8 bits. The ranges are read from the benchmark's own images, before it is timed."""
    from pipeline.models.int8_model import quantize
    from pipeline.run import load_run
    from pipeline.tasks.image_classifier import rebuild
    from pipeline.tasks.quantized import keep_quantized

    run = load_run(work.model_dir.parent)
    classifier, size = rebuild(run, NUM_CLASSES), (work.image_size,) * 2
    images = list(work.normalized())
    made = quantize(classifier.model, classifier.extra, size, images, lambda image: image[None].numpy())
    keep_quantized(run, made, {})
    return our_inference(replace(work, engine=INT8))


def _one_epoch(dataset: ImageFolder, work: Work) -> Callable[[], None]:
    def run() -> None:
        for _ in DataLoader(dataset, batch_size=work.batch_size, shuffle=True):
            pass

    return run


def _trainer(work: Work, **options: bool) -> Callable[[], float]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

    from pipeline.models.lora import modules_of
    from pipeline.training.checkpoint import seed_everything

    model = AutoModelForImageClassification.from_pretrained(work.model_dir)
    targets = modules_of(model, ("query", "key"))
    seed_everything(RECIPE_SEED + 1)
    lora = LoraConfig(
        r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=targets, modules_to_save=["classifier"]
    )
    model = get_peft_model(model, lora)
    pixel_values = work.normalized()
    rows = [
        {"pixel_values": pixels, "labels": int(label)}
        for pixels, label in zip(pixel_values, work.labels, strict=True)
    ]
    arguments = TrainingArguments(
        str(work.model_dir / "trainer"),
        per_device_train_batch_size=work.batch_size,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=work.device.type == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        **options,
    )

    class InOrder(Trainer):
        """Rows in the order that ours has: the same batches, the same losses."""

        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(rows)

        def log(self, *_: Any, **__: Any) -> None:
            pass

    trainer = InOrder(model=model, args=arguments, train_dataset=rows)

    if options.get("torch_compile"):
        first = {name: weight.clone() for name, weight in model.state_dict().items()}
        trainer.train()
        model.load_state_dict(first)
        trainer.optimizer = trainer.lr_scheduler = None

    def run() -> float:
        return trainer.train().training_loss

    return run


def _pipeline(work: Work, dtype: torch.dtype | None = None, **options: int) -> Callable[[], np.ndarray]:
    from transformers import pipeline

    classifier = pipeline("image-classification", model=str(work.model_dir), device=work.device, dtype=dtype)
    paths = [str(path) for path in work.paths]

    def run() -> np.ndarray:
        answers = classifier(paths, top_k=NUM_CLASSES, function_to_apply="none", **options)
        scores = [{item["label"]: item["score"] for item in answer} for answer in answers]
        return np.array([[score[f"class_{number}"] for number in range(NUM_CLASSES)] for score in scores])

    return run


def _shape(work: Work) -> dict[str, Any]:
    """timm's names for the shape of our backbone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(work.model_dir)
    shape = {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
    }
    return shape | {"img_size": work.image_size, "mlp_ratio": config.intermediate_size / config.hidden_size}
