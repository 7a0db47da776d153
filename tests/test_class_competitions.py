"""Layouts of university classes, hackathons and label tools: what hosts make of names, ids and labels."""

import json
import re
import subprocess

import pytest
from test_layouts import labels, refusal, said, touch, write

from pipeline.competition.layout import read_layout
from pipeline.targets.evidence import Asked

NAMES = ("cat", "dog", "fox")


def label(number):
    return NAMES[number % 3]


def test_a_first_line_of_data_counts_where_a_column_marks_test_rows(tmp_path):
    parts = ["TRAIN"] * 7 + ["VALIDATION"] * 2 + ["TEST"] * 2
    rows = "".join(f"{part},gs://b/pets/img/{n}.jpg,{label(n)}\n" for n, part in enumerate(parts))
    write(touch(tmp_path, *(f"img/{n}.jpg" for n in range(11))), all_data=rows)
    write(tmp_path, sample_submission="id,label\n9.jpg,cat\n10.jpg,cat\n")
    competition = read_layout(tmp_path)
    assert sorted(labels(competition).values()) == sorted(label(n) for n in range(9))
    assert sorted(competition.split.values()).count("val") == 2
    assert [row.path.name for row in competition.test] == ["9.jpg", "10.jpg"]


def cameras(root, part, numbers, cameras=(1, 2)):
    """Files of the same names in a folder for each camera; returns the rows `file,camera` with the number."""
    rows = [(f"{n}.jpg", f"cam{camera}", n + camera) for n in numbers for camera in cameras]
    touch(root, *(f"{part}/{camera}/{file}" for file, camera, _ in rows))
    return rows


def test_a_column_of_folders_tells_files_of_equal_names_apart(tmp_path):
    seen, shown = cameras(tmp_path, "train", range(6)), cameras(tmp_path, "test", range(3))
    write(tmp_path, train="file,camera,label\n" + "".join(f"{f},{c},{label(n)}\n" for f, c, n in seen))
    write(tmp_path, test="id,file,camera\n" + "".join(f"t{i},{f},{c}\n" for i, (f, c, _) in enumerate(shown)))
    ids = [f"t{i}" for i in reversed(range(len(shown)))]
    write(tmp_path, sample_submission="id,label\n" + "".join(f"{text},cat\n" for text in ids))
    competition = read_layout(tmp_path)
    assert labels(competition) == {f"{c}/{f}": label(n) for f, c, n in seen}
    assert {row.id: row.path.relative_to(tmp_path).as_posix() for row in competition.train} == {
        f"{c}/{f}": f"train/{c}/{f}" for f, c, _ in seen
    }
    paths = {row.id: row.path.relative_to(tmp_path).as_posix() for row in competition.test}
    assert paths == {f"t{i}": f"test/{c}/{f}" for i, (f, c, _) in enumerate(shown)}
    assert [row.id for row in competition.test] == ids


def test_a_first_line_of_data_counts_where_several_images_have_its_name(tmp_path):
    seen = cameras(tmp_path, "train", range(6))
    write(touch(tmp_path, "test/80.jpg"), train="".join(f"{f},{c},{label(n)}\n" for f, c, n in seen))
    assert len(read_layout(tmp_path, label_column="column 3").train) == len(seen)


def test_folders_are_no_classes_where_a_table_about_their_files_holds_the_labels(tmp_path):
    seen = cameras(tmp_path, "train", range(6))
    write(touch(tmp_path, "test/80.jpg"), sample_submission="id,label\n80,cat\n")
    write(tmp_path, train="file,label\n" + "".join(f"{f},{label(n)}\n" for f, _, n in seen))
    text = refusal(tmp_path)
    assert "train.csv" in text and "'label'" in text and "0.jpg" in text and "cam1" in text


def in_classes(root, *folders, number=3):
    """Images in a folder for each class below `folders`, and two test images."""
    for folder in folders:
        where = f"{folder}/" if folder else ""
        start = where.replace("/", "").replace("_", "")
        touch(root, *(f"{where}{name}/{start}{name}{n}.jpg" for name in NAMES for n in range(number)))
    touch(root, "test/80.jpg", "test/90.jpg")
    return write(root, sample_submission="id,label\n80,cat\n90,cat\n")


