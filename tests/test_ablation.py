"""make ablation: grids are checked as a whole, trials run once, what goes wrong costs one trial, and the
table says what the runs say.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml

from pipeline.config import load_recipe
from pipeline.errors import Interrupted, UserError, run_command
from pipeline.experiments import ablation, side_by_side, trials
from pipeline.experiments.grids import GRIDS_DIR, grid_names, load_grid

ROOT = Path(__file__).resolve().parents[1]
QUICK = {
    "epochs": 1,
    "batch_size": 6,
    "accumulation_steps": 1,
    "data.val_fraction": 0.25,
    "precision": "fp32",
    "optimizer.name": "sgd",
}
ROWS = [
    {
        "name": "LoRA r=2",
        "set": {"lora.rank": 2},
        "reported": {"score": 0.915, "seconds": 43380, "memory_gb": 3.8},
    },
    {"name": "LoRA r=2, flip off", "set": {"lora.rank": 2, "augmentation.horizontal_flip": False}},
    {"name": "diverges", "set": {"lora.rank": 2, "optimizer.lr": 1e30}},
]


def write_grid(path: Path, rows: list[dict], **more: object) -> Path:
    grid = {
        "recipe": "beit-large-384-lora",
        "seeds": [3, 4],
        "set": {**QUICK, "optimizer.lr": 0.003},
        "rows": rows,
        **more,
    }
    path.write_text(yaml.safe_dump(grid), encoding="utf-8")
    return path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command of a trial, run in this process instead of one of its own: the libraries take ten seconds
    to import.
    """
    import inference
    import train

    seen: list[list[str]] = []

    def run_here(command: list[object], log: Path, _bench: trials.Bench) -> int:
        script, *words = map(str, command)
        seen.append([script, *words])
        with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            print(f"$ python {script}")
            return run_command(lambda: {"train.py": train, "inference.py": inference}[script].main(words))

    monkeypatch.setattr(trials, "run_logged", run_here)
    return seen


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained(commands: list[list[str]]) -> list[str]:
    """The folders of the trials that train.py was started for."""
    return [
        Path(words[words.index("--output") + 1]).name
        for words in commands
        if words[0] == "train.py" and "--dry-run" not in words
    ]


@pytest.mark.parametrize("name", grid_names())
def test_every_shipped_grid_is_valid_and_says_where_it_comes_from(name: str) -> None:
    grid = load_grid(name)
    assert len({trial.folder_name for trial in grid.trials}) == len(grid.trials)
    text = (GRIDS_DIR / f"{name}.yaml").read_text(encoding="utf-8")
    assert "# Source: " in text or name == "backbones-here"
    assert load_grid(name, backbone="some/folder").trials[0].recipe.backbone == "some/folder"


def test_rows_are_the_recipe_then_the_grid_then_the_row_then_the_command_line(tmp_path: Path) -> None:
    path = write_grid(
        tmp_path / "g.yaml", [{"name": "a", "set": {"epochs": 7}}, {"name": "b", "recipe": "beit-large-384"}]
    )
    grid = load_grid(str(path), backbone="b/c", overrides={"optimizer.weight_decay": 0.5}, seeds=[9])
    a, b = (trial.recipe for trial in grid.trials)
    assert (a.epochs, b.epochs, a.lora.rank, b.lora.rank, a.optimizer.lr) == (7, 1, 16, 0, 0.003)
    assert {
        (recipe.backbone, recipe.image_size, recipe.seed, recipe.optimizer.weight_decay) for recipe in (a, b)
    } == {("b/c", None, 9, 0.5)}


def test_the_problems_of_all_rows_come_in_one_message(tmp_path: Path) -> None:
    rows = [
        {"name": "a", "set": {"lora.rnak": 8}},
        {"name": "b", "set": {"epochs": 0}},
        {"name": "c", "recipe": "beit-lage-384"},
        {"name": "d"},
    ]
    with pytest.raises(UserError) as caught:
        load_grid(str(write_grid(tmp_path / "g.yaml", rows)))
    text = str(caught.value)
    for expected in (
        "row 'a': .*lora.rnak: unknown recipe key; did you mean lora.rank",
        "row 'b': .*epochs: .*found 0",
        "row 'c': .*beit-large-384",
    ):
        assert caught.match(expected)
    assert text.count("row 'a'") == 1 and "row 'd'" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [{"name": "a b"}, {"name": "A-b"}]}, r"row 'a b': another row has this name"),
        ({"rows": [{"name": "a"}], "recipe": None}, r"row 'a': no recipe"),
        ({"rows": []}, r"rows: "),
        ({"rows": [{"name": "a", "reported": {"acuracy": 1}}]}, r"rows\.0\.reported\.acuracy: "),
        ({"rows": [{"name": "a"}], "seeds": [1, 1]}, r"found 1, 1"),
        ({"rows": [{"name": "a"}], "metrics": ["mood"]}, r"metrics: .*accuracy"),
    ],
)
def test_a_grid_that_cannot_be_read_says_why(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_grid(str(write_grid(tmp_path / "g.yaml", **{"rows": [], **change})))


def test_an_unknown_grid_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"--grid rank: .*ranks"):
        load_grid("rank")


