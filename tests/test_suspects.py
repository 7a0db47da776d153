"""make suspects: what confident learning flags, the table, the page and its downloads, nearest images, and
what is refused.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from conftest import colour_patch, make_competition
from runs import Page

import train
from pipeline.benchmarks import flipped_labels
from pipeline.benchmarks.flipped_labels import flip, found_in
from pipeline.cleaning import suspects
from pipeline.cleaning.confident import Suspect, find_suspects
from pipeline.cleaning.neighbours import look_around, write_disagreement
from pipeline.cleaning.out_of_fold import read_out_of_fold
from pipeline.cleaning.suspects_page import build_page, csv_cell, next_command
from pipeline.competition.corrections import CorrectionFiles
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json
from pipeline.report.run_files import read_run_files
from pipeline.tables import load_table, write_table
from pipeline.targets.target import Target, multiclass

TEXT = {"dtype": str, "keep_default_na": False}
FLAGS = "--epochs 1 --batch-size 6 --accumulation-steps 1 --lr 0.01 --precision fp32".split()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """A folder with a competition in data/ and a run of two folds in folds/. Whoever writes takes a copy."""
    root = tmp_path_factory.mktemp("suspects")
    make_competition(root / "data", per_class=6)
    words = [
        *("--data", str(root / "data"), "--backbone", str(tiny_backbone), "--output", str(root / "folds")),
        *("--folds", "2"),
    ]
    assert train.main([*words, *FLAGS, "--set", "data.workers=0"]) == 0
    return root


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(whole_run, copy)
    record = read_json(copy / "folds/run.json")
    write_json(copy / "folds/run.json", record | {"data": str(copy / "data")})
    return copy


# ---- what is flagged ----


def sure_predictions(labels: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """(N, C) probabilities of a model that is nearly always right."""
    logits = (
        np.random.default_rng(seed).normal(0, 0.7, (len(labels), num_classes))
        + 4 * np.eye(num_classes)[labels]
    )
    return multiclass([str(number) for number in range(num_classes)]).activate(logits)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_flipped_classes_come_first_and_the_right_one_is_suggested(kind: str) -> None:
    pytest.importorskip("cleanlab")
    target = Target(kind, tuple("abcd"))
    truth = np.random.default_rng(1).integers(0, 4, 200)
    values = sure_predictions(truth, 4)
    labels = [target.names[number] for number in truth]
    flipped = [3, 50, 77, 120, 199]
    for row in flipped:
        labels[row] = target.names[(truth[row] + 1) % 4]
    found = find_suspects(target, labels, values)
    assert {one.row for one in found} <= set(flipped) and len(found) >= 4, (
        "it prunes as many as it estimates to be wrong"
    )
    for one in found:
        assert (one.given, one.suggested) == (
            labels[one.row],
            target.names[truth[one.row]],
        ) and 0.9 < one.score <= 1
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_two_classes_are_suggested_as_the_data_write_them() -> None:
    pytest.importorskip("cleanlab")
    target = Target("binary", ("not one", "one of them"), positive=("cat", "lion"))
    truth = np.arange(100) % 2
    values = np.where(truth == 1, 0.97, 0.02).astype(np.float32)[:, None]
    labels = ["cat" if number else "dog" for number in truth]
    labels[10], labels[11] = "lion", "dog"
    found = find_suspects(target, labels, values)
    assert {(one.row, one.given, one.suggested) for one in found} == {(10, "lion", "dog"), (11, "dog", "cat")}


def test_of_several_labels_only_those_that_look_wrong_are_turned() -> None:
    pytest.importorskip("cleanlab")
    target = Target("multilabel", ("sea", "sky", "road"), separator="|", may_be_empty=True)
    truth = np.random.default_rng(0).random((200, 3)) < 0.5
    values = np.where(truth, 0.95, 0.05).astype(np.float32)
    truth[7, 2], truth[8, 0] = ~truth[7, 2], ~truth[8, 0]
    labels = ["|".join(name for name, has in zip(target.names, row, strict=True) if has) for row in truth]
    found = find_suspects(target, labels, values)
    assert {one.row for one in found} == {7, 8}
    for one in found:
        turned = set(target.parts(one.given)) ^ set(target.parts(one.suggested))
        assert turned == {"road" if one.row == 7 else "sea"}


def test_a_label_that_every_row_has_is_never_flagged() -> None:
    pytest.importorskip("cleanlab")
    target = Target("multilabel", ("sea", "sky", "none"), separator="|")
    truth = np.stack([np.arange(60) % 2 == 0, np.ones(60, dtype=bool), np.zeros(60, dtype=bool)], axis=1)
    values = np.where(truth, 0.95, 0.05).astype(np.float32)
    values[:, 1:] = 0.5
    labels = ["sea|sky" if row[0] else "sky" for row in truth]
    labels[0] = "sky"
    assert [(one.row, one.suggested) for one in find_suspects(target, labels, values)] == [(0, "sea|sky")]
    with pytest.raises(UserError, match=r"every label "):
        find_suspects(target, ["sky"] * 60, values)


def test_of_numbers_those_far_from_what_was_predicted() -> None:
    pytest.importorskip("cleanlab")
    target = Target("continuous", ("weight",), center=(50.0,), scale=(10.0,), low=(0.0,), high=(100.0,))
    values = np.random.default_rng(0).normal(50, 10, (200, 1)).astype(np.float32)
    labels = [
        f"{value + error:.3f}"
        for value, error in zip(values[:, 0], np.random.default_rng(1).normal(0, 1, 200), strict=True)
    ]
    labels[42] = f"{values[42, 0] + 30:.3f}"
    found = find_suspects(target, labels, values)
    assert found[0].row == 42
    assert float(found[0].suggested) == pytest.approx(values[42, 0], rel=1e-5)
    assert len(found) < 5


def test_a_class_without_rows_is_no_obstacle_and_one_class_alone_is_refused() -> None:
    pytest.importorskip("cleanlab")
    target = multiclass("abc")
    labels = ["a", "c"] * 20
    values = sure_predictions(np.array([0, 2] * 20), 3)
    labels[0] = "c"
    assert [(one.row, one.suggested) for one in find_suspects(target, labels, values)] == [(0, "a")]
    with pytest.raises(UserError, match="every labelled row is 'a'"):
        find_suspects(target, ["a"] * 20, values[:20])
    with pytest.raises(UserError, match="5 labelled rows are too few"):
        find_suspects(target, labels[:5], values[:5])


# ---- the command ----


def test_without_cleanlab_the_message_says_how_it_is_installed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(UserError, match=r"not installed: python -m pip install -c constraints\.txt cleanlab"):
        suspects.main(["--model", str(run / "folds")])
    assert not (run / "folds/suspects").exists()


def fake_suspects(run: Path) -> list[Suspect]:
    oof = pd.read_csv(run / "folds/oof.csv", **TEXT)
    names = sorted(set(oof.label))
    return [
        Suspect(row, oof.label[row], names[(names.index(oof.label[row]) + 1) % len(names)], 1 - row / 100)
        for row in (4, 9, 0)
    ]


def test_the_command_writes_table_page_and_disagreement(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(suspects, "need_cleanlab", lambda: None)
    monkeypatch.setattr(suspects, "find_suspects", lambda *_: fake_suspects(run))
    assert suspects.main(["--model", str(run / "folds"), "--neighbours", "2"]) == 0
    table, oof = load_table(run / "folds/suspects/suspects.csv"), pd.read_csv(run / "folds/oof.csv", **TEXT)
    assert table.columns == ("id", "given", "suggested", "score") and list(table.column("id")) == [
        oof.id[row] for row in (4, 9, 0)
    ]
    assert table.column("score") == ["0.960000", "0.910000", "1.000000"]
    page = Page(run / "folds/suspects/suspects.html")
    assert len(page.all("fieldset")) == 3
    assert sum("nearest training image" in (image["alt"] or "") for image in page.all("img")) == 6
    apart = read_run_files(run / "folds").disagreement
    assert list(apart) == list(oof.id)
    assert all(value >= 0 for value in apart.values())
    assert max(apart.values()) > 0
    assert f"--output {run / 'folds'}-corrected --set data.exclude=exclude.csv" in capsys.readouterr().out
    # suspects.csv itself names the rows to leave out, and is taken as such
    found = read_layout(
        run / "data", need="train", corrected=CorrectionFiles(str(run / "folds/suspects/suspects.csv"))
    )
    assert found.corrections.excluded == set(table.column("id"))


def test_real_suspects_of_a_real_run(run: Path) -> None:
    pytest.importorskip("cleanlab")
    assert suspects.main(["--model", str(run / "folds"), "--neighbours", "0", "--no-images"]) == 0
    table = load_table(run / "folds/suspects/suspects.csv")
    assert set(table.column("id")) <= set(pd.read_csv(run / "folds/oof.csv", **TEXT).id)
    assert "data:image/jpeg" not in (run / "folds/suspects/suspects.html").read_text(encoding="utf-8")
    assert not (run / "folds/disagreement.csv").exists()


def test_neighbours_are_training_images_of_the_model_that_did_not_see_the_suspect(run: Path) -> None:
    oof = read_out_of_fold(run / "folds")
    found, disagreement = look_around(oof, [0, 7, 11], 4)
    for row, near in found.items():
        fold_of = dict(zip(oof.ids, oof.folds, strict=True))
        assert len(near) == 4 and all(fold_of[one.row.id] != oof.folds[row] for one in near)
        likeness = [one.likeness for one in near]
        assert likeness == sorted(likeness, reverse=True)
        assert min(likeness) >= -1.0001
        assert max(likeness) <= 1.0001
    # what each model says of all images, through inference's own road
    from pipeline.competition.facts import read_facts
    from pipeline.run import load_run
    from pipeline.tasks.apply import predict, read_for

    said = []
    for fold in (1, 2):
        model = load_run(run / f"folds/fold-{fold}")
        competition = read_for(model, run / "data", read_facts(run / "data"))
        rows = [image for row_id in oof.ids for image in oof.images[row_id]]
        said.append(
            predict(model, competition, 8, "auto", given=rows)[0].aligned(oof.ids).values.astype(np.float64)
        )
    np.testing.assert_allclose(disagreement, np.sqrt(np.var(said, axis=0).sum(axis=1)), atol=1e-3)
    write_disagreement(oof, disagreement)
    assert list(read_run_files(run / "folds").disagreement.values()) == pytest.approx(disagreement, abs=1e-6)


@pytest.mark.parametrize(
    "damage, words",
    [("run", "holds no finished run.*python train.py --folds 5"), ("single", "is a run, not folds")],
)
def test_only_folds_can_be_judged(run: Path, damage: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_out_of_fold(run / "nothing" if damage == "run" else run / "folds/fold-1")


def test_out_of_fold_rows_of_another_data_set(run: Path, tmp_path: Path) -> None:
    for name in ("red", "green"):
        for number in range(6):
            colour_patch(tmp_path / f"other/train/{name}/x{name}{number}.png", (200, 50, 40), number)
    with pytest.raises(UserError, match=r"oof\.csv.*other.*--data DIR.*\n.*18 rows of 18 are not in .*other"):
        read_out_of_fold(run / "folds", tmp_path / "other")
    oof = pd.read_csv(run / "folds/oof.csv", **TEXT)
    oof.loc[3, "label"] = next(label for label in oof.label if label != oof.label[3])
    write_table(run / "folds/oof.csv", tuple(oof.columns), oof.to_numpy().tolist())
    with pytest.raises(UserError, match=f"1 label changed since: {oof.id[3]!r}"):
        read_out_of_fold(run / "folds")


def test_damaged_out_of_fold_files(run: Path) -> None:
    values = np.load(run / "folds/oof.npy")
    np.save(run / "folds/oof.npy", values[:-1])
    with pytest.raises(UserError, match=r"oof\.npy holds .*\(17, 3\), expected .*\(18, 3\)"):
        read_out_of_fold(run / "folds")
    values[4, 1] = np.nan
    np.save(run / "folds/oof.npy", values)
    with pytest.raises(UserError, match=r"oof\.npy holds 1 values .* row 5"):
        read_out_of_fold(run / "folds")
    (run / "folds/oof.npy").unlink()
    with pytest.raises(UserError, match=r"oof\.npy does not exist"):
        read_out_of_fold(run / "folds")


@pytest.mark.parametrize(
    ("bad", "said"),
    [("x", "row 2: fold: expected a number, found 'x'"), ("", "row 2: fold"), ("-1", "row 2: fold")],
)
def test_a_bad_fold_and_an_id_that_occurs_twice_are_named_with_their_rows(
    run: Path, bad: str, said: str
) -> None:
    lines = (run / "folds/oof.csv").read_text().splitlines()
    row_id, _, rest = lines[1].partition(",")
    lines[1] = f"{row_id},{bad},{rest.partition(',')[2]}"
    (run / "folds/oof.csv").write_text("\n".join([*lines[:-1], lines[2]]) + "\n")
    with pytest.raises(UserError) as caught:
        read_out_of_fold(run / "folds")
    assert said in str(caught.value) and f"row {len(lines)}: id" in str(caught.value)


def test_the_command_that_goes_on_drops_what_belongs_to_the_former_run(run: Path) -> None:
    oof = read_out_of_fold(run / "folds")
    words = (
        "python train.py --data d --output old --folds 2 --parallel 2 --resume changed --set "
        "data.exclude=e.csv --set seed=3 --fold=1"
    )
    oof.record.values["command"] = words
    expected = "python train.py --data d --folds 2 --set seed=3"
    assert next_command(oof).startswith(
        f"{expected} --output {run / 'folds'}-corrected --set data.exclude=exclude.csv"
    )
    oof.record.values["command"] = "python train.py --data 'd"  # cut short by hand
    assert next_command(oof).startswith("python train.py --folds 2 --output")


def test_a_benchmark_of_no_seed_is_a_message(tmp_path: Path) -> None:
    for flag in ("--seeds", "--workers"):
        with pytest.raises(UserError, match=f"{flag} 0: at least 1"):
            flipped_labels.main(["--data", str(tmp_path), "--output", str(tmp_path / "out"), flag, "0"])


# ---- the page ----


@pytest.mark.parametrize("text", ["plain", "a,b", 'say "so"', "=SUM(A1)", "-3.5", "two\nlines"])
def test_cells_of_the_page_are_cells_of_our_tables(text: str, tmp_path: Path) -> None:
    from pipeline.tables import guarded

    write_table(tmp_path / "t.csv", ("id", "x"), [(guarded(text), "1")])
    assert (tmp_path / "t.csv").read_text() == f"id,x\n{csv_cell(text)},1\n"


def test_images_are_shown_only_of_the_runs_own_data(run: Path) -> None:
    record = read_json(run / "folds/run.json")
    write_json(run / "folds/run.json", record | {"data": "/"})  # a release may claim anything
    oof = read_out_of_fold(run / "folds", run / "data")
    page = build_page(oof, fake_suspects(run), {}, run / "page.html", images=True, data_named=False)
    assert "data:image/jpeg" not in page.read_text(encoding="utf-8")
    page = build_page(oof, fake_suspects(run), {}, run / "page.html", images=True, data_named=True)
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 3


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a Chromium to open the page in")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def downloaded(browser: Browser, folder: Path, what: str) -> Path:
    path = folder / f"{what}.csv"
    path.unlink(missing_ok=True)
    browser.run(f"document.querySelector('[data-download={what}]').click()")
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path


def test_marks_become_the_tables_that_training_takes(browser: Browser, run: Path) -> None:
    oof = read_out_of_fold(run / "folds")
    found = fake_suspects(run)
    page = build_page(oof, found, {}, run / "suspects.html", images=True, data_named=True)
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(run))
    browser.open(page)
    assert browser.run(
        "[...document.querySelectorAll('[data-download]')].map(button => button.disabled)"
    ) == [True, True]
    browser.run("document.querySelectorAll('input[value=exclude]')[0].click()")
    browser.run("document.querySelectorAll('input[value=relabel]')[2].click()")
    exclude, relabel = downloaded(browser, run, "exclude"), downloaded(browser, run, "relabel")
    assert exclude.read_text() == f"id\n{oof.ids[found[0].row]}\n"
    assert relabel.read_text() == f"id,label\n{oof.ids[found[2].row]},{found[2].suggested}\n"
    competition = read_layout(
        run / "data", need="train", corrected=CorrectionFiles(str(exclude), str(relabel))
    )
    assert competition.corrections.relabelled == {oof.ids[found[2].row]: found[2].suggested}
    assert "1 to leave out, 1 with another label, 1 kept" in browser.run(
        "document.querySelector('[role=status]').textContent"
    )
    for _ in range(20):  # marks outlast a reload, once the browser has passed them on from the page's process
        browser.open(page)
        if "1 to leave out, 1 with another label, 1 kept" in (
            status := browser.run("document.querySelector('[role=status]').textContent")
        ):
            break
        time.sleep(0.2)
    assert "1 to leave out, 1 with another label, 1 kept" in status
    browser.run(
        """(() => {
            const input = document.querySelectorAll('input[type=text]')[1];
            input.value = 'blu';
            input.dispatchEvent(new Event('input'));
        })()"""
    )
    assert "1 with a label that no row has" in browser.run(
        "document.querySelector('[role=status]').textContent"
    )
    assert (
        browser.run("document.querySelector('[data-download=relabel]').disabled") and browser.complaints == []
    )
    browser.run("document.querySelector('[data-all=keep]').click()")
    assert "0 to leave out, 0 with another label, 3 kept" in browser.run(
        "document.querySelector('[role=status]').textContent"
    )


@pytest.fixture
def second_round(run: Path) -> Path:
    """The run, as if its folds had been trained with corrections: of a suspect each, and of a row beside."""
    oof, found = read_out_of_fold(run / "folds"), fake_suspects(run)
    write_table(run / "e.csv", ("id",), [(oof.ids[found[0].row],), (oof.ids[1],)])
    write_table(run / "r.csv", ("id", "label"), [(oof.ids[found[1].row], found[1].suggested)])
    names = {"exclude": str(run / "e.csv"), "relabel": str(run / "r.csv")}
    files = {what: {"file": name, "sha256": sha256(Path(name))} for what, name in names.items()}
    none = {"excluded": 0, "relabelled": 0}
    record = read_json(run / "folds/run.json")
    write_json(run / "folds/run.json", record | {"corrections": {"files": files, "train": none, "val": none}})
    return run


def test_a_second_round_begins_with_the_decisions_of_the_first(second_round: Path, monkeypatch) -> None:
    run, found = second_round, fake_suspects(second_round)
    monkeypatch.setattr(suspects, "need_cleanlab", lambda: None)
    monkeypatch.setattr(suspects, "find_suspects", lambda *_: found)
    assert suspects.main(["--model", str(run / "folds"), "--neighbours", "0"]) == 0
    page = Page(run / "folds/suspects/suspects.html")
    marks = [box["value"] for box in page.all("input") if box.get("type") == "radio" and "checked" in box]
    assert marks == ["exclude", "relabel", "keep"]
    beside = json.loads(page.all("main")[0]["data-earlier"])
    assert beside == {"exclude": [load_table(run / "e.csv").column("id")[1]], "relabel": []}


def test_decisions_of_the_first_round_that_are_lost_are_named(second_round: Path) -> None:
    (second_round / "e.csv").write_text("id\n")
    (second_round / "r.csv").unlink()
    oof = read_out_of_fold(second_round / "folds")
    assert not oof.earlier.excluded and not oof.earlier.relabelled
    assert "e.csv, which has changed" in oof.notes[0] and "r.csv, which is not there" in oof.notes[1]


def test_downloads_of_a_second_round_hold_the_first_one(browser: Browser, second_round: Path) -> None:
    run = second_round
    oof = read_out_of_fold(run / "folds")
    page = build_page(oof, fake_suspects(run), {}, run / "suspects.html", images=False, data_named=True)
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(run))
    browser.open(page)
    exclude, relabel = downloaded(browser, run, "exclude"), downloaded(browser, run, "relabel")
    assert exclude.read_text() == (run / "e.csv").read_text()
    assert relabel.read_text() == (run / "r.csv").read_text()
    browser.run("document.querySelectorAll('input[value=keep]')[0].click()")
    assert downloaded(browser, run, "exclude").read_text().splitlines()[1:] == [
        load_table(run / "e.csv").column("id")[1]
    ]


@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_the_page_fits_asks_for_nothing_and_every_control_has_a_name(
    browser: Browser, run: Path, width: int, dark: bool
) -> None:
    oof = read_out_of_fold(run / "folds")
    near, _ = look_around(oof, [one.row for one in fake_suspects(run)], 5)
    page = build_page(oof, fake_suspects(run), near, run / "suspects.html", images=True, data_named=True)
    browser.open(page, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert [address for address in browser.requests if not address.startswith("data:")] == [
        page.resolve().as_uri()
    ]
    browser.send("Accessibility.enable")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    used = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in ("radio", "button", "combobox", "textbox", "image", "group")
    ]
    assert len(used) > 20
    assert all(node.get("name", {}).get("value") for node in used if not node["ignored"])
    assert browser.complaints == []


# ---- the benchmark ----


def test_the_benchmark_flips_as_many_as_it_says_and_counts_what_was_found(tmp_path: Path) -> None:
    truth = {f"{number:03d}": "abc"[number % 3] for number in range(200)}
    given = flip(truth, seed=1)
    flipped = [row_id for row_id in truth if given[row_id] != truth[row_id]]
    assert len(flipped) == 10 and flip(truth, 1) == given != flip(truth, 2)
    others = [row_id for row_id in truth if row_id not in flipped]
    ids = [*flipped[:6], *others[:6]]
    write_table(tmp_path / "s.csv", ("id", "suggested"), [(row_id, "a") for row_id in ids])
    found = found_in(tmp_path / "s.csv", truth, given)
    assert (found["flipped"], found["suspects"]) == (10, 12)
    assert (found["right of the first"], found["right of all"], found["found"]) == (0.6, 0.5, 0.6)
