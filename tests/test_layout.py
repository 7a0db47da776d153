import os
import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from conftest import assert_says

from pipeline.competition.folders import natural_key
from pipeline.competition.layout import read_form, read_layout
from pipeline.errors import UserError
from pipeline.forms.form import SubmissionForm
from pipeline.targets.evidence import Asked

COMPETITIONS = Path(__file__).resolve().parents[2] / "shared" / "competitions"
LEGACY = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "legacy_beit" / "data"


def make(root, *files, **tables):
    """Empty files, and tables: `train="id,label\\n..."` writes train.csv; a name with a dot is passed through
    a dict.
    """
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text, encoding="utf-8")
    return root


def class_folders(root):
    return make(
        root,
        "train/cat/1.jpg",
        "train/cat/2.jpg",
        "train/dog/3.jpg",
        "train/dog/4.jpg",
        "test/8.jpg",
        "test/9.jpg",
    )


def table_kind(root, train="id,label\n1,cat\n2,dog\n", folder="train_images", test="test_images"):
    return make(root, f"{folder}/1.jpg", f"{folder}/2.jpg", f"{test}/8.jpg", f"{test}/9.jpg", train=train)


def labels(competition):
    return {row.id: row.label for row in competition.train}


def refusal(root, **options):
    with pytest.raises(UserError) as caught:
        read_layout(root, **options)
    return str(caught.value)


def said(competition):
    assert len(competition.notes) <= 6
    assert all("\n" not in note for note in competition.notes)
    return "\n".join(competition.notes)


# ---- kind 1: one folder per class ----


def test_class_folders(tmp_path):
    competition = read_layout(class_folders(tmp_path))
    assert labels(competition) == {"1": "cat", "2": "cat", "3": "dog", "4": "dog"}
    assert competition.train[0].path == tmp_path / "train/cat/1.jpg"
    assert competition.class_names == ("cat", "dog")
    assert [(row.id, row.path, row.label) for row in competition.test] == [
        ("8", tmp_path / "test/8.jpg", None),
        ("9", tmp_path / "test/9.jpg", None),
    ]
    assert competition.form == SubmissionForm("label", ("id", "label"), "id", ("8", "9"), None)
    assert competition.notes[0] == "train: 4 images, 2 classes (one folder per class in train/)"
    assert competition.notes[2:] == (
        "test: 2 images, test/; no sample submission: columns id,label, ids are file names without extension",
    )


def test_classes_and_test_files_are_in_natural_order(tmp_path):
    make(
        tmp_path,
        *(f"train/class {n}/{n}.jpg" for n in (1, 2, 10)),
        "train/Apple/a.jpg",
        *(f"test/img{n}.jpg" for n in (1, 2, 10)),
    )
    competition = read_layout(tmp_path)
    assert competition.class_names == ("Apple", "class 1", "class 2", "class 10")
    assert competition.form.ids == ("img1", "img2", "img10")


def test_natural_key_orders_numbers_by_value_and_ties_by_text():
    names = ["b", "a10", "a2", "A2", "a02", "1", "é", "a²"]
    shuffled = names[:]
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)
    assert sorted(["a10", "a2", "b", "1"], key=natural_key) == ["1", "a2", "a10", "b"]


def test_order_does_not_depend_on_the_order_of_creation(tmp_path):
    names = [f"train/{label}/{n}.jpg" for label in "ab" for n in range(5)] + [
        f"test/{n}.jpg" for n in range(5)
    ]
    make(tmp_path / "one", *names)
    make(tmp_path / "two", *reversed(names))
    one, two = read_layout(tmp_path / "one"), read_layout(tmp_path / "two")
    assert [row.id for row in one.train] == [row.id for row in two.train]
    assert [row.id for row in one.test] == [row.id for row in two.test]


def test_nested_train_and_test(tmp_path):
    make(tmp_path, "train/train/cat/1.jpg", "train/train/dog/2.jpg", "test/test/8.jpg")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "dog"}
    assert competition.test[0].path == tmp_path / "test/test/8.jpg"
    assert "in train/train/" in said(competition)


def test_test_unknown(tmp_path):
    make(class_folders(tmp_path), "test/unknown/7.jpg")
    assert [row.id for row in read_layout(tmp_path).test] == ["7", "8", "9"]


def test_real_world_clutter_is_ignored(tmp_path):
    make(
        class_folders(tmp_path),
        *(
            "README.md .DS_Store SOURCE.md competition.json train/.DS_Store train/cat/._1.jpg "
            "train/cat/Thumbs.db"
        ).split(),
        *(
            "train/cat/README",
            "train/.ipynb_checkpoints/5.jpg",
            "__MACOSX/train/cat/._1.jpg",
            ".cache/test/6.jpg",
            "test/desktop.ini",
        ),
        solution="id,label\n8,cat\n9,dog\n",
        predictions="id,label\n8,cat\n9,dog\n",
    )
    competition = read_layout(tmp_path)
    assert len(competition.train) == 4
    assert len(competition.test) == 2
    assert competition.class_names == ("cat", "dog")


