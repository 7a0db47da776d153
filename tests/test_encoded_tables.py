"""Encoded images in a column of a table: base64 in CSV files, bytes in parquet files of Hugging Face."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.fetch.containers import convert
from pipeline.targets.evidence import Asked


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, kind)
    return file.getvalue()


def text_of(number, form):
    return form + base64.b64encode(encoded(number)).decode()


@pytest.mark.parametrize("form", ["", "data:image/png;base64,"])
def test_base64_in_csv(tmp_path, form):
    def rows(numbers, labelled):
        return "".join(
            f'{n},"{text_of(n, form)}"' + (f",{'ab'[n % 2]}\n" if labelled else "\n") for n in numbers
        )

    (tmp_path / "train.csv").write_text("id,image,label\n" + rows(range(6), True))
    (tmp_path / "test.csv").write_text("id,image\n" + rows((31, 30), False))
    (tmp_path / "sample_submission.csv").write_text("id,label\n31,a\n30,a\n")
    convert(tmp_path)
    competition = read_layout(tmp_path)
    assert {row.id: (row.label, row.path.read_bytes()) for row in competition.train} == {
        str(n): ("ab"[n % 2], encoded(n)) for n in range(6)
    }
    assert [(row.id, row.path.read_bytes()) for row in competition.test] == [
        (str(n), encoded(n)) for n in (31, 30)
    ]


def test_a_row_without_an_image_is_named(tmp_path):
    rows = [text_of(n, "") for n in range(3)] + ["broken"]
    (tmp_path / "train.csv").write_text("image,label\n" + "".join(f"{text},a\n" for text in rows))
    with pytest.raises(UserError) as caught:
        convert(tmp_path)
    assert "row 4" in str(caught.value) and "'image'" in str(caught.value)


def test_two_columns_of_images_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text(f"left,right,label\n{text_of(1, '')},{text_of(2, '')},a\n")
    with pytest.raises(UserError) as caught:
        convert(tmp_path)
    assert "'left', 'right'" in str(caught.value)


def test_shards_of_parquet_are_one_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    for shard, numbers in enumerate((range(4), range(4, 7))):
        images = [{"bytes": encoded(n, "JPEG"), "path": None} for n in numbers]
        table = pyarrow.table({"image": images, "label": [n % 2 for n in numbers]})
        parquet.write_table(table, tmp_path / f"data/train-0000{shard}-of-00002.parquet")
    images = [{"bytes": encoded(n, "JPEG"), "path": None} for n in (50, 51)]
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "data/test-00000-of-00001.parquet")
    (tmp_path / "sample_submission.csv").write_text("id,label\nx7,0\na9,1\n")
    assert convert(tmp_path).packages == ["pyarrow"]
    competition = read_layout(tmp_path, asked=Asked(metric="accuracy"))
    assert [(row.label, row.path.read_bytes()) for row in competition.train] == [
        (str(n % 2), encoded(n, "JPEG")) for n in range(7)
    ]
    assert [(row.id, row.path.read_bytes()) for row in competition.test] == [
        ("x7", encoded(50, "JPEG")),
        ("a9", encoded(51, "JPEG")),
    ]
    assert competition.train[0].path.suffix == ".jpg"


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_file_names_beside_the_bytes_are_the_samples_ids(tmp_path, suffix):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part, numbers in (("train", range(6)), ("test", (53, 51, 50, 52))):
        images = [{"bytes": encoded(n), "path": f"images/s{n}.png"} for n in numbers]
        labels = {"label": ["ab"[n % 2] for n in numbers]} if part == "train" else {}
        parquet.write_table(pyarrow.table({"image": images, **labels}), tmp_path / f"{part}.parquet")
    rows = "".join(f"s{n}{suffix},a\n" for n in range(50, 54))
    (tmp_path / "sample_submission.csv").write_text("id,label\n" + rows)
    convert(tmp_path)
    assert [(row.id, row.path.read_bytes()) for row in read_layout(tmp_path).test] == [
        (f"s{n}{suffix}", encoded(n)) for n in range(50, 54)
    ]


def test_shards_whose_columns_have_another_order_are_one_table(tmp_path):
    (tmp_path / "train_1.csv").write_text(
        "id,image,label\n" + "".join(f"{n},{text_of(n, '')},{'ab'[n % 2]}\n" for n in range(4))
    )
    (tmp_path / "train_2.csv").write_text(
        "label,id,image\n" + "".join(f"{'ab'[n % 2]},{n},{text_of(n, '')}\n" for n in range(4, 8))
    )
    convert(tmp_path)
    assert {row.id: row.label for row in read_layout(tmp_path, need="train").train} == {
        str(n): "ab"[n % 2] for n in range(8)
    }


def test_rows_of_shards_without_ids_stand_in_the_order_of_the_shards_numbers(tmp_path):
    images = [f"{text_of(n, '')},{'ab'[n % 2]}\n" for n in range(6)]
    (tmp_path / "train.csv").write_text("image,label\n" + "".join(images))
    for shard in range(1, 12):
        (tmp_path / f"test_{shard}.csv").write_text(f"image\n{text_of(100 + shard, '')}\n")
    (tmp_path / "sample_submission.csv").write_text("id,label\n" + "".join(f"t_{n},a\n" for n in range(11)))
    convert(tmp_path)
    assert [(row.id, row.path.read_bytes()) for row in read_layout(tmp_path).test] == [
        (f"t_{n}", encoded(101 + n)) for n in range(11)
    ]


@pytest.mark.parametrize(("name", "mark"), [("cat", " "), ("the cat", "|")])
def test_a_list_of_labels_becomes_labels_of_one_cell(tmp_path, name, mark):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    chosen = [[name, "dog"], ["dog"], ["emu"], [name], ["emu", "dog"], [name, "emu"]] * 4
    images = [{"bytes": encoded(n), "path": None} for n in range(24)]
    parquet.write_table(pyarrow.table({"image": images, "labels": chosen}), tmp_path / "train.parquet")
    convert(tmp_path)
    competition = read_layout(tmp_path, need="train")
    assert competition.target.kind == "multilabel"
    assert set(competition.target.names) == {name, "dog", "emu"}
    assert [row.label for row in competition.train] == [mark.join(labels) for labels in chosen]


def test_tables_of_texts_stay(tmp_path):
    text = "id,hash,label\n" + "".join(f"{n},{'abcdEFGH0123' * 20},a\n" for n in range(3))
    (tmp_path / "train.csv").write_text(text)
    convert(tmp_path)
    assert (tmp_path / "train.csv").read_text() == text
