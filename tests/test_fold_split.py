"""Folds and grouped validation parts: who comes where, whatever a label is; groups and folds as somebody
wrote them down.
"""

from __future__ import annotations

import shutil
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_says
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.competition import fold_split
from pipeline.competition.fold_split import Units, find_units, grouped_split, make_folds
from pipeline.competition.groups import Grouping, take_folds
from pipeline.competition.layout import read_layout
from pipeline.config import load_recipe
from pipeline.errors import UserError
from pipeline.folds.plan import plan_folds
from pipeline.targets.target import Target, multiclass
from pipeline.tasks.parting import part_rows

ALONE = Units(tuple(range(60)), 0, ())


def table(path: Path, columns: str, rows: list[tuple]) -> None:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def flat(root: Path, columns: str, rows: list[tuple], **others: tuple[str, list[tuple]]) -> Path:
    """train.csv with these rows and an image (its own bytes) for each first cell; other tables beside it."""
    for number, row in enumerate(rows):
        path = root / f"train/{row[0]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"image {number}".encode())
    table(root / "train.csv", columns, rows)
    for name, (header, cells) in others.items():
        table(root / f"{name}.csv", header, cells)
    return root


def refusal(root: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_layout(root, need="train", **options)
    return str(caught.value)


def test_one_class_an_image_is_stratified() -> None:
    labels = ["a"] * 40 + ["b"] * 20
    folds, lines = make_folds(multiclass("ab"), labels, ALONE, 5, 1)
    assert [
        Counter(label for label, fold in zip(labels, folds, strict=True) if fold == number)
        for number in range(1, 6)
    ] == [{"a": 8, "b": 4}] * 5
    assert len(lines) == 1 and "12" in lines[0]
    assert (
        make_folds(multiclass("ab"), labels, ALONE, 5, 1)[0]
        == folds
        != make_folds(multiclass("ab"), labels, ALONE, 5, 2)[0]
    )


def test_several_labels_an_image_are_each_stratified() -> None:
    rng = np.random.default_rng(0)
    target = Target("multilabel", ("often", "half", "seldom", "rare"), may_be_empty=True)
    encoded = rng.random((500, 4)) < [0.7, 0.4, 0.1, 0.02]
    labels = [" ".join(np.array(target.names)[row]) for row in encoded]
    units = Units(tuple(range(500)), 0, ())
    folds, _ = make_folds(target, labels, units, 5, 0)
    for column in range(4):
        counts = np.bincount(np.array(folds)[encoded[:, column]], minlength=6)[1:]
        # KFold leaves 5 and more on the rare ones
        assert counts.max() - counts.min() <= 2, target.names[column]
    assert set(np.bincount(folds)[1:]) <= set(range(97, 104))


def test_numbers_go_by_their_tenths() -> None:
    numbers = np.random.default_rng(0).permutation(100)
    folds, _ = make_folds(
        Target("continuous", ("score",)),
        [str(number) for number in numbers],
        Units(tuple(range(100)), 0, ()),
        5,
        0,
    )
    for fold in range(1, 6):
        assert sorted(numbers[np.array(folds) == fold] // 10) == sorted([*range(10), *range(10)])


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 14), min_size=20, max_size=80),
    count=st.integers(2, 5),
    kind=st.sampled_from(["multiclass", "multilabel", "continuous", "binary"]),
    seed=st.integers(0, 3),
)
def test_no_group_is_ever_in_two_folds_and_no_fold_is_empty(
    groups: list[int], count: int, kind: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    names = {"continuous": ("x",), "binary": ("no", "yes")}.get(kind, ("a", "b", "c"))
    target = Target(kind, names, positive=("yes",) if kind == "binary" else (), may_be_empty=True)
    labels = {
        "multiclass": lambda: rng.choice(names),
        "binary": lambda: rng.choice(names),
        "multilabel": lambda: " ".join(name for name in names if rng.random() < 0.4),
        "continuous": lambda: str(rng.integers(100)),
    }[kind]
    texts = [str(labels()) for _ in groups]
    place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    units = Units(tuple(place[group] for group in groups), len(place), ())
    if len(place) < count:
        with pytest.raises(UserError, match=f"use at most {len(place)}"):
            make_folds(target, texts, units, count, seed)
        return
    folds, lines = make_folds(target, texts, units, count, seed)
    where = defaultdict(set)
    for group, fold in zip(groups, folds, strict=True):
        where[group].add(fold)
    assert all(len(found) == 1 for found in where.values())
    assert set(folds) == set(range(1, count + 1))
    assert len(place) == len(groups) or any(
        f"{len(place)} groups" in line and " points" in line for line in lines
    )
    train, val, how = grouped_split(target, texts, units, 0.3, seed)
    assert sorted(train + val) == list(range(len(groups)))
    assert not {groups[row] for row in train} & {groups[row] for row in val}
    if target.kind == "multiclass":
        assert {texts[row] for row in train} == set(texts)
    assert f"validation: {len(val)} of {len(groups)}" in how


def test_too_few_or_too_many_folds() -> None:
    for count in (1, 0, -2):
        with pytest.raises(UserError, match=f"--folds {count}: at least 2"):
            make_folds(multiclass("ab"), ["a", "b"] * 30, ALONE, count, 0)
    with pytest.raises(UserError, match=r"only 60 labelled rows.*use at most 60"):
        make_folds(multiclass("ab"), ["a", "b"] * 30, ALONE, 61, 0)


def test_a_class_with_fewer_rows_than_folds_is_said() -> None:
    labels = ["a"] * 30 + ["b"] * 27 + ["c", "c", "d"]
    folds, lines = make_folds(multiclass("abcd"), labels, ALONE, 5, 0)
    said = next(line for line in lines if "fewer rows than folds" in line)
    assert said.startswith("2 classes") and f"'d' (1 row: validated in fold {folds[59]}, " in said
    assert ", ".join(map(str, sorted({folds[57], folds[58]}))) in said


def test_a_class_whose_rows_are_one_group_is_said() -> None:
    labels, groups = ["a"] * 30 + ["b"] * 21 + ["c"] * 9, (*range(51), *[51] * 9)
    folds, lines = make_folds(multiclass("abc"), labels, Units(groups, 52, ()), 5, 0)
    (said,) = [line for line in lines if "all rows in one" in line]
    assert said.startswith("1 class with") and f"'c' (9 rows: validated in fold {folds[59]}, " in said


def test_memory_grows_with_the_rows_not_with_rows_times_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_split, "MOST_CELLS", 100_000)
    names = [f"class {number:03}" for number in range(800)]
    labels, of = names * 5, (0, 0, *range(1, 3_999))  # an array of rows x classes takes 26 MB
    for units in (Units(of, 0, ()), Units(tuple(range(4_000)), 0, ())):
        tracemalloc.start()
        train, val, _ = grouped_split(multiclass(names), labels, units, 0.2, 0)
        folds, _ = make_folds(multiclass(names), labels, units, 5, 0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 8_000_000
        assert len(val) == 800 and {labels[row] for row in train} == set(names)
        assert set(np.bincount(folds)[1:]) == {800}
        assert len(set(zip(labels, folds, strict=True))) >= 3_990
        assert folds[0] == folds[1] or not units.bind


def test_rows_with_the_same_bytes_stay_together(tmp_path: Path) -> None:
    root = flat(tmp_path, "id,label", [(f"i{number}", "ab"[number % 2]) for number in range(20)])
    for name in ("i3", "i8"):
        (root / f"train/{name}.jpg").write_bytes(b"the same")
    competition = read_layout(root, need="train")
    paths = {row.id: [row.path] for row in competition.train}
    units = find_units(list(paths), paths, None)
    assert units.bind and units.of[3] == units.of[8] and len(set(units.of)) == 19
    folds, lines = make_folds(competition.target, [row.label for row in competition.train], units, 4, 0)
    assert folds[3] == folds[8]
    assert any("2 rows with the same file" in line and "'i3'" in line and "'i8'" in line for line in lines)


def test_a_stated_split_that_parts_equal_files_is_a_warning(tmp_path: Path) -> None:
    rows = [(f"i{number}", "ab"[number % 2], "val" if number >= 15 else "train") for number in range(20)]
    root = flat(tmp_path, "id,label,split", rows)
    competition = read_layout(root, need="train")
    train, val, how = part_rows(load_recipe("digits"), competition, competition.train, None)
    assert [row.id for row in val] == [f"i{number}" for number in range(15, 20)] and len(train) == 15
    assert "WARNING" not in how
    for name in ("i3", "i17"):
        (root / f"train/{name}.jpg").write_bytes(b"the same")
    assert_says(
        part_rows(load_recipe("digits"), competition, competition.train, None)[2], "WARNING", "'i3', 'i17'"
    )


def test_a_group_column_of_the_table_of_labels(tmp_path: Path) -> None:
    root = flat(
        tmp_path,
        "id,label,patient",
        [(f"i{number}", "ab"[number % 2], f"p{number // 4}") for number in range(12)],
    )
    competition = read_layout(root, need="train", grouped=Grouping(column="patient"))
    assert competition.groups == {f"i{number}": f"p{number // 4}" for number in range(12)}
    assert read_layout(root, need="train").groups is None
    assert "'patients'" in (text := refusal(root, grouped=Grouping(column="patients")))
    assert "nearest: 'patient'" in text


def test_a_group_column_of_another_table(tmp_path: Path) -> None:
    root = flat(
        tmp_path,
        "id,label",
        [(f"i{number}", "ab"[number % 2]) for number in range(8)],
        scans=("file,site", [(f"i{number}.jpg", number % 3) for number in range(8)]),
    )
    assert read_layout(root, need="train", grouped=Grouping(column="site")).groups == {
        f"i{number}": str(number % 3) for number in range(8)
    }
    table(root / "scans.csv", "file,site", [(f"i{number}.jpg", number % 3) for number in range(6)])
    text = refusal(root, grouped=Grouping(column="site"))
    assert "2 of 8 labelled ids have no group: 'i6', 'i7'" in text and "scans.csv" in text


def test_groups_of_a_file(tmp_path: Path) -> None:
    root = flat(tmp_path / "data", "id,label", [(f"i{number}", "ab"[number % 2]) for number in range(8)])
    table(tmp_path / "mine.csv", "id,group", [(f"i{number}", number // 2) for number in range(8)])
    grouped = Grouping(file=str(tmp_path / "mine.csv"))
    assert read_layout(root, need="train", grouped=grouped).groups == {
        f"i{number}": str(number // 2) for number in range(8)
    }
    table(tmp_path / "mine.csv", "id,group", [(f"i{number}.jpg", number // 2) for number in range(8)])
    assert read_layout(root, need="train", grouped=grouped).groups["i5"] == "2"
    table(tmp_path / "mine.csv", "id,group", [*((f"i{number}", 0) for number in range(8)), ("i3", 1)])
    assert "'i3': '0', '1'" in refusal(root, grouped=grouped)
    table(
        tmp_path / "mine.csv",
        "id,group",
        [(f"i{number}", "" if number in (1, 4) else 0) for number in range(8)],
    )
    assert "rows 3, 6" in refusal(root, grouped=grouped)
    table(tmp_path / "mine.csv", "id,patient", [("i0", 0)])
    assert "no column group" in refusal(root, grouped=grouped)
    assert "nowhere.csv" in refusal(root, grouped=Grouping(file="nowhere.csv"))


def test_folds_as_somebody_made_them(tmp_path: Path) -> None:
    root = flat(
        tmp_path,
        "id,label,fold",
        [(f"i{number}", "ab"[number % 2], number % 3 * 10 - 1) for number in range(9)],
    )
    competition = read_layout(root, need="train")
    ids = list(competition.folds)
    taken = take_folds(ids, competition.folds, competition.folds_from, 3)
    assert taken == [1, 2, 3] * 3  # -1, 9, 19 in the order of numbers
    with pytest.raises(UserError, match=r"holds 3 folds.*--folds .*\b5: use --folds 3"):
        take_folds(ids, competition.folds, competition.folds_from, 5)
    table(root / "folds.csv", "id,fold", [(f"i{number}", "ab"[number % 2]) for number in range(9)])
    competition = read_layout(root, need="train")
    assert competition.folds_from.endswith("folds.csv") and take_folds(
        ids, competition.folds, "folds.csv", 2
    ) == [1, 2] * 4 + [1]
    (said,) = plan_folds(tmp_path / "run", competition, load_recipe("digits"), 2).notes[1:]
    assert "'a' (5 rows: validated in fold 1, " in said and "'b' (4 rows: validated in fold 2, " in said
    with pytest.raises(UserError, match=r"folds.csv puts all 9 labelled ids into the fold '1': at least 2"):
        take_folds(ids, dict.fromkeys(ids, "1"), "folds.csv", 2)
    table(root / "folds.csv", "id,fold", [("i0", 1), ("i1", "")])
    with pytest.raises(UserError, match=r"row 3: column 'fold' is empty; give each row a value$"):
        read_layout(root, need="train")
    table(root / "folds.csv", "id,fold", [("i0", 1)])
    competition = read_layout(root, need="train")
    with pytest.raises(UserError, match="8 of 9 labelled ids have no fold"):
        take_folds(ids, competition.folds, "folds.csv", 2)


def test_the_folds_of_a_run_are_folds_of_the_data_also_for_ids_that_look_like_formulas(
    tmp_path: Path,
) -> None:
    names = [f"{mark}i{number}" for mark in "-=+@" for number in range(3)]
    root = flat(tmp_path / "data", "id,label", [(name, "ab"[place % 2]) for place, name in enumerate(names)])
    recipe = load_recipe("digits")
    plan = plan_folds(tmp_path / "run", read_layout(root, need="train"), recipe, 3)
    plan.write(recipe, "")
    shutil.copy(tmp_path / "run/folds.csv", root)
    competition = read_layout(root, need="train")
    assert competition.folds == {row_id: str(fold) for row_id, fold in plan.fold_of.items()}
    assert "no labelled image" not in "\n".join(competition.notes)


@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_ids_of_no_labelled_image_in_folds_and_groups_are_told(tmp_path: Path, suffix: str) -> None:
    root = flat(tmp_path, "id,label", [(f"i{number}", "ab"[number % 2]) for number in range(9)])
    rows = [(f"i{number}{suffix}", number % 2) for number in range(11)]
    table(root / "folds.csv", "id,fold", rows)
    table(root / "own.csv", "id,group", [(f"j9{suffix}", 1), *rows[:9]])
    competition = read_layout(root, need="train", grouped=Grouping(file="own.csv"))
    assert set(competition.folds) == {f"i{number}" for number in range(9)}
    said = "\n".join(competition.notes)
    assert_says(
        said, "own.csv", "1 id", f"'j9{suffix}'", "folds.csv", "2 ids", f"'i9{suffix}', 'i10{suffix}'"
    )
    table(root / "folds.csv", "id,fold", rows[:9])
    assert "folds.csv" not in "\n".join(read_layout(root, need="train").notes)