def test_upper_case_extensions_spaces_and_other_scripts(tmp_path):
    make(tmp_path, "train/Café crème/a b.JPG", "train/日本/é.Jpeg", "test/ü 1.PNG")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"a b": "Café crème", "é": "日本"}
    assert competition.form.ids == ("ü 1",)


def test_colliding_stems_keep_their_extension(tmp_path):
    make(class_folders(tmp_path), "test/8.png")
    competition = read_layout(tmp_path)
    assert competition.form.ids == ("8.jpg", "8.png", "9.jpg")
    assert "ids are file names" in said(competition)


def test_colliding_names_become_paths(tmp_path):
    make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"cat/1.jpg": "cat", "dog/1.jpg": "dog"}
    assert competition.form.ids == ("a/1.jpg", "b/1.jpg")


def test_links_that_loop_do_not_hang(tmp_path):
    class_folders(tmp_path)
    os.symlink(tmp_path / "train", tmp_path / "train/cat/again")
    os.symlink("self", tmp_path / "train/self")
    os.symlink(tmp_path / "test", tmp_path / "test/loop")
    competition = read_layout(tmp_path)
    assert len(competition.train) == 4
    assert len(competition.test) == 2
    assert "links to a folder that was already read: test/loop, train/cat/again" in said(competition)


def test_linked_images_and_folders_are_read(tmp_path):
    make(tmp_path / "store", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "store", tmp_path / "data/train")
    (tmp_path / "data/test").mkdir()
    os.symlink(tmp_path / "store/cat/1.jpg", tmp_path / "data/test/8.jpg")
    competition = read_layout(tmp_path / "data")
    assert labels(competition) == {"1": "cat", "2": "dog"}
    assert competition.form.ids == ("8",)


def test_broken_links_are_an_error(tmp_path):
    os.symlink("nowhere.jpg", class_folders(tmp_path) / "train/cat/5.jpg")
    assert "1 link to a file that cannot be read: train/cat/5.jpg" in refusal(tmp_path)


def test_a_class_folder_without_images_is_noted(tmp_path):
    (class_folders(tmp_path) / "train/bird").mkdir()
    competition = read_layout(tmp_path)
    assert competition.class_names == ("cat", "dog")
    assert "no images in train/bird: not a class" in said(competition)


def test_images_that_cannot_be_read_are_noted(tmp_path):
    make(class_folders(tmp_path), "train/cat/5.heic", "train/dog/6.HEIC")
    assert "2 .heic files not read" in said(read_layout(tmp_path))


def test_a_validation_folder_without_the_classes_is_noted(tmp_path):
    make(class_folders(tmp_path), "val/5.jpg", "val/6.jpg")
    competition = read_layout(tmp_path)
    assert len(competition.train) == 4
    assert "val/ not used: validation rows are taken from the training images (data.val_fraction)" in said(
        competition
    )


@pytest.mark.parametrize("marks", [("state/start.json",), ("state/folds.json",), ("run.json", "report.html")])
def test_a_run_folder_inside_the_data_is_no_part_of_them(tmp_path, marks):
    """Its rows were taken for the labels, with their split."""
    run = make(class_folders(tmp_path), "runs/a/figures/loss.png") / "runs/a"
    (run / "state").mkdir()
    (run / "state/rows.csv").write_text("id,label,split\n1,cat,val\n2,cat,train\n3,dog,train\n4,dog,train\n")
    for mark in marks:
        (run / mark).write_text("{}")
    competition = read_layout(tmp_path)
    assert competition.split is None and len(competition.train) == 4
    assert "rows.csv" not in said(competition) and "runs" not in said(competition)


def test_a_single_class(tmp_path):
    message = refusal(make(tmp_path, "train/cat/1.jpg", "train/cat/2.jpg", "test/8.jpg"))
    assert "expected train/<class>/*.jpg (two classes or more)" in message


def test_images_beside_class_folders(tmp_path):
    message = refusal(make(class_folders(tmp_path), "train/5.jpg"))
    assert_says(message, "1 image", "2 class folders", "train/5.jpg")


def test_two_folders_of_class_folders(tmp_path):
    message = refusal(make(class_folders(tmp_path), "train_small/cat/1.jpg", "train_small/dog/2.jpg"))
    assert "train and train_small all hold class folders" in message
    assert f"mv {tmp_path}/train_small {tmp_path}/.train_small" in message


def test_the_remedy_for_two_folders_works(tmp_path):
    make(class_folders(tmp_path), "train_small/cat/1.jpg", "train_small/dog/2.jpg")
    source, target = re.search(r"mv (\S+) (\S+)", refusal(tmp_path)).groups()
    os.rename(source, target)
    assert len(read_layout(tmp_path).train) == 4


