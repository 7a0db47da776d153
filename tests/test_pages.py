"""The pages in a real browser: what a phone shows, what is asked of the network, what the console says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from runs import make_run, score
from target_runs import make_target_run

from pipeline.competition.layout import Row
from pipeline.report import figures
from pipeline.report.comparison import build_comparison
from pipeline.report.page import build_report
from pipeline.report.thumbnails import store_samples
from pipeline.targets.target import Target

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to open the page in")
HOSTILE = (
    '<script>document.title = "run"</script><img src="http://127.0.0.1:9/x" onerror="document.title = 1">'
)
WIDE = "Neoplasm" * 9
KINDS = {
    "probability": (Target("binary", (WIDE, HOSTILE), positive=("1",)), "roc_auc"),
    "grades": (Target("ordinal", ("none", HOSTILE, "鳥 $x^2$", WIDE)), "qwk"),
    "labels": (
        Target(
            "multilabel",
            (HOSTILE, WIDE, "鳥 $x^2$", *(f"label number {number}" for number in range(9))),
            separator="|",
        ),
        "pf1",
    ),
    "numbers": (
        Target(
            "continuous",
            (HOSTILE, WIDE, "$y$"),
            center=(1e6, 0.0, 5.0),
            scale=(1e5, 1e-3, 1.0),
            low=(0.0, -1.0, 0.0),
            high=(9e6, 1.0, 9.0),
        ),
        "rmse",
    ),
}
NAMES = [
    HOSTILE,
    "鳥 $x^2$",
    "x" * 90,
    *(f"a rather long class name, number {number}" for number in range(9)),
]
SECTIONS = [
    "Training",
    "Validation",
    "Attention",
    "Test",
    "Submissions",
    "Training data",
    "Model and recipe",
    "Speed and memory",
]
OURS = (Path(figures.__file__).parent / "templates" / "browse.js").read_text(encoding="utf-8")
WIDER_THAN_THE_SCREEN = """[...document.querySelectorAll('body *')]
    .filter(element => !element.closest('.scroll, .card'))
    .filter(element => element.getBoundingClientRect().right > screen.width + 1)
    .map(element => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page with every section, a comparison, and a page of each other kind of target."""
    root = tmp_path_factory.mktemp("pages")
    picture = root / "picture.png"
    Image.new("RGB", (200, 300), (200, 30, 30)).save(picture)
    run_dir = make_run(root / "run", names=NAMES, epochs=12, per_class=10, paths=[str(picture)] * 12)
    score(run_dir)
    store_samples(run_dir, [Row(str(number), picture, name) for number, name in enumerate(NAMES * 2)], NAMES)
    (run_dir / "figures").mkdir()
    Image.new("RGB", (900, 300)).save(run_dir / "figures" / "attention.png")
    columns = "time,competition,file_sha256,message,validation_score,public_score,private_score,status"
    rows = (
        f"2026-01-0{day}T10:00:00+00:00,birds,{day},{'m' * 80},0.7{day},0.6{day},,complete"
        for day in (1, 2, 5)
    )
    (root / "ledger.csv").write_text("\n".join([columns, *rows]) + "\n")
    other = make_run(root / "other", names=NAMES, epochs=5, per_class=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 50)
        pages = {
            "report": build_report(run_dir, root / "ledger.csv"),
            "comparison": build_comparison([run_dir, other], root / "both"),
        }
        for kind, (target, metric) in KINDS.items():
            made = make_target_run(root / kind / "run", target, metric, rows=120, epochs=4, images=True)
            store_samples(
                made.path,
                [
                    Row(str(row), root / kind / "images" / f"{row:04d}.png", label)
                    for row, label in enumerate(made.labels)
                ],
                target,
            )
            pages[kind] = build_report(made.path, root / "none.csv")
        return pages


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("page", ["report", "comparison", *KINDS])
@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_a_page_fits_asks_for_nothing_and_has_no_errors(
    browser: Browser, pages: dict[str, Path], page: str, width: int, dark: bool
) -> None:
    browser.open(pages[page], width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(WIDER_THAN_THE_SCREEN) == []
    assert (
        browser.run("[...document.images].filter(image => !image.complete || !image.naturalWidth).length")
        == 0
    )
    assert browser.run("document.images.length") > 4
    assert browser.run("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(22, 25, 28)" if dark else "rgb(255, 255, 255)"
    )
    assert [address for address in browser.requests if not address.startswith("data:")] == [
        pages[page].resolve().as_uri()
    ]
    assert browser.complaints == []


def test_every_section_is_there_and_has_something_to_say(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"])
    assert browser.run("[...document.querySelectorAll('h2')].map(heading => heading.innerText)") == [
        *SECTIONS,
        "How it was made",
    ]
    assert (
        min(browser.run("[...document.querySelectorAll('section')].map(section => section.innerText.length)"))
        > 30
    )


def test_class_names_that_are_html_stay_text(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.open(page)
        scripts = browser.run("[...document.scripts].map(script => script.textContent)")
        assert scripts == ([] if page == pages["comparison"] else [OURS])
        assert browser.run("document.title").endswith((": report", ": comparison"))
        assert HOSTILE in browser.run("[...document.querySelectorAll('td')].map(cell => cell.textContent)")


def test_what_the_test_above_trusts_is_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    scripts = '<script>console.log("hello"); absent()</script>'
    page.write_text(
        '<meta name="viewport" content="width=device-width"><div style="width: 800px">x</div><img '
        f'src="http://127.0.0.1:9/x.png">{scripts}'
    )
    browser.open(page, width=390)
    assert browser.run("document.documentElement.scrollWidth") > 390
    assert browser.run(WIDER_THAN_THE_SCREEN) != []
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert "hello" in str(browser.complaints) and "absent is not defined" in str(browser.complaints)


def test_a_page_prints_with_its_folded_tables(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    browser.open(pages["report"])
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and (
        tmp_path / "page.pdf"
    ).read_bytes().count(b"/Type /Page\n") >= 4
