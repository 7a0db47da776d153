"""Layouts that must be read, each with its broken twin: what a data folder means, told by what it holds."""

import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import competitions
import pytest
from conftest import assert_says

from pipeline.competition.groups import Grouping
from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.targets.evidence import Asked, Decision
from pipeline.targets.target import Target, multiclass
from pipeline.tasks.apply import read_for

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo" / "make_zoo.py"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(root, **tables):
    root.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text, encoding="utf-8")
    return root


def two_classes(root, **tables):
    """Class folders cat and dog, test images 8 and 9, and tables."""
    return write(
        touch(
            root,
            *(f"train/{name}/{name}-{n}.jpg" for name in ("cat", "dog") for n in "ab"),
            "test/8.jpg",
            "test/9.jpg",
        ),
        **tables,
    )


def flat(root, names=("1", "2", "3", "4"), tests=("8", "9"), **tables):
    return write(
        touch(root, *(f"train/{name}.jpg" for name in names), *(f"test/{name}.jpg" for name in tests)),
        **tables,
    )


def refusal(root, **options):
    with pytest.raises(UserError) as caught:
        read_layout(root, **options)
    return str(caught.value)


def said(competition):
    assert len(competition.notes) <= 6
    return "\n".join(competition.notes)


def labels(competition):
    return {row.id: row.label for row in competition.train}


@pytest.fixture
def evidence(monkeypatch):
    """What `decide` is given; it then answers with one class a text."""
    given = {}

    def decide(labels, sample, asked=None):
        given.update(labels=labels, sample=sample, asked=asked)
        if labels.columns:
            return Decision(
                Target("multilabel", labels.columns), "roc_auc", [""] * len(labels.cells), "decided"
            )
        return Decision(multiclass(sorted(set(labels.texts))), "accuracy", labels.texts, "decided")

    monkeypatch.setattr("pipeline.competition.layout.decide", decide)
    return given


# ---- every kind ----


@pytest.mark.parametrize("kind", competitions.KINDS)
def test_every_kind_is_read(tmp_path, kind):
    made = competitions.KINDS[kind](tmp_path / "data")
    said_by_page = dict(zip(made.flags[::2], made.flags[1::2], strict=True))
    positive = tuple(filter(None, said_by_page.get("--positive-class", "").split(",")))
    competition = read_layout(made.root, asked=Asked(said_by_page.get("--metric"), positive_class=positive))
    assert competition.form.columns == made.columns
    assert competition.form.row_ids == tuple(made.answers)
    assert tuple(dict.fromkeys(row.id for row in competition.test)) == competition.form.ids
    assert all(row.path.is_file() for row in (*competition.train, *competition.test))
    assert not {row.path for row in competition.train} & {row.path for row in competition.test}
    assert any(note.startswith("target: ") and said_by_page["--metric"] in note for note in competition.notes)
    said(competition)


def test_labels_that_are_columns_are_given_as_they_stand(tmp_path, evidence):
    read_layout(competitions.label_columns(tmp_path / "data").root)
    found = evidence["labels"]
    assert (found.source, found.columns) == ("table", ("ETT - Normal", "NGT - Normal", "CVC - Normal"))
    assert len(found.cells) == 32 and set(map(len, found.cells)) == {3} and found.texts == ()


def test_json_gives_category_numbers_where_numbers_are_asked_for(tmp_path, evidence):
    root = competitions.coco_json(tmp_path / "data").root
    read_layout(root)
    assert evidence["labels"].source == "json" and set(evidence["labels"].texts) == {"0", "2", "24", "96"}
    sample = (root / "sample_submission.csv").read_text().replace("442", "animal 2")
    (root / "sample_submission.csv").write_text(sample)
    read_layout(root)
    assert set(evidence["labels"].texts) == {"animal 0", "animal 2", "animal 24", "animal 96"}


# ---- class folders and shards ----


def test_several_roots_keep_files_of_one_name_apart(tmp_path):
    competition = read_layout(
        competitions.several_roots(tmp_path / "data").root, asked=Asked(positive_class=("JMiPOD", "UERD"))
    )
    assert (
        labels(competition)["Cover/00001.jpg"] == "Cover" and labels(competition)["UERD/00001.jpg"] == "UERD"
    )
    assert len(competition.train) == len(labels(competition)) == 24


def test_folders_of_masks_are_no_classes(tmp_path):
    touch(tmp_path, "images/1.jpg", "images/2.jpg", "masks/1.png", "masks/2.png", "test/3.jpg")
    assert "hold kinds of files, not classes" in refusal(tmp_path)


def test_shard_folders_are_no_classes(tmp_path):
    root = competitions.shards_and_json(tmp_path / "data").root
    assert {row.label for row in read_layout(root).train} == {"0", "3", "105", "212"}
    (root / "plants/train/metadata.json").unlink()
    assert "the folders such as plants/train/" in refusal(root)


def test_shards_by_the_beginning_of_names_are_no_classes(tmp_path):
    touch(
        tmp_path,
        *(f"train/{head}/{head}{tail}.jpg" for head in ("0a", "0b", "1c") for tail in ("9f31", "77d2")),
    )
    message = refusal(tmp_path, need="train")
    assert "the folders such as train/0a" in message and "no classes" in message


def test_numbered_class_folders_are_classes(tmp_path):
    touch(tmp_path, *(f"train/{kind}/x{kind}{n}.png" for kind in range(3) for n in range(2)))
    assert read_layout(tmp_path, need="train").class_names == ("0", "1", "2")


def test_a_class_folder_in_each_patients_folder(tmp_path):
    names = [
        f"train/{patient}/{kind}/{patient}-{kind}.png"
        for patient in (8863, 8864, 8865, 8867)
        for kind in (0, 1)
    ]
    assert {
        row.path.parent.name: row.label for row in read_layout(touch(tmp_path, *names), need="train").train
    } == {"0": "0", "1": "1"}


def test_a_table_about_other_images_than_the_class_folders(tmp_path):
    two_classes(tmp_path, train="id,label\n1,red\n2,blue\n")
    touch(tmp_path, "images/1.jpg", "images/2.jpg")
    message = refusal(tmp_path)
    assert "train.csv holds labels of other images than the class folders in train/" in message
    write(tmp_path, sample_submission="id,label\n8,red\n9,red\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "red", "2": "blue"}
    assert "the folders in train/ hold other images and are not used" in said(competition)
    write(tmp_path, sample_submission="id,label\n8,cat\n9,dog\n")
    assert set(labels(read_layout(tmp_path)).values()) == {"cat", "dog"}


# ---- classes in file names ----


@pytest.mark.parametrize(("number", "name"), [(5, "{0}"), (12, "image")])
def test_folders_of_one_image_each_are_no_classes(tmp_path, number, name):
    for n in range(number):
        folder = f"train/a{n}"
        touch(tmp_path, f"{folder}/{name.format(f'a{n}')}.jpg", f"{folder}/label.json")
        (tmp_path / folder / "label.json").write_text('{"label": 1}')
    assert_says(refusal(tmp_path, need="train"), "train/", "one image", "train.csv", "image,label")
    rows = "".join(f"a{n}/{name.format(f'a{n}')}.jpg,{n % 2}\n" for n in range(number))
    write(tmp_path, train="image,label\n" + rows)
    assert set(labels(read_layout(tmp_path, need="train", asked=Asked("accuracy"))).values()) == {"0", "1"}


def test_images_to_predict_in_a_folder_called_otherwise_beside_labelled_test_classes(tmp_path):
    touch(tmp_path, *(f"{part}/{kind}/{part}{kind}.jpg" for part in ("train", "test") for kind in ("a", "b")))
    touch(tmp_path, "train/a/a2.jpg", "predict/1.jpg", "predict/2.jpg")
    write(tmp_path, sample_submission="image,kind\n2.jpg,a\n1.jpg,a\n")
    competition = read_layout(tmp_path)
    assert [(row.id, row.path.parent.name) for row in competition.test] == [
        ("2.jpg", "predict"),
        ("1.jpg", "predict"),
    ]


def test_a_class_in_the_file_name(tmp_path):
    competition = read_layout(
        competitions.names_tell(tmp_path / "data").root, asked=Asked(positive_class=("dog",))
    )
    assert labels(competition)["cat.3"] == "cat"
    assert labels(competition)["dog.3"] == "dog"
    assert len(competition.train) == 24


def test_names_do_not_tell_where_a_table_does(tmp_path):
    names = [f"{kind}_{n}" for kind in ("left", "right") for n in range(6)]
    flat(
        tmp_path,
        names,
        train="id,label\n" + "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names)),
    )
    assert set(labels(read_layout(tmp_path)).values()) == {"a", "b"}


@pytest.mark.parametrize(
    "names", [[f"img_{n}" for n in range(12)], ["Train_0", "Test_1"] * 6, [f"IMG_{n}_{n}" for n in range(12)]]
)
def test_names_that_only_number_images_are_no_classes(tmp_path, names):
    touch(tmp_path, *(f"images/{name}{n}.jpg" for n, name in enumerate(names)))
    assert "no training images with labels" in refusal(tmp_path, need="train")


# ---- tables ----


def test_a_table_of_attributes_is_no_table_of_labels(tmp_path):
    flat(
        tmp_path,
        ("aa", "bb"),
        train="id,attribute_ids\naa,0 1\nbb,1\n",
        labels="attribute_id,attribute_name\n0,red\n1,blue\n",
    )
    assert labels(read_layout(tmp_path, asked=Asked(kind="multilabel"))) == {"aa": "0 1", "bb": "1"}


@pytest.mark.parametrize("place", ["train/metadata.csv", "train/_classes.csv", "meta/train_info.csv"])
def test_a_table_beside_the_images(tmp_path, place):
    flat(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("file_name,label\n1.jpg,cat\n2.jpg,dog\n3.jpg,cat\n4.jpg,dog\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1.jpg": "cat", "2.jpg": "dog", "3.jpg": "cat", "4.jpg": "dog"}
    assert place in competition.notes[0]


def test_a_list_of_lines_is_a_table_without_a_header(tmp_path):
    flat(tmp_path)
    (tmp_path / "train.txt").write_text("train/1.jpg 0\ntrain/2.jpg 1\ntrain/3.jpg 0\ntrain/4.jpg 1\n")
    competition = read_layout(tmp_path)
    assert {row.path.name: row.label for row in competition.train} == {
        "1.jpg": "0",
        "2.jpg": "1",
        "3.jpg": "0",
        "4.jpg": "1",
    }


@pytest.mark.parametrize(
    ("name", "text"), [("test.csv", "8.jpg\n9.jpg\n"), ("test.txt", "8.jpg 0\n9.jpg 1\n")]
)
def test_a_table_of_test_images_without_a_header_keeps_its_first_row(tmp_path, name, text):
    two_classes(tmp_path)
    (tmp_path / name).write_text(text)
    competition = read_layout(tmp_path)
    assert [row.id for row in competition.test] == ["8.jpg", "9.jpg"]
    assert competition.form.columns == ("id", "label")
    assert "no header" in said(competition)


def test_a_sample_submission_without_a_header_is_refused_with_the_command_that_adds_one(tmp_path):
    path = two_classes(tmp_path, sample_submission="8.jpg,cat\n9.jpg,cat\n") / "sample_submission.csv"
    with pytest.raises(UserError) as error:
        read_layout(tmp_path)
    assert_says(str(error.value), str(path), "row 1", "'8.jpg'")
    subprocess.run(["sh", "-c", "{ echo" + str(error.value).partition("{ echo")[2]], check=True)
    assert [row.id for row in read_layout(tmp_path).test] == ["8.jpg", "9.jpg"]


def test_a_table_without_a_header_keeps_its_first_row(tmp_path):
    flat(tmp_path, train="1.jpg,cat\n2.jpg,dog\n3.jpg,cat\n4.jpg,dog\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1.jpg": "cat", "2.jpg": "dog", "3.jpg": "cat", "4.jpg": "dog"}
    assert "no header" in said(competition)


def test_what_is_not_read_is_named(tmp_path):
    touch(two_classes(tmp_path), "labels.xlsx", "train/boxes.parquet")
    assert "seen and not read: labels.xlsx, train/boxes.parquet" in said(read_layout(tmp_path))


def test_a_pandas_index_and_a_missing_image(tmp_path):
    names = [f"{n:02d}" for n in range(20)]
    shuffled = [*names[7:], *names[:7]]
    flat(tmp_path, names)
    rows = [f"{row},{int(name)},c{row % 2}\n" for row, name in enumerate([*shuffled, "99"])]
    # ids written without zeros: numbers that the unnamed-like column matches by chance
    (tmp_path / "train").rename(tmp_path / "old")
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(21)))
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    (tmp_path / "old").rmdir()
    write(tmp_path, train="Unnamed: 0,id,label\n" + "".join(rows))
    message = refusal(tmp_path)
    assert "1 of 21 ids without an image: '99' in row 22" in message and "train.csv (id, label)" in message
    write(tmp_path, train=",id,label\n" + "".join(rows[:-1]))
    competition = read_layout(tmp_path)
    assert competition.train[0].id == "7" and len(competition.train) == 20
    assert "pandas index" in said(competition)


@pytest.mark.parametrize("name", ["row", "index", "Unnamed: 0"])
def test_a_numbering_is_no_id_where_another_column_finds_images(tmp_path, name):
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(12)), "test/1.jpg", "test/2.jpg")
    order = [n * 5 % 12 for n in range(12)]
    write(
        tmp_path,
        train=f"{name},photo,label\n"
        + "".join(f"{row},{n}.jpg,{'ab'[n % 2]}\n" for row, n in enumerate(order)),
    )
    write(tmp_path, sample_submission=f"{name},photo,label\n1,2.jpg,a\n2,1.jpg,a\n")
    competition = read_layout(tmp_path)
    assert all(row.label == "ab"[int(row.path.stem) % 2] for row in competition.train)
    assert [row.path.name for row in competition.test] == ["2.jpg", "1.jpg"]


@pytest.mark.parametrize("name", ["row", "Unnamed: 0"])
def test_a_numbering_is_no_id_where_the_ids_find_few_images(tmp_path, name):
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(12)), "test/20.jpg")
    write(
        tmp_path,
        train=f"{name},id,label\n"
        + "".join(f"{n},{n if n < 2 else n + 90},{'ab'[n % 2]}\n" for n in range(12)),
    )
    assert "train.csv (id, label)" in refusal(
        tmp_path
    ) and "10 of 12 ids without an image: '92' in row 4" in refusal(tmp_path)
    write(tmp_path, train=f"{name},name,label\n" + "".join(f"{n},{n % 2},{'ab'[n % 2]}\n" for n in range(12)))
    # A few numbers again and again are no ids, whatever they are called
    assert read_layout(tmp_path).train[3].id == "3"


