"""train.py through its command line: outputs, refusals, and what other tools make of the files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import competitions
import numpy as np
import pandas as pd
import pytest
import tolerances
import torch
from conftest import COLOURS

import train
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.targets.evidence import Asked

QUICK = "--epochs 2 --batch-size 4 --accumulation-steps 2 --lr 0.01 --set data.val_fraction=0.25".split()


def arguments(competition: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(competition), "--backbone", str(backbone), "--output", str(output), *QUICK, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A LoRA run of three colours, in a folder beside its data."""
    from conftest import make_competition

    root = tmp_path_factory.mktemp("finished")
    make_competition(root / "data")
    assert train.main(arguments(root / "data", tiny_backbone, root / "run")) == 0
    return root / "run"


def test_a_run_leaves_exactly_the_files_of_the_design(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *(
            "model_beit model_lora run.json metrics.jsonl timing.jsonl val_predictions.csv val_probs.npy"
        ).split(),
        *("report.html", "thumbnails.jsonl", "figures", "tensorboard", "state"),
    }
    assert {path.name for path in (finished / "model_beit").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert {path.name for path in (finished / "model_lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not [path for path in finished.rglob("*") if path.suffix in (".bin", ".pkl")]
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_run_json_says_what_was_done(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["class_names"] == ["blue", "green", "red"]
    assert record["counts"]["train"] == 18 and record["counts"]["val"] == 6
    assert record["counts"]["train_per_class"] == {"blue": 6, "green": 6, "red": 6}
    assert record["schedule"]["total_steps"] == 2 * 3  # 18 rows in groups of 8
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2] and [line["step"] for line in metrics] == [3, 6]
    assert record["best"]["value"] == max(line["val_accuracy"] for line in metrics)
    assert record["last"] == metrics[-1]
    assert {
        "train_loss",
        "train_accuracy",
        "lr",
        "val_loss",
        "val_macro_f1",
        "val_weighted_precision",
    } <= metrics[0].keys()


def test_validation_predictions_and_probabilities_agree_with_the_metrics(finished: Path) -> None:

    table = pd.read_csv(finished / "val_predictions.csv", dtype=str, keep_default_na=False)
    probs = np.load(finished / "val_probs.npy")
    record = json.loads((finished / "run.json").read_text())
    assert list(table.columns) == ["id", "path", "label", "predicted", "confidence"]
    assert probs.shape == (6, 3) and probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert [record["class_names"][best] for best in probs.argmax(axis=1)] == list(table["predicted"])
    assert (table["label"] == table["predicted"]).mean() == record["best"]["value"]
    assert all(Path(path).exists() for path in table["path"])


@pytest.mark.parametrize("views", ["mean", "max"])
def test_the_validation_score_counts_an_id_with_several_images_once(
    tiny_backbone: Path, tmp_path: Path, views: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three images a study, several labels each: as in the file, one prediction a study."""

    data = competitions.long_rows(tmp_path / "data").root
    flags = ("--metric", "log_loss", "--set", "data.val_fraction=0.4", "--set", f"data.views={views}")
    train.main(arguments(data, tiny_backbone, tmp_path / "run", *flags))
    table = pd.read_csv(tmp_path / "run/val_predictions.csv", dtype=str, keep_default_na=False)
    labels = json.loads((tmp_path / "run/run.json").read_text())["class_names"]
    probs = pd.DataFrame(np.load(tmp_path / "run/val_probs.npy").astype(np.float64))
    truth = pd.DataFrame([[name in cell.split() for name in labels] for cell in table["label"]])
    by_id, right = probs.groupby(table["id"]).agg(views), truth.groupby(table["id"]).first()

    def log_loss(values: pd.DataFrame, truth: pd.DataFrame) -> float:
        return float(-np.log(np.where(truth, values, 1 - values)).mean())

    score = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][-1]
    assert len(table) == 3 * len(by_id)
    assert score["val_log_loss"] == pytest.approx(log_loss(by_id, right), rel=1e-5)
    assert score["val_log_loss"] != pytest.approx(log_loss(probs, truth), rel=1e-5)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert f"{len(by_id)} ids with {len(table)} images" in page
    # The confusion counts and the F1 of each label below are of images, and the page says so
    section = page.partition("<h2>Validation</h2>")[2].partition("<h2>Test</h2>")[0]
    assert f"each of {len(by_id)} ids once" in section and "count single images" in section
    why = json.loads((tmp_path / "run/run.json").read_text())["best"]["why"]
    assert f"{len(by_id)} validation rows" in why  # what is kept is chosen by these, not by the images
    said = capsys.readouterr().out
    assert f"  {len(by_id)} validation rows" in said
    ids = len({row.id for row in read_layout(data, asked=Asked(metric="log_loss")).train})
    assert f"validation: {len(by_id)} of {ids} labelled ids" in said


def check_against_plain_transformers(run: Path) -> None:
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(run / "model_beit")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    model = PeftModel.from_pretrained(model, run / "model_lora").eval()
    processor = AutoImageProcessor.from_pretrained(run / "model_beit", backend="pil")
    import pandas as pd

    table = pd.read_csv(run / "val_predictions.csv", dtype=str)
    images = [Image.open(path).convert("RGB") for path in table["path"]]
    with torch.no_grad():
        probs = model(**processor(images, return_tensors="pt")).logits.softmax(dim=1).numpy()
    np.testing.assert_allclose(probs, np.load(run / "val_probs.npy"), atol=tolerances.of_run(run))


def test_plain_transformers_and_plain_peft_load_the_run(finished: Path) -> None:
    check_against_plain_transformers(finished)


def test_a_run_that_sees_the_middle_of_its_images_says_so_in_its_preprocessing(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    assert (
        train.main(
            arguments(competition, tiny_backbone, tmp_path / "run", "--epochs", "1", "--set", "resize=crop")
        )
        == 0
    )
    rule = json.loads((tmp_path / "run/model_beit/preprocessor_config.json").read_text())
    assert rule["size"] == {"shortest_edge": 32}
    assert rule["crop_size"] == {"height": 32, "width": 32}
    assert rule["do_center_crop"] is True
    check_against_plain_transformers(tmp_path / "run")


def test_full_fine_tuning_learns_the_colours_and_has_no_adapter(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    more = tuple(
        (
            "--lora-rank 0 --epochs 6 --lr 0.003 --precision fp32 --set "
            "augmentation.random_resized_crop=false"
        ).split()
    )
    assert train.main(arguments(competition, tiny_backbone, output, *more)) == 0
    record = json.loads((output / "run.json").read_text())
    assert not (output / "model_lora").exists()
    assert record["counts"]["parameters"]["trainable"] == record["counts"]["parameters"]["model"]
    assert record["best"]["value"] == 1.0


def test_the_same_command_gives_the_same_bytes(finished: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    torch.rand(7)  # what else a process draws is no business of a run
    train.main(arguments(finished.parent / "data", tiny_backbone, tmp_path / "run"))
    for file in (
        "metrics.jsonl",
        "val_predictions.csv",
        "val_probs.npy",
        "model_lora/adapter_model.safetensors",
    ):
        assert (tmp_path / "run" / file).read_bytes() == (finished / file).read_bytes(), file


def test_micro_batches_do_not_change_the_steps(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Batch 8 at once and 2 x 4 are the same optimizer steps, whatever the last group's size: without dropout
    only rounding differs.
    """
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"drop_path_rate": 0.0}))
    losses = []
    for batch, steps in ((8, 1), (4, 2), (3, 1)):
        output = tmp_path / f"{batch}x{steps}"
        more = ["--batch-size", str(batch), "--accumulation-steps", str(steps), "--precision", "fp32"]
        # Adam would magnify rounding to a whole step
        more += ["--set", "lora.dropout=0", "--set", "optimizer.name=sgd"]
        train.main(arguments(competition, backbone, output, *more))
        losses.append(
            [json.loads(line)["val_loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert not np.allclose(losses[0], losses[2], rtol=1e-4)  # another effective batch is another run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The data of the finished run, and a copy of the run."""
    return finished.parent / "data", shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_is_kept_when_another_starts(
    copied: tuple[Path, Path], tiny_backbone: Path, capsys
) -> None:
    competition, output = copied
    first = (output / "run.json").read_bytes()
    (output / "release.yaml").write_text("source: x.zip\n")
    train.main(arguments(competition, tiny_backbone, output, "--seed", "7"))
    kept = list((output / "earlier").iterdir())
    assert len(kept) == 1 and (kept[0] / "run.json").read_bytes() == first
    assert (output / "release.yaml").exists() and str(kept[0]) in capsys.readouterr().out
    assert json.loads((output / "run.json").read_text())["seed"] == 7


def test_the_backbone_may_lie_in_the_folder_that_is_trained_into(copied: tuple[Path, Path]) -> None:
    competition, output = copied
    assert train.main(arguments(competition, output / "model_beit", output)) == 0
    assert (output / "run.json").exists() and len(list((output / "earlier").iterdir())) == 1


def test_an_unfinished_run_is_refused_and_resume_of_a_finished_one_changes_nothing(
    copied: tuple[Path, Path], tiny_backbone: Path, capsys
) -> None:
    competition, output = copied
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert train.main(["--output", str(output), "--data", str(competition), "--resume"]) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    (output / "run.json").unlink()
    with pytest.raises(UserError, match=r"unfinished run.*--resume"):
        train.main(arguments(competition, tiny_backbone, output))


def test_dry_run_runs_two_batches_of_each_and_writes_nothing(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "run"
    assert train.main(arguments(competition, tiny_backbone, output, "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert printed.count("dry run: training batch") == 2 and printed.count("dry run: validation batch") == 2
    assert not output.exists()


def test_what_is_printed_before_training(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", "--dry-run", "--lora-rank", "4"))
    printed = capsys.readouterr().out
    assert "24 images" in printed and "3 classes" in printed
    # 2 layers x (query, key) x rank 4 x (32 + 32), and a head of 32 x 3 + 3
    assert "adapter 1,024, head 99" in printed and "1,123 trainable" in printed
    assert "6 optimizer steps (3 per epoch) of 8 images (4 at a time)" in printed
    assert re.search(r"about \d+.*, .*B of memory counted, up to .*B on disk", printed)


def test_training_needs_no_test_folder_and_no_validation_rows(tmp_path: Path, tiny_backbone: Path) -> None:
    from conftest import make_competition

    data = make_competition(tmp_path / "data", test=0, sample=False)
    assert train.main(arguments(data, tiny_backbone, tmp_path / "run", "--set", "data.val_fraction=0")) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["counts"]["val"] == 0 and record["best"]["epoch"] == 2
    assert not (tmp_path / "run" / "val_predictions.csv").exists()


def test_a_hold_out_smaller_than_the_class_count_is_spread_and_said(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    train.main(
        arguments(
            competition, tiny_backbone, tmp_path / "run", "--dry-run", "--set", "data.val_fraction=0.05"
        )
    )
    assert "fewer than the 3 classes, so one row from each of 2 classes" in capsys.readouterr().out


def test_batch_size_auto_keeps_the_effective_batch(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    more = ["--dry-run", "--batch-size", "auto", "--accumulation-steps", "2", "--set", "batch_size=4"]
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", *more))
    assert "of 8 images (8 at a time)" in capsys.readouterr().out


def test_batch_size_auto_is_the_recipes_where_memory_is_not_known(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """It was one image at a time."""
    monkeypatch.setattr("pipeline.training.estimate.device_memory", lambda _device: 0)
    more = ["--dry-run", "--batch-size", "auto", "--accumulation-steps", "2", "--set", "batch_size=4"]
    train.main(arguments(competition, tiny_backbone, tmp_path / "run", *more))
    assert "of 8 images (4 at a time)" in capsys.readouterr().out


@pytest.fixture
def swin_backbone(tmp_path: Path) -> Path:
    """A Swin whose first weight, which decides what transformers takes for the model's dtype, belongs to a
    layer that is held in bfloat16.
    """
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    }
    SwinForImageClassification(SwinConfig(**sizes, num_labels=5)).save_pretrained(tmp_path / "swin")
    return tmp_path / "swin"


@pytest.mark.parametrize("head_only", [False, True])
def test_in_bfloat16_the_frozen_weights_are_saved_as_they_were_loaded(
    competition: Path, swin_backbone: Path, tmp_path: Path, head_only: bool
) -> None:
    from safetensors.torch import load_file

    import inference

    more = ["--lora-rank", "0", "--set", "head_only=true"] if head_only else []
    train.main(arguments(competition, swin_backbone, tmp_path / "run", "--precision", "bf16", *more))
    loaded = load_file(swin_backbone / "model.safetensors")
    saved = load_file(tmp_path / "run" / "model_swin" / "model.safetensors")
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved if not name.startswith("classifier"))
    assert json.loads((tmp_path / "run" / "model_swin" / "config.json").read_text())["dtype"] == "float32"
    trained = saved if head_only else load_file(tmp_path / "run" / "model_lora" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    probs = []
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.csv"
        inference.main(
            [
                *("--model", str(tmp_path / "run"), "--data", str(competition), "--output", str(output)),
                *("--precision", precision),
            ]
        )
        probs.append(output.read_text())
    assert probs[0] == probs[1]  # labels


def test_activation_checkpointing_changes_no_bit(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    for name in ("plain", "checkpointed"):
        train.main(
            arguments(
                competition,
                tiny_backbone,
                tmp_path / name,
                "--set",
                f"activation_checkpointing={name == 'checkpointed'}",
            )
        )
    for file in ("metrics.jsonl", "model_lora/adapter_model.safetensors", "val_probs.npy"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "checkpointed" / file).read_bytes()
    counted = re.findall(r"([\d.]+) kB of memory counted", capsys.readouterr().out)
    assert float(counted[1]) < float(counted[0])


def test_a_step_that_cannot_fit_is_refused_before_anything_is_written(
    competition: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    from pipeline.training import estimate

    monkeypatch.setattr(estimate, "device_memory", lambda device: estimate.OVERHEAD_BYTES["cpu"] + 1)
    with pytest.raises(UserError, match=r"a step of batch 4 needs about .* not even one image fits"):
        train.main(arguments(competition, tiny_backbone, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_undecodable_training_images_stop_or_are_skipped_when_told(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    bad = competition / "train" / "red" / "red_1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    (competition / "train" / "blue" / "text.jpg").write_text("not an image")
    with pytest.raises(
        UserError,
        match=r"2 training images cannot be decoded.*skip_bad_images(?s:.*)text\.jpg(?s:.*)red_1\.png",
    ):
        train.main(arguments(competition, tiny_backbone, tmp_path / "run"))
    train.main(
        arguments(
            competition, tiny_backbone, tmp_path / "run", "--dry-run", "--set", "data.skip_bad_images=true"
        )
    )
    assert "skipped 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "no/such/folder"], "no/such/folder"),
        (["--recipe", "beit-large-384-lor"], "did you mean beit-large-384-lora"),
        (["--set", "lora.rnk=3"], "did you mean lora.rank"),
        (["--set", "lora.rank"], "KEY=VALUE"),
        (["--lr", "0"], "optimizer.lr"),
        (["--precision", "fp16"], "needs a CUDA device"),
        (["--data", "nowhere"], "nowhere"),
        (["--batch-size", "many"], "batch_size"),
    ],
)
def test_mistakes_are_one_message(
    competition: Path, tiny_backbone: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    if flags == ["--precision", "fp16"] and torch.cuda.is_available():
        pytest.skip("fp16 is fine here")
    with pytest.raises(UserError, match=message):
        train.main(arguments(competition, tiny_backbone, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(["--epoch", "3"])  # not an abbreviation of --epochs
    assert stopped.value.code == 2


def test_the_head_alone_is_trained_and_the_backbone_stays_as_it_is(
    competition: Path, tiny_backbone: Path, tmp_path: Path, capsys
) -> None:
    from safetensors.torch import load_file

    output = tmp_path / "run"
    assert (
        train.main(
            arguments(competition, tiny_backbone, output, "--lora-rank", "0", "--set", "head_only=true")
        )
        == 0
    )
    assert "the head alone" in capsys.readouterr().out
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tiny_backbone, output / "model_beit")
    )
    changed = {
        name
        for name in after
        if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    counts = json.loads((output / "run.json").read_text())["counts"]["parameters"]
    assert counts["trainable"] == counts["head"] == 3 * 33 and counts["adapter"] == 0
    with pytest.raises(UserError, match=r"head_only: needs lora.rank 0, found 16"):
        train.main(arguments(competition, tiny_backbone, tmp_path / "other", "--set", "head_only=true"))


def test_a_folder_of_validation_images_validates_unless_all_rows_are_to_train(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    for name in COLOURS:
        (competition / "valid" / name).mkdir(parents=True)
        (competition / f"train/{name}/{name}_0.png").rename(competition / f"valid/{name}/{name}_0.png")
    words = ["--data", str(competition), "--backbone", str(tiny_backbone), *QUICK, "--epochs", "1"]
    assert train.main([*words, "--output", str(tmp_path / "run")]) == 0
    table = pd.read_csv(tmp_path / "run/val_predictions.csv")
    assert sorted(table["id"]) == sorted(f"{name}_0" for name in COLOURS)
    assert train.main([*words, "--output", str(tmp_path / "all"), "--set", "data.val_fraction=0"]) == 0
    counts = json.loads((tmp_path / "all/run.json").read_text())["counts"]
    assert counts["train"] == 8 * len(COLOURS) and not (tmp_path / "all/val_predictions.csv").exists()
