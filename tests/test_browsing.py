"""Images to browse in a run's page: which are in it, what a click shows, keyboard, screen reader, no script,
no images.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from runs import Page, make_run
from scipy.stats import binomtest
from target_runs import BINARY, GRADES, LABELS, NUMBERS, Made, make_target_run

from pipeline.report import browsing, figures, page
from pipeline.report.browsing import read_browse
from pipeline.report.comparison import build_comparison
from pipeline.report.only_right import read_only_right, sign_test
from pipeline.report.page import build_report
from pipeline.report.run_files import read_run_files
from pipeline.targets.target import Target, multiclass

NAMES = ["Avocado", "Banana", "Cabbage", '<b onmouseover="x">']
CLASSES = multiclass(NAMES)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to open the page in")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Coarse figures, away from the project's folder and its ledger."""
    monkeypatch.setattr(figures, "DPI", 50)
    monkeypatch.chdir(tmp_path)


def make_class_run(
    run_dir: Path, rows: int = 120, seed: int = 0, skill: float = 1.0
) -> tuple[Path, list[str], np.ndarray]:
    """A run of four classes with images; its labels and its probabilities."""
    rng = np.random.default_rng(seed)
    make_run(run_dir, names=NAMES, epochs=2, per_class=1)
    truth = np.random.default_rng(99).integers(0, len(NAMES), rows)
    values = CLASSES.activate(rng.normal(0, 1, (rows, len(NAMES))) + skill * np.eye(len(NAMES))[truth])
    np.save(run_dir / "val_probs.npy", values)
    images = run_dir.parent / "images"
    images.mkdir(exist_ok=True)
    with open(run_dir / "val_predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "predicted", "confidence"])
        for row in range(rows):
            Image.new("RGB", (40, 30), (int(60 * truth[row]), row % 250, 90)).save(images / f"{row:03d}.png")
            sure = f"{values[row].max():.6f}"
            writer.writerow(
                [
                    f"{row:03d}",
                    images / f"{row:03d}.png",
                    NAMES[truth[row]],
                    NAMES[values[row].argmax()],
                    sure,
                ]
            )
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps(record | {"data": str(images)}))
    return run_dir, [NAMES[number] for number in truth], values


def browse_of(run_dir: Path) -> dict:
    return read_browse(read_run_files(run_dir))


def row_numbers(items: list[browsing.Item]) -> list[int]:
    return [item.row for item in items]


# ---- what the page holds ----


def test_a_page_holds_every_kind_of_mistake_before_much_of_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, labels, values = make_class_run(tmp_path / "run", rows=400)
    monkeypatch.setattr(browsing, "MAX_ITEMS", 40)
    found = browse_of(run_dir)
    said = [NAMES[number] for number in values.argmax(axis=1)]
    pairs = {(label, name) for label, name in zip(labels, said, strict=True) if label != name}
    shown = row_numbers(found["items"])
    assert len(shown) == len(set(shown)) == 40 and found["total"] == 400
    assert (
        len(pairs) == 12 and {(labels[row], said[row]) for row in shown if labels[row] != said[row]} == pairs
    )
    assert sum(labels[row] == said[row] for row in shown) == 10, "a quarter of them is right"
    given = values[np.arange(400), [NAMES.index(label) for label in labels]]
    for pair in pairs:  # of each the ones with the least probability for the true class
        rows = sorted(
            (row for row in range(400) if (labels[row], said[row]) == pair), key=lambda row: given[row]
        )
        assert {row for row in shown if (labels[row], said[row]) == pair} == set(
            rows[: sum((labels[r], said[r]) == pair for r in shown)]
        )