def test_a_file_name_that_is_not_utf8(tmp_path):
    class_folders(tmp_path)
    try:
        with open(os.fsencode(tmp_path / "test") + b"/caf\xe9.jpg", "w"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert r"the file name b'caf\xe9.jpg' is not valid UTF-8" in refusal(tmp_path)


# ---- absent ----


def test_no_such_folder(tmp_path):
    assert_says(refusal(tmp_path / "data"), str(tmp_path / "data"), "does not exist", "--data DIR")


def test_a_zip_in_place_of_the_folder(tmp_path):
    make(tmp_path, "data.zip")
    assert f"make data FROM={tmp_path}/data.zip DATA={tmp_path}/data-unpacked" in refusal(
        tmp_path / "data.zip"
    )


def test_an_empty_folder(tmp_path):
    message = refusal(tmp_path, need="train")
    assert "no training images with labels" in message
    assert "found there: nothing" in message
    assert "no test images" in refusal(tmp_path, need="test")


def test_archives_that_are_not_unpacked(tmp_path):
    make(tmp_path, "train.zip", "test.zip", train="id,label\n1,cat\n2,dog\n")
    message = refusal(tmp_path, need="train")
    assert f"train.zip is not unpacked: make data FROM={tmp_path} DATA={tmp_path}-unpacked" in message
    assert "found there: train.csv, test.zip, train.zip" in message


def test_an_archive_beside_its_folder_is_no_problem(tmp_path):
    assert (
        len(read_layout(make(class_folders(tmp_path), "train.zip", "train/cat.zip", "test.zip")).train) == 4
    )


def test_a_class_that_is_still_packed(tmp_path):
    message = refusal(make(class_folders(tmp_path), "train/bird.zip"))
    assert f"train/bird.zip not unpacked: make data FROM={tmp_path} DATA={tmp_path}-unpacked" in message


def test_a_competition_one_level_down(tmp_path):
    class_folders(tmp_path / "my-competition")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "cat", "3": "dog", "4": "dog"}
    assert competition.form.ids == ("8", "9")
    class_folders(tmp_path / "another")
    message = refusal(tmp_path)
    assert (
        f"my-competition/ looks like a competition folder itself: --data {tmp_path}/my-competition" in message
    )
    assert f"another/ looks like a competition folder itself: --data {tmp_path}/another" in message


def test_another_competition_beside_this_one_is_left_alone(tmp_path):
    class_folders(tmp_path)
    make(
        tmp_path / "pets",
        "train/bird/1.jpg",
        "train/fish/2.jpg",
        "test/3.jpg",
        sample_submission="id,label\n3,bird\n",
    )
    competition = read_layout(tmp_path)
    assert competition.class_names == ("cat", "dog")
    assert competition.form.ids == ("8", "9")
    assert "pets/ not read: a competition of its own" in said(competition)


def test_a_vqa_folder(tmp_path):
    make(
        tmp_path, "train2014/COCO_train2014_000000000001.jpg", "v2_OpenEnded_mscoco_train2014_questions.json"
    )
    assert "expected an annotations file such as v2_mscoco_train2014_annotations.json" in refusal(
        tmp_path, need="train"
    )


