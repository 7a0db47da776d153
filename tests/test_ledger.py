"""submissions.csv with several writers, and behind a link."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.kaggle import ledger


def a_row(**cells: str) -> dict[str, str]:
    return dict.fromkeys(ledger.COLUMNS, "") | {"competition": "glyphs", "status": "complete"} | cells


def test_four_processes_that_append_keep_all_rows(tmp_path):
    path = tmp_path / "submissions.csv"
    code = (
        "import sys; from pathlib import Path; from pipeline.kaggle.ledger import append_row, update_row\n"
        "for number in range(25):\n"
        "    row = append_row(Path(sys.argv[1]), {'message': f'{sys.argv[2]}-{number}', 'status': "
        "'pending'})\n"
        "    update_row(Path(sys.argv[1]), row, {'status': 'complete'})"
    )
    root = Path(__file__).resolve().parents[1]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(number)], cwd=root)
        for number in range(4)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    rows = ledger.read_ledger(path)[1]
    assert {row["message"] for row in rows} == {f"{a}-{b}" for a in range(4) for b in range(25)} and len(
        rows
    ) == 100
    assert {row["status"] for row in rows} == {"complete"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["submissions.csv"]


def test_a_ledger_that_is_a_link_is_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "submissions.csv").symlink_to("kept/ledger.csv")
    for number in "12":
        ledger.append_row(tmp_path / "submissions.csv", a_row(message=number))
    assert (tmp_path / "submissions.csv").is_symlink()
    assert [row["message"] for row in ledger.read_ledger(tmp_path / "kept" / "ledger.csv")[1]] == ["1", "2"]


def test_nothing_in_the_ledger_moves_a_cursor(tmp_path):
    path = tmp_path / "submissions.csv"
    row = ledger.append_row(path, a_row(message="\x1b[2Jmine\nand\ryours", status="pending"))
    ledger.update_row(path, row, {"public_score": "0.5\x1b]0;title\x07", "status": "complete"})
    assert set("\x1b\x07\r").isdisjoint(path.read_text())
    (kept,) = ledger.read_ledger(path)[1]
    assert (kept["message"], kept["public_score"], kept["status"]) == (
        "[2Jmine and yours",
        "0.5]0;title",
        "complete",
    )


def test_the_spread_over_folds_is_a_column_once_it_is_known(tmp_path):
    path = tmp_path / "submissions.csv"
    ledger.append_row(path, a_row(message="one run", validation_score="0.8", validation_spread=""))
    assert ledger.read_ledger(path)[0] == list(ledger.COLUMNS)
    ledger.append_row(path, a_row(message="folds", validation_score="0.82", validation_spread="0.011"))
    columns, rows = ledger.read_ledger(path)
    assert columns[4:6] == ["validation_score", "validation_spread"]
    assert [line["validation_spread"] for line in rows] == ["", "0.011"]
