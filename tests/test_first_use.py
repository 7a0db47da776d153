"""What somebody meets before anything works: no environment, an old Python, a mistyped make variable, places
that take no files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inference
from pipeline.config import load_recipe
from pipeline.errors import UserError
from pipeline.files import check_place
from pipeline.naming import backbone_name, run_name
from pipeline.report import attention, page
from pipeline.submission import score

ROOT = Path(__file__).resolve().parents[1]


# ---- no environment ----


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", "--dry-run"),
        ("inference.py",),
        *(
            ("-m", f"pipeline.{name}")
            for name in ("config", "demo", "fetch.releases", "fetch.install", "kaggle.submit")
        ),
        *(
            ("-m", f"pipeline.{name}")
            for name in ("report.page", "report.attention", "experiments.ablation", "benchmarks.benchmark")
        ),
        ("-m", "pipeline.submission.score", "--solution", "x.csv"),
    ],
    ids=" ".join,
)
def test_without_the_packages_every_command_is_one_line(words: tuple[str, ...]) -> None:
    """`-S`: a Python that sees no installed package."""
    result = subprocess.run(
        [sys.executable, "-S", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == 1, result.stderr
    if "is not installed" in lines[0]:
        assert "3.11" in lines[0] and "source .venv/bin/activate" in lines[0]
    else:  # it found something else that is wrong before it needed a package
        assert lines[0].startswith("error: ")


def test_an_error_of_our_own_keeps_its_traceback() -> None:
    code = "import pipeline\nimport pipeline.no_such_module"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_an_old_python_is_one_line() -> None:
    code = "import sys\nsys.version_info = (3, 9, 1)\nimport pipeline"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "Python 3.11 or newer" in result.stderr


# ---- make ----


def make(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("no make")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
    }
    return subprocess.run(["make", *words], cwd=cwd, capture_output=True, text=True, env=environment)


def test_an_unknown_variable_is_an_error_that_lists_the_known_ones() -> None:
    for words, named in (
        (("score", "RUNN=a"), "RUNN="),
        (("submit", "SOLUTION=a"), "SOLUTION="),
        (("help", "DATA=x"), "DATA="),
    ):
        result = make(*words)
        assert result.returncode == 2 and named in result.stderr and len(result.stderr.splitlines()) == 1, (
            result.stderr
        )
    assert "SOLUTION=" in make("score", "X=1").stderr and "MODEL=" in make("score", "X=1").stderr
    assert make("help").returncode == 0


def test_every_variable_that_a_target_uses_is_one_that_it_takes() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    takes = {
        name: set(names.split())
        for name, names in re.findall(r"^TAKES_([a-z-]+) := (.*)$", text, re.MULTILINE)
    }
    own = {"PYTHON", "SETUP", "TESTS", "BENCH", "MAKEFILE_LIST"}
    for name, recipe in re.findall(r"^([a-z-]+):.*?##.*\n((?:\t.*\n)*)", text, re.MULTILINE):
        used = set(re.findall(r"\b([A-Z][A-Z_]+)\b(?=[,)])", re.sub(r"'[^']*'", "", recipe))) - own
        assert used <= takes.get(name, set()), (name, used)
        if "call model" in recipe:
            assert {"MODEL", "RUN"} <= takes[name]


@pytest.mark.parametrize("target", ["submit", "score", "report", "attention"])
@pytest.mark.parametrize("name", ["MODEL", "RUN"])
def test_model_and_run_are_the_same_and_any_path_is_one_word(target: str, name: str, tmp_path: Path) -> None:
    """The command is run by a shell, with `python` replaced by what prints its arguments."""
    path = 'it\'s $HOME & "my" run'
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "show").write_text("#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done\n")
    (tmp_path / "show").chmod(0o755)
    result = make(
        "PYTHON=./show",
        target,
        f"{name}={path}",
        *(["SOLUTION=s s.csv"] if target == "score" else []),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    flag = {"submit": "--model", "score": "--model", "report": "--run", "attention": "--runs"}[target]
    assert lines[lines.index(flag) + 1] == path
    if target == "score":
        assert lines[lines.index("--solution") + 1] == "s s.csv" and lines[lines.index("--run") + 1] == path


def test_lists_that_hold_no_such_path_name_the_command(tmp_path: Path) -> None:
    result = make("-n", "PYTHON=python", "report", "RUNS=my run")
    assert result.returncode == 2 and "python -m pipeline.report.page --run" in result.stderr


def test_make_setup_refuses_an_old_python_in_a_line(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old"  # says that it is 3.9, and runs what it is given
    code = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{code}" "$2"\nexit 7\n')
    old.chmod(0o755)
    result = make("setup", "BASE_PYTHON=./old", cwd=tmp_path)
    assert result.returncode == 2 and "Python 3.11 or newer is needed, ./old is 3.9" in result.stderr
    assert not (tmp_path / ".venv").exists()


# ---- places that take no files ----


def test_a_place_that_takes_no_file_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert check_place(tmp_path / "new" / "folder" / "p.csv") == tmp_path / "new" / "folder" / "p.csv"
    with pytest.raises(UserError, match="is a folder"):
        check_place(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        check_place(tmp_path / "file" / "p.csv")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        check_place(tmp_path / "p.csv")


def test_inference_looks_at_its_output_before_it_predicts(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="is a folder"):
        inference.main(
            [
                *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
                *("--output", str(tmp_path)),
            ]
        )
    assert "predicting" not in capsys.readouterr().err


def test_of_a_read_only_run_the_scores_are_printed_and_pages_say_where_else(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = finished_run / "run", tmp_path / "p.csv"
    inference.main(["--model", str(run), "--data", str(finished_run / "data"), "--output", str(file)])
    before, access = {path: path.stat().st_mtime_ns for path in run.rglob("*")}, os.access
    monkeypatch.setattr(
        os, "access", lambda place, mode: not str(place).startswith(str(run)) and access(place, mode)
    )
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    flags = [
        *("--solution", str(finished_run / "solution.csv"), "--predictions", str(file)),
        *("--data", str(finished_run / "data")),
    ]
    assert score.main(flags) == 0  # and --model is what inference wrote down
    told = capsys.readouterr().out
    assert "accuracy" in told and "the scores are not stored" in told and str(run) in told
    assert page.main(["--if-present", "--of", str(file)]) == 0
    assert "no page" in capsys.readouterr().out
    with pytest.raises(UserError) as error:
        page.main(["--run", str(run)])
    copy, _, report = re.search(r"first: (.*)", str(error.value))[1].partition(" && ")
    assert subprocess.run(copy, shell=True, cwd=tmp_path).returncode == 0
    assert page.main(report.split()[3:]) == 0 and (tmp_path / "run" / "report.html").exists()
    with pytest.raises(UserError, match="figures with --output"):
        attention.main(["--runs", str(run)])
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


# ---- titles ----


@pytest.mark.parametrize(
    ("overrides", "data", "name"),
    [
        ({}, "data", "beit-large-384-lora"),
        ({"optimizer.lr": 1e-3}, "x/birds", "beit-large-384-lora on birds"),
        ({"backbone": "../x/beit-tiny-64", "lora.rank": 0}, "../data/", "beit-tiny-64, full fine-tuning"),
        ({"backbone": "../x/../x/beit-tiny-64/"}, "/a/b/birds", "beit-tiny-64, LoRA r=16 on birds"),
        ({"lora.rank": 0, "head_only": True}, "data", "beit-large-patch16-384, the head alone"),
        (
            {"backbone": "runs/glyphs/model_beit", "random_weights": True},
            "data",
            "glyphs/model_beit, LoRA r=16 from random weights",
        ),
    ],
)
def test_a_run_is_called_what_was_trained(overrides: dict, data: str, name: str) -> None:
    assert (
        run_name(load_recipe("beit-large-384-lora"), load_recipe("beit-large-384-lora", overrides), data)
        == name
    )


def test_a_backbone_in_the_present_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert backbone_name(".") == "mine" and backbone_name("microsoft/beit-base") == "beit-base"


# ---- said before anything that takes long ----


def test_a_backbone_that_is_not_there_is_said_before_torch_is_loaded(
    tmp_path: Path, competition: Path
) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    code = (
        "import sys, train\nfrom pipeline.errors import run_command\ncode = "
        "run_command(train.main)\nprint('torch' in sys.modules)\nsys.exit(code)"
    )
    for backbone, said in (
        (tmp_path / "nonsuch", "no such folder"),
        (tmp_path / "model" / "model.safetensors", f"its folder, {tmp_path}/model?"),
    ):
        words = ["--data", str(competition), "--output", str(tmp_path / "run"), "--backbone", str(backbone)]
        result = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == 2 and said in result.stderr and result.stdout.endswith("False\n"), (
            result.stderr
        )
    words = ["--data", str(tmp_path / "no data"), "--output", str(tmp_path / "run")]
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout.endswith("False\n")


def test_test_images_that_are_missing_are_a_warning_before_training(
    competition: Path, tmp_path: Path, tiny_backbone: Path, capsys
) -> None:
    import train

    shutil.rmtree(competition / "test")
    flags = [
        *("--data", str(competition), "--output", str(tmp_path / "run"), "--backbone", str(tiny_backbone)),
        *("--batch-size", "4", "--dry-run"),
    ]
    assert train.main(flags) == 0
    told = capsys.readouterr().err
    assert "WARNING" in told and "sample_submission.csv" in told


def test_one_image_missing_of_a_table_is_left_out_when_asked(
    tmp_path: Path, competition: Path, tiny_backbone: Path, capsys
) -> None:
    import train

    images = sorted((competition / "train").glob("*/*.png"))
    rows = [f"{path.name},{path.parent.name}" for path in images]
    (competition / "images").mkdir()
    for path in images[1:]:
        path.rename(competition / "images" / path.name)
    shutil.rmtree(competition / "train")
    (competition / "train.csv").write_text("id,label\n" + "\n".join(rows) + "\n")
    flags = [
        *("--data", str(competition), "--output", str(tmp_path / "run"), "--backbone", str(tiny_backbone)),
        *("--batch-size", "4", "--dry-run"),
    ]
    with pytest.raises(UserError, match=r"1 of 24 ids without an image.*data.skip_bad_images=true"):
        train.main(flags)
    assert train.main([*flags, "--set", "data.skip_bad_images=true"]) == 0
    assert "1 row left out" in capsys.readouterr().out


def test_the_grids_that_help_offers_exist() -> None:
    from pipeline.experiments import ablation

    offered = re.findall(r"--grid ([a-z-]+)(?= )", ablation.__doc__)
    names = {path.stem for path in (ROOT / "pipeline" / "recipes" / "grids").glob("*.yaml")}
    assert offered and set(offered) <= names