def test_images_end_where_their_budget_ends(tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run")
    files = read_run_files(run_dir)
    one = len(read_browse(files)["items"][0].thumbnail)
    found = read_browse(read_run_files(run_dir), budget=5 * one + one // 2)
    assert 4 <= len(found["items"]) <= 6 and all(item.thumbnail for item in found["items"])
    assert sum(len(item.thumbnail) for item in found["items"]) <= 5.5 * one
    kept = [line for line in (run_dir / "thumbnails.jsonl").read_text().splitlines() if '"browse"' in line]
    assert len(kept) == len(found["items"])


def test_a_page_above_its_limit_names_the_images_and_shows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run")
    whole = build_report(run_dir).stat().st_size
    monkeypatch.setattr(page, "MAX_PAGE_BYTES", whole // 2)
    html = build_report(run_dir).read_text(encoding="utf-8")
    assert len(html) < whole and "or the page would be too large" in html
    listed = html.split("data-items")[1].split("</ul>")[0]
    assert listed.count("<li") == 120 and "data:image" not in listed


def test_tokens_and_numbers_of_classes(tmp_path: Path) -> None:
    run_dir, labels, values = make_class_run(tmp_path / "run")
    found = browse_of(run_dir)
    for item in found["items"]:
        true, said = NAMES.index(labels[item.row]), int(values[item.row].argmax())
        assert item.tokens == {
            "true": str(true),
            "said": str(said),
            "is": "wrong" if true != said else "right",
        }
        assert float(item.numbers["loss"]) == pytest.approx(-math.log(values[item.row, true]), rel=1e-4)
        assert float(item.numbers["sure"]) == pytest.approx(values[item.row, said], rel=1e-4)
    cells = [[cell["count"] for cell in cells] for _, cells in found["matrix"]["rows"]]
    counted = np.zeros((4, 4), dtype=int)
    np.add.at(counted, ([NAMES.index(label) for label in labels], values.argmax(axis=1)), 1)
    assert cells == counted.tolist()
    off = counted * (1 - np.eye(4, dtype=int))
    assert [pair["count"] for pair in found["strips"]] == sorted(off[off > 0].tolist(), reverse=True)[:10]


def test_losses_of_a_probability_and_of_grades(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "binary" / "run", BINARY, "roc_auc", images=True)
    for item in browse_of(made.path)["items"]:
        said = made.values[item.row, 0]
        assert float(item.numbers["loss"]) == pytest.approx(
            -math.log(said if made.truth[item.row, 0] else 1 - said), rel=1e-4
        )
    made = make_target_run(tmp_path / "grades" / "run", GRADES, "qwk", images=True)
    found = browse_of(made.path)
    assert found["sorts"][0][0] == "off"
    for item in found["items"]:
        assert int(item.numbers["off"]) == abs(
            int(made.labels[item.row]) - int(GRADES.decode(made.values[[item.row]])[0])
        )


def test_labels_are_missed_said_or_found(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", LABELS, "samples_f2", images=True)
    truth, said = made.truth > 0.5, made.values >= 0.5
    found = browse_of(made.path)
    assert found["matrix"] is None and found["strips"] == []
    for item in found["items"]:
        tokens = set(item.tokens["marks"].split())
        for label in range(len(LABELS.names)):
            assert (f"{label}m" in tokens) == (truth[item.row, label] and not said[item.row, label])
            assert (f"{label}s" in tokens) == (said[item.row, label] and not truth[item.row, label])
            assert (f"{label}f" in tokens) == (said[item.row, label] and truth[item.row, label])
        assert item.wrong == bool((truth[item.row] != said[item.row]).any())
        chances = dict(pair.split(":") for pair in item.numbers["chance"].split())
        for label, value in chances.items():
            assert float(value) == pytest.approx(made.values[item.row, int(label)], abs=1e-4)


def test_numbers_have_errors_and_parts_of_their_range(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", NUMBERS, "mae", images=True)
    found = browse_of(made.path)
    first = [int(re.search(r"\b0p(\d)", item.tokens["marks"])[1]) for item in found["items"]]
    truth = [made.truth[item.row, 0] for item in found["items"]]
    for low, high in ((0, 1), (2, 3), (4, 5)):
        assert max(t for t, part in zip(truth, first, strict=True) if part == low) <= min(
            t for t, part in zip(truth, first, strict=True) if part == high
        )
    for item in found["items"]:
        errors = [float(pair.split(":")[1]) for pair in item.numbers["error"].split()]
        assert errors == pytest.approx((made.values - made.truth)[item.row], rel=1e-3, abs=1e-4)


def test_disagreement_can_be_sorted_by_where_it_is_known(tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=30)
    assert "apart" not in dict(browse_of(run_dir)["sorts"])
    (run_dir / "disagreement.csv").write_text(
        "id,disagreement\n" + "".join(f"{row:03d},{row / 100}\n" for row in range(30))
    )
    found = browse_of(run_dir)
    assert "apart" in dict(found["sorts"])
    assert {item.row: float(item.numbers["apart"]) for item in found["items"]}[7] == 0.07


def test_an_unfinished_run_has_none_and_a_run_without_its_array_has(tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "unfinished", GRADES, "qwk", finished=False)
    assert browse_of(made.path) is None
    run_dir, _, _ = make_class_run(tmp_path / "run")
    (run_dir / "val_probs.npy").unlink()
    found = browse_of(run_dir)
    assert "loss" not in dict(found["sorts"]) and len(found["items"]) == 120


@pytest.mark.parametrize(
    "target, metric", [(BINARY, "roc_auc"), (LABELS, "samples_f2"), (NUMBERS, "mae"), (CLASSES, "accuracy")]
)
def test_no_images_means_none_of_the_data(tmp_path: Path, target: Target, metric: str) -> None:
    made = make_target_run(tmp_path / "run", target, metric, images=True) if target is not CLASSES else None
    run_dir = made.path if isinstance(made, Made) else make_class_run(tmp_path / "run")[0]
    (run_dir / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (90, 30)).save(run_dir / "figures" / "attention.png")
    assert "data:image/jpeg" in build_report(run_dir).read_text(encoding="utf-8")
    assert page.main(["--run", str(run_dir), "--no-images"]) == 0
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in html and "maps over the images" not in html
    assert "--no-images" in html and "data-items" in html, "what was predicted can still be browsed"
    assert "data:image/jpeg" in build_report(run_dir).read_text(encoding="utf-8"), "and they come back"


def test_the_page_says_how_large_it_is(tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=20)
    found = build_report(run_dir)
    said = re.search(r"files of the run; (\d+) kB large", found.read_text(encoding="utf-8"))
    assert abs(int(said[1]) * 1000 - found.stat().st_size) < 1000


# ---- two runs ----


def test_images_that_only_one_of_two_runs_gets_right(tmp_path: Path) -> None:
    one, labels, first = make_class_run(tmp_path / "one", seed=1)
    other, _, second = make_class_run(tmp_path / "other", seed=2, skill=2.0)
    found = read_only_right({"one": read_run_files(one), "other": read_run_files(other)})
    right = np.array(
        [
            [NAMES[p] == label for p, label in zip(values.argmax(axis=1), labels, strict=True)]
            for values in (first, second)
        ]
    )
    counts = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert [part["count"] for part in found["each"]] == counts and min(counts) > 3
    assert (found["both"], found["none"]) == (int(right.all(axis=0).sum()), int((~right.any(axis=0)).sum()))
    alone = [f"{row:03d}.png" for row in np.flatnonzero(right[0] & ~right[1])]
    surest = max(alone, key=lambda name: second[int(name[:3])].max())
    items = found["each"][0]["items"]
    assert items[0]["file"] == surest
    assert {item["file"] for item in items} <= set(alone)
    assert all(item["thumbnail"] for item in items)
    html = build_comparison([one, other], tmp_path / "both").read_text(encoding="utf-8")
    assert f"Only in <bdi>one</bdi>: {counts[0]}" in html and "data:image/jpeg" in html
    assert "data:image/jpeg" not in build_comparison([one, other], tmp_path / "both", images=False).read_text(
        encoding="utf-8"
    )
    assert not (one / "thumbnails.jsonl").exists(), "a comparison writes into no run"


def test_every_range_of_every_number_can_be_chosen(tmp_path: Path) -> None:
    """The choice held only the ranges of the first number, which may have few different values."""
    made = make_target_run(tmp_path / "run", NUMBERS, "mae")
    table = pd.read_csv(made.path / "val_predictions.csv", dtype=str)
    labels = [label.split() for label in table["label"]]
    table["label"] = [f"{row % 2} {label[1]}" for row, label in enumerate(labels)]
    table.to_csv(made.path / "val_predictions.csv", index=False)
    section = read_browse(read_run_files(made.path))
    offered = {value for value, _ in section["filters"][1]["options"]}
    parts = {token.split("p")[1] for item in section["items"] for token in item.tokens["marks"].split()[1::2]}
    assert offered == {"", *(f"p{part}" for part in parts)} and len(parts) == 6


def test_the_sign_test_is_left_out_where_an_id_has_several_images(tmp_path: Path) -> None:
    """Images of one id are alike, so they are no independent comparisons."""
    runs = {seed: make_class_run(tmp_path / str(seed), seed=seed, skill=seed)[0] for seed in (1, 2)}
    found = read_only_right({str(seed): read_run_files(run) for seed, run in runs.items()})
    assert found["chance"].endswith("%")
    for run in runs.values():
        table = pd.read_csv(run / "val_predictions.csv", dtype=str)
        table.assign(id=[f"study {row // 2}" for row in range(len(table))]).to_csv(
            run / "val_predictions.csv", index=False
        )
    again = read_only_right({str(seed): read_run_files(run) for seed, run in runs.items()})
    assert again["chance"] is None and again["shared"] == found["shared"]


def test_numbers_are_nearer_in_one_run(tmp_path: Path) -> None:
    one, two = (
        make_target_run(tmp_path / name / "run", NUMBERS, "mae", epochs=epochs)
        for name, epochs in (("one", 6), ("two", 3))
    )
    found = read_only_right({"one": read_run_files(one.path), "two": read_run_files(two.path)})
    errors = [
        np.abs((made.values - made.truth) / np.array(NUMBERS.scale)).mean(axis=1) for made in (one, two)
    ]
    assert [part["count"] for part in found["each"]] == [
        int((errors[0] < errors[1]).sum()),
        int((errors[1] < errors[0]).sum()),
    ]
    assert found["each"][0]["items"][0]["file"] == f"{int((errors[1] - errors[0]).argmax()):04d}.png"


def test_runs_of_other_rows_or_classes_are_not_compared_image_by_image(tmp_path: Path) -> None:
    one, _, _ = make_class_run(tmp_path / "one")
    other = make_run(tmp_path / "other")
    assert read_only_right({"one": read_run_files(one), "other": read_run_files(other)}) is None


@pytest.mark.parametrize("one, other", [(12, 5), (5, 12), (0, 3), (7, 7), (1, 0), (20_000, 20_200)])
def test_the_sign_test_is_scipys(one: int, other: int) -> None:
    assert sign_test(one, other) == pytest.approx(binomtest(one, one + other).pvalue)


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


SHOWN = """[...document.querySelectorAll('[data-items] li')].filter(item => item.checkVisibility())
    .map(item => item.querySelector('.file').textContent)"""


def press(browser: Browser, key: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        more = {"text": text} if text and kind == "keyDown" else {}
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
        )


@needs_browser
def test_a_cell_of_the_matrix_shows_its_images_sorted_by_loss(browser: Browser, tmp_path: Path) -> None:
    run_dir, labels, values = make_class_run(tmp_path / "run", rows=200)
    browser.open(build_report(run_dir))
    said = values.argmax(axis=1)
    wrong = [row for row in range(200) if NAMES[said[row]] != labels[row]]
    assert len(browser.run(SHOWN)) == min(60, len(wrong)) and browser.complaints == []
    for true, name in ((1, 2), (0, 0), (3, 1)):
        words = f"{NAMES[true]}, {'right' if true == name else 'predicted as ' + NAMES[name]}"
        rows = [row for row in range(200) if labels[row] == NAMES[true] and said[row] == name]
        found = json.dumps(f"{len(rows)}: {words}")
        browser.run(
            "[...document.querySelectorAll('.matrix button')].find(one => one.getAttribute('aria-label') "
            f"=== {found}).click()"
        )
        rows.sort(key=lambda row: values[row, true])
        assert browser.run(SHOWN) == [f"{row:03d}.png" for row in rows] and rows
        assert browser.run("document.activeElement.getAttribute('role')") == "status"
        assert browser.run("document.activeElement.textContent").startswith(f"{len(rows)} image")


@needs_browser
def test_images_are_sorted_as_asked_and_more_can_be_shown(browser: Browser, tmp_path: Path) -> None:
    run_dir, _, values = make_class_run(tmp_path / "run", rows=200)
    (run_dir / "disagreement.csv").write_text(
        "id,disagreement\n" + "".join(f"{row:03d},{(row * 37) % 200}\n" for row in range(200))
    )
    browser.open(build_report(run_dir))
    choose = (
        "(() => {{ const select = document.querySelector({!r}); select.value = {!r}; "
        "select.dispatchEvent(new Event('change')) }})()"
    )
    browser.run(choose.format('[data-filter="is"]', ""))
    for order, key in (
        ("-sure", values.max(axis=1)),
        ("sure", -values.max(axis=1)),
        ("apart", -((np.arange(200) * 37) % 200)),
    ):
        browser.run(choose.format("[data-sort]", order))
        expected = [f"{row:03d}.png" for row in np.argsort(key, kind="stable")]
        assert browser.run(SHOWN)[:5] == expected[:5] and len(browser.run(SHOWN)) == 60
    browser.run("document.querySelector('[data-more]').click()")
    assert browser.run(SHOWN) == expected[:120]
    assert browser.run("document.activeElement.querySelector('.file').textContent") == expected[60]


@needs_browser
def test_labels_are_chosen_with_what_became_of_them(browser: Browser, tmp_path: Path) -> None:
    made = make_target_run(tmp_path / "run", LABELS, "samples_f2", images=True)
    browser.open(build_report(made.path))
    truth, said = made.truth > 0.5, made.values >= 0.5
    label = int((said & ~truth).sum(axis=0).argmax())
    browser.run(
        f"""(() => {{
            const [label, what, is] = document.querySelectorAll('select[data-filter]');
            const sort = document.querySelector('[data-sort]');
            [label.value, what.value, is.value, sort.value] = ['{label}', 's', '', 'chance'];
            sort.dispatchEvent(new Event('change'));
        }})()"""
    )
    rows = [row for row in range(len(truth)) if said[row, label] and not truth[row, label]]
    rows.sort(key=lambda row: -made.values[row, label])
    assert rows and browser.run(SHOWN) == [f"{row:04d}.png" for row in rows]


@needs_browser
def test_the_keyboard_alone_reaches_a_cell_and_its_images(browser: Browser, tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=60)
    browser.open(build_report(run_dir))
    for _ in range(60):
        press(browser, "Tab", 9)
        if browser.run(
            "document.activeElement.closest('.matrix') !== null && document.activeElement.tagName === "
            "'BUTTON'"
        ):
            break
    words = browser.run("document.activeElement.getAttribute('aria-label')")
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    press(browser, "Enter", 13, "\r")
    count = int(words.split(":")[0])
    assert outline == "solid" and len(browser.run(SHOWN)) == count
    press(browser, "Tab", 9)
    press(browser, "Tab", 9)
    assert browser.run("document.activeElement !== document.body")


@needs_browser
def test_a_screen_reader_finds_names_for_all_that_can_be_used(browser: Browser, tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=40)
    browser.open(build_report(run_dir))
    browser.send("Accessibility.enable")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    named = {
        role: [
            node.get("name", {}).get("value", "")
            for node in nodes
            if node.get("role", {}).get("value") == role and not node["ignored"]
        ]
        for role in ("combobox", "button", "image", "status", "table")
    }
    assert {name.split(" ")[0] for name in named["combobox"]} == {"True", "Predicted", "Show", "Sorted"}
    assert len(named["button"]) > 4
    assert all(named["button"])
    assert all(named["image"])
    assert len(named["status"]) == 1
    assert any(": Avocado, right" in name for name in named["button"])


@needs_browser
def test_without_javascript_the_page_is_whole(browser: Browser, tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=40)
    found = build_report(run_dir)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(found)
        assert not browser.run("document.querySelector('[data-controls]').checkVisibility()")
        assert browser.run("document.querySelectorAll('.matrix button').length") == 0
        assert (
            browser.run(SHOWN) == [] and browser.run("document.querySelectorAll('.confused img').length") > 3
        )
        browser.run("document.querySelector('[data-folded]').open = true")
        assert len(browser.run(SHOWN)) == 40
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


@needs_browser
def test_no_script_but_ours_runs_in_the_page(browser: Browser, tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=20)
    found = build_report(run_dir)
    forged = tmp_path / "forged.html"
    forged.write_text(
        found.read_text(encoding="utf-8").replace(
            "</main>", "<script>document.title = 'forged'</script></main>"
        )
    )
    browser.open(forged)
    assert browser.run("document.title") != "forged" and "Content Security Policy" in str(browser.complaints)


def test_names_from_the_data_stay_text_in_every_attribute(tmp_path: Path) -> None:
    run_dir, _, _ = make_class_run(tmp_path / "run", rows=40)
    read = Page(build_report(run_dir))
    assert not any("onmouseover" in attributes for _, attributes in read.tags)
    assert any(NAMES[3] in (attributes.get("data-words") or "") for _, attributes in read.tags)