def test_a_grid_from_the_first_dry_run_to_the_table(
    competition: Path, tiny_backbone: Path, tmp_path: Path, commands, capsys
) -> None:
    """Two rows succeed, one diverges in training; a second call tries that one again and nothing else."""
    grid, output = write_grid(tmp_path / "mine.yaml", ROWS), tmp_path / "out"
    solution = ["--solution", str(competition.parent / "solution.csv")]
    call = [
        *("--grid", str(grid), "--data", str(competition), "--output", str(output)),
        *("--backbone", str(tiny_backbone)),
        *solution,
    ]
    with pytest.raises(
        UserError, match=r"(?s)2 of 6 trials failed.*diverges, seed 3: the loss became NaN.*diverges, seed 4"
    ):
        ablation.main(call)
    # One model, so one dry run
    assert [words[0] for words in commands if "--dry-run" in words] == ["train.py"]
    names = ["lora-r-2", "lora-r-2-flip-off", "diverges"]
    assert trained(commands) == [f"{name}_seed{seed}" for seed in (3, 4) for name in names]
    printed = capsys.readouterr().out
    assert "on CPU, fp32: about" in printed
    assert "[2/6] LoRA r=2, flip off, seed 3" in printed
    assert "4 left, about" in printed

    scores = [
        json.loads((output / f"lora-r-2_seed{seed}" / "scores.json").read_text())["metrics"]["accuracy"]
        for seed in (3, 4)
    ]
    best = [
        json.loads((output / f"lora-r-2_seed{seed}" / "run.json").read_text())["best"]["value"]
        for seed in (3, 4)
    ]
    first, _, failed = read_csv(output / "table.csv")
    assert (first["row"], first["finished"], first["reported_score"]) == ("LoRA r=2", "2", "0.915")
    assert float(first["test_accuracy"]) == mean(scores) and float(
        first["test_accuracy_sd"]
    ) == pytest.approx(stdev(scores))
    assert float(first["val_accuracy"]) == mean(best) and float(first["val_accuracy_sd"]) == pytest.approx(
        stdev(best)
    )
    assert (
        float(first["trainable"]) == 2 * 2 * 2 * (32 + 32) + 3 * 33
    )  # two layers, query and key, A and B of rank 2; the head of 3 classes
    assert failed["finished"] == "0"
    assert "the loss became NaN" in failed["failed"]
    assert "exit code 2" in failed["failed"]
    assert [line["seed"] for line in read_csv(output / "trials.csv")] == ["3", "3", "3", "4", "4", "4"]
    text = (output / "table.md").read_text(encoding="utf-8")
    assert f"| {mean(scores):.4f} ± {stdev(scores):.4f} (2) |" in text
    assert "| score 0.915, 3.8 GB, 12h03m |" in text
    assert "- diverges, seed 3: the loss became NaN" in text
    assert "error: the loss became NaN" in (output / "diverges_seed3" / "trial.log").read_text()
    assert (output / "score_memory.png").stat().st_size > 5000 and (
        output / "score_time.png"
    ).stat().st_size > 5000
    base = "model_beit/model.safetensors"
    assert (output / "lora-r-2_seed3" / base).samefile(output / "lora-r-2-flip-off_seed3" / base)
    assert not (output / "lora-r-2_seed3" / base).samefile(output / "lora-r-2_seed4" / base)
    assert not (output / "lora-r-2_seed3" / "state").exists()

    commands.clear()
    with pytest.raises(UserError, match="2 of 6 trials failed"):
        ablation.main(call)
    assert trained(commands) == ["diverges_seed3", "diverges_seed4"]
    assert "--resume" in commands[0]
    assert len(commands) == 2

    write_grid(grid, [{**ROWS[0], "set": {"lora.rank": 4}}, ROWS[1]])
    commands.clear()
    with pytest.raises(
        UserError, match=r"(?s)--redo.*LoRA r=2, seed 3: lora\.rank: 2 -> 4.*LoRA r=2, seed 4"
    ):
        ablation.main(call)
    assert not commands
    assert ablation.main([*call, "--redo"]) == 0
    assert trained(commands) == ["lora-r-2_seed3", "lora-r-2_seed4"]
    assert load_recipe(str(output / "lora-r-2_seed3" / "recipe.yaml")).lora.rank == 4
    (kept,) = (output / "earlier").glob("*/lora-r-2_seed3/run.json")
    assert json.loads(kept.read_text())["recipe"]["lora"]["rank"] == 2

    commands.clear()
    answers = shutil.copy(output / "lora-r-2_seed3" / "predictions.csv", tmp_path / "answers.csv")
    again = [*call, "--solution", str(answers)]  # another solution: everything is scored again
    for folder in output.glob("lora*"):
        (folder / "timing.jsonl").unlink()
    assert ablation.main(again) == 0
    assert not commands
    scores = {(line["row"], line["seed"]): line["test_accuracy"] for line in read_csv(output / "trials.csv")}
    assert scores["LoRA r=2", "3"] == "1.0"
    assert [line["finished"] for line in read_csv(output / "table.csv")] == ["2", "2"]
    capsys.readouterr()
    assert ablation.main(again) == 0
    assert "4 finished" in capsys.readouterr().out