@pytest.mark.parametrize("numbers", [(100, 101), (7, 3)])
def test_a_numbering_of_the_sample_is_no_column_to_fill_wherever_it_begins(tmp_path, numbers):
    two_classes(tmp_path)
    touch(tmp_path, "test/1.jpg", "test/2.jpg")
    rows = "".join(f"{number},{name},cat\n" for number, name in zip(numbers, (2, 1), strict=True))
    competition = read_layout(write(tmp_path, sample_submission=f"Unnamed: 0,id,label\n{rows}"))
    assert competition.form.columns == ("id", "label") and [row.id for row in competition.test] == ["2", "1"]
    assert "numbers the rows ignored" in said(competition)


def test_a_split_column_is_the_split(tmp_path):
    flat(tmp_path, train="id,label,split,fold\n1,cat,train,0\n2,dog,valid,1\n3,dog,test,2\n4,dog,train,1\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "dog", "4": "dog"}
    assert competition.split == {"1": "train", "2": "val", "4": "train"}
    assert_says(said(competition), "'split'", "1 validate", "1 are test rows")
    assert competition.folds == {"1": "0", "2": "1", "4": "1"} and "'fold'" in competition.folds_from
    write(tmp_path, train="id,label,split\n1,cat,train\n2,dog,valid\n3,dog,7\n4,dog,train\n")
    assert "marks rows as 'train', 'valid' and as '7'" in refusal(tmp_path).replace(
        "'train', 'val'", "'train', 'valid'"
    )


def test_the_split_column_of_a_table_without_labels_refuses_nothing(tmp_path):
    lines = "".join(
        f"{name}-{n},{part}\n" for name in ("cat", "dog") for n, part in (("a", "train"), ("b", "extra"))
    )
    competition = read_layout(two_classes(tmp_path, origin=f"id,split\n{lines}"))
    assert labels(competition) == {"cat-a": "cat", "cat-b": "cat", "dog-a": "dog", "dog-b": "dog"}
    lines = "".join(
        f"{name}-{n},{part},{name}\n"
        for name in ("cat", "dog")
        for n, part in (("a", "train"), ("b", "extra"))
    )
    assert "marks rows as 'train' and as 'extra'" in refusal(
        write(tmp_path, train=f"id,split,label\n{lines}")
    )


def test_a_column_that_holds_parts_is_the_split_whatever_it_is_called(tmp_path):
    flat(
        tmp_path, train="id,label,dataset\n1,cat,Training\n2,dog,Training\n3,dog,Testing\n4,cat,Validation\n"
    )
    competition = read_layout(tmp_path)
    assert competition.split == {"1": "train", "2": "train", "4": "val"}
    assert_says(said(competition), "'dataset'", "1 validate", "1 are test rows")
    write(tmp_path, train="id,class\n1,train\n2,test\n3,train\n4,test\n")  # what is called a class is one
    assert set(labels(read_layout(tmp_path)).values()) == {"train", "test"}


def test_tables_about_other_images_are_named_and_decide_nothing(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\nx.png,hello\ny.png,hi\n")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,text\n8.jpg,hello\n")
    assert "test/metadata.csv, train/metadata.csv not used for labels" in said(read_layout(tmp_path))


def test_an_unclear_table_decides_nothing_where_another_holds_the_labels(tmp_path):
    flat(tmp_path, names=("0", "1", "2", "3"), train="id,label\n0,cat\n1,dog\n2,cat\n3,dog\n")
    (tmp_path / "train" / "_classes.csv").write_text("filename,a,b\nx.png,1,0\ny.png,0,1\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"0": "cat", "1": "dog", "2": "cat", "3": "dog"}
    assert "train/_classes.csv not used for labels" in said(competition)


def test_is_valid_is_the_split(tmp_path):
    flat(tmp_path, train="id,label,is_valid\n1,cat,False\n2,dog,False\n3,dog,True\n4,cat,True\n")
    assert read_layout(tmp_path).split == {"1": "train", "2": "train", "3": "val", "4": "val"}


def test_test_rows_of_a_split_may_lie_among_the_test_images(tmp_path):
    flat(tmp_path, train="id,label,split\n1,cat,train\n2,dog,train\n8,dog,test\n9,dog,test\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "dog"} and competition.split is None


def test_one_number_written_in_two_ways(tmp_path):
    flat(tmp_path, train="id,label\n1,0\n2,1.0\n3,0.0\n4,1\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "0", "2": "1", "3": "0", "4": "1"}
    assert "'0.0', '1.0' taken as '0', '1'" in said(competition)


def test_a_study_of_several_images(tmp_path):
    competition = read_layout(competitions.long_rows(tmp_path / "data").root)
    study = [row for row in competition.train if row.id == "1.2.826.1000"]
    assert [row.path.name for row in study] == ["1.png", "2.png", "3.png"] and len(
        {row.label for row in study}
    ) == 1
    assert "validation score" not in said(competition)  # it is of whole studies


@pytest.mark.parametrize("places", ["000", "101"])
@pytest.mark.parametrize("first", ["study", "label"])
def test_labels_of_the_sample_that_are_names_of_slices_are_no_ids(tmp_path, places, first):
    names = {"train": ("a", "b", "c", "d"), "test": ("y", "x", "z")}
    touch(tmp_path, *(f"{part}/{name}/{n}.png" for part in names for name in names[part] for n in "012"))
    write(tmp_path, train="study,label\na,0\nb,1\nc,2\nd,0\n")
    rows = [("study", "label"), *zip(names["test"], places, strict=True)]
    rows = rows if first == "study" else [row[::-1] for row in rows]
    write(tmp_path, sample_submission="".join(",".join(row) + "\n" for row in rows))
    competition = read_layout(tmp_path, asked=Asked("accuracy"))
    assert labels(competition) == {"a": "0", "b": "1", "c": "2", "d": "0"}
    assert competition.form.row_ids == names["test"]
    assert all(row.path.parent.name == row.id for row in competition.test)


@pytest.mark.parametrize("places", ["666", "363"])
def test_labels_of_the_sample_that_are_names_of_images_are_no_ids(tmp_path, places):
    touch(tmp_path, *(f"{part}/{n}.jpg" for part in ("train", "test") for n in (0, 3, 6)))
    write(tmp_path, train="seen,file,kind\nq,0.jpg,3\nr,3.jpg,6\ns,6.jpg,3\n")
    write(tmp_path, test="seen,file\nt,0.jpg\nu,3.jpg\nv,6.jpg\n")
    rows = "".join(f"{name},{place}\n" for name, place in zip("vtu", places, strict=True))
    competition = read_layout(write(tmp_path, sample_submission=f"seen,kind\n{rows}"))
    assert [(row.id, row.path.name) for row in competition.test] == [
        ("v", "6.jpg"),
        ("t", "0.jpg"),
        ("u", "3.jpg"),
    ]


def test_a_study_without_images_is_named(tmp_path):
    root = competitions.long_rows(tmp_path / "data").root
    with open(root / "train.csv", "a") as file:
        file.write("9.9.9,0,0,0,1\n")
    assert "'9.9.9' in row 18" in refusal(root)


def test_long_training_rows_become_columns(tmp_path, evidence):
    rows = [
        (f"ID_{n}_{kind}", (n + position) % 2)
        for n in range(6)
        for position, kind in enumerate(("epidural", "any"))
    ]
    touch(
        tmp_path,
        *(f"stage_2_train/ID_{n}.png" for n in range(6)),
        "stage_2_test/ID_90.png",
        "stage_2_test/ID_91.png",
    )
    competitions.table(tmp_path / "stage_2_train.csv", ("ID", "Label"), rows)
    sample = [(f"ID_{n}_{kind}", 0.5) for n in (91, 90) for kind in ("epidural", "any")]
    competitions.table(tmp_path / "stage_2_sample_submission.csv", ("ID", "Label"), sample)
    competition = read_layout(tmp_path)
    assert evidence["labels"].columns == ("epidural", "any") and evidence["labels"].cells[1] == ("1", "0")
    assert (competition.form.ids, competition.form.row_labels) == (
        ("ID_91", "ID_90"),
        ("epidural", "any") * 2,
    )
    assert [row.path.name for row in competition.test] == ["ID_91.png", "ID_90.png"]


def long_table(root, images, kinds, rows=None):
    """Rows <image>_<kind> of a training table and a sample."""
    touch(root, *(f"train/{name}.png" for name in images), "test/t8.png", "test/t9.png")
    rows = rows or [
        (f"{name}_{kind}", (n + m) % 2) for n, name in enumerate(images) for m, kind in enumerate(kinds)
    ]
    competitions.table(root / "train.csv", ("id", "v"), rows)
    sample = [(f"{name}_{kind}", 0.5) for name in ("t8", "t9") for kind in kinds]
    competitions.table(root / "sample_submission.csv", ("id", "v"), sample)
    return root


@pytest.mark.parametrize("images", [("a1", "a2", "a3", "a4"), ("a_1", "a_2", "a_3", "a_4")])
@pytest.mark.parametrize(
    "kinds", [("x", "y_z"), ("x", "y_z", "w_z"), ("z", "y_z", "x_y_z"), ("p", "q", "r", "s_t")]
)
def test_labels_of_long_rows_may_contain_the_mark(tmp_path, evidence, images, kinds):
    competition = read_layout(long_table(tmp_path, images, kinds))
    assert evidence["labels"].columns == kinds and len(competition.train) == len(images)
    assert evidence["labels"].cells == tuple(
        tuple(str((n + m) % 2) for m in range(len(kinds))) for n in range(len(images))
    )
    assert competition.form.row_labels == kinds * 2


def test_a_long_row_of_two_possible_images_goes_by_the_other_rows_or_is_refused(tmp_path, evidence):
    images, kinds = ("a1", "a1_y", "a3", "a4"), ("x", "z")
    read_layout(long_table(tmp_path / "clear", images, kinds))
    assert evidence["labels"].columns == kinds and evidence["labels"].cells[1] == ("1", "0")
    rows = [(f"{name}_{kind}", 1) for name in images for kind in ("z", "y_z")]
    message = refusal(long_table(tmp_path / "unclear", images, ("z", "y_z"), rows))
    assert_says(message, "train.csv", "row 3", "'a1_y_z'", "'a1'", "'a1_y'")


# ---- JSON ----


def test_an_image_with_several_annotations(tmp_path, evidence):
    flat(tmp_path, ("1", "2"))
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]
    marks = [
        {"id": n, "image_id": image, "category_id": kind}
        for n, (image, kind) in enumerate([(1, 5), (1, 6), (1, 5), (2, 6)])
    ]
    written = {
        "images": images,
        "annotations": marks,
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(written))
    read_layout(tmp_path)
    assert evidence["labels"].texts == ("cat dog", "dog")
    written["categories"][0]["name"] = "wild cat"
    (tmp_path / "annotations.json").write_text(json.dumps(written))
    read_layout(tmp_path)
    assert evidence["labels"].columns == ("dog", "wild cat") and evidence["labels"].cells == (
        ("1", "1"),
        ("1", "0"),
    )


@pytest.mark.parametrize(
    ("paths", "of"),
    [
        # patients 1 to 6, each with the series 1 and 2; patients 1 to 3, each with the series 1 to 4
        (
            [f"{n}/{s}/{k}.png" for n in range(1, 4) for s in range(1, 5) for k in "ab"],
            lambda path: path.parts[0],
        ),
        ([f"{n}/{s}/{k}.png" for n in range(1, 7) for s in (1, 2) for k in "ab"], lambda path: path.parts[0]),
        (
            [f"p{n}{side}_{k}.png" for n in (1, 2, 3) for side in ("", "_L") for k in "ab"],
            lambda path: path.stem[:-2],
        ),
        (
            [f"{name}/{k}.png" for name in ("A", "A/B", "C", "C/D") for k in "ab"],
            lambda path: path.parent.name,
        ),
    ],
)
def test_an_image_belongs_to_one_id(tmp_path, paths, of):
    touch(tmp_path, *(f"{part}/{path}" for part in ("train", "test") for path in paths))
    ids = list(dict.fromkeys(of(Path(path)) for path in paths))
    table = "".join(f"{row_id},{'xy'[number % 2]}\n" for number, row_id in enumerate(ids))
    competition = read_layout(
        write(tmp_path, train=f"id,label\n{table}", sample_submission=f"id,label\n{table}")
    )
    for part, rows in (("train", competition.train), ("test", competition.test)):
        assert len(rows) == len(paths)
        assert all(row.id == of(row.path.relative_to(tmp_path / part)) for row in rows)


def test_folders_of_which_several_may_be_the_ids_are_refused(tmp_path):
    sites = ("north", "south")  # with the same numbers of patients and of series
    touch(tmp_path, *(f"train/{site}/{n}/{s}/a.png" for site in sites for n in "12" for s in "12"))
    rows = "id,label\n1,x\n2,y\n"
    text = refusal(write(tmp_path, train=rows, sample_submission=rows), need="train")
    assert_says(text, "train.csv", "'1', '2'", "images.csv")


def test_rows_in_json(tmp_path):
    flat(tmp_path)
    rows = [
        {"file": f"{n}.jpg", "label": "ab"[n % 2], "split": "valid" if n == 4 else "train"}
        for n in range(1, 5)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1.jpg": "b", "2.jpg": "a", "3.jpg": "b", "4.jpg": "a"}
    assert competition.split["4.jpg"] == "val"
    rows[2]["label"] = float("nan")  # as Python writes a missing value
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert "row 3: no label in column 'label'" in refusal(tmp_path)
    (tmp_path / "train.json").write_text("[{")
    assert "train.json is not valid JSON" in refusal(tmp_path)


def test_broken_json_that_is_not_needed_is_named(tmp_path):
    (two_classes(tmp_path) / "info.json").write_text("{")
    assert "info.json cannot be read as a table" in said(read_layout(tmp_path))


# ---- the sample submission ----


@pytest.mark.parametrize(
    "name",
    [
        *(
            "kaggle_sample_submission.csv",
            "sample_submission_v2.csv",
            "sample_submission (1).csv",
            "stage_2_sample_submission.csv",
        ),
        *(
            "submission_format.csv",
            "nested/sample_submission.csv",
            "../sample_submission.csv",
            "for_kaggle.csv",
        ),
        *(f"{name}.csv" for name in ("sample_solution", "PredictionTemplate", "example_answers")),
    ],
)
def test_a_sample_of_another_name_or_place(tmp_path, name):
    root = two_classes(tmp_path / "data")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("image,kind\n9,cat\n8,cat\n")
    competition = read_layout(root)
    assert competition.form.columns == ("image", "kind") and competition.form.row_ids == ("9", "8")


def test_a_packed_sample_is_read_directly(tmp_path):
    text = "image,kind\n9,cat\n8,cat\n"
    root = two_classes(tmp_path / "one")
    (root / "sample_submission.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_layout(root).form.row_ids == ("9", "8")
    root = two_classes(tmp_path / "two")
    with zipfile.ZipFile(root / "sample_submission.csv.zip", "w") as archive:
        archive.writestr("sample_submission.csv", text)
    assert read_layout(root).form.row_ids == ("9", "8")


def test_a_sample_that_cannot_be_read_is_no_reason_to_make_columns_up(tmp_path):
    root = touch(two_classes(tmp_path / "one"), "sample_submission.csv.7z")
    assert "sample_submission.csv.7z is not unpacked" in refusal(root)
    root = write(two_classes(tmp_path / "two"), my_submission="id,label\n8,cat\n9,dog\n")
    assert "my_submission.csv looks like the sample submission" in refusal(root)
    (root / "my_submission.csv").rename(root / "submit.csv")
    assert "submit.csv looks like the sample submission" in refusal(root)
    root = write(
        two_classes(tmp_path / "three"), zeros="id,label\n8,cat\n9,cat\n", ones="id,label\n8,dog\n9,dog\n"
    )
    message = refusal(root)
    assert "zeros.csv" in message and "ones.csv" in message and "may all be the sample submission" in message


def test_a_sample_beside_the_data_folder_about_other_images_is_left_alone(tmp_path):
    root = two_classes(tmp_path / "data")
    write(tmp_path, sample_submission="id,label\nx,cat\ny,cat\n")
    assert read_layout(root).form.path is None


def test_the_sample_whose_images_are_there_is_taken(tmp_path):
    root = two_classes(
        tmp_path,
        sample_submission="id,label\n70,cat\n71,cat\n",
        sample_submission_v2="id,label\n8,cat\n9,cat\n",
    )
    assert read_layout(root).form.path.name == "sample_submission_v2.csv"


def test_a_class_that_only_the_sample_has(tmp_path):
    touch(two_classes(tmp_path), "test/7.jpg", "test/6.jpg")
    write(tmp_path, sample_submission="id,label\n8,cat\n9,dog\n7,bird\n6,cat\n")
    message = refusal(tmp_path)
    assert "'bird'" in message and "--target multiclass" in message
    competition = read_layout(tmp_path, asked=Asked(kind="multiclass"))
    assert competition.class_names == ("cat", "dog") and "'bird'" in said(competition)
    write(tmp_path, sample_submission="id,cat,dog,bird\n8,0,0,0\n9,0,0,0\n7,0,0,0\n6,0,0,0\n")
    assert "the column 'bird' is no class of the training data" in refusal(tmp_path)


def test_an_id_whose_image_is_of_an_unread_format_names_the_format(tmp_path):
    write(tmp_path, train="id,label\n1,a\n2,b\n3,a\n")
    touch(tmp_path, "train/1.png", "train/2.png", "train/3.tga")
    assert_says(refusal(tmp_path), "1 of 3 ids", "1 .tga file", ".png", "'3' in row 4")


def test_ids_that_lead_to_several_images_through_a_table(tmp_path):
    root = competitions.views_by_table(tmp_path / "data").root
    found = [row.path.name for row in read_layout(root).test if row.id == "108_R"]
    assert sorted(found) == ["6082.png", "6083.png"]
    assert "validation score is of single images" in said(read_layout(root))  # rows have no such id
    lines = (root / "test.csv").read_text().splitlines()
    (root / "test.csv").write_text("\n".join(line for line in lines if not line.endswith("108_R")) + "\n")
    assert "row 3: 1 id without an image (test.csv leads from them" in refusal(root)


def test_ids_that_lead_to_images_through_json(tmp_path):
    root = competitions.shards_and_json(tmp_path / "data").root
    assert [(row.id, row.path.name) for row in read_layout(root).test][:2] == [
        ("0", "scan-8.jpg"),
        ("1", "scan-7.jpg"),
    ]
    (root / "plants/test/metadata.json").unlink()
    assert "8 of 8 ids without an image" in refusal(root)


@pytest.mark.parametrize("with_table", [True, False])
def test_several_rows_an_image(tmp_path, with_table):
    root = competitions.long_rows(tmp_path / "data", with_table=with_table).root
    form = read_layout(root).form
    assert form.ids == tuple(f"1.2.826.{1016 + n}" for n in range(5))
    assert form.subjects[:2] == ("1.2.826.1016", "1.2.826.1017") and form.row_labels[4:6] == (
        "patient_overall",
        "C1",
    )
    # without training data the table says which row is what, or the last part of the ids
    for name in ("train.csv", "train_bounding_boxes.csv"):
        (root / name).unlink()
    if with_table:
        competition = read_layout(root, need="test")
        assert competition.form.row_labels[4:6] == ("patient_overall", "C1")
        assert competition.class_names == ("patient_overall", "C1", "C2", "C3")


def test_two_test_folders_that_the_sample_needs_both(tmp_path):
    root = competitions.tags(tmp_path / "data").root
    competition = read_layout(root)
    assert {row.path.parent.name for row in competition.test} == {"test-jpg", "test-jpg-additional"}
    (root / "test-jpg-additional/file_9.jpg").unlink()
    assert "'file_9' in row 11" in refusal(root)


def test_a_known_target_is_not_decided_again(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.competition.layout.decide", lambda *_: pytest.fail("decided"))
    target = Target("multilabel", ("ETT - Normal", "NGT - Normal", "CVC - Normal"), separator=";")
    competition = read_layout(competitions.label_columns(tmp_path / "data").root, known=(target, "roc_auc"))
    assert (competition.target, competition.metric) == (target, "roc_auc")
    assert set(target.encode([row.label for row in competition.train]).ravel()) == {0.0, 1.0}


# ---- names, real layouts ----


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
@pytest.mark.parametrize("utf8", ["0", ""])
def test_other_locales_read_right_or_say_what_to_set(tmp_path, locale, utf8):
    touch(tmp_path, "train/Café/1.jpg", "train/Kühe/2.jpg")
    code = (
        "import sys; from pipeline.competition.layout import read_layout; from pipeline.errors import "
        "UserError\n"
        "try: print(ascii(read_layout(sys.argv[1], need='train').class_names))\n"
        "except UserError as error: print(ascii(str(error)))"
    )
    environment = {**os.environ, "LC_ALL": locale, "PYTHONPATH": str(Path(__file__).parents[1])} | (
        {"PYTHONUTF8": utf8} if utf8 else {}
    )
    environment |= {"PYTHONCOERCECLOCALE": "0"} if utf8 else {}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == ascii(("Café", "Kühe")) or "export PYTHONUTF8=1" in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(not ZOO.is_file(), reason="the stand-in competitions are not here")
def test_the_stand_ins_that_are_images_and_tables(tmp_path):
    ids = (
        *(
            "alaska2-image-steganalysis",
            "aptos2019-blindness-detection",
            "cassava-leaf-disease-classification",
        ),
        *(
            "dog-breed-identification",
            "dogs-vs-cats-redux-kernels-edition",
            "herbarium-2020-fgvc7",
            "herbarium-2021-fgvc8",
        ),
        *(
            "histopathologic-cancer-detection",
            "humpback-whale-identification",
            "iwildcam-2020-fgvc7",
            "petfinder-pawpularity-score",
        ),
        *(
            "planet-understanding-the-amazon-from-space",
            "plant-pathology-2020-fgvc7",
            "plant-pathology-2021-fgvc8",
        ),
        *(
            "ranzcr-clip-catheter-line-classification",
            "state-farm-distracted-driver-detection",
            "whale-categorization-playground",
        ),
    )
    subprocess.run([sys.executable, ZOO, tmp_path, *ids], check=True, capture_output=True)
    with pytest.raises(UserError, match=r"(?s)'Cover'.*--positive-class NAME"):
        read_layout(tmp_path / ids[0] / "public")
    for name in ids:
        grade = [sys.executable, ZOO.with_name("grade.py"), "--flags", name]
        words = subprocess.run(grade, check=True, capture_output=True, text=True).stdout.split()
        page = dict(zip(words[::2], words[1::2], strict=True))
        positive = tuple(filter(None, page.pop("--positive-class", "").split(",")))
        asked = Asked(page.pop("--metric", None), page.pop("--target", None), positive)
        competition = read_layout(tmp_path / name / "public", asked=asked)
        answers = (tmp_path / name / "private/answers.csv").read_text().splitlines()
        assert competition.form.row_ids == tuple(line.split(",")[0] for line in answers[1:]), name
        assert len(competition.train) >= 80, name


def test_images_in_pieces_of_a_download_are_no_classes(tmp_path):
    names = [f"ISIC_{n:04d}" for n in range(12)]
    touch(tmp_path, *(f"HAM_images_part_{1 + n % 2}/{name}.jpg" for n, name in enumerate(names)))
    rows = "".join(f"L{n % 5},{name},{('nv', 'mel')[n % 3 == 0]},h{n % 2}\n" for n, name in enumerate(names))
    write(tmp_path, HAM_metadata="lesion_id,image_id,dx,dx_type\n" + rows)
    message = refusal(tmp_path, need="train")
    assert "HAM_metadata.csv is about these images" in message and "--set data.label_column=NAME" in message
    assert read_layout(tmp_path, need="train", label_column="dx").class_names == ("mel", "nv")


def test_a_table_of_names_that_finds_a_few_images_by_chance(tmp_path):
    flat(
        tmp_path,
        [str(n) for n in range(12)],
        train="id,breed,colour\n" + "".join(f"{n},{n % 2},{n % 3}\n" for n in range(12)),
    )
    write(tmp_path, breed_labels="BreedID,BreedName\n0,x\n1,y\n")
    assert "train.csv: the label may be in 'breed' (2 values), 'colour' (3 values)" in refusal(tmp_path)


def test_boxes_beside_labels(tmp_path):
    flat(
        tmp_path,
        train="id,label\n1,a\n2,b\n3,a\n4,b\n",
        train_boxes="id,x,y,label\n1,0,0,car\n2,1,1,car\n3,1,1,car\n4,2,2,bus\n",
    )
    competition = read_layout(tmp_path)
    assert set(labels(competition).values()) == {"a", "b"} and "train_boxes.csv not used for labels" in said(
        competition
    )


def test_everything_one_folder_down(tmp_path):
    touch(
        tmp_path,
        *(
            f"set/{part}/{name}/{n}.jpg"
            for part in ("train", "valid", "test")
            for name in ("cat", "dog")
            for n in "12"
        ),
    )
    competition = read_layout(tmp_path)
    assert competition.form.ids == ("cat/1.jpg", "dog/1.jpg", "cat/2.jpg", "dog/2.jpg")
    assert {row.path.parent.parent.name for row in competition.train} == {"train", "valid"}
    assert "without a label" not in said(competition)


# ---- a folder of validation images beside the class folders ----


def parted(root, held=("valid/cat/1.jpg", "valid/dog/7.jpg"), test=("test/8.jpg",)):
    names = [f"train/{name}/{n}.jpg" for name in ("cat", "dog", "owl") for n in "123"]
    return touch(root, *names, *held, *test)


@pytest.mark.parametrize("test", [("test/8.jpg",), ()])
def test_class_folders_of_validation_images_are_the_validation_rows(tmp_path, test):
    parted(tmp_path, test=test)
    competition = read_layout(tmp_path, need="train")
    held = {
        row.id: (row.path.parts[-3:], row.label) for row in competition.train if "valid" in row.path.parts
    }
    assert held == {
        "valid/cat/1.jpg": (("valid", "cat", "1.jpg"), "cat"),
        "valid/dog/7.jpg": (("valid", "dog", "7.jpg"), "dog"),
    }
    assert len(competition.train) == 11 and competition.split_from == "those in valid/"
    assert {row_id for row_id, part in competition.split.items() if part == "val"} == set(held)
    assert sorted(competition.split) == sorted(row.id for row in competition.train)


def test_file_names_that_differ_stay_the_ids_beside_validation_images(tmp_path):
    touch(tmp_path, "train/cat/a1.jpg", "train/cat/a2.jpg", "train/dog/b1.jpg", "train/dog/b2.jpg")
    touch(tmp_path, "val/cat/c1.jpg", "val/dog/d1.jpg")
    competition = read_layout(tmp_path, need="train")
    assert competition.split == dict.fromkeys(("a1", "a2", "b1", "b2"), "train") | {"c1": "val", "d1": "val"}


@pytest.mark.parametrize(
    "held",
    [("valid/1.jpg", "valid/2.jpg"), ("valid/cat/1.jpg", "valid/fox/7.jpg"), ("valid/images/1.jpg",)],
    ids=["no classes", "another class", "kinds of files"],
)
def test_validation_images_without_the_same_classes_are_not_used(tmp_path, held):
    competition = read_layout(parted(tmp_path, held))
    assert len(competition.train) == 9 and competition.split is None
    assert "valid/ not used" in said(competition)


def test_labels_of_validation_images_in_a_table_of_their_own(tmp_path):
    """They are not used, the note says how; with a column split they are."""
    touch(tmp_path, *(f"train/{n}.jpg" for n in "1234"), "val/5.jpg", "val/6.jpg", "test/8.jpg")
    write(tmp_path, train="id,label\n1,a\n2,b\n3,a\n4,b\n", val="id,label\n5,a\n6,b\n", test="id\n8\n")
    competition = read_layout(tmp_path)
    assert len(competition.train) == 4 and "train.csv with a column split (train, val)" in said(competition)
    rows = "".join(f"{n},{'ab'[n % 2]},{'train' if n < 5 else 'val'}\n" for n in range(1, 7))
    write(tmp_path, train=f"id,label,split\n{rows}", test="id\n8\n")
    competition = read_layout(tmp_path)
    assert [row_id for row_id, part in competition.split.items() if part == "val"] == ["5", "6"]


def test_images_of_the_sample_are_no_validation_rows(tmp_path):
    parted(tmp_path, test=())
    write(tmp_path, sample_submission="id,label\nvalid/cat/1.jpg,cat\nvalid/dog/7.jpg,cat\n")
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert [row.path.parts[-3] for row in competition.test] == ["valid", "valid"]
    assert competition.split is None and len(competition.train) == 9


# ---- what other real competitions look like ----


def sampled(root, column, value, ids=("8", "9")):
    """Four training images, two test images, and a sample submission with `value` in every row."""
    rows = "".join(f'{name},"{value}"\n' for name in ids)
    return flat(root, train="id,label\n1,a\n2,b\n3,a\n4,b\n", sample_submission=f"id,{column}\n{rows}")


@pytest.mark.parametrize(
    ("column", "value", "asked_for"),
    [
        ("EncodedPixels", "1 1", "segmentation"),
        ("rle_mask", "", "segmentation"),
        ("PredictionString", "14 1 0 0 1 1", "detection"),
        ("MultipolygonWKT", "MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)))", "detection"),
        ("labels", "U+003F 1 1 U+FF2F 2 2", "a number beside each"),
        ("landmarks", "8815 0.5", "a number beside each"),
    ],
)
def test_masks_boxes_and_confidences_are_refused_by_what_the_sample_asks_for(
    tmp_path, column, value, asked_for
):
    message = refusal(sampled(tmp_path, column, value))
    assert asked_for in message and repr(column) in message and "sample_submission.csv" in message


@pytest.mark.parametrize("value", ["a", "a b", "Bison bison", "0.5", "a 1"])
def test_labels_and_guesses_are_no_masks(tmp_path, value):
    asked = Asked(positive_class=("b",)) if value == "0.5" else Asked(metric="accuracy", kind=None)
    assert read_layout(sampled(tmp_path, "label", value), asked=asked).form is not None


def test_lists_of_numbers_name_no_classes(tmp_path):
    root = sampled(tmp_path, "label", "0 1 2")
    for metric in (None, "map_at_3"):
        with pytest.raises(UserError, match=r"sample_submission.*'label'.*'0 1 2'.*'a', 'b'"):
            read_layout(root, asked=Asked(metric=metric))
    asked = Asked(metric="map_at_3", kind="multiclass")  # the numbers are placeholders
    assert read_layout(root, asked=asked).form.kind == "ranked"


def denoised(root):
    touch(root, "train/1.png", "train_cleaned/1.png", "test/8.png")
    rows = "".join(f"8_{row}_{column},1\n" for row in range(1, 9) for column in range(1, 9))
    (root / "sample_submission.csv").write_text("id,value\n" + rows)  # the values equal the name of an image


def compared(root):
    flat(root, train="id,artist\n1,a\n2,b\n3,a\n4,b\n", sample_submission="row,same\n0,0.5\n1,0.5\n")
    (root / "submission_info.csv").write_text("row,one,other\n0,8.jpg,9.jpg\n1,9.jpg,8.jpg\n")


def sketched(root):
    flat(root, tests=("a", "b"), train="id,label\n1,0\n2,1\n3,0\n4,1\n")
    write(root, test="pair,photo,sketch\np,a.jpg,test/b.jpg\nq,b.jpg,test/a.jpg\n")
    write(root, sample_submission="pair,label\np,0.5\nq,0.5\n")


def studied(root):
    train = "".join(f"s{n % 2},{n},{n % 2},{(n + 1) % 2}\n" for n in range(1, 5))
    flat(root, train=f"study,id,early,late\n{train}", test="study,id\ns7,8\ns7,9\n")
    (root / "sample_submission.csv").write_text("id,label\ns7_early,0.5\ns7_late,0.5\n8,0.5\n9,0.5\n")


def spread(root):
    columns = ",".join(f"P{number}" for number in range(60))
    rows = "".join(f"{name}_{part},{','.join('0' * 60)}\n" for name in "89" for part in ("low", "high"))
    numbers = "".join(f"{n},{n}.5,{n}.25\n" for n in range(1, 5))
    flat(root, train=f"id,low,high\n{numbers}", sample_submission=f"id,{columns}\n{rows}")


def doubted(root):
    flat(root, train="id,volume\n1,10.5\n2,11\n3,12\n4,9.5\n")
    (root / "sample_submission.csv").write_text("id,volume,Confidence\n8,10,100\n9,10,100\n")


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (denoised, ["each pixel", "'8_1_1'", "64 rows"]),
        (compared, ["pairs", "submission_info.csv", "'one', 'other'"]),
        (sketched, ["pairs", "test.csv", "'photo', 'sketch'"]),
        (studied, ["other things", "2 of 4", "'s7_early'", "'study' of test.csv"]),
        (spread, ["distribution", "low, high of train.csv", "'P0' to 'P59'"]),
        (doubted, ["how certain", "'volume', 'Confidence'"]),
    ],
)
def test_rows_that_are_not_about_an_image_are_refused_by_what_they_ask_for(tmp_path, layout, words):
    layout(tmp_path)
    message = refusal(tmp_path)
    assert [word for word in words if word not in message] == [] and "not supported" in message


def test_photographs_of_both_eyes_are_views_of_an_id(tmp_path):
    ids = {"train": ("1", "2", "3", "4"), "test": ("8", "9")}
    for part, names in ids.items():
        touch(tmp_path, *(f"{part}/{name}_{side}.jpg" for name in names for side in ("left", "right")))
    (tmp_path / "train.csv").write_text("id,label\n1,a\n2,b\n3,a\n4,b\n")
    (tmp_path / "test.csv").write_text("id,left,right\n8,8_left.jpg,8_right.jpg\n9,9_left.jpg,9_right.jpg\n")
    (tmp_path / "sample_submission.csv").write_text("id,label\n8,a\n9,a\n")
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert [row.id for row in competition.test] == ["8", "8", "9", "9"]


def test_a_training_table_that_names_both_eyes_of_an_id_is_read_by_the_id(tmp_path):
    ids = ("1", "2", "3", "4")
    touch(tmp_path, *(f"train/{name}_{side}.jpg" for name in ids for side in ("left", "right")))
    rows = "".join(f"{name},{name}_left.jpg,{name}_right.jpg,{'ab'[int(name) % 2]}\n" for name in ids)
    write(tmp_path, train=f"ID,Left,Right,label\n{rows}")
    competition = read_layout(tmp_path, need="train")
    assert [row.id for row in competition.train[:2]] == ["1", "1"] and len(competition.train) == 8
    write(tmp_path, train=f"ID,Left,Right,label\n{rows}".replace("4_right", "5_right"))
    (tmp_path / "train/4_right.jpg").rename(tmp_path / "train/5_right.jpg")
    assert "'Left', 'Right' name different images" in refusal(tmp_path, need="train")


def framed(root):
    tests = [f"e{n}" for n in range(4)]
    rows = "".join(f"e{n}.jpg,e{max(n - 1, 0)}.jpg,e{min(n + 1, 3)}.jpg\n" for n in range(4))
    flat(root, tests=tests, train="frame,label\n1.jpg,a\n2.jpg,b\n3.jpg,a\n4.jpg,b\n")
    sample = "".join(f"{name}.jpg,a\n" for name in tests)
    write(root, test=f"frame,before,after\n{rows}", sample_submission=f"frame,label\n{sample}")


def tiled(root):
    tests = [f"s_{row}_{column}" for row in range(8) for column in range(8)]
    flat(root, tests=(*tests, "s"), train="id,label\n1,a\n2,b\n3,a\n4,b\n")
    write(root, sample_submission="id,label\n" + "".join(f"{name},a\n" for name in tests))


def hot(root):
    """A column a class, called by its number, and ids that end in numbers."""
    names, tests = [f"t_{n}" for n in range(60)], [f"e_{n}" for n in range(4)]
    head = "id," + ",".join(map(str, range(60)))
    rows = "".join(
        f"{name},{','.join(str(int(n == k)) for k in range(60))}\n" for n, name in enumerate(names)
    )
    sample = "".join(f"{name}{',0.5' * 60}\n" for name in tests)
    flat(root, names, tests, train=f"{head}\n{rows}", sample_submission=f"{head}\n{sample}")


def spreads(root):
    rows = "".join(f"{n},{n}.5,{n}.25\n" for n in range(1, 5))
    flat(root, train=f"id,mean,std\n{rows}", sample_submission="id,mean,std\n8,1,1\n9,1,1\n")


def faces(root):
    touch(root, *(f"train/{name}/{name}{n}.jpg" for name in ("mask", "none") for n in range(3)))
    touch(root, "test/8.jpg", "test/9.jpg")
    write(root, sample_submission="id,mask,none\n8,0.5,0.5\n9,0.5,0.5\n")


def masked(root):
    flat(root, train="id,mask\n1,0\n2,1\n3,0\n4,1\n", sample_submission="id,mask\n8,0.5\n9,0.5\n")


@pytest.mark.parametrize(
    ("layout", "metric", "test"),
    [
        (framed, "accuracy", "e0.jpg"),
        (tiled, "accuracy", "s_0_0"),
        (hot, "log_loss", "e_0"),
        (spreads, "rmse", "8"),
        (faces, "log_loss", "8"),
        (masked, "roc_auc", "8"),
    ],
)
def test_rows_about_an_image_that_look_like_others_are_read(tmp_path, layout, metric, test):
    layout(tmp_path)
    competition = read_layout(tmp_path, asked=Asked(metric=metric))
    assert competition.test[0].id == test and competition.test[0].path.name == Path(test).stem + ".jpg"
    assert {row.id for row in competition.test} == set(competition.form.row_ids)


def test_a_licence_that_is_another_in_each_row_is_no_pair_with_a_file(tmp_path):
    flat(tmp_path, tests=("1", "2", "3"), train="id,label\n1,a\n2,b\n3,a\n4,b\n")
    write(tmp_path, test="id,file,licence\n70,1.jpg,3\n71,2.jpg,1\n72,3.jpg,2\n")
    write(tmp_path, sample_submission="id,label\n70,a\n71,a\n72,a\n")
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert [row.path.name for row in competition.test] == ["1.jpg", "2.jpg", "3.jpg"]


def test_pairs_in_a_folder_that_training_shares_are_refused(tmp_path):
    touch(tmp_path, *(f"images/{n}.jpg" for n in range(12)))
    write(tmp_path, train="id,one,other,same\n0,0.jpg,1.jpg,0\n1,2.jpg,3.jpg,1\n2,4.jpg,5.jpg,0\n")
    write(
        tmp_path, test="id,one,other\n3,6.jpg,7.jpg\n4,8.jpg,6.jpg\n", sample_submission="id,same\n3,1\n4,1\n"
    )
    assert "pairs" in refusal(tmp_path)  # 3 and 4 are names of images too


@pytest.mark.parametrize("patients", [(2, 2, 3, 3), (3, 2, 1, 0)])
def test_row_numbers_that_are_images_do_not_give_way_to_numbers_of_patients(tmp_path, patients):
    rows = "".join(f"{n},{patient},{'ab'[n % 2]}\n" for n, patient in enumerate(patients))
    flat(tmp_path, "0123", train=f"case,patient,label\n{rows}", sample_submission="case,label\n8,a\n9,a\n")
    if len(set(patients)) < 4:
        competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
        assert {row.path.name: row.label for row in competition.train}["0.jpg"] == "a"
    else:  # either may be the id
        assert "'case', 'patient' name different images" in refusal(tmp_path)


@pytest.mark.parametrize("rows", ["0,2,0\n1,0,1\n2,1,2\n", "2,1,0\n1,0,1\n0,2,2\n"])
def test_a_number_of_a_patient_never_leads_from_numbered_ids_to_images(tmp_path, rows):
    flat(tmp_path, tests="012", train="id,label\n1,a\n2,b\n3,a\n4,b\n", test=f"id,patient,bed\n{rows}")
    competition = read_layout(write(tmp_path, sample_submission="id,label\n0,a\n1,a\n2,a\n"))
    assert [row.path.name for row in competition.test] == ["0.jpg", "1.jpg", "2.jpg"]


def test_an_id_and_the_name_of_its_file_are_no_pair_nor_is_a_licence(tmp_path):
    flat(
        tmp_path,
        tests=("6", "7", "8", "9"),
        train="id,label\n1,a\n2,b\n3,a\n4,b\n",
        test="id,file,licence\n6,6.jpg,7\n7,7.jpg,7\n8,8.jpg,7\n9,9.jpg,7\n",
        sample_submission="id,label\n6,a\n7,a\n8,a\n9,a\n",
    )
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert [row.id for row in competition.test] == ["6", "7", "8", "9"]


def test_ids_of_the_rows_as_values_ask_for_images_that_are_alike(tmp_path):
    flat(
        tmp_path,
        train="id,label\n1,a\n2,b\n3,a\n4,b\n",
        sample_submission="id,matches\n8.jpg,8.jpg\n9.jpg,9.jpg 8.jpg\n",
    )
    assert "retrieval" in refusal(tmp_path)


def test_a_table_of_labels_never_leads_from_test_ids_to_images(tmp_path):
    names = [str(number) for number in range(6)]
    rows = "".join(f"{name},{(int(name) + 1) % 3}\n" for name in names)
    flat(
        tmp_path,
        names,
        names,
        train=f"id,label\n{rows}",
        sample_submission="id,label\n" + "".join(f"{name},0\n" for name in names),
    )
    assert [row.path.name for row in read_layout(tmp_path).test] == [f"{name}.jpg" for name in names]


def test_the_sample_tells_which_of_two_columns_holds_the_labels(tmp_path):
    table = "image,species,individual\n1.jpg,whale,aa\n2.jpg,whale,bb\n3.jpg,dolphin,cc\n4.jpg,dolphin,cc\n"
    flat(
        tmp_path,
        train=table,
        sample_submission="image,predictions\n8.jpg,aa cc new_one\n9.jpg,aa cc new_one\n",
    )
    competition = read_layout(tmp_path)
    assert set(competition.class_names) == {"aa", "bb", "cc"} and competition.form.kind == "ranked"


@pytest.mark.parametrize("metric", [None, "accuracy", "map_at_3"])
def test_the_samples_values_tell_more_than_the_name_label(tmp_path, metric):
    table = "id,label,breed\n1,0,beagle\n2,1,boxer\n3,2,corgi\n4,0,beagle\n"
    value = "beagle boxer corgi" if metric == "map_at_3" else "beagle"
    flat(tmp_path, train=table, sample_submission=f"id,predicted\n8,{value}\n9,{value}\n")
    assert read_layout(tmp_path, asked=Asked(metric=metric)).class_names == ("beagle", "boxer", "corgi")
    # A column of the sample's own name, and its values elsewhere
    write(tmp_path, sample_submission=f"id,label\n8,{value}\n9,{value}\n")
    message = refusal(tmp_path, asked=Asked(metric=metric))
    assert_says(message, "train.csv", "'label'", "'breed'", "data.label_column")
    named = read_layout(tmp_path, asked=Asked(metric=metric), label_column="breed")
    assert named.class_names == ("beagle", "boxer", "corgi")


def test_numbers_of_the_sample_that_only_another_column_holds_are_two_readings(tmp_path):
    table = "id,label,code\n1,0,70\n2,1,80\n3,2,90\n4,0,70\n"
    flat(tmp_path, train=table, sample_submission="id,predicted\n8,70\n9,90\n")
    message = refusal(tmp_path, asked=Asked(metric="accuracy"))
    assert_says(message, "train.csv", "'label'", "'code'", "data.label_column")
    write(tmp_path, sample_submission="id,predicted\n8,0\n9,2\n")
    assert read_layout(tmp_path, asked=Asked(metric="accuracy")).class_names == ("0", "1", "2")


@pytest.mark.parametrize("text", ["nan", "NaN", "NA", "None", "<NA>"])
@pytest.mark.parametrize("metric", [None, "accuracy", "roc_auc", "qwk", "rmse"])
def test_a_missing_value_among_numbers_is_no_class(tmp_path, text, metric):
    table = f"id,label\n1,0\n2,1\n3,{text}\n4,2\n"
    flat(tmp_path, train=table, sample_submission="id,label\n8,0\n9,1\n")
    message = refusal(tmp_path, asked=Asked(metric=metric, positive_class=("1",) * (metric == "roc_auc")))
    assert_says(message, "train.csv", "row 4", "'label'", repr(text), "data.skip_bad_images")
    if metric != "roc_auc":
        competition = read_layout(tmp_path, asked=Asked(metric=metric), skip_bad_images=True)
        assert labels(competition) == {"1": "0", "2": "1", "4": "2"}


def test_a_missing_value_in_one_of_several_columns_or_where_cells_may_be_empty(tmp_path):
    flat(tmp_path, train="id,a,b\n1,0,1\n2,nan,0\n3,1,0\n4,1,1\n", sample_submission="id,a,b\n8,0,0\n9,0,0\n")
    assert_says(refusal(tmp_path), "row 3", "'a'", "'nan'")
    write(tmp_path, train="id,label\n1,0 1\n2,nan\n3,1\n4,\n", sample_submission="id,label\n8,0 1\n9,\n")
    assert_says(refusal(tmp_path, asked=Asked(metric="micro_f1")), "3", "'label'", "'nan'")


def test_empty_cells_among_lists_of_labels_may_mean_none_of_them(tmp_path):
    """To leave these rows out would train without every image that has no finding."""
    table = "id,labels\n1,a|b\n2,\n3,b\n4,a\n5,b|c\n6,c\n7,a|c\n"
    sample = "id,a,b,c\n8,0.5,0.5,0.5\n9,0.5,0.5,0.5\n"
    flat(tmp_path, [*"1234567"], train=table, sample_submission=sample)
    assert_says(refusal(tmp_path), "row 3", "'labels'", "none of the labels")
    write(tmp_path, train=table.replace("2,\n", "2,none\n"))
    assert labels(read_layout(tmp_path))["2"] == "none"
    write(tmp_path, train="id,labels\n1,a\n2,\n3,b\n4,a\n", sample_submission="id,labels\n8,a\n9,a\n")
    assert "none of the labels" not in refusal(tmp_path)


def test_a_missing_value_among_names_is_told(tmp_path):
    flat(
        tmp_path, train="id,label\n1,cat\n2,dog\n3,nan\n4,dog\n", sample_submission="id,label\n8,cat\n9,cat\n"
    )
    competition = read_layout(tmp_path)
    assert competition.class_names == ("cat", "dog", "nan")
    assert_says(said(competition), "row 4", "'nan'")
    write(tmp_path, train="id,label\n1,cat\n2,dog\n3,None\n4,dog\n")
    assert "None" not in said(read_layout(tmp_path))


def folders_of(root, *names, value, column="label"):
    """Class folders, four images each, and a sample that holds `value`."""
    touch(root, *(f"train/{name}/{name.strip()}{n}.jpg" for name in names for n in range(4)))
    touch(root, "test/8.jpg", "test/9.jpg")
    return write(root, sample_submission=f"id,{column}\n8,{value}\n9,{value}\n")


def test_class_folders_are_called_as_the_sample_writes_them(tmp_path):
    long, short = "cafe\u0301", "caf\u00e9"  # the accent as two characters, as macOS stores it, or one
    for number, (folder, value) in enumerate(((long, short), (short, short), (short, long), (long, "x"))):
        competition = read_layout(folders_of(tmp_path / str(number), folder, "the\u0301", "dog", value=value))
        written = {long: (long, "dog", "the\u0301")}.get(value, (short, "dog", "th\u00e9"))
        assert set(competition.class_names) == set(written), (folder, value)
        assert {row.path.exists() for row in competition.train} == {True}
    columns = folders_of(tmp_path / "columns", long, "dog", value="0.5,0.5", column=f"{short},dog")
    assert read_layout(columns).form.value_columns == (short, "dog")
    table = write(
        flat(tmp_path / "table", train=f"id,label\n1,{long}\n2,dog\n3,dog\n4,{long}\n"),
        sample_submission=f"id,label\n8,{short}\n9,{short}\n",
    )
    assert set(read_layout(table).class_names) == {short, "dog"}


def test_a_space_behind_a_class_folder_is_no_part_of_the_class(tmp_path):
    competition = read_layout(folders_of(tmp_path, "dog ", "cat", value="dog"))
    assert competition.class_names == ("cat", "dog") and len(competition.train) == 8
    assert_says(said(competition), "'dog '", "'dog'")
    touch(tmp_path, "train/dog/other.jpg")
    assert [row.label for row in read_layout(tmp_path).train].count("dog") == 5, "one class in two folders"


@pytest.mark.parametrize("value, kept", [("Dog", "dog"), ("golden retriever", "golden_retriever")])
def test_a_class_that_the_sample_writes_otherwise_is_refused(tmp_path, value, kept):
    root = folders_of(tmp_path, kept, "cat", value=value)
    message = refusal(root, asked=Asked(metric="accuracy"))
    assert_says(
        message, "sample_submission.csv", "row 2", "'label'", repr(value), repr(kept), "--target multiclass"
    )
    trained = read_layout(root, asked=Asked(kind="multiclass"))
    assert kept in trained.class_names
    # What training accepted, prediction accepts too
    record = SimpleNamespace(data_settings={"target": "multiclass"})
    run = SimpleNamespace(
        record=record, target=trained.target, metric="accuracy", task="classification", path=root
    )
    assert len(read_for(run, root).test) == 2


@pytest.mark.parametrize(
    "written, value, names",
    [
        ("{}.0", "0", ("0", "1", "2", "3")),
        ("{}.0", "7", ("0", "1", "2", "3")),  # no label, but the sample's way to write a number
        ("{}", "0.0", ("0.0", "1.0", "2.0", "3.0")),
        ("0{}", "1", ("0", "1", "2", "3")),
        ("{}", "2", ("0", "1", "2", "3")),
    ],
)
@pytest.mark.parametrize("metric, kind", [("accuracy", "multiclass"), ("qwk", "ordinal")])
def test_whole_numbers_are_written_as_the_sample_writes_them(tmp_path, written, value, names, metric, kind):
    ids = [str(n) for n in range(1, 13)]
    table = "id,label\n" + "".join(f"{n},{written.format(int(n) % 4)}\n" for n in ids)
    root = flat(tmp_path, ids, ("80", "90"), train=table)
    write(root, sample_submission=f"id,label\n80,{value}\n90,{value}\n")
    competition = read_layout(root, asked=Asked(metric=metric))
    assert (competition.target.kind, competition.target.names) == (kind, names)
    assert labels(competition)["3"] == names[3]
    # A run that learned other names: its model decides
    known = Target(kind, tuple(f"{n}.0" for n in range(4)))
    if value == names[int(float(value)) % 4] and "." not in value:
        message = refusal(root, known=(known, metric), need="test")
        assert_says(message, "sample_submission.csv", "'label'", repr(value), repr(f"{value}.0"))


def test_columns_of_whole_numbers_are_the_classes_0_0_and_1_0(tmp_path):
    table = "id,label\n1,0.0\n2,1.0\n3,2.0\n4,0.0\n"
    flat(tmp_path, train=table, sample_submission="id,0,1,2\n8,0.3,0.3,0.4\n9,0.3,0.3,0.4\n")
    competition = read_layout(tmp_path)
    assert competition.class_names == ("0", "1", "2") and labels(competition)["3"] == "2"


def test_the_same_names_in_a_resized_folder(tmp_path):
    touch(
        tmp_path,
        *(
            f"{part}Resized/{name}.jpg"
            for part, names in (("train", "1234"), ("test", "89"))
            for name in names
        ),
    )
    competition = read_layout(sampled(tmp_path, "label", "a"))
    assert {row.path.parent.name for row in competition.train} == {"train"} and {
        row.path.parent.name for row in competition.test
    } == {"test"}
    assert "trainResized/ holds the same names as train/" in said(competition)


def test_the_same_names_in_two_folders_of_which_nothing_tells(tmp_path):
    touch(tmp_path, *(f"train_b/{name}.jpg" for name in "1234"))
    (tmp_path / "train").mkdir()
    sampled(tmp_path, "label", "a")
    (tmp_path / "train").rename(tmp_path / "train_c")
    assert "found in train_b/ and train_c/" in refusal(tmp_path)


def test_numbers_are_labels_and_no_ids_where_the_sample_asks_for_them(tmp_path):
    table = "train_id,males,pups\n1,2,3\n2,3,4\n3,4,1\n4,1,1\n"
    flat(tmp_path, train=table, sample_submission="test_id,males,pups\n8,1,1\n9,1,1\n")
    competition = read_layout(tmp_path, asked=Asked(metric="rmse"))
    assert competition.target.names == ("males", "pups") and labels(competition)["2"] == "3|4"


def test_columns_that_the_sample_calls_by_shorter_names(tmp_path):
    table = "id,soil,X4_mean,X11_mean,X4_sd,X11_sd\n" + "".join(f"{n},7{n},0.{n},1.{n},9,9\n" for n in "1234")
    flat(tmp_path, train=table, sample_submission="id,X4,X11\n8,1,1\n9,1,1\n")
    competition = read_layout(tmp_path, asked=Asked(metric="r2"))
    assert competition.target.names == ("X4", "X11") and labels(competition)["3"] == "0.3|1.3"
    assert competition.form.kind == "number"
    assert "X4_mean, X11_mean are what the sample calls X4, X11" in said(competition)


def test_ids_that_lost_their_leading_zeros(tmp_path):
    flat(tmp_path, ("0001", "0002", "0003", "0004"), ("0008", "0009"), train="id,label\n1,a\n2,b\n3,a\n4,b\n")
    write(tmp_path, sample_submission="id,label\n8,a\n9,a\n")
    competition = read_layout(tmp_path)
    assert [row.path.name for row in competition.test] == [
        "0008.jpg",
        "0009.jpg",
    ] and "without leading zeros" in said(competition)


def test_a_row_for_each_number_of_an_image(tmp_path):
    names = ("dry_g", "green_g")
    train = "".join(
        f"{n}__{name},train/{n}.jpg,{name},{n}.{place}\n" for n in "1234" for place, name in enumerate(names)
    )
    test = [(f"{n}__{name}", f"test/{n}.jpg", name) for n in "89" for name in names]
    flat(tmp_path, train=f"sample_id,image_path,target_name,target\n{train}")
    write(tmp_path, test="sample_id,image_path,target_name\n" + "".join(",".join(row) + "\n" for row in test))
    write(tmp_path, sample_submission="sample_id,target\n" + "".join(f"{row[0]},0.0\n" for row in test))
    competition = read_layout(tmp_path, asked=Asked(metric="r2"))
    assert competition.target.names == names and [row.label for row in competition.train] == [
        "1.0|1.1",
        "2.0|2.1",
        "3.0|3.1",
        "4.0|4.1",
    ]
    assert competition.form.kind == "rows"
    assert competition.form.of_numbers
    assert competition.form.row_labels == names * 2
    assert [row.path.name for row in competition.test] == ["8.jpg", "9.jpg"]


@pytest.mark.parametrize(("metric", "told"), [("rmse", True), ("r2", True), ("mae", False)])
def test_a_mean_over_numbers_is_told_from_a_score_of_all_rows(tmp_path, metric, told):
    """make score, and Kaggle, score the rows of both numbers together; validation takes the mean of two."""
    train = "".join(f"{n}_{name},{n}.{place}\n" for n in "1234" for place, name in enumerate(("dry", "wet")))
    flat(tmp_path, train=f"id,target\n{train}")
    write(tmp_path, sample_submission="id,target\n8_dry,0.0\n8_wet,0.0\n9_dry,0.0\n9_wet,0.0\n")
    notes = said(read_layout(tmp_path, asked=Asked(metric=metric)))
    assert (f"validation {metric} is a mean over the 2 labels" in notes) == told


def test_a_label_that_the_sample_does_not_ask_for_is_named(tmp_path):
    """`none` has no column in the file, but counts in the validation score."""
    table = "id,labels\n1,a|b\n2,none\n3,b\n4,a\n5,b|c\n6,c\n7,a|c\n"
    flat(tmp_path, [*"1234567"], train=table, sample_submission="id,a,b,c\n8,0.5,0.5,0.5\n9,0.5,0.5,0.5\n")
    competition = read_layout(tmp_path)
    assert competition.target.names == ("a", "b", "c", "none")
    assert "not asked for: none" in said(competition)
    write(tmp_path, sample_submission="id,a,b,c,none\n8,0.5,0.5,0.5,0.5\n9,0.5,0.5,0.5,0.5\n")
    assert "not asked for" not in said(read_layout(tmp_path))


def test_a_table_tells_which_number_of_which_image_a_row_asks_for(tmp_path):
    flat(tmp_path, train="id,left_x,left_y\n1,5.5,6\n2,7,8\n3,9,1.5\n4,,\n")
    rows = [("1", "8", "left_x"), ("2", "8", "left_y"), ("3", "9", "left_x"), ("4", "9", "left_y")]
    write(
        tmp_path, lookup="RowId,ImageId,Feature,Location\n" + "".join(",".join(row) + ",\n" for row in rows)
    )
    write(tmp_path, sample_submission="RowId,Location\n" + "".join(f"{row[0]},0\n" for row in rows))
    assert "row 5: no label in column 'left_x'" in refusal(tmp_path, asked=Asked(metric="rmse"))
    competition = read_layout(tmp_path, asked=Asked(metric="rmse"), skip_bad_images=True)
    assert competition.target.names == ("left_x", "left_y") and labels(competition) == {
        "1": "5.5|6",
        "2": "7|8",
        "3": "9|1.5",
    }
    assert competition.form.row_labels == ("left_x", "left_y") * 2 and competition.form.subjects == (
        "8",
        "8",
        "9",
        "9",
    )


def wells(root):
    """Two plates a part, two sites a well; ids of plate and well, which no file name holds."""
    for part, letter in (("train", "x"), ("test", "y")):
        touch(
            root,
            *(
                f"{part}/Plate{plate}/B0{well}_s{site}.png"
                for plate in "12"
                for well in "1234"
                for site in "12"
            ),
        )
        ids = [
            (f"{letter}_{plate}_B0{well}", plate, f"B0{well}", (int(well) + int(plate)) % 3)
            for plate in "12"
            for well in "1234"
        ]
        label = ",sirna" if part == "train" else ""
        rows = "".join(",".join(map(str, row if label else row[:3])) + "\n" for row in ids)
        write(root, **{part: f"id_code,plate,well{label}\n{rows}"})
    return write(root, sample_submission="id_code,sirna\n" + "".join(f"{row[0]},0\n" for row in ids))


def test_wells_and_plates_are_no_labels_of_one_image(tmp_path):
    message = refusal(wells(tmp_path))
    assert "no id leads to an image" in message or "no image for any" in message
    assert "data.id_column" in message
    assert "add images.csv with the columns id_code,image" in message


def test_ids_that_no_column_leads_to_images_are_read_through_an_added_table(tmp_path):
    wells(tmp_path)
    rows = "".join(
        f"{letter}_{plate}_B0{well},{part}/Plate{plate}/B0{well}_s{site}.png\n"
        for part, letter in (("train", "x"), ("test", "y"))
        for plate in "12"
        for well in "1234"
        for site in "12"
    )
    write(tmp_path, images=f"id_code,image\n{rows}")
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert labels(competition)["x_2_B01"] == "0" and len(competition.train) == 16
    assert [str(row.path.relative_to(tmp_path)) for row in competition.test if row.id == "y_2_B03"] == [
        "test/Plate2/B03_s1.png",
        "test/Plate2/B03_s2.png",
    ]
    assert competition.form.kind == "label" and len(competition.form.ids) == 8


def test_a_folder_that_many_ids_share_tells_no_images(tmp_path):
    names = [f"{exp}_{well}" for exp in "ab" for well in ("B1", "B2", "B3")]
    touch(tmp_path, *(f"test/{name[0]}/p/{name[2:]}_s1.png" for name in names))
    write(tmp_path, test="id,exp,well\n" + "".join(f"{name},{name[0]},{name[2:]}\n" for name in names))
    write(tmp_path, sample_submission="id,kind\n" + "".join(f"{name},7\n" for name in names))
    with pytest.raises(UserError) as caught:
        read_layout(tmp_path, need="test", known=(multiclass(("7", "9")), "accuracy"))
    assert_says(str(caught.value), "6 ids without an image", "'a_B1'")


def test_rows_that_ask_different_things_about_an_image_never_get_one_answer(tmp_path):
    ids = [(f"T{number}_{kind}", f"T{number}", kind) for number in range(4) for kind in ("root", "vowel")]
    touch(tmp_path, *(f"train/{number}.png" for number in range(8)), *(f"test/T{n}.png" for n in range(4)))
    write(
        tmp_path,
        train="image_id,root,vowel\n"
        + "".join(f"{number},{number % 4},{number % 3}\n" for number in range(8)),
        test="row_id,image_id,component\n" + "".join(",".join(row) + "\n" for row in ids),
        sample_submission="row_id,target\n" + "".join(f"{row[0]},0\n" for row in ids),
    )
    asked = Asked(metric="accuracy", kind="multiclass")
    message = refusal(tmp_path, label_column="root", asked=asked)
    assert_says(message, "rows 2, 3", "'T0_root', 'T0_vowel' all mean 'test/T0.png'", "same prediction")
    # the way that the message shows
    write(tmp_path, sample_submission="row_id,target\n" + "".join(f"{row[0]},0\n" for row in ids[::2]))
    form = read_layout(tmp_path, label_column="root", asked=asked).form
    assert form.ids == ("T0_root", "T1_root", "T2_root", "T3_root")


def test_ids_of_several_images_are_found_although_many_have_none(tmp_path):
    names = [f"a{number}" for number in range(8)]
    touch(tmp_path, *(f"train_images/{name}-{view}.jpg" for name in names[:6] for view in "12"))
    rows = "".join(f"Rex {name},{name},{place % 2}\n" for place, name in enumerate(names))
    write(tmp_path, train=f"Name,PetID,speed\n{rows}")
    message = refusal(tmp_path, need="train")
    assert_says(
        message, "train.csv", "PetID", "2 of 8 ids without an image", "'a6'", "data.skip_bad_images=true"
    )


@pytest.mark.parametrize("missing", ["../../up", "p1/../../up", "a\x1b[2Jb"])
def test_an_id_that_leads_elsewhere_gets_no_command(tmp_path, missing):
    ids = [missing, *(f"p{number}" for number in range(11))]
    two_classes(tmp_path)
    for name in ("8", "9"):
        (tmp_path / f"test/{name}.jpg").unlink()
    touch(tmp_path, *(f"test/{name}.jpg" for name in ids[1:]))
    write(tmp_path, sample_submission="id,label\n" + "".join(f"{name},cat\n" for name in ids))
    message = refusal(tmp_path)
    assert "without an image" in message and "touch" not in message


@pytest.mark.parametrize("images", ["test/{}-1.jpg", "test/{}/1.jpg", "test/{}.jpg"])
def test_a_few_test_ids_without_an_image_get_a_command_that_works(tmp_path, images):
    ids = [f"p{number}" for number in range(11)]
    two_classes(tmp_path)
    for name in ("8", "9"):
        (tmp_path / f"test/{name}.jpg").unlink()
    touch(tmp_path, *(images.format(name) for name in ids if name != "p1"))
    if images != "test/{}.jpg":
        touch(tmp_path, images.format("p4").replace("1.jpg", "2.jpg"))
    write(tmp_path, sample_submission="id,label\n" + "".join(f"{name},cat\n" for name in ids))
    message, missing = refusal(tmp_path), tmp_path / images.format("p1")
    assert_says(message, "without an image", "p1", "class frequencies", f"touch {missing}")
    command = message[message.index("class frequencies") :].partition(": ")[2]
    subprocess.run(command.partition("\n")[0], shell=True, check=True)
    assert [row.path for row in read_layout(tmp_path).test if row.id == "p1"] == [missing]
    missing.unlink()
    (tmp_path / images.format("p2")).unlink()
    assert "touch" not in refusal(tmp_path)  # so many are missing that the download is not whole


def test_images_of_one_id_in_several_labelled_rows_may_stay_together(tmp_path):
    rows = [
        (f"p{number // 2}_{number % 2}", f"p{number // 2}", "ab"[number // 2 % 2]) for number in range(12)
    ]
    touch(
        tmp_path,
        *(f"train/{row[0]}.png" for row in rows),
        *(f"test/q{n}_{v}.png" for n in "12" for v in "01"),
    )
    write(
        tmp_path,
        train="image_id,patient_id,label\n" + "".join(",".join(row) + "\n" for row in rows),
        sample_submission="patient_id,a,b\nq1,0.5,0.5\nq2,0.5,0.5\n",
    )
    assert "--set data.group_column=patient_id" in said(read_layout(tmp_path))
    competition = read_layout(tmp_path, grouped=Grouping("patient_id"))
    assert competition.groups["p3_0"] == competition.groups["p3_1"] == "p3"
    assert "data.group_column" not in said(competition)


def test_columns_that_may_name_groups_are_told_and_not_used(tmp_path):
    names, labels = "123456", ["cat", "cat", "dog", "dog", "cat", "dog"]

    def notes_with(column, values, **more):
        rows = "".join(f"{','.join(row)}\n" for row in zip(names, labels, values, strict=True))
        flat(tmp_path, names, train=f"id,label,{column}\n" + rows)
        return read_layout(tmp_path, label_column="label", need="train", **more)

    competition = notes_with("driver", "aabbcc")
    assert_says(said(competition), "'driver' of train.csv", "3 different", "--set data.group_column=driver")
    assert competition.groups is None
    grouped = notes_with("driver", "aabbcc", grouped=Grouping("driver"))
    assert "data.group_column" not in said(grouped) and grouped.groups["1"] == "a"
    # A person each, yes or no, a column of another name, the labels again
    for column, values in (
        ("driver", "abcdef"),
        ("subject focus", "010101"),
        ("colour", "ppqqrr"),
        ("animal", labels),
    ):
        assert "data.group_column" not in said(notes_with(column, values)), column


@pytest.mark.parametrize("endings, told", [(["green", "red"], True), (["1", "2"], False), (["red"], False)])
def test_files_that_may_be_channels_are_told(tmp_path, endings, told):
    touch(
        tmp_path,
        *(f"{part}_{end}.png" for part in ("train/a", "train/b", "test/c", "test/d") for end in endings),
    )
    write(tmp_path, train="Id,Target\na,cat\nb,dog\n", sample_submission="Id,Target\nc,cat\nd,cat\n")
    competition = read_layout(tmp_path)
    assert len(competition.train) == 2 * len(endings)
    assert ("channels" in said(competition)) is told
    if told:
        assert_says(said(competition), "..._green", "..._red", "channels")


@pytest.mark.parametrize(
    ("endings", "there", "command", "words"),
    [
        (("green", "red"), (), "make data FROM={0} DATA={0}-rgb CHANNELS=red,green", "first: make"),
        (("dapi", "Green"), ("-rgb", "-rgb2"), "FROM={0} DATA={0}-rgb3 CHANNELS=Green,dapi", "first: make"),
        (("blue", "green", "red", "yellow"), (), "CHANNELS=red,green,blue", "yellow is left out"),
        (("a", "b", "c", "d"), (), "CHANNELS=a,b,c", "choose which of a, b, c, d"),
    ],
)
def test_the_command_that_joins_channels_is_told(tmp_path, endings, there, command, words):
    root = tmp_path / "hpa"
    touch(root, *(f"train/{image}_{end}.png" for image in "ab" for end in endings))
    write(root, train="Id,Target\na,cat\nb,dog\n")
    for name in there:
        (tmp_path / f"hpa{name}").mkdir()
    notes = said(read_layout(root, need="train"))
    assert_says(notes, words)
    assert any(line.endswith(command.format(root)) for line in notes.splitlines())


def test_the_command_that_joins_channels_is_for_python_where_make_would_read_the_name(tmp_path):
    root = tmp_path / "a $b"
    touch(root, *(f"train/{image}_{end}.png" for image in "ab" for end in ("red", "green")))
    write(root, train="Id,Target\na,cat\nb,dog\n")
    command = f"python -m pipeline.fetch.install --from '{root}' --data '{root}-rgb' --channels red,green"
    assert_says(said(read_layout(root, need="train")), command)


def test_rows_that_deny_their_label_are_no_labels(tmp_path):
    touch(tmp_path, *(f"train/{name}.jpg" for name in "abcdef"), "test/8.jpg", "test/9.jpg")
    rows = "".join(
        f"{name},{label},{confidence}\n"
        for place, name in enumerate("abcdef")
        for label, confidence in (("/m/1", 1), ("/m/2", place % 2), ("/m/3", 0 if place else 1))
    )
    write(
        tmp_path,
        train_labels=f"ImageID,LabelName,Confidence\n{rows}",
        sample_submission="image_id,labels\n8,/m/1 /m/2\n9,/m/1 /m/2\n",
    )
    competition = read_layout(tmp_path)
    one, both = "/m/1", "/m/1 /m/2"
    assert labels(competition) == {"a": "/m/1 /m/3", "b": both, "c": one, "d": both, "e": one, "f": both}
    assert "8 rows with 0 in 'Confidence'" in said(competition)


def test_a_row_for_each_label_where_the_sample_has_a_column_for_each(tmp_path):
    touch(tmp_path, *(f"train/{name}.jpg" for name in "abcdef"), "test/8.jpg", "test/9.jpg")
    rows = "".join(
        f"{name},fox\n{name},red deer\n" if name in "ace" else f"{name},owl\n" for name in "abcdef"
    )
    sample = "image,owl,fox,red deer\n8,0.5,0.5,0.5\n9,0.5,0.5,0.5\n"
    competition = read_layout(write(tmp_path, train=f"image,label\n{rows}", sample_submission=sample))
    assert competition.target.kind == "multilabel" and set(competition.class_names) == {
        "fox",
        "owl",
        "red deer",
    }
    targets = competition.target.encode([row.label for row in competition.train])
    names = [{competition.class_names[place] for place in row.nonzero()[0]} for row in targets]
    assert names == [{"fox", "red deer"}, {"owl"}] * 3
    assert competition.form.columns == ("image", "owl", "fox", "red deer")
    # the same label twice for one image: votes, which are not read as labels
    write(tmp_path, train=f"image,label\na,fox\n{rows}")
    assert_says(refusal(tmp_path), "train.csv", "'a' (train/a.jpg) has different labels: 'fox'")


@pytest.mark.parametrize(("column", "first"), [("file", "205.jpg"), ("frame_before", "201.jpg")])
def test_a_column_of_file_names_tells_more_than_ids_that_equal_other_names(tmp_path, column, first):
    ids = [201, 205, 203, 209]
    touch(tmp_path, *(f"train/{name}.jpg" for name in "abcd"), *(f"test/{number}.jpg" for number in ids))
    rows = "".join(f"{number},{ids[(place + 1) % 4]}.jpg\n" for place, number in enumerate(ids))
    write(
        tmp_path,
        train="id,label\na,x\nb,y\nc,x\nd,y\n",
        test=f"id,{column}\n{rows}",
        sample_submission="id,label\n" + "".join(f"{number},x\n" for number in ids),
    )
    competition = read_layout(tmp_path)
    assert [row.id for row in competition.test] == ["201", "205", "203", "209"]
    assert competition.test[0].path == tmp_path / "test" / first


def test_labels_of_what_another_table_leads_to_images(tmp_path):
    photos = [(f"{100 + number}", f"b{number // 3}") for number in range(18)]
    touch(
        tmp_path,
        *(
            f"{'train' if number < 12 else 'test'}_photos/{photo}.jpg"
            for number, (photo, _) in enumerate(photos)
        ),
    )
    for part, rows in (("train", photos[:12]), ("test", photos[12:])):
        write(
            tmp_path,
            **{
                f"{part}_photo_to_biz": "photo_id,business_id\n"
                + "".join(f"{photo},{name}\n" for photo, name in rows)
            },
        )
    write(
        tmp_path,
        train="business_id,labels\nb0,1 2\nb1,2\nb2,1\nb3,2 3\n",
        sample_submission="business_id,labels\nb4,1 2\nb5,1 2\n",
    )
    competition = read_layout(tmp_path, asked=Asked(metric="samples_f1"))
    assert competition.class_names == ("1", "2", "3")
    assert [row.label for row in competition.train if row.id == "b3"] == ["2 3"] * 3
    assert competition.form.ids == ("b4", "b5") and len(competition.test) == 6


def test_a_row_for_each_label_of_an_image(tmp_path):
    table = "id,source,label\n1,x,a\n1,x,b\n2,x,b\n3,x,a\n3,x,c\n4,x,c\n"
    flat(tmp_path, train=table, sample_submission="id,labels\n8,a b\n9,a b\n")
    competition = read_layout(tmp_path)
    assert competition.target.kind == "multilabel" and labels(competition) == {
        "1": "a b",
        "2": "b",
        "3": "a c",
        "4": "c",
    }
    write(tmp_path, sample_submission="id,labels\n8,a\n9,a\n")
    assert "has different labels: 'a', 'b'" in refusal(tmp_path)


def test_several_questions_about_each_image_are_refused(tmp_path):
    flat(tmp_path, train="id,root,vowel\n1,5,2\n2,7,0\n3,5,1\n4,6,2\n")
    write(tmp_path, sample_submission="row_id,target\n8_root,0\n8_vowel,0\n9_root,0\n9_vowel,0\n")
    assert "several questions" in refusal(tmp_path) and "root, vowel" in refusal(tmp_path)
    flat(
        tmp_path / "two",
        train="id,root,vowel\n1,5,2\n2,7,0\n3,5,1\n4,6,2\n",
        sample_submission="id,root,vowel\n8,0,0\n9,0,0\n",
    )
    assert "--metric rmse" in refusal(tmp_path / "two")
    assert read_layout(tmp_path / "two", asked=Asked(metric="rmse")).target.kind == "continuous"


def test_texts_without_two_that_are_alike_are_no_classes(tmp_path):
    names = [str(number) for number in range(24)]
    table = "id,InChI\n" + "".join(f"{name},InChI=1S/C{name}H8\n" for name in names)
    flat(tmp_path, names, train=table, sample_submission="id,InChI\n8,InChI=1S/H2O\n9,InChI=1S/H2O\n")
    assert "all 24 rows have different texts" in refusal(tmp_path)
    assert len(read_layout(tmp_path, asked=Asked(kind="multiclass")).class_names) == 24


def test_benchmarks_of_one_form_are_one_sample(tmp_path):
    flat(tmp_path, train="id,A,B\n1,0.5,0.1\n2,0.2,0.3\n3,0.1,0.9\n4,0.3,0.3\n")
    write(
        tmp_path, zeros_benchmark="id,A,B\n8,0,0\n9,0,0\n", pixel_benchmark="id,A,B\n8,0.1,0.2\n9,0.3,0.4\n"
    )
    competition = read_layout(tmp_path, asked=Asked(metric="rmse"))
    assert competition.form.path.name == "pixel_benchmark.csv"
    assert "zeros_benchmark.csv has the same rows" in said(competition)


def test_columns_that_are_called_after_the_labels(tmp_path):
    flat(
        tmp_path,
        train="id,label\n1,0\n2,1\n3,2\n4,0\n",
        sample_submission="id,class_0,class_1,class_2\n8,0.3,0.3,0.4\n9,0.3,0.3,0.4\n",
    )
    competition = read_layout(tmp_path)
    assert (
        competition.class_names == ("class_0", "class_1", "class_2") and labels(competition)["3"] == "class_2"
    )
    assert "'0' is 'class_0'" in said(competition) and competition.form.kind == "probabilities"


def test_decimal_commas_are_named_as_they_are_written(tmp_path):
    root = flat(
        tmp_path, train='id,kg\n1,"0,25"\n2,"1,5"\n3,"2,0"\n4,3\n', sample_submission="id,kg\n8,0.0\n"
    )
    for asked in (Asked(), Asked("rmse")):
        text = refusal(root, asked=asked)
        assert "'0,25'" in text and "0.25" in text and "name another" not in text


def test_true_and_false_where_the_sample_holds_numbers(tmp_path):
    flat(
        tmp_path,
        train="id,label\n1,True\n2,False\n3,True\n4,False\n",
        sample_submission="id,label\n8,0\n9,0\n",
    )
    assert "'label' of the sample submission ('0')" in refusal(tmp_path)
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert competition.form.written == ("0", "1") and competition.target.names == ("False", "True")


@pytest.mark.parametrize(
    "texts, value, names",
    [
        ("01", "False", ("False", "True")),
        ("01", "true", ("false", "true")),
        (("False", "True"), "TRUE", ("FALSE", "TRUE")),
        (("0.0", "1.0"), "False", ("False", "True")),
    ],
)
def test_yes_and_no_are_written_as_the_sample_writes_them(tmp_path, texts, value, names):
    flat(
        tmp_path,
        train="id,label\n" + "".join(f"{n},{texts[int(n) % 2]}\n" for n in "1234"),
        sample_submission=f"id,label\n8,{value}\n9,{value}\n",
    )
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert competition.target.names == names and competition.form.written == ()
    positive = read_layout(tmp_path, asked=Asked(metric="accuracy", positive_class=("1",)))
    assert positive.target.positive == (names[1],)


def test_a_grade_that_only_the_sample_has(tmp_path):
    table = "id,label\n1,0\n2,1\n3,2\n4,0\n"
    flat(tmp_path, ("1", "2", "3", "4"), ("7", "8", "9"), train=table)
    write(tmp_path, sample_submission="id,label\n7,1\n8,2\n9,3\n")
    assert_says(refusal(tmp_path, asked=Asked(metric="qwk")), "'label'", "'3'", "--target ordinal")
    assert read_layout(tmp_path, asked=Asked(kind="ordinal")).target.names == ("0", "1", "2")


def test_a_number_of_the_sample_that_is_no_class(tmp_path):
    flat(tmp_path, train="id,age\n1,30\n2,41\n3,30\n4,57\n", sample_submission="id,age\n8,0\n9,0\n")
    assert "'0' in the sample" in refusal(tmp_path) and "--metric rmse" in refusal(tmp_path)


def test_a_class_behind_the_number(tmp_path):
    touch(
        tmp_path, *(f"train/{number}_{('cat', 'frog')[number % 2]}.png" for number in range(12)), "test/1.png"
    )
    assert read_layout(tmp_path).class_names == ("cat", "frog")


def test_class_folders_called_like_the_beginning_of_their_files(tmp_path):
    touch(
        tmp_path,
        *(f"train/{name}/{name}_{number:04d}.png" for name in "01" for number in range(4)),
        "test/1.png",
    )
    assert read_layout(tmp_path).class_names == ("0", "1")


def test_what_cannot_be_read_is_named_where_nothing_is_found(tmp_path):
    touch(tmp_path, "train-image/1.jpg", "train-image/2.jpg", "test-image.hdf5")
    write(
        tmp_path,
        **{"train-metadata": "id,target\n1,0\n2,1\n", "sample_submission": "id,target\n8,0.3\n9,0.3\n"},
    )
    assert "1 .hdf5 file in a format" in refusal(tmp_path)
    assert f"make data FROM={tmp_path}" in refusal(tmp_path)
    touch(tmp_path, "test/8.jpg")
    assert "'9'" in refusal(tmp_path) and "1 .hdf5 file in the folder" in refusal(tmp_path)
    assert "make data FROM=" in refusal(tmp_path)
    touch(tmp_path / "other", "train_audio/a/1.ogg", "train_audio/a/2.ogg", "train-images-idx3-ubyte")
    assert "2 files .ogg" in refusal(tmp_path / "other") and "train-images-idx3-ubyte" in refusal(
        tmp_path / "other"
    )


def test_folders_that_nothing_names_are_said(tmp_path):
    touch(two_classes(tmp_path), "seg_pred/1.jpg", "seg_pred/2.jpg")
    assert "seg_pred/ (2 images) not used" in said(read_layout(tmp_path))


# ---- classes that the sample names otherwise ----


def numbered_flowers(root, value="rose", **tables):
    """Labels 0, 1, 2 in train.csv; the sample holds `value`."""
    names = [f"i{number}" for number in range(6)]
    rows = "".join(f"{name},{int(name[1]) % 3}\n" for name in names)
    sample = f"id,name\n8,{value}\n9,{value}\n"
    return flat(root, names, train=f"id,label\n{rows}", sample_submission=sample, **tables)


def flower_folders(root, value="0", **tables):
    """Class folders lily, rose, tulip; the sample holds `value`."""
    touch(root, *(f"train/{name}/{n}{name}.jpg" for name in ("lily", "rose", "tulip") for n in "ab"))
    return write(
        touch(root, "test/8.jpg", "test/9.jpg"),
        **tables,
        sample_submission=f"id,label\n8,{value}\n9,{value}\n",
    )


def test_numbers_are_called_by_the_names_that_the_sample_holds(tmp_path):
    for number, table in enumerate(
        ("label,name,count\n0,tulip,52\n1,rose,50\n2,lily,51\n", "name;label\nlily;2\ntulip;0\nrose;1\n")
    ):
        root = numbered_flowers(tmp_path / str(number), class_list=table)
        competition = read_layout(root, asked=Asked(metric="accuracy"))
        assert labels(competition) == {f"i{n}": ("tulip", "rose", "lily")[n % 3] for n in range(6)}
        assert competition.target.names == ("lily", "rose", "tulip")
        assert "class_list.csv" in said(competition)
    (root / "class_list.csv").unlink()
    (root / "class_list.txt").write_text("0 tulip\n1 rose\n2 lily\n")  # no header
    assert read_layout(root, asked=Asked(metric="accuracy")).target.names == ("lily", "rose", "tulip")
    ranked = numbered_flowers(
        tmp_path / "ranked", "rose lily", class_list="label,name\n0,tulip\n1,rose\n2,lily\n"
    )
    assert read_layout(ranked, asked=Asked(metric="map_at_2")).target.names == ("lily", "rose", "tulip")


def test_words_for_numbered_classes_are_refused_without_a_table_of_both(tmp_path):
    message = refusal(numbered_flowers(tmp_path), asked=Asked(metric="accuracy"))
    assert "'rose'" in message and "'0'" in message and "--target multiclass" in message
    asked = Asked(metric="accuracy", kind="multiclass")
    assert read_layout(tmp_path, asked=asked).target.names == ("0", "1", "2")
    write(tmp_path, a="label,name\n0,tulip\n1,rose\n2,lily\n", b="label,name\n0,lily\n1,rose\n2,tulip\n")
    assert "'rose'" in refusal(tmp_path, asked=Asked(metric="accuracy"))  # they disagree


def test_names_of_folders_become_the_numbers_that_the_sample_holds(tmp_path):
    root = flower_folders(tmp_path, classes="class_id,class_name\n2,lily\n1,rose\n0,tulip\n")
    competition = read_layout(root, asked=Asked(metric="accuracy"))
    assert {row.path.parent.name: row.label for row in competition.train} == {
        "lily": "2",
        "rose": "1",
        "tulip": "0",
    }
    assert competition.target.names == ("0", "1", "2")
    again = read_layout(root, need="test", known=(competition.target, "accuracy"))
    assert again.target.names == ("0", "1", "2")
    named = read_layout(root, asked=Asked(metric="accuracy", kind="multiclass"))
    assert named.target.names == ("lily", "rose", "tulip")  # as the message for numbers says


def test_a_count_of_images_is_no_class_number(tmp_path):
    root = flower_folders(tmp_path, "7", classes="class_name,images\nlily,7\nrose,9\ntulip,8\n")
    assert "--positive-class" in refusal(root)


# ---- ids that are paths ----


@pytest.mark.parametrize("before", ["/kaggle/input/x/", "../input/x/", "./", "C:\\data\\", ""])
def test_paths_of_another_machine_lead_to_the_images_here(tmp_path, before):
    mark = "\\" if "\\" in before or not before else "/"
    parts = [("train", f"s{n % 2}", f"{n // 2}.jpg") for n in range(4)]
    tests = [("test", "s0", "0.jpg"), ("test", "s1", "0.jpg")]
    touch(tmp_path, *("/".join(path) for path in (*parts, *tests)))
    rows = "".join(f"{before}{mark.join(path)},{'ab'[n // 2]}\n" for n, path in enumerate(parts))
    ids = [before + mark.join(path) for path in tests]
    sample = "path,label\n" + "".join(f"{text},a\n" for text in ids)
    competition = read_layout(write(tmp_path, train=f"path,label\n{rows}", sample_submission=sample))
    found = {row.path.relative_to(tmp_path).as_posix(): row.label for row in competition.train}
    assert found == {"/".join(path): "ab"[n // 2] for n, path in enumerate(parts)}
    assert [row.path.relative_to(tmp_path).as_posix() for row in competition.test] == [
        "/".join(path) for path in tests
    ]
    assert competition.form.row_ids == tuple(ids)


def test_a_path_with_another_last_folder_names_no_image_here(tmp_path):
    flat(tmp_path, train="path,label\n/x/other/1.jpg,a\n/x/other/2.jpg,b\n")
    assert "no image for any of the 2 ids" in refusal(tmp_path)


def two_stages(root):
    """Two stages of a competition: ids of the second are file names of the first, and paths."""
    root = touch(two_classes(root), "test_stg1/img_1.jpg", "test_stg1/img_2.jpg", "test_stg2/image_1.jpg")
    for name in ("8", "9"):
        (root / f"test/{name}.jpg").unlink()
    rows = "image,cat,dog\nimg_1.jpg,0.5,0.5\nimg_2.jpg,0.5,0.5\n"
    more = rows + "test_stg2/image_1.jpg,0.5,0.5\n"
    return write(root, sample_submission_stg1=rows, sample_submission_stg2=more)


def test_the_sample_of_a_second_stage_is_not_passed_over(tmp_path):
    message = refusal(two_stages(tmp_path))
    assert "sample_submission_stg1.csv" in message and "sample_submission_stg2.csv (3 rows)" in message
    subprocess.run(message[message.index("mv ") :], shell=True, check=True)  # keeps the one with more rows
    assert not (tmp_path / "sample_submission_stg1.csv").exists()
    competition = read_layout(tmp_path)
    assert {row.id: row.path.name for row in competition.test} == {
        "img_1.jpg": "img_1.jpg",
        "img_2.jpg": "img_2.jpg",
        "test_stg2/image_1.jpg": "image_1.jpg",
    }


def test_a_file_name_in_two_folders_is_refused_beside_paths(tmp_path):
    root = two_stages(touch(tmp_path, "test_stg2/img_1.jpg"))
    (root / "sample_submission_stg1.csv").unlink()
    message = refusal(root)
    assert "1 id found in test_stg1/ and test_stg2/" in message


# ---- a table of the test images in place of a sample submission ----


@pytest.mark.parametrize("folder", ["test", "images"])
def test_without_a_sample_the_table_of_test_images_gives_ids_and_order(tmp_path, folder):
    touch(tmp_path, *(f"images/{n}.jpg" for n in "1234"), f"{folder}/9.jpg", f"{folder}/8.jpg")
    tables = {"train": "file,kind\n1.jpg,a\n2.jpg,b\n3.jpg,a\n4.jpg,b\n"}
    tables |= {"test": f"number,id\n0,{folder}/9.jpg\n1,{folder}/8.jpg\n"}
    form = read_layout(write(tmp_path, **tables)).form
    assert form.columns == ("id", "kind") and form.row_ids == (f"{folder}/9.jpg", f"{folder}/8.jpg")
    write(tmp_path, test_more="id\n8\n9\n")  # two tables with other ids: which is meant is not known
    if folder == "test":
        assert read_layout(tmp_path).form.row_ids == ("8", "9")
    else:
        assert "no test images" in refusal(tmp_path)


def test_a_table_with_several_rows_an_image_gives_no_ids(tmp_path):
    flat(tmp_path, train="id,label\n1,a\n2,b\n3,a\n4,b\n", test="image,part\n9,x\n9,y\n8,x\n")
    assert read_layout(tmp_path).form.row_ids == ("8", "9")


# ---- JSON that calls an image as its annotations do ----


def named_by_annotations(root, sample):
    touch(root, *(f"train/{n}.jpg" for n in range(6)), "test/8.jpg", "test/9.jpg")
    images = [{"image_id": f"0{n}__{n}", "file_name": f"{n}.jpg"} for n in range(6)]
    marks = [{"category_id": 7 + n % 2, "genus_id": 1, "image_id": f"0{n}__{n}"} for n in range(6)]
    kinds = [{"category_id": 7 + n, "scientificName": f"Abies {'ab'[n]}", "family": "P"} for n in range(2)]
    (root / "train_metadata.json").write_text(
        json.dumps({"images": images, "annotations": marks, "categories": kinds})
    )
    tests = [{"image_id": str(n), "file_name": f"{9 - n}.jpg"} for n in range(2)]
    (root / "test_metadata.json").write_text(json.dumps(tests))
    return write(root, sample_submission=f"Id,Predicted\n0,{sample}\n1,{sample}\n")


@pytest.mark.parametrize(("sample", "names"), [("7", ("7", "8")), ("Abies a", ("Abies a", "Abies b"))])
def test_json_without_id_is_read_by_image_id_and_category_id(tmp_path, sample, names):
    competition = read_layout(named_by_annotations(tmp_path, sample), asked=Asked(metric="macro_f1"))
    assert {row.path.name: row.label for row in competition.train} == {
        f"{n}.jpg": names[n % 2] for n in range(6)
    }
    assert [(row.id, row.path.name) for row in competition.test] == [("0", "9.jpg"), ("1", "8.jpg")]


# ---- folders that are no classes, beside a table whose ids lead nowhere ----


def cameras(root, labels=("cat", "dog"), column="species"):
    touch(root, *(f"train/cam{n % 2}/IMG_{n}.jpg" for n in range(4)), "test/8.jpg", "test/9.jpg")
    rows = "".join(f"cam{n % 2}-{n},{labels[n // 2]}\n" for n in range(4))
    sample = f"obs,species\n8,{labels[0]}\n9,{labels[0]}\n"
    return write(root, train=f"obs,{column}\n{rows}", sample_submission=sample)


@pytest.mark.parametrize("labels", [("cat", "dog"), ("4", "7")])
def test_folders_are_no_classes_where_a_table_holds_other_labels_that_are_asked_for(tmp_path, labels):
    message = refusal(cameras(tmp_path, labels), asked=Asked(metric="accuracy"))
    assert all(part in message for part in ("train.csv", "'species'", "'cam0-0'", "train/cam0/IMG_0.jpg"))
    (tmp_path / "train.csv").rename(tmp_path / ".train.csv")  # as the message says
    if labels[0] == "cat":
        assert read_layout(tmp_path, asked=Asked(metric="accuracy")).target.names == ("cam0", "cam1")


def test_folders_are_no_classes_where_a_table_holds_other_labels_and_nothing_is_asked_for(tmp_path):
    root = cameras(tmp_path, column="label")
    (root / "sample_submission.csv").unlink()
    message = refusal(root, asked=Asked(metric="accuracy"))
    assert all(part in message for part in ("train.csv", "'label'", "'cam0-0'", "'cam0', 'cam1'"))
    (tmp_path / "train.csv").write_text("obs,label\ncam0,cat\ncam1,dog\n")  # about the classes
    assert read_layout(root, asked=Asked(metric="accuracy")).target.names == ("cam0", "cam1")


def test_folders_with_the_names_that_the_table_holds_are_classes(tmp_path):
    root = cameras(tmp_path, ("cam0", "cam1"))
    assert read_layout(root, asked=Asked(metric="accuracy")).target.names == ("cam0", "cam1")


# ---- the column that holds what the sample submission shows ----


@pytest.mark.parametrize("mark", ["|", ",", " "])
def test_the_column_of_label_lists_is_found_by_the_columns_of_the_sample(tmp_path, mark):
    cells = ("Mass", f"Mass{mark}Hernia", "Nothing", f"Hernia{mark}Mass")
    rows = "".join(f'{n + 1},"{cell}",p{n % 2},{40 + n}\n' for n, cell in enumerate(cells))
    table = f"Image,Findings,Patient,Age\n{rows}"
    root = flat(tmp_path, train=table, sample_submission="Image,Hernia,Mass\n8,0.5,0.5\n9,0.5,0.5\n")
    competition = read_layout(root, asked=Asked(metric="roc_auc"))
    assert competition.target.kind == "multilabel" and set(competition.target.names) >= {"Hernia", "Mass"}
    assert competition.form.columns == ("Image", "Hernia", "Mass")
    assert "Findings" in said(competition)


def test_two_columns_of_label_lists_are_not_chosen_between(tmp_path):
    rows = "".join(f"{n},a|b,b|a\n" for n in range(1, 4)) + "4,a,b\n"
    flat(tmp_path, train=f"Image,One,Two\n{rows}", sample_submission="Image,a,b\n8,0.5,0.5\n9,0.5,0.5\n")
    message = refusal(tmp_path)
    assert "'One'" in message and "'Two'" in message and "data.label_column" in message


def test_of_several_label_columns_the_one_with_the_samples_names_is_taken(tmp_path):
    rows = "".join(f"{n},{n % 2},{('cat', 'dog')[n % 2]},{('CAT', 'DOG')[n % 2]}\n" for n in range(1, 5))
    table = f"id,label,class_name,class\n{rows}"
    competition = read_layout(flat(tmp_path, train=table, sample_submission="id,what\n8,dog\n9,dog\n"))
    assert competition.target.names == ("cat", "dog")
    write(tmp_path, sample_submission="id,what\n8,0\n9,0\n")  # a placeholder shows nothing
    message = refusal(tmp_path)
    assert "'label'" in message and "'class_name'" in message


def test_ids_of_a_folder_without_a_role_are_found_beside_the_test_folder(tmp_path):
    sample = "id,label\n8,a\nh1,a\n9,a\nh2,a\n"
    flat(tmp_path, train="id,label\n1,a\n2,b\n3,a\n4,b\n", sample_submission=sample)
    assert "'h1' in row 3" in refusal(tmp_path)
    touch(tmp_path, "leaderboard_holdout/h1.jpg", "leaderboard_holdout/h2.jpg", "more/z.jpg")
    competition = read_layout(tmp_path)
    assert [(row.id, row.path.parent.name) for row in competition.test] == [
        ("8", "test"),
        ("h1", "leaderboard_holdout"),
        ("9", "test"),
        ("h2", "leaderboard_holdout"),
    ]
    touch(tmp_path, "more/h1.jpg")  # which one is meant is not known
    assert "'h1' in row 3" in refusal(tmp_path)


# ---- lists as cells ----

LISTS = ("['cat']", "['cat', 'dog']", "['dog']", "['fox', 'dog']")


@pytest.mark.parametrize(
    ("cells", "sample", "names"),
    [
        (LISTS, "cat dog", ("cat", "dog", "fox")),
        ([text.replace("'", '"') for text in LISTS], "dog", ("cat", "dog", "fox")),
        ([text.replace("[", "{").replace("]", "}") for text in LISTS], "dog", ("cat", "dog", "fox")),
        (("('cat',)", "('cat', 'dog')", "('dog',)", "('fox', 'dog')"), "dog", ("cat", "dog", "fox")),
        (("[1.0]", "[1, 52]", "[52.0]", "[7, 52]"), "1 52", ("1", "7", "52")),
    ],
)
def test_lists_in_label_cells_are_several_labels(tmp_path, cells, sample, names):
    rows = "".join('{},"{}"\n'.format(n + 1, cell.replace('"', '""')) for n, cell in enumerate(cells))
    root = flat(
        tmp_path, train=f"id,labels\n{rows}", sample_submission=f"id,labels\n8,{sample}\n9,{sample}\n"
    )
    competition = read_layout(root, asked=Asked("micro_f1", kind="multilabel"))
    assert competition.target.names == names and competition.form.kind == "labels"
    assert [sorted(row.label.split(), key=names.index) for row in competition.train] == [
        [name for name in names if re.search(rf"\b{name}\b", cell)] for cell in cells
    ]
    columns = write(root, sample_submission=f"id,{','.join(names)}\n8,0.5,0.5,0.5\n9,0.5,0.5,0.5\n")
    assert set(read_layout(columns, asked=Asked("roc_auc")).target.names) == set(names)


@pytest.mark.parametrize("cell", ["[cat]", "['cat' 'dog']", "[[1], [2]]"])
def test_a_cell_that_is_no_list_of_labels_stays_a_text(tmp_path, cell):
    rows = "".join(f'{n},"{cell}"\n' if n % 2 else f"{n},['fox']\n" for n in range(1, 5))
    root = flat(tmp_path, train=f"id,labels\n{rows}", sample_submission="id,labels\n8,x\n9,x\n")
    assert read_layout(root, asked=Asked("accuracy")).target.names == tuple(sorted(("['fox']", cell)))


def test_lists_without_commas_are_no_names_with_something_around_them(tmp_path):
    rows = "1,['cat']\n2,['cat' 'dog']\n3,['dog']\n4,['dog']\n"
    root = flat(tmp_path, train=f"id,labels\n{rows}", sample_submission="id,labels\n8,cat\n9,cat\n")
    assert_says(refusal(root), "['cat' 'dog']", "no commas", "--target multiclass")
    assert "['cat' 'dog']" in read_layout(root, asked=Asked(kind="multiclass")).target.names


def test_lists_stay_texts_where_the_sample_writes_them(tmp_path):
    rows = "".join(f'{n + 1},"{cell}"\n' for n, cell in enumerate(LISTS))
    root = flat(tmp_path, train=f"id,labels\n{rows}", sample_submission="id,labels\n8,['dog']\n9,['dog']\n")
    assert set(read_layout(root, asked=Asked("accuracy")).target.names) == set(LISTS)


def test_without_a_sample_a_column_called_id_is_the_id_beside_paths(tmp_path):
    root = flat(
        tmp_path, train="id,label\n1,a\n2,b\n3,a\n4,b\n", test="Id,path\n501,test/9.jpg\n500,test/8.jpg\n"
    )
    competition = read_layout(root)
    assert competition.form.columns == ("Id", "label")
    assert [(row.id, row.path.name) for row in competition.test] == [("501", "9.jpg"), ("500", "8.jpg")]


@pytest.mark.parametrize(
    ("train", "sample", "file"),
    [
        (",label\n0,a\n1,b\n2,a\n3,b\n", None, "train.csv"),
        (",width,label\n0,30,a\n1,31,b\n2,32,a\n3,33,b\n", None, "train.csv"),
        (",a,b\n0,1,0\n1,0,1\n2,1,0\n3,0,1\n", None, "train.csv"),
        ("id,label\n0,a\n1,b\n2,a\n3,b\n", ",label\n0,a\n1,a\n", "sample_submission.csv"),
        ("id,label\n0,a\n1,b\n2,a\n3,b\n", ",a,b\n0,0.5,0.5\n1,0.5,0.5\n", "sample_submission.csv"),
    ],
)
def test_ids_in_a_column_without_a_name_are_refused_with_the_command_that_names_it(
    tmp_path, train, sample, file
):
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(4)), "test/0.jpg", "test/1.jpg")
    write(tmp_path, train=train, **({"sample_submission": sample} if sample else {}))
    message = refusal(tmp_path)
    command = re.search(r"sed -i\.bak '[^']*' \S+", message)[0]
    assert command.endswith(str(tmp_path / file)) and "if these are the ids" in message
    subprocess.run(command, shell=True, check=True)
    competition = read_layout(tmp_path)
    assert [row.id for row in competition.train] == ["0", "1", "2", "3"]
    assert [row.id for row in competition.test] == ["0", "1"]