def test_the_sample_says_which_of_two_levels_of_folders_are_the_classes(tmp_path):
    read = read_layout(in_classes(tmp_path / "inner", "train/camera1", "train/camera2"))
    assert read.target.names == NAMES and len(read.train) == 18
    write(tmp_path / "inner", sample_submission="id,label\n80,camera1\n90,camera1\n")
    assert read_layout(tmp_path / "inner").target.names == ("camera1", "camera2")
    read = read_layout(in_classes(tmp_path / "three", "train/c1", "train/c2", "train/c3"))
    assert read.target.names == NAMES and len(read.train) == 27


def test_folders_beside_classes_that_are_no_classes(tmp_path):
    root = in_classes(tmp_path, "", "augmented")
    touch(root, "sample_images/1.jpg", "sample_images/2.jpg")
    competition = read_layout(root)
    assert competition.target.names == NAMES and len(competition.train) == 9
    assert "augmented/" in said(competition) and "sample_images/" in said(competition)


@pytest.mark.parametrize("name", ["evaluation", "unlabeled images", "query", "batch7"])
@pytest.mark.parametrize("sample", [True, False])
def test_images_to_predict_beside_class_folders_are_no_class(tmp_path, name, sample):
    touch(tmp_path, *(f"{kind}/{kind}{n}.jpg" for kind in NAMES for n in range(3)))
    touch(tmp_path, *(f"{name}/{n}.jpg" for n in (80, 90)))
    if sample:
        write(tmp_path, sample_submission="id,label\n90,cat\n80,cat\n")
    elif name == "batch7":  # nothing tells it from a class
        return
    competition = read_layout(tmp_path)
    assert competition.target.names == NAMES and len(competition.train) == 9
    ids = ["90", "80"] if sample else ["80", "90"]
    assert [(row.id, row.path.name) for row in competition.test] == [(text, f"{text}.jpg") for text in ids]