def test_training_needs_no_test_folder_and_no_sample(tmp_path):
    make(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg")
    competition = read_layout(tmp_path, need="train")
    assert len(competition.train) == 2
    assert (competition.test, competition.form) == ((), None)
    assert "test: none found; needed for predictions only" in said(competition)
    assert "expected a folder test/" in refusal(tmp_path, need="test")


def test_training_with_a_sample_and_no_test_images(tmp_path):
    make(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "test.zip", sample_submission="id,label\n8,cat\n")
    competition = read_layout(tmp_path, need="train")
    assert competition.test == ()
    assert "no images of sample_submission.csv found; needed for predictions only" in said(competition)
    message = refusal(tmp_path, need="test")
    assert "with the images of sample_submission.csv" in message
    assert "test.zip is not unpacked" in message


def test_inference_needs_no_training_data(tmp_path):
    competition = read_layout(
        make(tmp_path, "test/8.jpg", sample_submission="id,label\n8,cat\n"), need="test"
    )
    assert (competition.train, competition.class_names) == ((), ())
    assert competition.form.ids == ("8",)


def test_inference_reports_broken_training_data_and_goes_on(tmp_path):
    competition = read_layout(table_kind(tmp_path, train="id,label,class\n1,cat,a\n2,dog,b\n"), need="test")
    assert competition.train == ()
    assert len(competition.test) == 2
    assert "train: not used, and not needed here: " in said(competition)
    assert "the label may be in 'label' (2 values), 'class' (2 values)" in said(competition)


def test_inference_says_which_rows_of_the_training_table_are_broken(tmp_path):
    competition = read_layout(table_kind(tmp_path, train="id,label\n1,cat\n2,\n"), need="test")
    assert "train.csv (id, label): row 3: no label in column 'label'" in said(competition)


# ---- kind 2: a table ----


@pytest.mark.parametrize("name", ["train", "labels", "trainLabels", "train_labels", "Train_Labels", "TRAIN"])
@pytest.mark.parametrize("folder", ["train", "train_images", "images", "Training Images", "jpegs"])
def test_names_of_tables_and_folders(tmp_path, name, folder):
    make(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg", "test/8.jpg", **{name: "id,label\n1,cat\n2,dog\n"})
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "dog"}
    assert competition.train[0].path == tmp_path / folder / "1.jpg"
    assert f"train: 2 images, 2 classes ({name}.csv: id, label)" in said(competition)


@pytest.mark.parametrize(
    ("written", "style"),
    [
        ("{}", "file names without extension"),
        ("{}.jpg", "file names"),
        ("train/{}.jpg", "paths in the data folder"),
        ("train/{}", "paths in the data folder without extension"),
        ("{}.png", "file names with another extension"),
    ],
)
def test_how_ids_are_written_is_understood_and_said(tmp_path, written, style):
    table = f"id,label\n{written.format('0a')},cat\n{written.format('0b')},dog\n"
    competition = read_layout(make(tmp_path, "train/0a.jpg", "train/0b.jpg", train=table), need="train")
    assert labels(competition) == {written.format("0a"): "cat", written.format("0b"): "dog"}
    assert f"train: ids are {style}" in competition.notes


def test_ids_with_sub_folders(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", train="id,label\na/1.jpg,cat\nb/1.jpg,dog\n")
    assert labels(read_layout(tmp_path, need="train")) == {"a/1.jpg": "cat", "b/1.jpg": "dog"}


def test_ids_and_classes_that_look_like_numbers_or_missing_values_stay_text(tmp_path):
    names = ["007", "1e5", "1.0", "nan", "None", "true"]
    classes = ["nan", "NA", "None", "true", "1", "01"]
    table = "id,label\n" + "".join(f"{name},{label}\n" for name, label in zip(names, classes, strict=True))
    make(tmp_path, *(f"train/{name}.png" for name in names), train=table)
    assert labels(read_layout(tmp_path, need="train")) == dict(zip(names, classes, strict=True))


def test_accents_stored_in_two_ways_are_one_name(tmp_path):
    make(tmp_path, "train/cafe\u0301.jpg", "train/2.jpg", train="id,label\ncaf\u00e9,cat\n2,dog\n")
    assert labels(read_layout(tmp_path, need="train")) == {"caf\u00e9": "cat", "2": "dog"}


def test_other_columns_are_ignored_when_the_label_is_plain(tmp_path):
    competition = read_layout(
        table_kind(tmp_path, train="width,file_name,label,height\n10,1.jpg,cat,5\n20,2.jpg,dog,5\n")
    )
    assert labels(competition) == {"1.jpg": "cat", "2.jpg": "dog"}
    assert "(train.csv: file_name, label)" in said(competition)


def test_the_only_other_column_is_the_label(tmp_path):
    assert labels(read_layout(table_kind(tmp_path, train="id,breed\n1,cat\n2,dog\n"))) == {
        "1": "cat",
        "2": "dog",
    }


def test_id_column_under_another_name(tmp_path):
    assert labels(read_layout(table_kind(tmp_path, train="label,what\ncat,1\ndog,2\n"))) == {
        "1": "cat",
        "2": "dog",
    }


def test_stem_and_file_name_columns_are_one_id(tmp_path):
    competition = read_layout(table_kind(tmp_path, train="id,file_name,label\n1,1.jpg,cat\n2,2.jpg,dog\n"))
    assert labels(competition) == {"1": "cat", "2": "dog"}


def test_columns_that_name_different_images(tmp_path):
    table_kind(tmp_path, train="id,image,label\n1,2.jpg,cat\n2,1.jpg,dog\n")
    message = refusal(tmp_path)
    assert_says(message, "'id', 'image'", "--set data.id_column=NAME")
    assert labels(read_layout(tmp_path, id_column="image")) == {"2.jpg": "cat", "1.jpg": "dog"}


def test_two_value_columns(tmp_path):
    table_kind(tmp_path, train="id,label,category,x\n1,cat,a,0\n2,dog,a,0\n")
    message = refusal(tmp_path)
    assert_says(
        message, "train.csv", "'label' (2 values), 'category' (1 value)", "--set data.label_column=NAME"
    )
    assert labels(read_layout(tmp_path, label_column="label")) == {"1": "cat", "2": "dog"}


def test_no_obvious_label_column(tmp_path):
    make(
        table_kind(tmp_path, train="id,colour,size,url\n1,red,2,u\n2,blue,2,v\n3,red,1,w\n"),
        "train_images/3.jpg",
    )
    assert_says(refusal(tmp_path), "'colour' (2 values), 'size' (2 values);", "'url'")


def test_the_sample_submission_settles_the_label_column(tmp_path):
    table_kind(tmp_path, train="id,label,category\n1,cat,a\n2,dog,b\n")
    make(tmp_path, sample_submission="id,category\n8,a\n9,a\n")
    assert labels(read_layout(tmp_path)) == {"1": "a", "2": "b"}


def test_no_label_column(tmp_path):
    assert "it has no label column; its columns: 'id'" in refusal(table_kind(tmp_path, train="id\n1\n2\n"))


def test_a_column_that_is_not_there(tmp_path):
    table_kind(tmp_path)
    message = refusal(tmp_path, label_column="lable")
    assert "train.csv has no column 'lable' (nearest: 'label'); its columns: 'id', 'label'" in message
    assert "has no column 'image'" in refusal(tmp_path, id_column="image")


def test_a_column_without_a_table(tmp_path):
    assert "no table of labels, though data.label_column is set" in refusal(
        class_folders(tmp_path), label_column="label"
    )


def test_rows_without_image(tmp_path):
    message = refusal(table_kind(tmp_path, train="id,label\n1,cat\n2,dog\n3,dog\n4,cat\n"))
    assert "train.csv (id, label):" in message
    assert_says(message, "2 of 4 ids without an image", "'3' in row 4, '4' in row 5;")


def test_a_missing_image_that_differs_in_case_is_pointed_out(tmp_path):
    make(tmp_path, "train/A1.JPG", "train/b2.jpg", train="id,label\na1.jpg,cat\nb2.jpg,dog\n")
    assert "'a1.jpg' in row 2 (nearest: 'train/A1.JPG')" in refusal(tmp_path, need="train")


def test_no_id_is_an_image(tmp_path):
    message = refusal(table_kind(tmp_path, train="id,label\nx,cat\ny,dog\n"))
    assert_says(
        message, "2 ids", "train.csv", "'id'", "'x', 'y'", "'train_images/1.jpg', 'train_images/2.jpg'"
    )
    assert "--set data.id_column=NAME" in message


def test_images_without_row_are_noted(tmp_path):
    make(table_kind(tmp_path), "train_images/3.jpg")
    assert "1 image without a label, not used" in said(read_layout(tmp_path))


def test_repeated_rows(tmp_path):
    competition = read_layout(table_kind(tmp_path, train="id,label\n1,cat\n2,dog\n1,cat\n"))
    assert len(competition.train) == 2
    assert "1 repeated row with the same label counted once" in said(competition)


def test_repeated_rows_with_different_labels(tmp_path):
    message = refusal(table_kind(tmp_path, train="id,label\n1,cat\n2,dog\n1,dog\n"))
    assert "rows 2, 4: '1' (train_images/1.jpg) has different labels: 'cat', 'dog'" in message


def test_empty_labels_and_other_row_problems_come_together(tmp_path):
    message = refusal(table_kind(tmp_path, train="id,label\n1,\n2,dog\n2,cat\n7, \n"))
    assert "row 2: no label in column 'label'" in message and "--set data.skip_bad_images=true" in message
    assert "rows 3, 4: '2'" in message and "row 5" not in message  # neither image nor label: it says nothing


def test_rows_without_image_or_label_are_left_out_where_asked(tmp_path):
    root = table_kind(tmp_path, train="id,label\n1,cat\n2,dog\n5,cat\n1,\n")
    assert "without an image: '5' in row 4" in refusal(root) and "row 5: no label" in refusal(root)
    competition = read_layout(root, skip_bad_images=True)
    assert labels(competition) == {
        "1": "cat",
        "2": "dog",
    } and "2 rows left out: 1 without an image, 1 without a label" in said(competition)


def test_spaces_around_labels_are_removed_and_noted(tmp_path):
    competition = read_layout(table_kind(tmp_path, train="id, label\n1, cat\n2,dog\n"))
    assert competition.class_names == ("cat", "dog")
    assert "spaces around 1 label removed" in said(competition)


def test_classes_that_look_alike_are_noted(tmp_path):
    make(table_kind(tmp_path, train="id,label\n1,cat\n2,Cat\n"))
    assert_says(said(read_layout(tmp_path)), "look alike", "'Cat', 'cat'")
    make(table_kind(tmp_path, train="id,label\n1,big cat\n2,big\u00a0ca\u200bt\n"))
    assert_says(said(read_layout(tmp_path)), "look alike", "'big cat'", "\\u200b")


def test_a_single_label(tmp_path):
    message = refusal(table_kind(tmp_path, train="id,label\n1,cat\n2,cat\n"))
    assert_says(message, "all 2 training images", "'cat'", "train.csv: id, label")


def test_a_table_without_rows(tmp_path):
    assert "train.csv has a header and no rows" in refusal(table_kind(tmp_path, train="id,label\n"))


def test_a_broken_table_names_file_and_row(tmp_path):
    message = refusal(table_kind(tmp_path, train="id,label\n1,cat\n2,dog,x\n"))
    assert "train.csv cannot be read as a table:" in message
    assert "row 3: 3 cells for 2 columns" in message


def test_an_id_that_means_two_files(tmp_path):
    message = refusal(make(table_kind(tmp_path), "train_images/1.png"))
    assert_says(message, "row 2", "'1'", "train_images/1.jpg", "train_images/1.png")


def test_two_image_folders_with_the_same_names(tmp_path):
    message = refusal(make(table_kind(tmp_path), "train_2/1.jpg", "train_2/2.jpg"))
    assert_says(message, "2 ids", "train_2/ and train_images/")
    assert f"mv {tmp_path}/train_images {tmp_path}/.train_images" in message


def test_a_smaller_version_of_the_images(tmp_path):
    competition = read_layout(make(table_kind(tmp_path), "train_small/1.jpg", "train_small/2.jpg"))
    assert {row.path.parent.name for row in competition.train} == {"train_images"}
    assert "train_small/ holds the same names as train_images/ and is not used" in said(competition)


def test_several_tables_the_one_with_labels_is_taken(tmp_path):
    make(table_kind(tmp_path, train="id,width\n1,5\n2,6\n"), train_labels="id,label\n1,cat\n2,dog\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "dog"}
    assert "train.csv not used for labels" in said(competition)


def test_several_tables_with_labels(tmp_path):
    make(table_kind(tmp_path), labels="id,label\n1,dog\n2,cat\n")
    message = refusal(tmp_path)
    assert_says(message, "labels.csv and train.csv", "labels")
    os.rename(tmp_path / "labels.csv", tmp_path / ".labels.csv")
    assert labels(read_layout(tmp_path)) == {"1": "cat", "2": "dog"}


def test_one_column_for_each_class(tmp_path):
    make(
        table_kind(tmp_path, train="id,cat,dog,size\n1,1,0,7\n2,0,1,8\n"),
        sample_submission="id,cat,dog\n8,0.5,0.5\n9,0.5,0.5\n",
    )
    assert labels(read_layout(tmp_path)) == {"1": "cat", "2": "dog"}


def test_class_folders_and_a_table_that_agree(tmp_path):
    make(class_folders(tmp_path), train="id,label\n1,cat\n2,cat\n3,dog\n4,dog\n")
    competition = read_layout(tmp_path)
    assert len(competition.train) == 4
    assert "class folders in train/ agree" in said(competition)


def test_class_folders_and_a_table_that_disagree(tmp_path):
    make(class_folders(tmp_path), train="id,label\n1,cat\n2,dog\n3,dog\n4,dog\n")
    message = refusal(tmp_path)
    assert "class folders and train.csv disagree on 1 image" in message
    assert "train/cat/2.jpg is 'dog' in train.csv" in message
    assert labels(read_layout(tmp_path, label_column="label"))["2"] == "dog"
    source, target = re.search(r"mv (\S+) (\S+)\)", message).groups()
    os.rename(source, target)
    assert labels(read_layout(tmp_path))["2"] == "cat"


def test_folders_that_are_no_classes_do_not_matter(tmp_path):
    make(tmp_path, "train/0/1.jpg", "train/1/2.jpg", "train/1/3.jpg", train="id,label\n1,cat\n2,dog\n3,cat\n")
    assert labels(read_layout(tmp_path, need="train")) == {"1": "cat", "2": "dog", "3": "cat"}


def test_a_table_that_is_not_about_images_beside_class_folders(tmp_path):
    make(class_folders(tmp_path), labels="ClassId,Name\n100,cat\n101,dog\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == {"1": "cat", "2": "cat", "3": "dog", "4": "dog"}
    assert "labels.csv not used for labels" in said(competition)


def test_solution_and_test_tables_are_never_training_labels(tmp_path):
    make(
        class_folders(tmp_path),
        solution="id,label\n8,cat\n9,dog\n",
        test="id,label\n8,cat\n9,dog\n",
        test_labels="id,label\n8,cat\n",
    )
    assert {row.id for row in read_layout(tmp_path).train} == {"1", "2", "3", "4"}


def test_images_in_the_data_folder_itself(tmp_path):
    make(tmp_path, "1.jpg", "2.jpg", train="id,label\n1,cat\n2,dog\n")
    assert read_layout(tmp_path, need="train").train[0].path == tmp_path / "1.jpg"


# ---- kind 3: sample submission ----


@pytest.mark.parametrize(
    "name",
    ["sample_submission", "sampleSubmission", "SampleSubmission", "SAMPLE_SUBMISSION", "sample-submission"],
)
def test_the_sample_gives_ids_and_order(tmp_path, name):
    make(class_folders(tmp_path), **{name: "image_id,target\n9.jpg,cat\n8.jpg,cat\n"})
    competition = read_layout(tmp_path)
    assert [(row.id, row.path.name) for row in competition.test] == [("9.jpg", "9.jpg"), ("8.jpg", "8.jpg")]
    assert competition.form == SubmissionForm(
        "label", ("image_id", "target"), "image_id", ("9.jpg", "8.jpg"), tmp_path / f"{name}.csv"
    )
    assert f"test: 2 images, ids and order from {name}.csv (image_id -> target)" in competition.notes
    assert "test: images in test/, ids are file names" in competition.notes
    form = read_form(tmp_path, None, None)
    assert (form.path, form.id_column) == (competition.form.path, "image_id")


def test_no_sample_to_read(tmp_path):
    assert read_form(class_folders(tmp_path), None, None) is None
    with pytest.raises(UserError, match="does not exist"):
        read_form(tmp_path / "nowhere", None, None)


def test_one_probability_column_per_class_in_another_order(tmp_path):
    make(class_folders(tmp_path), sample_submission="id,dog,cat\n8,0.5,0.5\n9,0.5,0.5\n")
    competition = read_layout(tmp_path)
    assert (competition.form.kind, competition.form.value_columns) == ("probabilities", ("dog", "cat"))
    assert competition.class_names == ("cat", "dog")
    assert "(id -> 2 columns)" in said(competition)


def test_probability_columns_name_the_classes_when_nothing_else_does(tmp_path):
    make(tmp_path, "test/8.jpg", sample_submission="id,c10,c2\n8,0.5,0.5\n")
    assert read_layout(tmp_path, need="test").class_names == ("c2", "c10")


def test_probability_columns_that_are_no_classes(tmp_path):
    message = refusal(make(class_folders(tmp_path), sample_submission="id,Cat,dog,x\n8,0,1,0\n9,0,1,0\n"))
    assert "the column 'Cat' is no class of the training data (nearest: 'cat')" in message
    assert "the column 'x' is no class of the training data" in message
    assert "1 class of the training data without a column: 'cat'" in message


def test_sample_ids_without_image(tmp_path):
    message = refusal(make(class_folders(tmp_path), sample_submission="id,label\n8,cat\n7,cat\n10,cat\n"))
    assert "sample_submission.csv and the test images do not fit:" in message
    assert_says(
        message, "2 of 3 ids without an image", "'7' in row 3, '10' in row 4;", "'test/8.jpg', 'test/9.jpg'"
    )


def test_no_sample_id_has_an_image(tmp_path):
    assert "2 of 2 ids without an image" in refusal(
        make(class_folders(tmp_path), sample_submission="id,label\nx,cat\ny,cat\n")
    )


def test_test_images_that_the_sample_does_not_name(tmp_path):
    competition = read_layout(make(class_folders(tmp_path), sample_submission="id,label\n9,cat\n"))
    assert [row.id for row in competition.test] == ["9"]
    assert "1 image not in sample_submission.csv, not predicted" in said(competition)


def test_repeated_and_empty_sample_ids(tmp_path):
    message = refusal(
        make(class_folders(tmp_path), sample_submission="id,label\n8,cat\n9,cat\n8,cat\n,cat\n")
    )
    assert "rows 2, 4: the id '8' occurs 2 times" in message
    assert "row 5: no id in column 'id'" in message


def test_two_ids_for_one_image(tmp_path):
    message = refusal(make(class_folders(tmp_path), sample_submission="id,label\n8,cat\n 8,cat\n9,cat\n"))
    assert "rows 2, 3: all mean test/8.jpg" in message


def test_a_sample_id_that_means_two_files(tmp_path):
    message = refusal(
        make(class_folders(tmp_path), "test/8.png", sample_submission="id,label\n8,cat\n9,cat\n")
    )
    assert "row 2: '8' may be test/8.jpg or test/8.png" in message


def test_a_sample_without_rows_or_columns(tmp_path):
    assert "it has no rows" in refusal(make(class_folders(tmp_path), sample_submission="id,label\n"))
    assert "its only column is 'id'" in refusal(make(tmp_path, sample_submission="id\n8\n"))


def test_two_samples(tmp_path):
    text = "id,label\n8,cat\n9,cat\n"
    make(class_folders(tmp_path), sample_submission=text, sampleSubmission="id,label\n9,cat\n8,cat\n")
    message = refusal(tmp_path)
    assert "sampleSubmission.csv" in message and "sample_submission.csv" in message
    assert "may all be the sample submission" in message
    make(tmp_path, sampleSubmission=text)  # equal files are one
    assert read_layout(tmp_path).form.ids == ("8", "9")


def test_sample_labels_are_only_checked(tmp_path):
    make(class_folders(tmp_path), sample_submission="id,label\n8,bird\n9,Goat\n")
    assert_says(refusal(tmp_path), "'bird', 'Goat'", "'cat', 'dog'", "--target multiclass")
    competition = read_layout(tmp_path, asked=Asked(kind="multiclass"))
    assert competition.class_names == ("cat", "dog")
    assert "its labels 'bird', 'Goat' are no classes of the training data" in said(competition)


def test_a_shared_image_folder(tmp_path):
    make(
        tmp_path,
        *("images/Train_0.jpg", "images/Train_1.jpg", "images/Test_0.jpg"),
        train="image_id,label\nTrain_0,cat\nTrain_1,dog\n",
        test="image_id\nTest_0\n",
        sample_submission="image_id,label\nTest_0,cat\n",
    )
    competition = read_layout(tmp_path)
    assert labels(competition) == {"Train_0": "cat", "Train_1": "dog"}
    assert competition.test[0].path == tmp_path / "images/Test_0.jpg"
    assert "without a label" not in said(competition)


def test_two_test_folders(tmp_path):
    make(class_folders(tmp_path), "test2/6.jpg")
    message = refusal(tmp_path)
    assert_says(message, "test and test2", "test images")
    make(tmp_path, sample_submission="id,label\n6,cat\n")
    assert read_layout(tmp_path).test[0].path == tmp_path / "test2/6.jpg"


def test_two_test_folders_with_the_same_names(tmp_path):
    make(class_folders(tmp_path), "test2/8.jpg", "test2/9.jpg", sample_submission="id,label\n8,cat\n9,cat\n")
    assert_says(refusal(tmp_path), "2 ids", "test/ and test2/")


def test_train_and_test_files_of_the_same_names_are_kept_apart(tmp_path):
    make(tmp_path, "train/1.jpg", "train/2.jpg", "test/1.jpg", "test/2.jpg", train="id,label\n1,cat\n2,dog\n")
    make(tmp_path, sample_submission="id,label\n2,cat\n1,cat\n")
    competition = read_layout(tmp_path)
    assert [row.path for row in competition.train] == [tmp_path / "train/1.jpg", tmp_path / "train/2.jpg"]
    assert [row.path for row in competition.test] == [tmp_path / "test/2.jpg", tmp_path / "test/1.jpg"]


# ---- commands in messages, speed, real data ----


def test_commands_in_messages_work_for_names_with_spaces(tmp_path):
    root = tmp_path / "my data"
    make(class_folders(root), "Training set/cat/1.jpg", "Training set/dog/2.jpg")
    command = re.search(r"for example: (mv .*)", refusal(root)).group(1)
    subprocess.run(command, shell=True, check=True)
    assert len(read_layout(root).class_names) == 2


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path):
    make(tmp_path, "train_images/x", "test_images/x")
    names = [f"{n * 7919 % 1_000_003:07d}" for n in range(100_000)]
    for number, name in enumerate(names):
        open(f"{tmp_path}/{'test' if number % 10 == 0 else 'train'}_images/{name}.jpg", "wb").close()
    train = "".join(f"{name},c{number % 37}\n" for number, name in enumerate(names) if number % 10)
    make(
        tmp_path,
        train="id,label\n" + train,
        sample_submission="id,label\n" + "".join(f"{name},c1\n" for name in names[::10]),
    )
    started = time.process_time()
    competition = read_layout(tmp_path)
    assert (len(competition.train), len(competition.test)) == (90_000, 10_000)
    assert time.process_time() - started < 10


@pytest.mark.skipif(not COMPETITIONS.is_dir(), reason="the sample competitions are not here")
def test_real_competitions():
    clothing, produce = read_layout(COMPETITIONS / "clothing"), read_layout(COMPETITIONS / "produce")
    assert (len(clothing.train), len(clothing.class_names), len(clothing.test)) == (950, 10, 372)
    assert clothing.form.id_column == "id"
    assert (len(produce.train), len(produce.class_names), len(produce.test)) == (580, 24, 240)
    assert produce.notes[0] == "train: 580 images, 24 classes (train.csv: image_id, label)"
    assert (
        produce.notes[3] == "test: 240 images, ids and order from sample_submission.csv (image_id -> label)"
    )
    assert all(row.path.is_file() for row in (*clothing.train, *clothing.test, *produce.train, *produce.test))


@pytest.mark.skipif(not LEGACY.is_dir(), reason="the legacy release is not here")
def test_a_release_with_test_images_only():
    competition = read_layout(LEGACY, need="test")
    assert competition.form.id_column == "id"
    assert competition.form.value_columns == ("label",)
    assert len(competition.test) == 12
    assert competition.form.path is None
