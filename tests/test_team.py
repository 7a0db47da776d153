"""inference.py with folds and several models: the mean of probabilities or of ranks, one model at a time;
kept test predictions.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import COLOURS, TINY_RUN, assert_says, colour_patch, make_competition
from sklearn.metrics import log_loss

import inference
import train
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.folds import blend, members
from pipeline.folds.averaging import RANKS, average, by_ranks, ranks
from pipeline.folds.team import gather
from pipeline.predictions import Predictions
from pipeline.submission.origin import find_origin
from pipeline.tables import load_table, write_table
from pipeline.targets.target import Target, multiclass

TEXT = {"dtype": str, "keep_default_na": False}
FLAGS = ["--epochs", "2", *TINY_RUN]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, swin: Path) -> Path:
    """data/ with a sample of probabilities, and runs of it: folds/ (two), swin/ (three, another backbone and
    image size), other/ (one of these alone).
    """
    root = tmp_path_factory.mktemp("team")
    data = make_competition(root / "data", per_class=8, test=7)
    ids = [path.stem for path in sorted((data / "test").glob("*.png"))]
    (data / "sample_submission.csv").write_text(
        "id,blue,green,red\n" + "".join(f"{name},0.3,0.3,0.4\n" for name in ids)
    )
    flags = ["--data", str(data), *FLAGS]
    command = [*flags, "--backbone", str(tiny_backbone), "--output", str(root / "folds"), "--folds", "2"]
    assert train.main(command) == 0
    command = [*flags, "--backbone", str(swin), "--output", str(root / "swin"), "--folds", "3", "--seed", "7"]
    assert train.main(command) == 0
    shutil.copytree(root / "swin/fold-1", root / "other")
    return root


@pytest.fixture(scope="session")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(1)
    config = SwinConfig(
        image_size=48,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=3,
        num_labels=3,
    )
    folder = tmp_path_factory.mktemp("swin") / "model_swin"
    SwinForImageClassification(config).save_pretrained(folder)
    return folder


def predict(runs: Path, output: Path, *models: Path, data: Path | None = None) -> pd.DataFrame:
    words = [
        *("--data", str(data or runs / "data"), "--output", str(output)),
        *"--precision fp32 --decision off --model".split(),
        *map(str, models),
    ]
    assert inference.main(words) == 0
    return pd.read_csv(output, index_col="id")


def test_folds_predict_the_mean_of_their_models(runs: Path, tmp_path: Path) -> None:
    single = [predict(runs, tmp_path / f"{number}.csv", runs / f"folds/fold-{number}") for number in (1, 2)]
    together = predict(runs, tmp_path / "mean.csv", runs / "folds")
    np.testing.assert_allclose(together, (single[0] + single[1]) / 2, atol=1e-6)
    assert not np.allclose(single[0], single[1], atol=1e-3)
    origin = find_origin(tmp_path / "mean.csv")
    assert origin.models == (str(runs / "folds"),) and origin.metric == "val_log_loss"
    assert origin.made["members"] == {str(runs / f"folds/fold-{number}"): 0.5 for number in (1, 2)}
    assert origin.made["average"] == "probabilities"


def test_an_unreadable_test_image_is_reported_once_for_all_models(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(runs / "data", tmp_path / "data")
    (data / "test/t001.png").write_bytes(b"")
    predict(runs, tmp_path / "mean.csv", runs / "folds", data=data)
    printed = capsys.readouterr().err
    assert printed.count("test images cannot be decoded") == printed.count("t001.png") == 1


def test_the_decision_that_the_folds_found_is_used_and_recorded(runs: Path, tmp_path: Path) -> None:
    folds, output = shutil.copytree(runs / "folds", tmp_path / "folds"), tmp_path / "decided.csv"
    record = read_json(folds / "run.json")
    assert [line["kind"] for line in record["decisions"]] == ["temperature"]
    record["decisions"][0] |= {"used": True, "numbers": [0.5]}
    write_json(folds / "run.json", record)
    plain = predict(runs, tmp_path / "plain.csv", folds)
    arguments = [
        *("--data", str(runs / "data"), "--output", str(output), "--precision", "fp32"),
        *("--model", str(folds)),
    ]
    assert inference.main(arguments) == 0
    decided = pd.read_csv(output, index_col="id")
    squared = plain**2
    np.testing.assert_allclose(decided, squared.div(squared.sum(axis=1), axis=0), atol=1e-5)
    assert find_origin(output).made["decision"] == "temperature"


def test_several_models_count_alike_whatever_their_backbones(runs: Path, tmp_path: Path) -> None:
    folds, other = (predict(runs, tmp_path / f"{name}.csv", runs / name) for name in ("folds", "other"))
    both = predict(runs, tmp_path / "both.csv", runs / "folds", runs / "other")
    np.testing.assert_allclose(both, (folds + other) / 2, atol=1e-6)
    origin = find_origin(tmp_path / "both.csv")
    assert list(origin.made["members"].values()) == [0.25, 0.25, 0.5] and origin.score == ""
    assert "3 models, weighted mean of" in gather([runs / "folds", runs / "other"]).describe()
    assert "2 models, mean of" in gather([runs / "folds"]).describe()


def test_test_predictions_are_kept_and_used_only_for_the_same_images_and_weights(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / "other", tmp_path / "run")
    data = shutil.copytree(runs / "data", tmp_path / "data")
    for file in run.glob("test*"):
        file.unlink()
    first = predict(runs, tmp_path / "1.csv", run, data=data)
    assert "same images, weights and packages" not in capsys.readouterr().out
    kept = Predictions.load(run / "test", Target.read(read_json(run / "run.json")["target"], ""))
    np.testing.assert_allclose(kept.values, first.loc[list(kept.ids)], atol=1e-6)
    pd.testing.assert_frame_equal(predict(runs, tmp_path / "2.csv", run, data=data), first)
    assert "same images, weights and packages" in capsys.readouterr().out
    colour_patch(data / "test/t000.png", COLOURS["red"], 5)  # another image
    changed = predict(runs, tmp_path / "3.csv", run, data=data)
    assert "same images, weights and packages" not in capsys.readouterr().out and not np.allclose(
        changed.loc["t000"], first.loc["t000"]
    )
    weights = run / "model_lora/adapter_model.safetensors"
    shutil.rmtree(run)
    shutil.copytree(runs / "other", run)
    predict(runs, tmp_path / "again.csv", run)
    assert (run / "test.npy").exists()
    capsys.readouterr()
    from safetensors.torch import load_file, save_file

    save_file(
        {name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"}
    )
    predict(runs, tmp_path / "4.csv", run)
    assert "same images, weights and packages" not in capsys.readouterr().out
    (run / "test.npy").write_bytes(b"damaged")
    predict(runs, tmp_path / "5.csv", run)
    assert "same images, weights and packages" not in capsys.readouterr().out


def test_a_run_that_begins_sets_kept_predictions_aside(runs: Path, tmp_path: Path) -> None:
    from pipeline.run import run_entries

    predict(runs, tmp_path / "1.csv", runs / "other")
    assert {"test.npy", "test.csv", "test.json"} <= {path.name for path in run_entries(runs / "other")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/test.csv").write_text("somebody's own")
    assert run_entries(tmp_path / "mine") == []


def test_other_classes_are_listed(runs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "other", tmp_path / "other")
    record = read_json(other / "run.json")
    record["class_names"] = record["target"]["names"] = ["blue", "green", "violet"]
    write_json(other / "run.json", record)
    with pytest.raises(UserError) as caught:
        gather([runs / "folds", other])
    assert "lacks 'red'" in str(caught.value) and "has also 'violet'" in str(caught.value)
    # The same in another order is no other
    record["class_names"] = record["target"]["names"] = ["red", "blue", "green"]
    write_json(other / "run.json", record)
    team = gather([runs / "folds", other])
    from pipeline.folds.team import in_order

    values = np.array([[0.5, 0.3, 0.2]], dtype=np.float32)
    turned = in_order(Predictions(("a",), values, multiclass(["red", "blue", "green"])), team.first.target)
    assert turned.values.tolist() == [pytest.approx([0.3, 0.2, 0.5])]


def test_a_missing_fold_is_named_with_what_makes_it(runs: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    folds = shutil.copytree(runs / "folds", tmp_path / "folds")
    shutil.rmtree(folds / "fold-2")
    with pytest.raises(UserError) as caught:
        gather([folds])
    # Into this copy, not into where the folds lay when they were trained
    again = shlex.split(str(caught.value).splitlines()[-1])
    assert "lacks 1 member: 'fold-2'" in str(caught.value) and again[-4:] == [
        "--fold",
        "2",
        "--output",
        str(folds),
    ]
    assert again.count("--output") == 1 and again[again.index("--folds") + 1] == "2"
    with pytest.raises(UserError) as caught:  # such a blend could never predict
        blend.main(["--runs", str(folds), str(runs / "swin"), "--output", str(tmp_path / "out")])
    assert_says(str(caught.value), str(folds), "'fold-2'", "--fold 2")
    assert not (tmp_path / "out").exists()
    words = [
        *("--data", str(runs / "data")),
        *FLAGS,
        *("--backbone", str(tiny_backbone), "--output", str(folds), "--folds", "2", "--fold", "2"),
    ]
    assert train.main(words) == 0
    assert len(gather([folds]).leaves) == 2
    (folds / "run.json").unlink()
    write_json(folds / "state/folds.json", {"folds": 2, "recipe": {}, "command": "", "started": ""})
    shutil.rmtree(folds / "fold-1")
    with pytest.raises(UserError, match=r"fold 1 of 2 missing.*--folds 2 --resume"):
        gather([folds])
    with pytest.raises(UserError, match=r"fold 1 of 2 missing.*--folds 2 --resume"):
        blend.main(["--runs", str(folds), str(runs / "swin"), "--output", str(tmp_path / "out")])
    (folds / "state/folds.json").unlink()  # a folder that holds what was copied from another machine
    with pytest.raises(
        UserError, match=r"holds fold-2, not assembled yet.*assemble all with python"
    ) as caught:
        gather([folds])
    again = shlex.split(str(caught.value).partition("assemble all with ")[2])
    assert again[-3:] == ["--resume", "--output", str(folds)] and "--fold" not in again
    assert train.main(again[2:]) == 0 and len(gather([folds]).leaves) == 2


def test_a_fold_that_was_not_assembled_is_refused(runs: Path, tmp_path: Path) -> None:
    """A fold of another run with the same classes; its validation tables may be missing, as in a bundle."""
    folds = shutil.copytree(runs / "folds", tmp_path / "folds")
    assert len(gather([folds]).leaves) == 2
    shutil.rmtree(folds / "fold-2")
    shutil.copytree(runs / "swin/fold-2", folds / "fold-2")
    with pytest.raises(UserError) as caught:
        gather([folds])
    with pytest.raises(UserError, match="fold-2 changed"):
        blend.main(["--runs", str(folds), str(runs / "swin"), "--output", str(tmp_path / "out")])
    assert_says(str(caught.value), str(folds), "fold-2 changed", "--folds 2", "--resume", f"--output {folds}")
    (folds / "fold-1/val_probs.npy").write_bytes(b"damaged")  # which says nothing about fold 2
    with pytest.raises(UserError, match="fold-2 changed"):
        gather([folds])
    for name in ("val_predictions.csv", "val_probs.npy"):
        (folds / "fold-2" / name).unlink()
    assert len(gather([folds]).leaves) == 2


def test_a_model_that_is_named_twice_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="twice") as caught:
        gather([runs / "swin", runs / "other/../swin", runs / "folds"])
    assert str(runs / "swin") in str(caught.value) and str(runs / "folds") not in str(caught.value)


def test_ranks_where_order_alone_counts_and_each_output_stands_for_itself() -> None:
    binary, labels = Target("binary", ("no", "yes"), positive=("yes",)), Target("multilabel", ("a", "b"))
    assert by_ranks(binary, "roc_auc") == by_ranks(labels, "average_precision") == RANKS
    assert (
        by_ranks(binary, "log_loss")
        == by_ranks(multiclass("abc"), "roc_auc")
        == by_ranks(labels, "macro_f1")
        == "probabilities"
    )
    np.testing.assert_allclose(
        ranks(np.array([[0.9], [0.1], [0.1], [0.2]]))[:, 0], [0.875, 0.25, 0.25, 0.625]
    )
    # a member a thousand times as sure as the other does not outweigh it
    sure, shy = np.array([[0.9], [0.001], [0.5], [0.7]]), np.array([[0.0001], [0.0004], [0.0002], [0.0003]])
    ids = tuple("abcd")
    both = [Predictions(ids, values.astype(np.float32), binary) for values in (sure, shy)]
    assert average(both, [1, 1]).values[:, 0].argsort().tolist() == sure[:, 0].argsort().tolist()
    ranked = average(both, [1, 1], RANKS).values[:, 0]
    np.testing.assert_allclose(
        ranked, [(0.875 + 0.125) / 2, (0.125 + 0.875) / 2, (0.375 + 0.375) / 2, (0.625 + 0.625) / 2]
    )
    np.testing.assert_allclose(average(both, [3, 1]).values, (3 * sure + shy) / 4, rtol=1e-6)


def test_two_models_are_never_in_memory_at_once(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    from pipeline.tasks import classification

    alive, most, original = [], [], classification.rebuild

    def rebuild(run, num_outputs):
        gc.collect()
        most.append(sum(model() is not None for model in alive))
        made = original(run, num_outputs)
        alive.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(classification, "rebuild", rebuild)
    folds = shutil.copytree(runs / "folds", tmp_path / "folds")
    for file in folds.glob("fold-*/test.*"):
        file.unlink()
    predict(runs, tmp_path / "1.csv", folds, runs / "folds")
    assert most and max(most) == 0
    assert json.loads((folds / "fold-1/test.json").read_text())["made_with"]["precision"] == "fp32"


def test_a_blend_predicts_like_any_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, rng = tmp_path / "my blend", np.random.default_rng(1)
    for name in ("folds", "swin"):  # with errors of their own on the held-out rows, as larger models have
        copy = shutil.copytree(runs / name, tmp_path / name)
        truth = pd.read_csv(copy / "oof.csv", **TEXT).label
        logits = 3 * np.eye(3)[[sorted(COLOURS).index(label) for label in truth]] + rng.normal(
            0, 2.5, (24, 3)
        )
        np.save(copy / "oof.npy", multiclass(sorted(COLOURS)).activate(logits))
    words = ["--runs", str(tmp_path / "folds"), str(tmp_path / "swin"), "--output", str(output)]
    assert blend.main(words) == 0
    said = capsys.readouterr().out
    assert "24 rows" in said and "greedy, on rows" in said
    assert shlex.split(said.rpartition("next: ")[2]) == ["python", "inference.py", "--model", str(output)]
    record = read_json(output / "run.json")
    assert record["kind"] == "blend" and sum(record["members"].values()) == pytest.approx(1)
    assert (output / "report.html").exists()
    oof = pd.read_csv(output / "oof.csv", **TEXT)
    values, labels = np.load(output / "oof.npy"), sorted(COLOURS)
    assert record["best"]["value"] == pytest.approx(
        log_loss(oof.label, values.astype(np.float64), labels=labels), abs=1e-6
    )
    single = {name: predict(runs, tmp_path / f"{name}.csv", tmp_path / name) for name in ("folds", "swin")}
    weights = {Path(path).name: weight for path, weight in record["members"].items()}
    found = predict(runs, tmp_path / "blend.csv", output)
    wanted = sum(single[name] * weight for name, weight in weights.items())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert find_origin(tmp_path / "blend.csv").metric == "val_log_loss"
    # a mean of ranks is not what a mean over its members would be
    write_json(output / "run.json", record | {"blend": record["blend"] | {"rule": RANKS}})
    outer = ["--runs", str(output), str(runs / "folds"), "--output", str(tmp_path / "outer")]
    with pytest.raises(UserError, match=r"blend.*ranks.*folds.*swin"):
        blend.main(outer)
    with pytest.raises(UserError, match=r"blend.*ranks.*folds.*swin"):
        gather([output, runs / "folds"])
    assert gather([output]).rule == RANKS


def test_a_blend_has_the_class_order_of_its_first_model_not_of_a_refused_member(
    runs: Path, tmp_path: Path
) -> None:
    """Prior and decision are stored in the order of the classes, and are applied to the models' outputs."""
    rng, turned = np.random.default_rng(0), ["red", "blue", "green"]
    for name, skill in (("noise", 0), ("folds", 3), ("swin", 3)):
        copy = shutil.copytree(runs / ("folds" if name == "noise" else name), tmp_path / name)
        truth = pd.read_csv(copy / "oof.csv", **TEXT).label
        logits = skill * np.eye(3)[[sorted(COLOURS).index(label) for label in truth]]
        np.save(copy / "oof.npy", multiclass(turned).activate(logits + rng.normal(0, 2.5, (24, 3))))
    record = read_json(tmp_path / "noise/run.json")
    record["class_names"] = record["target"]["names"] = turned
    write_json(tmp_path / "noise/run.json", record | {"prior": [0.6, 0.3, 0.1]})
    words = ["--runs", *(str(tmp_path / name) for name in ("noise", "folds", "swin"))]
    assert blend.main([*words, "--output", str(tmp_path / "blend")]) == 0
    made = read_json(tmp_path / "blend/run.json")
    assert [Path(path).name for path in made["members"]] == ["folds", "swin"]
    team = gather([tmp_path / "blend"])
    assert tuple(made["class_names"]) == tuple(made["target"]["names"]) == team.first.target.names
    assert made["prior"] == read_json(runs / "folds/run.json")["prior"]
    oof = pd.read_csv(tmp_path / "blend/oof.csv", **TEXT)
    values = np.load(tmp_path / "blend/oof.npy").astype(np.float64)
    assert made["best"]["value"] == pytest.approx(
        log_loss(oof.label, values, labels=sorted(COLOURS)), abs=1e-6
    )
    made["class_names"] = made["target"]["names"] = turned  # as earlier versions wrote it
    write_json(tmp_path / "blend/run.json", made)
    with pytest.raises(
        UserError, match=r"order 'red', 'blue', 'green'.*: python -m pipeline\.folds\.blend --runs"
    ):
        gather([tmp_path / "blend"])