@pytest.mark.parametrize("mark", ["-1", "?", "unknown"])
@pytest.mark.parametrize("test", ["images", "test"])
def test_rows_of_the_ids_to_predict_are_no_training_rows(tmp_path, mark, test):
    numbers = mark == "-1"
    texts = {n: str(n % 3) if numbers else label(n) for n in range(12)} | {80: mark, 90: mark}
    seen, shown = ("images" if test == "images" else "train"), (80, 90)
    touch(tmp_path, *(f"{test if n in shown else seen}/{n}.jpg" for n in texts))
    write(tmp_path, labels="id,label\n" + "".join(f"{n}.jpg,{text}\n" for n, text in texts.items()))
    write(tmp_path, sample_submission=f"id,label\n90,{texts[0]}\n80,{texts[0]}\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {f"{n}.jpg": texts[n] for n in range(12)}
    assert [row.path.name for row in competition.test] == ["90.jpg", "80.jpg"]
    assert mark not in competition.target.names and mark in said(competition)


def test_rows_of_the_ids_to_predict_that_have_labels_stay(tmp_path):
    touch(tmp_path, *(f"images/{n}.jpg" for n in range(12)), "images/80.jpg", "images/90.jpg")
    rows = "".join(f"{n},{label(n)}\n" for n in (*range(12), 80, 90))
    write(tmp_path, labels="id,label\n" + rows, sample_submission="id,label\n80,cat\n90,cat\n")
    text = refusal(tmp_path)
    assert "sample_submission.csv" in text and "images/80.jpg" in text and "test/" in text


def test_rows_of_training_images_stay_that_are_called_like_images_to_predict(tmp_path):
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(9)), *(f"test/{n}.jpg" for n in range(3)))
    write(tmp_path, train="id,label\n" + "".join(f"{n},{NAMES[n // 3]}\n" for n in range(9)))
    write(tmp_path, sample_submission="id,label\n0,dog\n1,dog\n2,dog\n")
    assert labels(read_layout(tmp_path)) == {str(n): NAMES[n // 3] for n in range(9)}


@pytest.mark.parametrize("form", ["{0}-samples", "{1:02}_{0}", "class {0}", "{1:03}.{0}"])
@pytest.mark.parametrize("asked", ["cat,cat", "fox,dog"])
def test_labels_lose_what_the_sample_does_not_write(tmp_path, form, asked):
    called = [form.format(name, place) for place, name in enumerate(NAMES, start=1)]
    touch(tmp_path, *(f"train/{name}/{n}.jpg" for name in called for n in range(3)))
    first, second = asked.split(",")
    write(touch(tmp_path, "test/80.jpg", "test/90.jpg"), sample_submission=f"id,l\n80,{first}\n90,{second}\n")
    competition = read_layout(tmp_path)
    assert competition.target.names == NAMES
    assert all(row.path.parent.name == called[NAMES.index(row.label)] for row in competition.train)


@pytest.mark.parametrize("asked", ["cat", "0", "x"])
def test_labels_stay_where_the_sample_says_nothing_about_them(tmp_path, asked):
    called = ("cat_1", "dog_1", "fox_2")
    touch(tmp_path, *(f"train/{name}/{n}.jpg" for name in called for n in range(3)))
    write(touch(tmp_path, "test/80.jpg"), sample_submission=f"id,label\n80,{asked}\n")
    assert read_layout(tmp_path, asked=Asked(kind="multiclass")).target.names == called


def test_several_texts_of_the_sample_that_are_no_class_are_refused(tmp_path):
    cameras(tmp_path, "train", range(3))
    write(touch(tmp_path, "test/80.jpg", "test/90.jpg"), sample_submission="id,label\n80,cat\n90,dog\n")
    text = refusal(tmp_path)
    assert "'cat', 'dog'" in text and "'cam1', 'cam2'" in text and "--target multiclass" in text
    assert read_layout(tmp_path, asked=Asked(kind="multiclass")).target.names == ("cam1", "cam2")


def test_a_class_and_another_word_are_no_two_guesses(tmp_path):
    trees = ("Quercus/alba", "Quercus/robur", "Acer/rubrum", "Acer/nigrum")
    touch(tmp_path, *(f"train/{tree}/{tree[0]}{tree[-2:]}{n}.jpg" for tree in trees for n in range(3)))
    sample = "id,label\n80,Quercus alba\n90,Acer rubrum\n"
    write(touch(tmp_path, "test/80.jpg", "test/90.jpg"), sample_submission=sample)
    text = refusal(tmp_path)
    assert "'Quercus alba'" in text and "--target multiclass" in text
    assert read_layout(tmp_path, asked=Asked(kind="multiclass")).form.kind == "label"


@pytest.mark.parametrize("names", ["2023-05-01 2023-06-01", "20230501 20230601", "2023_05 2023_06"])
def test_folders_called_by_dates_are_no_classes(tmp_path, names):
    touch(tmp_path, *(f"train/{name}/{name}{n}.jpg" for name in names.split() for n in range(3)))
    assert names.split()[0] in refusal(tmp_path, need="train")
    rows = "".join(f"{name}{n},{label(n)}\n" for name in names.split() for n in range(3))
    write(tmp_path, labels="id,label\n" + rows)
    assert read_layout(tmp_path, need="train").target.names == NAMES


def listed_images(root, form, texts):
    """Files `form` of the numbers 1 to 6 and, in test/, 7 to 9; tables with the ids `texts` of a number."""
    touch(
        root,
        *(f"train/{form.format(n)}" for n in range(1, 7)),
        *(f"test/{form.format(n)}" for n in (7, 8, 9)),
    )
    write(root, train="id,label\n" + "".join(f"{texts.format(n)},{label(n)}\n" for n in range(1, 7)))
    return write(
        root, sample_submission="id,label\n" + "".join(f"{texts.format(n)},cat\n" for n in (9, 7, 8))
    )


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        ("{:04}.png", "{}.png"),  # read as numbers by a spreadsheet, which kept the extension
        ("{:04}.png", "{}.jpg"),
        ("{}.jpg", "{}.0"),  # numbers that were beside an empty cell in pandas
        ("{:03}.jpg", "{}.0"),
        ("{}.jpg", "image_{}"),
        ("{:03}.jpg", "image_{}.jpg"),
        ("scan{}.jpg", "image_{}"),
        ("IMG_{}.JPG", "img_{}.jpg"),
        ("Bild {} ü.jpg", "bild {} Ü"),
        ("{}.jpg", "https://storage.example.com/pets/{}.jpg"),
        ("a{}.jpg", "C:\\Users\\ann\\Desktop\\pets\\a{}.jpg"),
        ("a{}.png", "/data/upload/1/a{}.jpg"),
        ("{}.png", "/data/upload/1/0ab1cd3f-{}.png"),
    ],
)
def test_ids_find_their_images(tmp_path, form, texts):
    competition = read_layout(listed_images(tmp_path, form, texts))
    found = {row.id: (row.path.name, row.label) for row in competition.train}
    assert found == {texts.format(n): (form.format(n), label(n)) for n in range(1, 7)}
    assert [(row.id, row.path.name) for row in competition.test] == [
        (texts.format(n), form.format(n)) for n in (9, 7, 8)
    ]
    assert competition.form.row_ids == tuple(texts.format(n) for n in (9, 7, 8))


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        ("a{}.jpg", "/x/test/a{}.jpg"),  # of another part
        ("a{}.jpg", "b{}x.jpg"),
        ("{}.jpg", "image_{}_left"),
    ],
)
def test_ids_of_other_images_find_none(tmp_path, form, texts):
    text = refusal(listed_images(tmp_path, form, texts), need="train")
    assert texts.format(1) in text and "images.csv" in text


