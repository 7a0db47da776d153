"""The resume state: whole or passed over, two generations, nothing executed."""

from __future__ import annotations

import json
import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Malicious

from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.training.checkpoint import StateStore, check_fits, seed_everything, seed_micro_batch


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.normal(),
        torch.rand(1).item(),
        torch.randn(1).item(),
    ]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(folder: Path, count: int) -> StateStore:
    store = StateStore(folder / "state")
    for step in range(1, count + 1):
        store.save({"step": step, "weights": {"w": torch.full((3,), float(step))}}, {"step": step})
    return store


def test_what_a_micro_batch_draws_depends_on_seed_epoch_and_first_row_alone() -> None:
    """Not on what was drawn before: one Gaussian makes python and numpy keep a second."""
    outcomes = {}
    for position in ((7, 0, 0), (7, 0, 8), (7, 1, 0), (8, 0, 0), (2**40, 0, 0), (7, 0, 0)):
        seed_micro_batch(torch.device("cpu"), *position)
        drawn = draws()
        assert outcomes.setdefault(position, drawn) == drawn
    assert len(outcomes) == len({str(drawn) for drawn in outcomes.values()}) == 5


def test_seeds_repeat_and_differ() -> None:
    outcomes = []
    for seed in (1, 1, 2, 2**40):
        seed_everything(seed)
        outcomes.append(draws())
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_what_is_saved_comes_back_exactly(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(5),
        "b": {"c": [1, 2.5, None, "text", True], "d": (1, 2)},
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    store = StateStore(tmp_path / "state")
    store.save(state, {"epoch": 3})
    loaded, _ = store.load()
    assert torch.equal(loaded["a"], state["a"])
    assert loaded["b"] == state["b"]
    assert loaded["half"].dtype == torch.bfloat16
    note = json.loads((tmp_path / "state" / "000001.json").read_text())
    assert note == {"epoch": 3, "sha256": sha256(tmp_path / "state" / "000001.pt")}


def test_a_folder_without_states(tmp_path: Path) -> None:
    assert StateStore(tmp_path / "none").load() == (None, [])
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "000001.pt").write_bytes(b"no note beside it: it was never finished")
    assert StateStore(tmp_path / "state").load() == (None, [])


def test_two_generations_are_kept(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    assert names(tmp_path / "state") == ["000004.json", "000004.pt", "000005.json", "000005.pt"]
    assert store.load()[0]["step"] == 5


def test_a_state_is_not_counted_until_its_note_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path, 2)

    def power_cut(*_args: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("pipeline.training.checkpoint.write_json", power_cut)
    with pytest.raises(OSError):
        store.save({"step": 3}, {})
    monkeypatch.undo()
    assert store.load()[0]["step"] == 2
    store.save({"step": 4}, {})
    assert store.load()[0]["step"] == 4
    assert names(tmp_path / "state") == ["000002.json", "000002.pt", "000003.json", "000003.pt"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda pt, note: flip_a_byte(pt), "its digest does not match"),
        (lambda pt, note: pt.write_bytes(pt.read_bytes()[:50]), "its digest does not match"),
        (lambda pt, note: pt.unlink(), "No such file"),
        (lambda pt, note: note.write_text("{"), "is not valid JSON"),
        (lambda pt, note: note.write_text("{}"), "sha256"),
        (lambda pt, note: note.write_text("[]"), "list indices"),
        (
            lambda pt, note: (pt.write_bytes(b""), note.write_text(json.dumps({"sha256": sha256(pt)}))),
            "0 bytes|EOF|Ran out of input",
        ),
        (
            lambda pt, note: (
                pt.write_bytes(b"PK broken"),
                note.write_text(json.dumps({"sha256": sha256(pt)})),
            ),
            ".",
        ),
    ],
)
def test_a_damaged_newest_state_falls_back_with_a_sentence(tmp_path: Path, damage, reason: str) -> None:
    store = filled(tmp_path, 3)
    damage(tmp_path / "state" / "000003.pt", tmp_path / "state" / "000003.json")
    state, damaged = store.load()
    assert state["step"] == 2 and torch.equal(state["weights"]["w"], torch.full((3,), 2.0))
    assert len(damaged) == 1
    assert re.search(rf"000003\.pt is damaged \(.*({reason}).*\): using the state before it", damaged[0]), (
        damaged[0]
    )


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    store = filled(tmp_path, 3)
    for number in (2, 3):
        flip_a_byte(tmp_path / "state" / f"00000{number}.pt")
    with pytest.raises(UserError) as caught:
        store.load()
    text = str(caught.value)
    assert text.startswith(f"every state in {tmp_path / 'state'} is damaged") and "--output" in text
    assert "000002.pt" in text and "000003.pt" in text


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_passed_over_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    store = filled(tmp_path, 2)
    path, trap = tmp_path / "state" / "000002.pt", tmp_path / "executed"
    if zipped:
        torch.save({"step": Malicious(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"step": Malicious(trap)}, protocol=2))
    path.with_suffix(".json").write_text(json.dumps({"sha256": sha256(path)}))  # its author knows the digest
    state, damaged = store.load()
    assert state["step"] == 1 and "000002.pt is damaged" in damaged[0]
    assert not trap.exists()


def test_states_are_numbered_on_after_a_resume(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    StateStore(tmp_path / "state").save({"step": 9}, {})
    assert StateStore(tmp_path / "state").load()[0]["step"] == 9
    assert "000003.pt" in names(tmp_path / "state")


def test_saving_only_removes_its_own_files(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    for name in ("start.json", "2024 notes.txt", "1.json"):
        (tmp_path / "state" / name).write_text("mine")
    for _ in range(3):
        store.save({"step": 1}, {})
    assert {"start.json", "2024 notes.txt", "1.json"} <= set(names(tmp_path / "state"))


def damaged_state(change) -> tuple[dict, dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    """A state after one step of a small layer, changed by `change`; the layer's weights and its optimizer."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    weights = dict(layer.named_parameters())
    state = {
        "weights": {name: weight.detach().clone() for name, weight in weights.items()},
        "gradients": {name: weight.grad for name, weight in weights.items()},
        "optimizer": optimizer.state_dict(),
    }
    change(state)
    return state, weights, optimizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["weights"].update(weight=torch.zeros(1, 3)),
            r"weight weight: shape \(1, 3\), expected \(2, 3\)",
        ),
        (
            lambda state: state["weights"].update(bias=torch.zeros(())),
            r"weight bias: shape \(\), expected \(2,\)",
        ),
        (lambda state: state["weights"].pop("bias"), "weight bias: missing"),
        (lambda state: state["weights"].update(more=torch.zeros(1)), "weight more: unexpected"),
        (lambda state: state["gradients"].update(bias=torch.zeros(1)), r"gradient bias: shape \(1,\)"),
        (
            lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1, 3)),
            r"optimizer's exp_avg of weight 0: shape \(1, 3\), expected \(2, 3\)",
        ),
    ],
)
def test_a_state_of_another_shape_is_refused_and_never_stretched(change, message: str) -> None:
    check_fits(*damaged_state(lambda state: None))
    with pytest.raises(UserError, match=message):
        check_fits(*damaged_state(change))
