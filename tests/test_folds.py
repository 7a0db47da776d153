"""train.py --folds: five ordinary runs and what they say of rows they did not see; stopped, resumed, put
together from pieces.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import COLOURS, TINY_RUN, assert_says, colour_patch, make_competition
from sklearn.metrics import accuracy_score

import train
from pipeline.errors import Interrupted, UserError
from pipeline.files import read_json
from pipeline.folds.bases import share_base
from pipeline.ranks import NAMES
from pipeline.report import folds_section
from pipeline.report.comparison import build_comparison
from pipeline.report.run_files import read_run_files
from pipeline.targets.target import Target
from pipeline.unfinished import resume_command

ROOT = Path(__file__).resolve().parents[1]
TEXT = {"dtype": str, "keep_default_na": False}
FLAGS = ["--epochs", "2", *TINY_RUN]


def arguments(data: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--backbone", str(backbone), "--output", str(output), *FLAGS, *more]


@pytest.fixture(scope="session")
def folds_run(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A folder with a competition in data/ and a run of three folds in folds/. Whoever writes takes a
    copy.
    """
    root = tmp_path_factory.mktemp("folds")
    make_competition(root / "data", per_class=7)
    assert train.main(arguments(root / "data", tiny_backbone, root / "folds", "--folds", "3")) == 0
    return root


def test_every_training_row_is_predicted_once_by_a_model_that_did_not_see_it(folds_run: Path) -> None:
    output = folds_run / "folds"
    oof, values = pd.read_csv(output / "oof.csv", **TEXT), np.load(output / "oof.npy")
    assert list(oof.columns) == ["id", "fold", "label", "predicted"]
    expected = [f"{name}_{number}" for name in COLOURS for number in range(7)]
    assert list(oof.id) == expected and values.shape == (21, 3) and values.dtype == np.float32
    assert list(oof.label) == [name.split("_")[0] for name in expected]
    assert list(oof.predicted) == [sorted(COLOURS)[index] for index in values.argmax(axis=1)]
    assert dict(pd.read_csv(output / "folds.csv", **TEXT).itertuples(index=False)) == dict(
        zip(oof.id, oof.fold, strict=True)
    )
    for fold in "123":
        member = output / f"fold-{fold}"
        held = pd.read_csv(member / "val_predictions.csv", **TEXT)
        assert set(held.id) == set(oof.id[oof.fold == fold])
        np.testing.assert_array_equal(
            np.load(member / "val_probs.npy"), values[[expected.index(name) for name in held.id]]
        )
        assert (member / "report.html").exists() and read_json(member / "run.json")["counts"]["train"] == 14
        assert not (member / "state").exists()


def test_the_record_and_the_page_hold_the_score_of_all_rows_and_its_spread(folds_run: Path) -> None:
    output = folds_run / "folds"
    oof, record = pd.read_csv(output / "oof.csv", **TEXT), read_json(output / "run.json")
    assert record["kind"] == "folds" and Target.read(record["target"], "").names == tuple(sorted(COLOURS))
    assert record["best"]["metric"] == "val_accuracy"
    assert record["best"]["value"] == pytest.approx(accuracy_score(oof.label, oof.predicted))
    each = [accuracy_score(part.label, part.predicted) for _, part in oof.groupby("fold")]
    assert [line["value"] for line in record["folds"]["each"]] == pytest.approx(each)
    assert record["folds"]["mean"] == pytest.approx(np.mean(each)) and record["folds"][
        "deviation"
    ] == pytest.approx(np.std(each, ddof=1))
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"{(oof.label == oof.predicted).sum()} of 21 out-of-fold images are right" in page
    assert "validation images" not in page and "<h2>Out-of-fold rows</h2>" in page
    assert "All out-of-fold rows" in page and "Validation accuracy of 3 folds over the epochs." in page
    assert (output / "figures" / "folds.png").exists() and (output / "figures" / "confusion.png").exists()


def test_a_comparison_shows_the_score_of_all_rows_of_folds(folds_run: Path, tmp_path: Path) -> None:
    """Folds have no epochs, and their column of scores was empty."""
    output = folds_run / "folds"
    page = build_comparison([output, output / "fold-1"], tmp_path / "both").read_text(encoding="utf-8")
    score, record = (read_json(path / "run.json")["best"]["value"] for path in (output, output / "fold-1"))
    (row,) = re.findall(r"<tr><th[^>]*>validation accuracy</th>(.*?)</tr>", page)
    assert re.findall(r"\d\.\d+", row) == [f"{score:.4f}", f"{record:.4f}"]