def test_a_file_is_no_place_for_a_grid(competition: Path, tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "g.yaml", ROWS)
    with pytest.raises(UserError, match=r"g\.yaml is a file, .* --output"):
        ablation.main(["--grid", str(grid), "--data", str(competition), "--output", str(grid)])


def test_a_row_that_cannot_be_built_stops_the_grid_before_the_first_starts(
    competition: Path, tiny_backbone: Path, tmp_path: Path, commands
) -> None:
    rows = [
        {"name": "good"},
        {"name": "bad", "set": {"backbone": str(tmp_path / "nothing")}},
        {"name": "worse", "set": {"backbone": "./no"}},
    ]
    rows[0]["set"] = {"backbone": str(tiny_backbone), "image_size": None}
    call = [
        *("--grid", str(write_grid(tmp_path / "g.yaml", rows)), "--data", str(competition)),
        *("--output", str(tmp_path / "out")),
    ]
    with pytest.raises(
        UserError, match=r"(?s)nothing was started.*bad: --backbone .*no such folder.*worse: --backbone \./no"
    ) as caught:
        ablation.main(call)
    assert "good" not in str(caught.value) and not trained(commands)


def test_a_stopped_grid_goes_on_inside_the_trial(
    competition: Path, tiny_backbone: Path, tmp_path: Path, commands, monkeypatch
) -> None:
    from test_resume import interrupt_after

    grid = write_grid(tmp_path / "g.yaml", ROWS[:2], seeds=[3])
    # Nothing to predict: the rows are compared by validation score
    for name in ("test", "sample_submission.csv"):
        path = competition / name
        path.rename(tmp_path / name)
    call = [
        *("--grid", str(grid), "--data", str(competition), "--output", str(tmp_path / "out")),
        *("--backbone", str(tiny_backbone)),
    ]
    call += ["--set", "epochs=2"]
    assert ablation.main([*call, "--dry-run"]) == 0 and not trained(commands)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 14)  # after those of the dry run, in the second epoch
        with pytest.raises(Interrupted, match="with the same command"):
            ablation.main(call)
    commands.clear()
    assert ablation.main(call) == 0
    unfinished = trained(commands)[0]
    assert "resuming in epoch" in (tmp_path / "out" / unfinished / "trial.log").read_text()
    first, second = read_csv(tmp_path / "out" / "table.csv")
    assert first["finished"] == second["finished"] == "1"
    assert first["val_accuracy_sd"] == first["test_accuracy"] == ""


def test_trials_side_by_side_make_the_same_table(
    competition: Path, tiny_backbone: Path, tmp_path: Path, commands, monkeypatch, capsys
) -> None:
    """Each trial's process is run here, one after the other; real ones are in the slow test below."""
    monkeypatch.setattr(ablation, "places_for", lambda at_once: None)

    def run_here(children: list, at_once: int, after) -> None:
        assert at_once == 2
        for made in children:
            child = made()
            assert child.words[:2] == ["-m", "pipeline.experiments.side_by_side"] and len(child.keeps) == 1
            assert side_by_side.main(child.words[2:]) == 0
            after(child.name)

    monkeypatch.setattr(side_by_side, "run_children", run_here)
    grid, output = write_grid(tmp_path / "g.yaml", [ROWS[0], ROWS[2]], seeds=[3]), tmp_path / "out"
    call = [
        *("--grid", str(grid), "--data", str(competition), "--output", str(output)),
        *("--backbone", str(tiny_backbone), "--parallel", "9"),
    ]
    with pytest.raises(UserError, match=r"(?s)1 of 2 trials failed.*diverges, seed 3: the loss became NaN"):
        ablation.main([*call, "--solution", str(competition.parent / "solution.csv")])
    assert trained(commands) == ["lora-r-2_seed3", "diverges_seed3"]
    first, failed = read_csv(output / "table.csv")
    assert (first["finished"], failed["finished"]) == ("1", "0") and float(first["test_accuracy"]) >= 0
    printed = capsys.readouterr().out
    assert "[2/2] diverges, seed 3: started" in printed and "  LoRA r=2, seed 3: test accuracy" in printed
    assert not (output / "lora-r-2_seed3" / "state").exists()


