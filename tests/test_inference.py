"""inference.py through its command line: train -> predict -> checked file -> score."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import inference
import train
from pipeline.errors import UserError
from pipeline.folds import kept
from pipeline.submission import score


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """data/, run/ and solution.csv: three colours learnt perfectly with LoRA."""
    from conftest import make_competition

    root = tmp_path_factory.mktemp("trained")
    make_competition(root / "data")
    flags = [
        *("--data", str(root / "data"), "--backbone", str(tiny_backbone), "--output", str(root / "run")),
        *("--precision", "fp32"),
    ]
    flags += "--epochs 8 --batch-size 6 --accumulation-steps 1 --lr 0.02 --set data.val_fraction=0.25".split()
    train.main([*flags, "--set", "augmentation.crop_scale=[0.5, 1]", "--set", "checkpoint.keep_every=1"])
    return root


def predict(root: Path, *more: str) -> pd.DataFrame:
    output = root / "out" / "predictions.csv"
    shutil.rmtree(output.parent, ignore_errors=True)
    output.parent.mkdir()
    arguments = ["--model", str(root / "run"), "--data", str(root / "data"), "--output", str(output), *more]
    assert inference.main(arguments) == 0
    return pd.read_csv(output, dtype=str, keep_default_na=False)


def test_predictions_follow_sample_submission_and_are_right(trained: Path) -> None:
    table = predict(trained)
    sample = pd.read_csv(trained / "data" / "sample_submission.csv", dtype=str)
    assert list(table.columns) == ["id", "label"] and list(table["id"]) == list(sample["id"])
    solution = pd.read_csv(trained / "solution.csv", dtype=str).set_index("id")["label"]
    assert list(table["label"]) == [solution[name] for name in table["id"]]


def test_batch_size_does_not_change_the_answer(trained: Path) -> None:
    assert predict(trained, "--batch-size", "1").equals(predict(trained, "--batch-size", "64"))


def test_the_copy_of_an_epoch_predicts_with_the_base_and_the_record_of_its_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from pipeline.run import load_run
    from pipeline.tasks.image_classifier import rebuild

    copy, by_hand = trained / "run/checkpoints/epoch_0001", shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(by_hand / "model_lora")
    shutil.copytree(copy / "model_lora", by_hand / "model_lora")
    kept, composed, last = (
        rebuild(load_run(folder), 3).model.state_dict() for folder in (copy, by_hand, trained / "run")
    )
    assert all(torch.equal(weight, composed[name]) for name, weight in kept.items())
    assert not all(torch.equal(weight, last[name]) for name, weight in kept.items())
    output = tmp_path / "predictions.csv"
    assert (
        inference.main(["--model", str(copy), "--data", str(trained / "data"), "--output", str(output)]) == 0
    )
    score = json.loads((trained / "run/metrics.jsonl").read_text().splitlines()[0])["val_accuracy"]
    assert f"the weights of epoch 1 (val_accuracy {score:.4f})" in capsys.readouterr().out and output.exists()
    moved = shutil.copytree(copy, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"elsewhere .*model_<type>"):
        inference.main(
            ["--model", str(moved), "--data", str(trained / "data"), "--output", str(tmp_path / "no.csv")]
        )


def test_half_precision_keeps_the_head_exact(trained: Path) -> None:
    """What stands between a label and its neighbour is not rounded to bfloat16, in training and prediction
    alike.
    """
    from pipeline.models.half_weights import use_half_weights
    from pipeline.run import load_run
    from pipeline.tasks.image_classifier import rebuild

    model = rebuild(load_run(trained / "run"), 3).model
    use_half_weights(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixel_values=torch.randn(2, 3, 32, 32)).logits
    assert logits.dtype == torch.float32 and model.classifier.weight.dtype == torch.float32
    assert torch.bfloat16 in {weight.dtype for weight in model.beit.parameters()}
    assert list(predict(trained, "--precision", "bf16")["label"]) == list(predict(trained)["label"])


def test_probability_columns_in_the_samples_own_order(trained: Path) -> None:
    sample = trained / "data" / "sample_submission.csv"
    before = sample.read_text()
    ids = [line.split(",")[0] for line in before.splitlines()[1:]]
    try:
        sample.write_text("image,red,blue,green\n" + "".join(f"{name}.png,0.4,0.3,0.3\n" for name in ids))
        table = predict(trained)
    finally:
        sample.write_text(before)
    assert list(table.columns) == ["image", "red", "blue", "green"] and list(table["image"]) == [
        f"{name}.png" for name in ids
    ]
    probs = table[["red", "blue", "green"]].astype(float)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    solution = pd.read_csv(trained / "solution.csv", dtype=str).set_index("id")["label"]
    assert list(probs.idxmax(axis=1)) == [solution[name] for name in ids]


def test_without_a_sample_submission_rows_are_in_natural_order(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    for number, name in enumerate(("img10.png", "img2.png", "img1.png")):
        shutil.copy(trained / "data" / "test" / f"t{number:03d}.png", tmp_path / "data" / "test" / name)
    shutil.copytree(trained / "run", tmp_path / "run")
    table = predict(tmp_path)
    assert list(table.columns) == ["id", "label"] and list(table["id"]) == ["img1", "img2", "img10"]


def test_a_bad_test_image_still_has_its_row_and_is_counted(trained: Path, tmp_path: Path, capsys) -> None:
    for name in ("data", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    (tmp_path / "data" / "test" / "t001.png").write_bytes(b"")
    table = predict(tmp_path)
    assert len(table) == 5 and "1 of 5 test images cannot be decoded" in capsys.readouterr().err
    for path in (tmp_path / "data" / "test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 5 test images"):
        predict(tmp_path)


def test_a_results_file_of_questions_is_refused_before_anything_is_predicted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    output.write_text("[]")
    with pytest.raises(UserError, match=r"results\.json: JSON results are for questions"):
        inference.main(
            ["--model", str(trained / "run"), "--data", str(trained / "data"), "--output", str(output)]
        )
    assert "32 x 32 px" not in capsys.readouterr().out and list(tmp_path.iterdir()) == [output]


def test_the_former_file_is_kept_until_it_was_submitted(
    trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(trained / "run"), "--data", str(trained / "data")]
    (tmp_path / "predictions.csv").write_text("made by hand\n")
    inference.main(flags)
    assert (tmp_path / "predictions-former.csv").read_text() == "made by hand\n"
    assert "predictions-former.csv" in capsys.readouterr().out
    inference.main(flags)
    assert not (tmp_path / "predictions-former-2.csv").exists()  # the same answers again: nothing to keep
    with (tmp_path / "predictions.csv").open("a") as file:
        file.write("edited\n")
    inference.main(flags)
    assert (tmp_path / "predictions-former-2.csv").read_text().endswith("edited\n")
    (tmp_path / "predictions.csv").write_text("sent\n")
    sent = (tmp_path / "predictions.csv").read_bytes()
    columns = "time,competition,file_sha256,message,validation_score,public_score,private_score,status\n"
    (tmp_path / "submissions.csv").write_text(
        columns + f"2026-01-01T00:00:00+00:00,c,{hashlib.sha256(sent).hexdigest()},m,,0.9,,complete\n"
    )
    inference.main(flags)
    assert not (tmp_path / "predictions-former-3.csv").exists()  # it is in the ledger
    (tmp_path / "predictions.csv").write_text("by hand again\n")
    monkeypatch.setattr("pipeline.submission.write.check_predictions", lambda *_: ["a problem"])
    for _ in range(2):
        with pytest.raises(UserError, match="a problem"):
            inference.main(flags)
    assert (tmp_path / "predictions.csv").read_text() == "by hand again\n"
    assert not (tmp_path / "predictions-former-3.csv").exists()  # nothing was written over it


def test_the_sample_submission_is_not_replaced(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "data").iterdir())
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(UserError, match=r"--output sample_submission\.csv is the sample submission"):
        inference.main(["--model", str(trained / "run"), "--data", ".", "--output", "sample_submission.csv"])
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "data").iterdir()) == before


def test_kept_predictions_of_other_code_are_not_used(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("data", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    predict(tmp_path)
    capsys.readouterr()
    predict(tmp_path)
    assert "predicted before" in capsys.readouterr().out
    package = shutil.copytree(kept.PACKAGE, tmp_path / "pipeline")
    monkeypatch.setattr(kept, "PACKAGE", package)
    with (package / "data/transforms.py").open("a") as file:
        file.write("# a fault was mended here\n")
    predict(tmp_path)
    assert "predicted before" not in capsys.readouterr().out


@pytest.mark.parametrize("own", ["test.csv", "test.npy", "test.json"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_users_file_in_the_run_folder_is_not_replaced(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], own: str, is_folder: bool
) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("test.*"))
    path = tmp_path / "run" / own
    if is_folder:
        path.mkdir()
    else:
        path.write_text('{"mine": 1}')
    predict(tmp_path)
    assert own in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "run").glob("test*")] == [own]
    assert path.is_dir() if is_folder else path.read_text() == '{"mine": 1}'
    path.rmdir() if is_folder else path.unlink()
    predict(tmp_path)
    predict(tmp_path)
    assert "predicted before" in capsys.readouterr().out


def test_score_computes_every_metric_and_writes_it_into_the_run(
    trained: Path, tmp_path: Path, capsys
) -> None:
    for name in ("data", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    predict(tmp_path)
    flags = [
        "--solution",
        str(trained / "solution.csv"),
        "--predictions",
        str(tmp_path / "out" / "predictions.csv"),
    ]
    score.main([*flags, "--model", str(tmp_path / "run"), "--data", str(tmp_path / "data")])
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (
        scores["rows"] == 5 and scores["metrics"]["accuracy"] == 1.0 and scores["metrics"]["macro_f1"] == 1.0
    )
    assert "accuracy" in capsys.readouterr().out


def test_scores_of_several_runs_or_of_another_run_are_not_stored(
    trained: Path, tmp_path: Path, capsys
) -> None:
    for name in ("run", "other"):
        shutil.copytree(trained / "run", tmp_path / name)
    file, one, other = (str(tmp_path / name) for name in ("p.csv", "run", "other"))
    data = ["--data", str(trained / "data"), "--output", file]
    scoring = ["--solution", str(trained / "solution.csv"), "--predictions", file]
    inference.main(["--model", one, other, *data])
    assert score.main(scoring) == 0 and score.main([*scoring, "--model", other]) == 0
    (tmp_path / ".made-by.jsonl").unlink()
    inference.main(["--model", one, *data])
    assert score.main([*scoring, "--model", other]) == 0
    assert not list(tmp_path.glob("*/scores.json")) and "accuracy" in capsys.readouterr().out
    (tmp_path / "run").rename(tmp_path / "moved")
    assert score.main([*scoring, "--model", str(tmp_path / "moved")]) == 0
    assert (tmp_path / "moved/scores.json").is_file()


def test_a_release_without_class_names_takes_them_from_the_data_or_stops(
    trained: Path, tmp_path: Path, capsys
) -> None:
    for name in ("data", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    (tmp_path / "run" / "run.json").unlink()
    shutil.rmtree(tmp_path / "run" / "state")
    config_path = tmp_path / "run" / "model_beit" / "config.json"
    config = json.loads(config_path.read_text())
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(3)}
    config["label2id"] = {f"LABEL_{index}": index for index in range(3)}
    config_path.write_text(json.dumps(config))
    with_names = predict(tmp_path)
    assert (
        set(with_names["label"]) <= {"blue", "green", "red"} and "names no classes" in capsys.readouterr().out
    )
    assert with_names.equals(predict(trained))
    shutil.rmtree(tmp_path / "data" / "train")
    with pytest.raises(UserError, match=r"LABEL_0\.\.LABEL_2(?s:.*)id2label"):
        predict(tmp_path)


def test_the_release_of_2023_gives_its_logits(tmp_path: Path) -> None:
    """transformers 4.36, peft 0.7, pickled weights, old preprocessor keys: the file it leads to, and its
    probabilities to 1e-5.
    """
    fixture = Path(__file__).parent / "fixtures" / "legacy_beit"
    expected = json.loads((fixture / "expected_logits.json").read_text())
    names = expected["class_names"]
    data = tmp_path / "data"
    shutil.copytree(fixture / "data", data)
    ids = sorted(expected["logits"], reverse=True)
    row = ",".join(["0.1"] * len(names))
    (data / "sample_submission.csv").write_text(
        f"id,{','.join(names)}\n" + "".join(f"{name},{row}\n" for name in ids)
    )
    output = tmp_path / "predictions.csv"
    inference.main(
        [
            *("--model", str(fixture / "finetuned_model"), "--data", str(data), "--output", str(output)),
            *("--precision", "fp32"),
        ]
    )
    table = pd.read_csv(output, dtype={"id": str})
    logits = np.array([expected["logits"][name] for name in ids])
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert list(table["id"]) == ids
    np.testing.assert_allclose(table[names].to_numpy(), probs, atol=1e-5)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: shutil.rmtree(run), "does not exist"),
        (lambda run: shutil.rmtree(run / "model_beit"), "no model_<type> folder"),
        (
            lambda run: ((run / "run.json").unlink(), (run / "state" / "kept.json").unlink(missing_ok=True)),
            "before any weights were saved",
        ),
        (
            lambda run: (run / "model_lora" / "adapter_model.safetensors").write_bytes(b"12345678"),
            "cannot be read",
        ),
        (lambda run: (run / "model_beit" / "model.safetensors").unlink(), "cannot be loaded"),
    ],
)
def test_a_broken_model_folder_is_one_message(trained: Path, tmp_path: Path, prepare, message: str) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    prepare(tmp_path / "run")
    shutil.copytree(trained / "data", tmp_path / "data")
    with pytest.raises(UserError, match=message):
        predict(tmp_path)
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_a_head_of_another_size_is_never_drawn_at_random(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model_lora")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["class_names"].append("violet")
    record["target"]["names"].append("violet")
    record["prior"] = [0.25] * 4
    record["recipe"]["lora"]["rank"] = 0  # as if the adapter were not missed
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    shutil.copytree(trained / "data", tmp_path / "data")
    with pytest.raises(UserError, match="no trained head for 4 outputs"):
        predict(tmp_path)


def test_formulas_are_harmless_in_the_run_and_exact_in_the_submission(
    tmp_path: Path, tiny_backbone: Path, capsys
) -> None:
    from conftest import COLOURS, colour_patch

    data, output = tmp_path / "data", tmp_path / "predictions.csv"
    for name, colour in (("=1+1", COLOURS["red"]), ("-0.5", COLOURS["blue"])):
        for number in range(8):
            colour_patch(
                data / "train" / name / f"{'@' if name[0] == '=' else 'n'}{number}.png", colour, number
            )
    colour_patch(data / "test" / "+cmd.png", COLOURS["red"], 99)
    flags = [
        *("--data", str(data), "--backbone", str(tiny_backbone), "--output", str(tmp_path / "run")),
        *("--precision", "fp32", "--lr", "0.02"),
    ]
    train.main(
        [*flags, *"--epochs 8 --batch-size 4 --accumulation-steps 1 --set data.val_fraction=0.25".split()]
    )
    table = pd.read_csv(tmp_path / "run" / "val_predictions.csv", dtype=str)
    assert set(table["label"]) == {"'=1+1", "-0.5"} and any(name.startswith("'@") for name in table["id"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "=1+1" in page and "&#39;=1+1" not in page
    inference.main(["--model", str(tmp_path / "run"), "--data", str(data), "--output", str(output)])
    assert output.read_text().splitlines()[1] == "+cmd,=1+1"
    assert "a spreadsheet would run '+cmd', '=1+1' as a formula" in capsys.readouterr().out