def test_a_blend_with_one_of_the_folds_alone_is_judged_on_parts_of_its_rows(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "FEWEST_ROWS", 12)  # a fold of the small competition
    words = ["--runs", str(runs / "folds"), str(runs / "folds/fold-2"), "--output", str(tmp_path / "out")]
    assert blend.main(words) == 0
    said = capsys.readouterr().out
    assert "12 rows that no model saw" in said and "nothing is written" in said and "nan" not in said
    assert "next: python inference.py --model " in said


def test_a_member_that_is_named_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    """run.json holds one weight for each folder, so the blend would not be the one that was scored."""
    for names in (["folds"], ["folds", "folds"], ["folds", "swin", "swin/../folds"]):
        with pytest.raises(UserError, match="each named once"):
            blend.main(["--runs", *(str(runs / name) for name in names), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_members_of_other_competitions_are_refused(runs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "swin", tmp_path / "swin")
    record = read_json(other / "run.json")
    write_json(other / "run.json", record | {"metric": {"name": "accuracy", "higher_is_better": True}})
    with pytest.raises(UserError, match="was trained for accuracy"):
        blend.main(["--runs", str(runs / "folds"), str(other), "--output", str(tmp_path / "out")])
    names = ["blue", "green", "violet"]
    write_json(
        other / "run.json", record | {"class_names": names, "target": record["target"] | {"names": names}}
    )
    with pytest.raises(UserError, match="classes differ: 'red', 'violet'"):
        blend.main(["--runs", str(runs / "folds"), str(other), "--output", str(tmp_path / "out")])
    number = Target("continuous", ("price",)).fitted(["1", "2"]).record()
    write_json(other / "run.json", record | {"class_names": ["price"], "target": number, "prior": None})
    np.save(other / "oof.npy", np.zeros((24, 1), dtype=np.float32))
    with pytest.raises(UserError, match=r"predicts a number, .* predicts one of 3 classes"):
        blend.main(["--runs", str(runs / "folds"), str(other), "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="nowhere does not exist"):
        blend.main(["--runs", str(runs / "folds"), str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="two different runs"):
        blend.main(["--runs", str(runs / "folds"), str(runs / "folds")])
    with pytest.raises(UserError, match=r"only 8 rows[\s\S]*--folds"):
        blend.main(["--runs", str(runs / "folds"), str(runs / "other"), "--output", str(tmp_path / "out")])
    elsewhere = shutil.copytree(runs / "folds", tmp_path / "folds")
    table = load_table(elsewhere / "oof.csv")
    write_table(elsewhere / "oof.csv", table.columns, [(f"other_{row[0]}", *row[1:]) for row in table.cells])
    with pytest.raises(UserError, match=r"no id in common[\s\S]*'other_[\s\S]*different data"):
        blend.main(["--runs", str(runs / "folds"), str(elsewhere), "--output", str(tmp_path / "out")])
    (elsewhere / "oof.csv").unlink()
    with pytest.raises(UserError, match=r"lacks oof.csv[\s\S]*--folds K --resume"):
        blend.main(["--runs", str(runs / "folds"), str(elsewhere), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