def test_side_by_side_needs_a_number_and_a_card_each(
    competition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    with pytest.raises(UserError, match="--parallel 0: at least 1"):
        ablation.main(["--grid", "ranks", "--data", str(competition), "--parallel", "0"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--parallel 3: .*2 GPUs; use --parallel 2"):
        ablation.main(["--grid", "ranks", "--data", str(competition), "--parallel", "3"])


@pytest.mark.slow
def test_side_by_side_in_real_processes_stopped_and_continued(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    rows = [{"name": name, "set": {"epochs": 30, "checkpoint.every_minutes": 0.001}} for name in "ab"]
    grid, output = write_grid(tmp_path / "g.yaml", rows, seeds=[3]), tmp_path / "out"
    command = [
        sys.executable,
        *("-m", "pipeline.experiments.ablation", "--grid", str(grid), "--data", str(competition)),
    ]
    command += ["--output", str(output), "--backbone", str(tiny_backbone), "--parallel", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folders = [output / "a_seed3", output / "b_seed3"]
    while (
        not all(list((folder / "state").glob("[0-9]*.json")) for folder in folders) and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130 and said.count("with the same command") == 1, said
    assert not any((folder / "run.json").exists() for folder in folders)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(
        "resuming in epoch" in (folder / "trial.log").read_text(encoding="utf-8") for folder in folders
    )
    assert [line["finished"] for line in read_csv(output / "table.csv")] == ["1", "1"]
    base = "model_beit/model.safetensors"
    assert (folders[0] / base).samefile(folders[1] / base)


@pytest.mark.slow
def test_every_architecture_of_the_first_grid_goes_through(
    competition: Path, tmp_path: Path, commands
) -> None:
    call = [
        *("--grid", "backbones-here", "--data", str(competition), "--output", str(tmp_path / "out")),
        *("--set", "data.val_fraction=0.25"),
    ]
    assert ablation.main(call) == 0
    assert [line["finished"] for line in read_csv(tmp_path / "out" / "table.csv")] == ["1"] * 4
    assert ablation.main(call) == 0 and len(trained(commands)) == 4


@pytest.mark.slow
def test_a_killed_grid_takes_its_process_along_and_goes_on(
    competition: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """In real processes: SIGKILL to the grid alone ends train.py too, and the same command goes on from its
    state.
    """
    row = {"name": "long", "set": {"epochs": 40, "checkpoint.every_minutes": 0.001}}
    grid, output = write_grid(tmp_path / "g.yaml", [row], seeds=[3]), tmp_path / "out"
    command = [
        sys.executable,
        *("-m", "pipeline.experiments.ablation", "--grid", str(grid), "--data", str(competition)),
        *("--output", str(output)),
    ]
    command += ["--backbone", str(tiny_backbone)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 180
    while (
        not list((output / "long_seed3" / "state").glob("[0-9]*.json"))
        and time.monotonic() < end
        and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "long_seed3" / "run.json").exists()
    again = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert again.returncode == 0, again.stdout + again.stderr
    log = (output / "long_seed3" / "trial.log").read_text(encoding="utf-8")
    assert log.count("$ python train.py") == 2 and "resuming in epoch" in log
    assert len((output / "long_seed3" / "metrics.jsonl").read_text().splitlines()) == 40
    assert "dry run" not in again.stdout  # it had begun to train this model already


def test_rows_are_compared_by_the_competition_s_metric(tmp_path: Path) -> None:
    from conftest import make_competition

    data = make_competition(tmp_path / "data")
    ids = [line.split(",")[0] for line in (data / "sample_submission.csv").read_text().splitlines()[1:]]
    (data / "sample_submission.csv").write_text(
        "id,blue,green,red\n" + "".join(f"{name},0.3,0.3,0.4\n" for name in ids)
    )
    args = ablation.parse(["--grid", "ranks-here", "--data", str(data)])
    _, metric = ablation.open_bench(args, load_grid("ranks-here"), tmp_path / "out", ())
    assert metric == "log_loss"
    (data / "competition.yaml").write_text("metric: macro_f1\ntarget: multiclass\n")
    assert ablation.open_bench(args, load_grid("ranks-here"), tmp_path / "out", ())[1] == "macro_f1"