def test_an_id_in_another_case_that_may_be_two_images_is_refused(tmp_path):
    touch(tmp_path, "train/A1.jpg", "train/a1.jpg", "train/B1.jpg", "test/x.jpg")
    text = refusal(write(tmp_path, train="id,label\nA1.JPG,a\nb1.JPG,b\n"), need="train")
    assert "'b1.JPG'" in text and "B1.jpg" in text


@pytest.mark.parametrize("yes_no", [("1", "0"), ("True", "False"), ("true", "false"), ("TRUE", "FALSE")])
def test_a_column_of_flags_for_each_class(tmp_path, yes_no):
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(9)), "test/80.jpg")
    rows = "".join(f"{n},{','.join(yes_no[name != label(n)] for name in NAMES)}\n" for n in range(9))
    write(tmp_path, train="id,cat,dog,fox\n" + rows, sample_submission="id,label\n80,cat\n")
    competition = read_layout(tmp_path)
    assert competition.form.kind == "label"
    assert labels(competition) == {str(n): label(n) for n in range(9)}
    known = (competition.target, competition.metric)
    assert labels(read_layout(tmp_path, known=known)) == {str(n): label(n) for n in range(9)}


@pytest.mark.parametrize("bases", [("train_1", "train_2"), ("train1", "train2", "train3")])
@pytest.mark.parametrize("form", ["{base}{name}{n}.jpg", "{n}{name}.jpg"])
def test_class_folders_in_parts_of_a_download_are_joined(tmp_path, bases, form):
    for place, base in enumerate(bases):
        files = [
            (name, form.format(base=base, name=name, n=3 * place + n)) for name in NAMES for n in range(3)
        ]
        touch(tmp_path, *(f"{base}/{name}/{file}" for name, file in files))
    competition = read_layout(tmp_path, need="train")
    assert len(competition.train) == 9 * len(bases) == len({row.id for row in competition.train})
    assert all(row.path.parent.name == row.label for row in competition.train)
    assert all(f"{base}/" in said(competition) for base in bases)


def test_class_folders_in_another_size_are_left_out(tmp_path):
    names = [f"{name}/{name}{n}.jpg" for name in NAMES for n in range(3)]
    touch(tmp_path, *(f"{base}/{name}" for base in ("train", "train_resized") for name in names))
    competition = read_layout(tmp_path, need="train")
    assert {row.path.relative_to(tmp_path).parts[0] for row in competition.train} == {"train"}
    assert "train_resized/" in said(competition)
    touch(tmp_path, *(f"train_224/{name}" for name in names))
    text = refusal(tmp_path, need="train")
    assert "train_224" in text and "train_resized" in text