def test_more_folds_than_colours_are_told(
    folds_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = shutil.copytree(folds_run / "folds", tmp_path / "folds")
    monkeypatch.setattr(folds_section, "RUN_LOOKS", folds_section.RUN_LOOKS[:2])
    drawn: dict = {}
    section = folds_section.read_folds(read_run_files(output), drawn)
    assert section["caption"] == "Validation accuracy of 2 of the 3 folds over the epochs."


def test_the_frozen_base_is_stored_once(folds_run: Path) -> None:
    bases = [folds_run / f"folds/fold-{fold}/model_beit/model.safetensors" for fold in (1, 2, 3)]
    assert len({base.stat().st_ino for base in bases}) == 1


def test_a_fold_is_the_ordinary_run_with_that_split(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    folds = pd.read_csv(folds_run / "folds/folds.csv", **TEXT)
    table = "id,label,split\n" + "".join(
        f"{row.id},{row.id.split('_')[0]},{'val' if row.fold == '2' else 'train'}\n"
        for row in folds.itertuples()
    )
    data = shutil.copytree(folds_run / "data", tmp_path / "data")
    (data / "train.csv").write_text(table)
    assert train.main(arguments(data, tiny_backbone, tmp_path / "run")) == 0
    for name in ("val_probs.npy", "model_lora/adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (folds_run / "folds/fold-2" / name).read_bytes(), (
            name
        )


def test_pieces_from_several_machines_are_put_together(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, output = folds_run / "data", tmp_path / "together"
    assert (
        train.main(arguments(data, tiny_backbone, tmp_path / "elsewhere", "--folds", "3", "--fold", "3")) == 0
    )
    assert not (tmp_path / "elsewhere/oof.npy").exists() and "missing: 1, 2" in capsys.readouterr().out
    shutil.copytree(tmp_path / "elsewhere/fold-3", output / "fold-3")
    with pytest.raises(UserError, match=r"holds fold-3: .*--resume"):
        train.main(arguments(data, tiny_backbone, output, "--folds", "3"))
    assert train.main(arguments(data, tiny_backbone, output, "--folds", "3", "--resume")) == 0
    assert "fold 3 of 3" not in capsys.readouterr().out
    assert (output / "oof.npy").read_bytes() == (folds_run / "folds/oof.npy").read_bytes()
    assert train.main(arguments(data, tiny_backbone, output, "--folds", "3", "--resume")) == 0
    assert "are complete: nothing to resume" in capsys.readouterr().out
    # A fold that is lost later is trained, and all put together, from the folder's own recipe; so is what
    # came from elsewhere.
    (output / "oof.npy").unlink()
    shutil.rmtree(output / "fold-3")
    assert train.main(["--data", str(data), "--output", str(output), "--folds", "3", "--resume"]) == 0
    said = capsys.readouterr().out
    assert "fold 3 of 3" in said and "fold 2 of 3" not in said
    assert (output / "oof.npy").read_bytes() == (folds_run / "folds/oof.npy").read_bytes()
    # Not the command that resumed it: that one takes the recipe from the folder
    assert "--epochs" in shlex.split(read_json(output / "run.json")["command"])
    # Two at once, and one alone, take that recipe too
    for name in ("fold-1", "fold-2"):
        shutil.rmtree(output / name)
    resume = ["--data", str(data), "--output", str(output), "--folds", "3", "--resume"]
    assert train.main([*resume, "--parallel", "2"]) == 0
    recipe = read_json(output / "run.json")["recipe"]
    shutil.rmtree(output / "fold-1")
    assert train.main([*resume, "--fold", "1"]) == 0
    assert train.main(resume) == 0
    assert [read_json(output / f"fold-{number}/run.json")["recipe"] for number in (1, 2, 3)] == [recipe] * 3
    np.save(output / "fold-1/val_probs.npy", np.load(output / "fold-1/val_probs.npy")[:, ::-1])
    assert train.main(["--data", str(data), "--output", str(output), "--folds", "3", "--resume"]) == 0
    assert (output / "oof.npy").read_bytes() != (folds_run / "folds/oof.npy").read_bytes()


def test_stopped_in_a_fold_and_resumed_gives_the_same_bits(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    from pipeline.training import engine

    data, output, steps = folds_run / "data", tmp_path / "stopped", []
    original = engine._Loop.optimizer_step

    def stopping(loop: engine._Loop) -> None:
        original(loop)
        steps.append(1)
        if len(steps) in (8, 11):  # in fold 2, twice
            loop.stop_reason = "the test"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Loop, "optimizer_step", stopping)
        for attempt in range(3):
            more = ["--resume"] if attempt else []
            try:
                assert train.main(arguments(data, tiny_backbone, output, "--folds", "3", *more)) == 0
            except Interrupted:
                assert (output / "fold-1/run.json").exists() and not (output / "run.json").exists()
                with pytest.raises(UserError, match="--folds 3 --resume"):  # not as an ordinary run
                    train.main(arguments(data, tiny_backbone, output))
                with pytest.raises(UserError, match=r"unfinished folds.*--resume"):
                    train.main(arguments(data, tiny_backbone, output, "--folds", "3"))
    assert attempt == 2
    for name in ("oof.npy", "oof.csv"):
        assert (output / name).read_bytes() == (folds_run / "folds" / name).read_bytes()


def test_max_minutes_counts_for_the_whole_command(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "short"
    with pytest.raises(Interrupted):
        train.main(arguments(folds_run / "data", tiny_backbone, output, "--folds", "3", "--max-minutes", "0"))
    assert sorted(path.name for path in output.glob("fold-*")) == ["fold-1"]
    # no flags but the folder's: the recipe is the one it was started with
    assert (
        train.main(["--data", str(folds_run / "data"), "--output", str(output), "--folds", "3", "--resume"])
        == 0
    )
    assert (output / "oof.npy").read_bytes() == (folds_run / "folds/oof.npy").read_bytes()


def test_two_at_once_give_what_they_would_in_turn_with_as_many_threads(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    data, beside = folds_run / "data", tmp_path / "beside"
    words = arguments(data, tiny_backbone, beside, "--folds", "2", "--parallel", "2")
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(any(line.startswith(f"fold {fold} | epoch 2/2") for line in lines) for fold in (1, 2))
    assert done.stdout.count("next: ") == 1 and lines[-1].startswith(
        f"next: python inference.py --model {beside} --data "
    )
    # Said by a child, as if its fold were all there is
    assert "--resume" not in done.stdout and "no state in" not in done.stdout
    assert train.main(arguments(data, tiny_backbone, tmp_path / "in-turn", "--folds", "2")) == 0
    values = np.load(beside / "oof.npy")
    np.testing.assert_allclose(values, np.load(tmp_path / "in-turn/oof.npy"), atol=0.02)


def test_more_than_fit_at_once_wait_for_their_turn(capsys: pytest.CaptureFixture) -> None:
    from pipeline.folds.parallel import Child, run_children

    ended: list[str] = []
    had_ended: dict[str, int] = {}  # when a child was started

    def child(name: str) -> Child:
        had_ended[name] = len(ended)
        return Child(name, ["-m", "pipeline.config"])

    run_children([partial(child, name) for name in "abc"], 2, ended.append)
    assert sorted(ended) == ["a", "b", "c"]
    assert (had_ended["a"], had_ended["b"]) == (0, 0) and had_ended["c"] >= 1
    printed = capsys.readouterr().out
    assert all(f"{name} | lora.rank" in printed for name in "abc"), printed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_beside_one_another_and_resumed_gives_the_same_bits(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path, seed: int
) -> None:
    """First all processes are killed, then one fold alone, each at a moment that `seed` draws; what goes on
    has no flags but the folder's.
    """
    draw = np.random.default_rng(seed)
    often = ["--epochs", "20", "--set", "checkpoint.every_minutes=0.00001"]

    def start(output: Path, *more: str) -> subprocess.Popen:
        words = arguments(folds_run / "data", tiny_backbone, output, "--folds", "3", *often, *more)
        return subprocess.Popen(
            [sys.executable, "train.py", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def children_when(process: subprocess.Popen, fold: int, step: int) -> list[int]:
        """The processes of the folds, once `fold` has come to `step`."""
        reached = -1
        while process.poll() is None and reached < step:
            with suppress(UserError):  # a state that a later one has replaced meanwhile
                states = (tmp_path / f"killed/fold-{fold}/state").glob("[0-9]*.json")
                reached = max((read_json(path)["step"] for path in states), default=-1)
            time.sleep(0.01)
        return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))

    assert start(tmp_path / "whole", "--parallel", "2").wait() == 0
    first = start(tmp_path / "killed", "--parallel", "2")
    for number in [*children_when(first, 1, int(draw.integers(2, 40))), first.pid]:
        os.kill(number, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "killed/oof.npy").exists() and (tmp_path / "killed/fold-1/state").exists()
    second = start(tmp_path / "killed", "--resume")
    victim = children_when(second, 3, int(draw.integers(2, 40)))[-1]
    os.kill(victim, signal.SIGKILL)
    assert second.wait() == 2 and "ended with exit code -9" in second.stderr.read()
    go_on = shlex.split(resume_command(tmp_path / "killed"))
    assert go_on[2:] == ["--output", str(tmp_path / "killed"), "--folds", "3", "--parallel", "2", "--resume"]
    assert subprocess.run([sys.executable, *go_on[1:]], cwd=ROOT, capture_output=True).returncode == 0
    for name in ("oof.npy", "oof.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_fold_that_fails_is_named_with_its_message(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    from pipeline.folds.parallel import Child, run_children

    words = [
        "train.py",
        *arguments(folds_run / "data", tiny_backbone, tmp_path / "bad", "--recipe", "no-such-recipe"),
    ]
    with pytest.raises(UserError, match="fold 7 ended with exit code 2: --recipe no-such-recipe"):
        run_children([lambda: Child("fold 7", words)], 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--folds", "1"], "--folds 1: at least 2"),
        (["--folds", "22"], "only 21 labelled rows"),
        (["--folds", "3", "--fold", "4"], "--fold 4: a number from 1 to 3"),
        (["--fold", "2"], "--fold 2: only with --folds K"),
        (["--fold", "0"], "--fold 0: only with --folds K"),
        (["--parallel", "2"], "--parallel 2: only with --folds K"),
        (["--folds", "3", "--fold", "1", "--parallel", "2"], "one fold is one process"),
        (["--folds", "3", "--parallel", "-1"], "--parallel -1: at least 1"),
        (["--folds", "0"], "--folds 0: at least 2"),
    ],
)
def test_flags_that_make_no_sense(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path, flags: list[str], says: str
) -> None:
    with pytest.raises(UserError) as caught:
        train.main(arguments(folds_run / "data", tiny_backbone, tmp_path / "run", *flags))
    assert says in str(caught.value) and not (tmp_path / "run").exists()


def test_runs_that_answer_questions_share_both_backbones(tmp_path: Path) -> None:
    for run, text in (("a", "text"), ("b", "text"), ("c", "other")):
        for name, content in (("model_bert", text), ("model_lora", "adapter"), ("model_vit", "image")):
            (tmp_path / run / name).mkdir(parents=True)
            (tmp_path / run / name / "model.safetensors").write_text(content)
    share_base(tmp_path / "a", (tmp_path / run for run in "cb"))
    same = {
        name: [
            (tmp_path / "a" / name / "model.safetensors").samefile(
                tmp_path / run / name / "model.safetensors"
            )
            for run in "bc"
        ]
        for name in ("model_bert", "model_lora", "model_vit")
    }
    assert same == {"model_bert": [True, False], "model_lora": [False, False], "model_vit": [False, True]}


def test_torchrun_is_refused(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "2" if name.endswith("SIZE") else "0")
    with pytest.raises(UserError, match=r"--folds .*--parallel 2: "):
        train.main(arguments(folds_run / "data", tiny_backbone, tmp_path / "run", "--folds", "3"))


def test_a_dry_run_writes_nothing(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert (
        train.main(
            arguments(folds_run / "data", tiny_backbone, tmp_path / "run", "--folds", "3", "--dry-run")
        )
        == 0
    )
    assert not (tmp_path / "run").exists() and "3 folds take 3 times as long" in capsys.readouterr().out


def test_what_was_in_the_folder_is_kept(folds_run: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    output = shutil.copytree(folds_run / "folds", tmp_path / "folds")
    (output / "notes.txt").write_text("mine")
    # One model where folds were
    assert train.main(arguments(folds_run / "data", tiny_backbone, output, "--epochs", "1")) == 0
    earlier = next((output / "earlier").iterdir())
    assert {"fold-1", "fold-3", "oof.npy", "folds.csv", "run.json"} <= {
        path.name for path in earlier.iterdir()
    }
    assert (output / "notes.txt").exists()
    assert not (output / "oof.npy").exists()
    assert not list(output.glob("fold-*"))


def test_folds_of_other_data_or_another_recipe_are_refused(
    folds_run: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(folds_run / "folds", tmp_path / "folds")
    with pytest.raises(UserError, match="holds 3 folds, not 5: use --folds 3 --resume"):
        train.main(arguments(folds_run / "data", tiny_backbone, output, "--folds", "5", "--resume"))
    (output / "run.json").unlink()
    same = r"give the same flags \(python train.py .*--epochs 2 .*--folds 3 --resume --output"
    with pytest.raises(UserError, match=rf"{same}[\s\S]*fold 1, 2, 3: epochs: 2 -> 3"):
        train.main(
            arguments(folds_run / "data", tiny_backbone, output, "--epochs", "3", "--folds", "3", "--resume")
        )
    table = (output / "folds.csv").read_text().splitlines()
    (output / "folds.csv").write_text(
        "\n".join([*table[:-1], f"{table[-1].split(',')[0]},{int(table[-1][-1]) % 3 + 1}"]) + "\n"
    )
    with pytest.raises(UserError, match="do not agree on 1 row: 'red_6'"):
        train.main(arguments(folds_run / "data", tiny_backbone, output, "--folds", "3", "--resume"))
    (output / "folds.csv").unlink()
    data = shutil.copytree(folds_run / "data", tmp_path / "data")
    colour_patch(data / "train/red/red_9.png", COLOURS["red"], 77)
    again = r"train it again: python train.py --data .* --epochs 2 .* --folds 3 --fold 1 --output"
    with pytest.raises(UserError, match=rf"folds in .*[\s\S]*fold 1[\s\S]*{again}"):
        train.main(arguments(data, tiny_backbone, output, "--folds", "3", "--resume"))


@pytest.mark.parametrize("how", [["--folds", "3", "--resume"], ["--folds", "3", "--resume", "changed"]])
def test_other_settings_for_complete_folds_are_refused(
    folds_run: Path, tmp_path: Path, how: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Nothing would be trained with them, so exit code 0 would be a lie."""
    output = shutil.copytree(folds_run / "folds", tmp_path / "folds")
    words = ["--data", str(folds_run / "data"), "--output", str(output), *how]
    with pytest.raises(UserError) as caught:
        train.main([*words, "--epochs", "77"])
    assert_says(str(caught.value), str(output), "epochs: 2 -> 77")
    with pytest.raises(UserError) as caught:  # without --folds too
        train.main([*words[:4], "--resume", "--epochs", "77"])
    assert_says(str(caught.value), str(output), "epochs: 2 -> 77")
    assert train.main([*words, "--set", "data.workers=1"]) == 0  # decides nothing
    assert "nothing to resume" in capsys.readouterr().out


def test_folds_of_which_one_is_missing_are_not_complete(folds_run: Path, tmp_path: Path) -> None:
    output = shutil.copytree(folds_run / "folds", tmp_path / "folds")
    shutil.rmtree(output / "fold-2")
    with pytest.raises(UserError) as caught:
        train.main(["--data", str(folds_run / "data"), "--output", str(output), "--resume"])
    assert_says(str(caught.value), str(output), "'fold-2'", f"--output {output} --folds 3 --resume")


def test_groups_are_in_one_fold_each(
    tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = make_competition(tmp_path / "data", per_class=6)
    rows = [(f"{name}_{number}", name, f"patient {number}") for name in COLOURS for number in range(6)]
    (data / "train.csv").write_text("id,label,patient\n" + "".join(",".join(row) + "\n" for row in rows))
    (data / "competition.yaml").write_text("group_column: patient\n")
    assert (
        train.main(arguments(data, tiny_backbone, tmp_path / "folds", "--folds", "3", "--epochs", "1")) == 0
    )
    folds = pd.read_csv(tmp_path / "folds/folds.csv", **TEXT)
    assert (folds.groupby(folds.id.str[-1]).fold.nunique() == 1).all()
    assert "6 groups, none in two folds" in capsys.readouterr().out
    with pytest.raises(UserError, match="only 6 groups"):
        train.main(arguments(data, tiny_backbone, tmp_path / "more", "--folds", "7"))
    # the ordinary split honours them too
    assert (
        train.main(
            arguments(
                data, tiny_backbone, tmp_path / "run", "--epochs", "1", "--set", "data.val_fraction=0.3"
            )
        )
        == 0
    )
    held = pd.read_csv(tmp_path / "run/val_predictions.csv", **TEXT).id.str[-1]
    assert set(held.value_counts()) == {3}
    assert json.loads((tmp_path / "run/run.json").read_text())["counts"]["val"] == 6