@pytest.mark.parametrize("names", [("labels_part1", "labels_part2"), ("train_1", "train_2")])
def test_labels_in_two_tables_are_joined_by_the_command_of_the_message(tmp_path, names):
    touch(tmp_path, *(f"train/{n}.jpg" for n in range(12)))
    for name, numbers in zip(names, (range(9), range(9, 12)), strict=True):
        rows = "\n".join(f"{n},{label(n)}" for n in numbers)  # no line end at the end
        write(tmp_path, **{name: f"id,label\n{rows}"})
    text = refusal(tmp_path, need="train")
    assert all(f"{name}.csv" in text for name in names)
    subprocess.run(re.search(r"awk .*?(?=; to)", text)[0], shell=True, check=True)
    assert labels(read_layout(tmp_path, need="train")) == {str(n): label(n) for n in range(12)}
    same = "id,label\n" + "".join(f"{n},fox\n" for n in range(9))
    write(tmp_path, **{names[1]: same})  # the same images: one is meant
    (tmp_path / "labels.csv").unlink()
    assert "awk" not in refusal(tmp_path, need="train")


def lines(root, **files):
    for name, rows in files.items():
        place = root / name.replace("__", "/").replace("_dot_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{row}\n" for row in rows))


def test_json_lines_are_read(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in range(9)), "test/80.png", "test/90.png")
    write(tmp_path, sample_submission="file_name,label\n90.png,cat\n80.png,cat\n")
    rows = [json.dumps({"file_name": f"{n}.png", "label": label(n), "box": [[1]]}) for n in range(9)]
    lines(tmp_path, train__metadata_dot_jsonl=rows)
    competition = read_layout(tmp_path)
    assert labels(competition) == {f"{n}.png": label(n) for n in range(9)}
    assert [row.path.name for row in competition.test] == ["90.png", "80.png"]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join([*rows, "{"]))
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, "{"]))
    text = refusal(tmp_path)
    assert "train.jsonl" in text and "row 10" in text


def test_a_manifest_with_names_inside_is_read(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in range(9)), "test/80.png")
    write(tmp_path, sample_submission="id,label\n80,cat\n")
    rows = [
        {"source-ref": f"s3://b/train/{n}.png", "class": n % 3, "class-metadata": {"class-name": label(n)}}
        for n in range(9)
    ]
    lines(tmp_path, output_dot_manifest=map(json.dumps, rows))
    assert [row.label for row in read_layout(tmp_path).train] == [label(n) for n in range(9)]


def test_a_list_of_mxnet_is_read(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in range(9)), "test/80.png")
    write(tmp_path, sample_submission="id,label\n80,0\n")
    lines(tmp_path, train_dot_lst=[f"{n + 3}\t{n % 3}.000000\t{n}.png" for n in range(9)])
    assert labels(read_layout(tmp_path)) == {f"{n}.png": str(n % 3) for n in range(9)}


def test_numbers_of_a_list_are_called_as_their_folders(tmp_path):
    touch(tmp_path, *(f"train/{label(n)}/{n}.png" for n in range(9)), "test/80.png")
    write(tmp_path, sample_submission="id,label\n80,cat\n")
    lines(tmp_path, train_dot_lst=[f"{n}\t{n % 3}\t{label(n)}/{n}.png" for n in range(9)])
    competition = read_layout(tmp_path)
    assert competition.target.names == NAMES
    assert all(row.path.parent.name == row.label for row in competition.train)


def test_lists_of_images_and_labels_as_in_homework(tmp_path):
    touch(tmp_path, *(f"images/{n}.jpg" for n in range(12)))
    lines(tmp_path, train_dot_txt=[f"images/{n}.jpg {n % 3}" for n in range(9)])
    lines(tmp_path, test_dot_txt=[f"images/{n}.jpg" for n in (11, 9, 10)], classes_dot_txt=NAMES)
    competition = read_layout(tmp_path)
    assert [row.label for row in competition.train] == [str(n % 3) for n in range(9)]
    assert competition.form.row_ids == tuple(f"images/{n}.jpg" for n in (11, 9, 10))
    assert competition.form.columns == ("image", "label")


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("classes_dot_txt", NAMES),
        ("mapping_dot_txt", ["0: cat", "1: dog", "2: fox"]),
        ("labels_dot_txt", ["0 cat", "1 dog", "2 fox"]),
        ("synsets_dot_txt", ["0 cat", "1 dog", "2 fox"]),
    ],
)
def test_a_list_of_names_translates_numbers_of_classes(tmp_path, file, rows):
    touch(tmp_path, *(f"train/{n}.png" for n in range(9)), "test/80.png", "test/90.png")
    write(tmp_path, sample_submission="id,label\n80,fox\n90,dog\n")
    write(tmp_path, train="id,label\n" + "".join(f"{n},{n % 3}\n" for n in range(9)))
    lines(tmp_path, **{file: rows})
    assert labels(read_layout(tmp_path)) == {str(n): label(n) for n in range(9)}
    write(tmp_path, train="id,label\n" + "".join(f"{n},{n % 3 + 1}\n" for n in range(9)))  # from 1
    if file == "classes_dot_txt":
        assert labels(read_layout(tmp_path)) == {str(n): label(n) for n in range(9)}
    else:
        assert "'fox'" in refusal(tmp_path)
    write(tmp_path, train="id,label\n" + "".join(f"{n},{n % 2 + 1}\n" for n in range(9)))  # from 0 or from 1?
    if file == "classes_dot_txt":
        assert "'fox'" in refusal(tmp_path)


def test_labels_in_files_that_are_not_understood_are_named(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in range(9)), "test/80.png")
    entry = {"flags": {"cat": True}, "shapes": [], "imagePath": "0.png"}
    lines(tmp_path, train__0_dot_json=[json.dumps(entry)], train__labels_dot_txt=["7"] * 9)
    text = refusal(tmp_path)
    assert "train/0.json" in text and "train/labels.txt" in text and "image,label" in text


def test_images_that_are_addresses_only_are_named(tmp_path):
    write(tmp_path, train="image_url,label\nhttps://example.com/1.jpg,cat\nhttps://example.com/2.jpg,dog\n")
    text = refusal(tmp_path)
    assert "train.csv" in text and "'image_url'" in text and "https://example.com/1.jpg" in text


def test_a_sample_that_is_the_beginning_of_the_test_table_is_refused(tmp_path):
    touch(tmp_path, *(f"train/{name}/{name}{n}.jpg" for name in NAMES for n in range(3)))
    touch(tmp_path, *(f"test/{n}.jpg" for n in range(50, 60)))
    write(tmp_path, test="id\n" + "".join(f"{n}.jpg\n" for n in range(50, 60)))
    write(tmp_path, sample_submission="id,label\n50.jpg,cat\n51.jpg,cat\n")
    text = refusal(tmp_path)
    assert "test.csv" in text and "'id'" in text and "2 rows" in text and "10 images" in text
    assert len(read_layout(tmp_path, need="train").train) == 9  # training needs no sample
    (tmp_path / "test.csv").rename(tmp_path / ".test.csv")
    competition = read_layout(tmp_path)
    assert competition.form.row_ids == ("50.jpg", "51.jpg") and "8 images" in said(competition)
    write(tmp_path, test="id\n" + "".join(f"{n}.jpg\n" for n in (50, 51, 52)))
    assert len(read_layout(tmp_path).form.row_ids) == 2


@pytest.mark.parametrize("name", ["_classes.csv", "metadata.csv"])
@pytest.mark.parametrize("held_out", [3, 9, 12])
def test_a_table_in_the_folder_of_validation_images_is_no_part_of_the_labels(tmp_path, name, held_out):
    for part, numbers in (("train", range(9)), ("valid", range(20, 20 + held_out)), ("test", range(50, 53))):
        touch(tmp_path, *(f"{part}/{n}.jpg" for n in numbers))
        rows = "".join(f"{n}.jpg,{','.join(str(int(k == label(n))) for k in NAMES)}\n" for n in numbers)
        (tmp_path / part / name).write_text("filename, cat, dog, fox\n" + rows)
    competition = read_layout(tmp_path)
    assert {row.path.relative_to(tmp_path).parts[0] for row in competition.train} == {"train"}
    assert len(competition.train) == 9
    assert [row.id for row in competition.test] == ["50.jpg", "51.jpg", "52.jpg"]
