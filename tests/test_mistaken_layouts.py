"""Layouts that could be taken for another one: what was read wrongly once, and its neighbours."""

import json

import pytest
from test_layouts import labels, refusal, said, touch, write

from pipeline.competition.layout import read_layout
from pipeline.errors import UserError
from pipeline.targets.evidence import Asked


def studies(root, column, table="train", cells="61,M,0,1", header="age,sex,left,right", names="1234"):
    """A folder of two slices for each study in `series/`, and a table of the studies."""
    files = [f"series/s{name}/{slice_}.png" for name in names for slice_ in "ab"]
    rows = "".join(f"s{name},{cells.replace('0', str(int(name) % 2))}\n" for name in names)
    return write(touch(root, *files), **{table: f"{column},{header}\n{rows}"})


@pytest.mark.parametrize(
    ("column", "table"), [("SeriesInstanceUID", "train"), ("name", "train"), ("patient_id", "metadata")]
)
def test_folders_that_a_table_describes_are_no_classes(tmp_path, column, table):
    studies(tmp_path, column, table)
    text = refusal(tmp_path, need="train")
    assert f"{table}.csv" in text and "'left'" in text and "data.label_column" in text
    assert "sample_submission.csv" in text  # the way to say that several columns are the labels
    assert f"/.{table}.csv" in text  # the command that takes the folders
    competition = read_layout(
        tmp_path, need="train", label_column="left", asked=Asked(metric="roc_auc"), id_column=column
    )
    assert len(competition.train) == 8 and labels(competition) == {f"s{n}": str(n % 2) for n in range(1, 5)}
    row = f"{column},left,right\nany,0.5,0.5\n"
    write(tmp_path, sample_submission=row)
    competition = read_layout(tmp_path, need="train", asked=Asked(metric="roc_auc"))
    assert competition.target.names == ("left", "right") and len(competition.train) == 8


def test_a_label_column_of_folders_of_patients_is_taken(tmp_path):
    studies(tmp_path, "patient_id", "metadata", "0", "label")
    competition = read_layout(tmp_path, need="train", asked=Asked(metric="accuracy"))
    assert labels(competition) == {"s1": "1", "s2": "0", "s3": "1", "s4": "0"}


def test_numbered_patients_are_no_classes_called_by_numbers_too(tmp_path):
    grades = {"1": "3", "2": "1", "3": "1", "4": "2", "5": "3", "6": "2"}
    touch(tmp_path, *(f"train/{name}/{n}.png" for name in grades for n in "12"))
    touch(tmp_path, *(f"test/{name}/{n}.png" for name in "978" for n in "12"))
    write(tmp_path, train="patient,grade\n" + "".join(f"{name},{grades[name]}\n" for name in grades))
    write(tmp_path, sample_submission="patient,grade\n9,1\n7,1\n8,1\n")
    competition = read_layout(tmp_path)
    assert labels(competition) == grades and len(competition.train) == 12
    assert [row.id for row in competition.test] == list("997788")


@pytest.mark.parametrize("column", ["id", "folder", "class_name"])
def test_a_table_about_classes_leaves_their_folders_classes(tmp_path, column):
    studies(tmp_path, column, "class_info", "mammal,0", "kingdom,count")
    assert read_layout(tmp_path, need="train").target.names == ("s1", "s2", "s3", "s4")


def test_a_trait_of_a_patient_is_no_group(tmp_path):
    names = [str(number) for number in range(8)]
    rows = "".join(
        f"{name},p{int(name) // 2},{30 + int(name) // 2},{'ab'[int(name) % 2]}\n" for name in names
    )
    write(
        touch(tmp_path, *(f"train/{name}.jpg" for name in names)),
        train="image,person,patient_age,label\n" + rows,
    )
    text = said(read_layout(tmp_path, need="train"))
    assert "data.group_column=person" in text and "patient_age" not in text


def test_the_column_of_ids_with_several_images_is_a_group_however_it_is_written(tmp_path):
    shown = {"train": "0123456789", "test": "uvwx"}
    touch(tmp_path, *(f"{part}/{name}.jpg" for part, names in shown.items() for name in names))
    seen = "".join(f"{name}.jpg,o{int(name) // 2},{'ab'[int(name) // 2 % 2]}\n" for name in shown["train"])
    write(tmp_path, train="file,observationID,label\n" + seen)
    write(tmp_path, test="file,observationID\nu.jpg,p\nv.jpg,p\nw.jpg,q\nx.jpg,q\n")
    write(tmp_path, sample_submission="observationId,label\np,a\nq,a\n")
    competition = read_layout(tmp_path)
    assert [row.id for row in competition.test] == ["p", "p", "q", "q"]
    assert "data.group_column=observationID" in said(competition)


def forged(root, masks, column="annotation"):
    """Images in the folders authentic and forged, masks of some, and a sample that holds a folder's name."""
    touch(root, *(f"train_images/{kind}/{kind[0]}{n}.png" for kind in ("authentic", "forged") for n in "12"))
    touch(root, "test_images/8.png", "test_images/9.png", *masks)
    return write(root, sample_submission=f"case_id,{column}\n8,authentic\n9,authentic\n")


@pytest.mark.parametrize("masks", [("train_masks/f1.npy", "train_masks/f2.npy"), ("masks/f1.png",)])
def test_annotations_beside_masks_are_masks(tmp_path, masks):
    text = refusal(forged(tmp_path, masks))
    assert "masks" in text and "'annotation'" in text and masks[0].split("/")[0] in text


def test_annotations_without_masks_or_in_a_table_are_labels(tmp_path):
    assert read_layout(forged(tmp_path / "a", ())).target.names == ("authentic", "forged")
    root = forged(tmp_path / "b", ("train_masks/f1.npy",))
    write(root, train="image,annotation\na1,authentic\na2,authentic\nf1,forged\nf2,forged\n")
    assert read_layout(root).target.names == ("authentic", "forged")
    assert read_layout(forged(tmp_path / "c", ("train_masks/f1.npy",), "label")).form.kind == "label"


@pytest.mark.parametrize("form", ["{image}_{step}_I", "{image}-I-{step}", "{image}_{step}_{step}"])
def test_many_values_of_an_image_are_refused_as_such(tmp_path, form):
    write(
        touch(tmp_path, *(f"train/{n}.png" for n in "12"), "test/8.png", "test/9.png"),
        train="id,fs\n1,5\n2,6\n",
    )
    ids = [form.format(image=image, step=step) for image in "89" for step in range(64)]
    write(tmp_path, sample_submission="id,value\n" + "".join(f"{text},0.0\n" for text in ids))
    text = refusal(tmp_path)
    assert ids[0] in text and "64 rows" in text and "not supported" in text


@pytest.mark.parametrize("name", ["kind_{}", "{}", "kind {}"])
@pytest.mark.parametrize("metric", [None, "log_loss"])
def test_a_row_for_each_class_where_training_has_one_column(tmp_path, name, metric):
    images, classes = [str(number) for number in range(1, 129)], [name.format(kind) for kind in range(64)]
    touch(tmp_path, *(f"train/{image}.png" for image in images), "test/800.png", "test/900.png")
    write(tmp_path, train="id,label\n" + "".join(f"{n},{classes[int(n) % 64]}\n" for n in images))
    rows = "".join(f"{image}_{kind},0.5\n" for image in ("800", "900") for kind in classes)
    write(tmp_path, sample_submission="id,value\n" + rows)
    competition = read_layout(tmp_path, asked=Asked(metric=metric))
    assert competition.form.kind == "rows" and competition.metric == "log_loss"
    assert competition.target.kind == "multiclass" and competition.target.names == tuple(classes)


def test_rows_of_classes_do_not_outdo_a_flag(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in range(1, 7)), "test/80.png", "test/90.png")
    write(tmp_path, train="id,label\n" + "".join(f"{n},{n % 3 + 1}\n" for n in range(1, 7)))
    rows = "".join(f"{image}_{kind},0.5\n" for image in (80, 90) for kind in (1, 2, 3))
    write(tmp_path, sample_submission="id,value\n" + rows)
    assert read_layout(tmp_path).target.kind == "multiclass"
    assert read_layout(tmp_path, asked=Asked(kind="ordinal")).target.kind == "ordinal"


def test_test_ids_that_no_column_leads_to_images_get_the_table_that_does(tmp_path):
    touch(tmp_path, *(f"train/{n}_{n}7.png" for n in "1234"), "test/5_17.png", "test/6_18.png")
    write(tmp_path, labels="path,label\n" + "".join(f"{n}_{n}7.png,{'ab'[int(n) % 2]}\n" for n in "1234"))
    write(tmp_path, sample_submission="part_id,name\n17,a\n18,a\n")
    text = refusal(tmp_path)
    assert "images.csv" in text and "part_id,image" in text
    write(tmp_path, images="part_id,image\n18,test/6_18.png\n17,test/5_17.png\n")
    assert [row.path.name for row in read_layout(tmp_path).test] == ["5_17.png", "6_18.png"]


def species(root, labels, cell, header="year,speciesId,surveyId"):
    """Surveys 0 to 9 of an image each with a row for each species (every other one has two)."""
    touch(root, *(f"train/{number}0.tif" for number in range(10)), "test/800.tif", "test/900.tif")
    rows = [(labels[number % 2], f"{number}0") for number in range(10)]
    rows += [(labels[2], f"{number}0") for number in range(0, 10, 3)]
    write(root, train_species=f"{header}\n" + "".join(f"2021,{label},{row_id}\n" for label, row_id in rows))
    return write(root, SAMPLE_SUBMISSION=f"surveyId,predictions\n800,{cell}\n900,{cell}\n")


@pytest.mark.parametrize(
    ("written", "cell"),
    [(("5.0", "7.0", "11.0"), "5 7 11"), (("5", "7", "11"), "3 5 7 11"), (("a", "b", "c"), "a c")],
)
def test_a_row_for_each_label_is_read_however_numbers_are_written(tmp_path, written, cell):
    competition = read_layout(species(tmp_path, written, cell))
    names = tuple(label.removesuffix(".0") for label in written)
    assert competition.target.kind == "multilabel" and competition.target.names == names
    assert labels(competition)["60"].split() == [names[0], names[2]] and labels(competition)["10"] == names[1]
    assert competition.form.separator == " "


def test_guesses_at_one_label_are_not_joined(tmp_path):
    root = species(tmp_path, ("a", "b", "c"), "a b c")
    rows = "".join(f"2021,{'abc'[number % 3]},{number}0\n" for number in range(10))
    write(root, train_species="year,speciesId,surveyId\n" + rows)
    assert read_layout(root).form.kind == "ranked"


def test_the_column_that_the_sample_names_in_the_plural_is_the_label(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in "1234"), "test/8.png", "test/9.png")
    rows = "".join(f"{n}.png,{n},Acer {n % 2},g\n" for n in (1, 2, 3, 4))
    write(
        tmp_path,
        train="image,species_id,species,genus\n"
        + rows.replace("3,Acer", "1,Acer").replace("4,Acer", "2,Acer"),
    )
    write(tmp_path, sample_submission="image,species_ids\n8.png,1\n9.png,2\n")
    assert labels(read_layout(tmp_path)) == {"1.png": "1", "2.png": "2", "3.png": "1", "4.png": "2"}


@pytest.mark.parametrize("cell", ['"[1, 2]"', "[1]", "[]"])
def test_lists_that_only_the_sample_holds_are_refused(tmp_path, cell):
    touch(tmp_path, *(f"train/{n}.png" for n in "1234"), "test/8.png", "test/9.png")
    write(tmp_path, train="image,label\n1.png,1\n2.png,2\n3.png,1\n4.png,2\n")
    write(tmp_path, sample_submission=f"image,labels\n8.png,{cell}\n9.png,{cell}\n")
    assert cell.strip('"') in (text := refusal(tmp_path)) and "list" in text


def test_parts_of_a_download_beside_other_folders_are_no_classes(tmp_path):
    touch(
        tmp_path,
        *(f"SKIN_images_part_{n % 2 + 1}/s{n}.jpg" for n in range(6)),
        "tiny_L/0.png",
        "tiny_RGB/0.png",
    )
    rows = "".join(f"l{n},s{n},{'mel' if n % 2 else 'nv'},histo\n" for n in range(6))
    write(tmp_path, SKIN_metadata="lesion_id,image_id,dx,dx_type\n" + rows)
    text = refusal(tmp_path, need="train")
    assert "SKIN_metadata.csv" in text and "'dx'" in text and "data.label_column" in text
    assert labels(read_layout(tmp_path, need="train", label_column="dx"))["s1"] == "mel"


def test_the_table_of_validation_images_is_no_sample_submission(tmp_path):
    touch(tmp_path, *(f"{part}/{n}.png" for part in ("train", "val", "test") for n in range(4)))
    write(tmp_path, train="id,label\n0,a\n1,b\n2,a\n3,b\n", val="id,label\n3,a\n2,b\n1,a\n0,b\n")
    competition = read_layout(tmp_path)
    assert [row.id for row in competition.test] == ["0", "1", "2", "3"]
    assert "val.csv ->" not in said(competition) and "no sample submission" in said(competition)


def test_without_a_sample_test_ids_are_what_training_labels_are_about(tmp_path):
    files = [
        f"{part}_input/{lesion}/{lesion}{view}.jpg"
        for part, names in (("train", "abcd"), ("test", "wx"))
        for lesion in names
        for view in "12"
    ]
    touch(tmp_path, *files)
    write(tmp_path, train_truth="lesion,MEL,NV\na,1,0\nb,0,1\nc,1,0\nd,0,1\n")
    write(tmp_path, test_metadata="lesion,view,image\nx,1,x1\nx,2,x2\nw,1,w1\nw,2,w2\n")
    competition = read_layout(tmp_path)
    assert [(row.id, row.path.name) for row in competition.test] == [
        ("x", "x1.jpg"),
        ("x", "x2.jpg"),
        ("w", "w1.jpg"),
        ("w", "w2.jpg"),
    ]
    assert competition.form.columns[0] == "lesion" and list(competition.form.ids) == ["x", "w"]


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("{kind}/{kind} ({n}).png", ("{kind}/{kind} ({n})_mask.png", "{kind}/{kind} ({n})_mask_1.png")),
        ("{kind}/images/{n}.png", ("{kind}/masks/{n}.png",)),
        ("{kind}/Images/{n}.jpg", ("{kind}/Mask/{n}.png",)),
    ],
)
def test_masks_beside_the_images_of_a_class_are_left_out(tmp_path, image, masks):
    cases = [(kind, n) for kind in ("benign", "normal") for n in (1, 2, 3)]
    touch(tmp_path, *(f"set/{form.format(kind=kind, n=n)}" for form in (image, *masks) for kind, n in cases))
    competition = read_layout(tmp_path, need="train")
    assert {str(row.path.relative_to(tmp_path / "set")) for row in competition.train} == {
        image.format(kind=kind, n=n) for kind, n in cases
    }
    assert competition.target.names == ("benign", "normal")
    assert f"{6 * len(masks)} masks" in said(competition)


@pytest.mark.parametrize("names", [("with_mask", "without_mask"), ("mask", "no_mask"), ("mask", "glove")])
def test_people_with_masks_are_classes(tmp_path, names):
    touch(tmp_path, *(f"train/{name}/{n}-{name}.png" for name in names for n in (1, 2)))
    assert len(read_layout(tmp_path, need="train").train) == 4


@pytest.mark.parametrize("copy", ["cells", "other"])
def test_a_copy_of_all_classes_beside_them_is_no_class(tmp_path, copy):
    touch(
        tmp_path, *(f"cells/{part}{kind}/{n}.png" for part in ("", f"{copy}/") for kind in "ab" for n in "12")
    )
    competition = read_layout(tmp_path, need="train")
    assert competition.target.names == ("a", "b") and len(competition.train) == 4
    assert f"{copy}/" in said(competition)


def test_versions_of_all_classes_are_no_classes(tmp_path):
    names = ("color", "grayscale", "segmented")
    touch(
        tmp_path,
        *(f"set/{name}/{kind}/{n}_{name}.jpg" for name in names for kind in ("scab", "rot") for n in "123"),
    )
    text = refusal(tmp_path, need="train")
    assert "'color'" in text and "'rot'" in text
    for name in names[1:]:
        (tmp_path / "set" / name).rename(tmp_path / "set" / f".{name}")
    assert read_layout(tmp_path, need="train").target.names == ("rot", "scab")


def test_classes_that_hold_the_same_folders_are_classes(tmp_path):
    kinds = ("benign", "malignant")
    touch(
        tmp_path, *(f"set/{kind}/{zoom}/{n}.jpg" for kind in kinds for zoom in ("40X", "100X") for n in "12")
    )
    assert read_layout(tmp_path, need="train").target.names == kinds


@pytest.mark.parametrize("metric", [None, "accuracy"])
def test_numbers_for_classes_that_are_columns_need_a_table_of_both(tmp_path, metric):
    touch(tmp_path, *(f"train/{n}.png" for n in "123456"), "test/8.png", "test/9.png")
    rows = "".join(f"{n},{int(n % 3 == 0)},{int(n % 3 == 1)},{int(n % 3 == 2)}\n" for n in range(1, 7))
    write(tmp_path, train="id,scab,rust,healthy\n" + rows, sample_submission="id,label\n8,0\n9,0\n")
    text = refusal(tmp_path, asked=Asked(metric=metric))
    assert "'scab'" in text and "'0'" in text and "classes.csv" in text and "--target multiclass" in text
    write(tmp_path, classes="number,name\n0,rust\n1,healthy\n2,scab\n")
    competition = read_layout(tmp_path, asked=Asked(metric=metric))
    assert labels(competition) == {"1": "0", "2": "1", "3": "2", "4": "0", "5": "1", "6": "2"}


def test_columns_of_numbers_that_the_sample_spells_otherwise(tmp_path):
    touch(tmp_path, *(f"train/{n}.png" for n in "1234"), "test/8.png", "test/9.png")
    rows = "".join(f"{n}.png,{n % 2},3{n}.5,7{n}.5\n" for n in (1, 2, 3, 4))
    write(tmp_path, train="file,region,latitude,longitude\n" + rows)
    write(tmp_path, sample_submission="file,Longitude,Latitude\n8.png,0,0\n9.png,0,0\n")
    competition = read_layout(tmp_path)
    assert (
        competition.target.names == ("Longitude", "Latitude") and labels(competition)["2.png"] == "72.5|32.5"
    )


def numbered(root, names, tests, ids, asked, column="id"):
    touch(root, *(f"train/{name}.png" for name in names), *(f"test/{name}.png" for name in tests))
    write(root, train=f"{column},label\n" + "".join(f"{row_id},{'ab'[int(row_id) % 2]}\n" for row_id in ids))
    return write(root, sample_submission=f"{column},label\n" + "".join(f"{row_id},a\n" for row_id in asked))


@pytest.mark.parametrize("form", ["train_{}", "Train{:03}", "image ({}"])
def test_ids_are_the_numbers_behind_a_word_that_all_names_share(tmp_path, form):
    names = [form.format(n) for n in (2, 10, 1, 0)]
    tests = [form.lower().replace("train", "test").format(n) for n in (0, 2, 1)]
    competition = read_layout(numbered(tmp_path, names, tests, (0, 1, 2, 10), (2, 0, 1)))
    assert [row.path.stem for row in competition.test] == [tests[1], tests[0], tests[2]]
    found = {row.path.stem: row.label for row in competition.train}
    assert found == {names[0]: "a", names[1]: "a", names[2]: "b", names[3]: "a"}


@pytest.mark.parametrize(
    ("names", "ids", "column"),
    [
        (("t_1", "t_2", "t_3", "t_4"), (0, 1, 2, 3), "id"),  # the rows may be numbered from 0
        (("t_1", "t_2", "u_3", "u_4"), (1, 2, 3, 4), "id"),  # t and u may be sets with other numbers
        (("t_1_1", "t_1_2", "t_2_1", "t_2_2"), (1, 2, 3, 4), "id"),
        (("t_1", "t_2", "t_3", "t_4"), (1, 2, 3, 4), "patient"),
    ],
)
def test_numbers_behind_words_are_no_ids_where_they_may_count_something_else(tmp_path, names, ids, column):
    text = refusal(numbered(tmp_path, names, ("8", "9"), ids, (8, 9), column))
    assert "no image for any of the 4 ids" in text and f"{column},image" in text


def test_a_table_whose_ids_find_no_image_is_named_where_nothing_holds_labels(tmp_path):
    images = [(suite, code) for suite in (1, 2, 3) for code in (1, 2)]
    touch(tmp_path, *(f"data/input_{suite}_1_{code}.jpg" for suite, code in images))
    rows = [f"{suite},{code},{code - 1}" for suite, code in images]
    write(tmp_path, signs="suite_id,code,value\n" + "\n".join(rows) + "\n")
    text = refusal(tmp_path, need="train")
    assert "signs.csv" in text and "input_1_1_1.jpg" in text and "column image" in text
    paths = [
        f"{row},data/input_{suite}_1_{code}.jpg" for row, (suite, code) in zip(rows, images, strict=True)
    ]
    write(tmp_path, signs="suite_id,code,value,image\n" + "\n".join(paths) + "\n")
    competition = read_layout(tmp_path, need="train", label_column="value")
    assert all(row.path.stem[-1] == str(int(row.label) + 1) for row in competition.train)


def test_numbers_of_images_are_no_labels_of_folders(tmp_path):
    people = {"Ann": 2, "Bo": 3, "Cy": 2}
    touch(tmp_path, *(f"faces/{name}/{name}_{n}.jpg" for name, count in people.items() for n in range(count)))
    rows = "".join(f"{name},{count}\n" for name, count in people.items())
    write(tmp_path, peopleTrain="name,images\n" + rows, people="name,images\n" + rows)
    assert read_layout(tmp_path, need="train").target.names == ("Ann", "Bo", "Cy")


def test_several_numbers_in_a_cell_are_guesses_where_classes_are_other_numbers(tmp_path):
    touch(
        tmp_path,
        *(f"train/{name}/{n}.jpg" for name in ("812", "97") for n in "12"),
        "test/8.jpg",
        "test/9.jpg",
    )
    write(tmp_path, sample_submission="image_id,hotel_id\n8.jpg,0 1 2\n9.jpg,0 1 2\n")
    text = refusal(tmp_path)
    assert "'0 1 2'" in text and "map_at_3" in text and "--target multiclass" in text
    assert read_layout(tmp_path, asked=Asked(metric="map_at_3")).form.kind == "ranked"


def test_places_of_named_things_are_refused(tmp_path):
    touch(tmp_path, *(f"train/{n}.jpg" for n in "1234"), "test/8.jpg", "test/9.jpg")
    write(tmp_path, train="image,x,y\n" + "".join(f"{n}.jpg,{n}.5,7\n" for n in "1234"))
    write(
        tmp_path,
        sample_submission="id,image,kind,x,y\n0,8.jpg,cell,0,0\n1,8.jpg,cell,0,0\n2,9.jpg,cell,0,0\n",
    )
    text = refusal(tmp_path)
    assert "'kind'" in text and "'cell'" in text and "not supported" in text
    write(tmp_path, sample_submission="image,x,y\n8.jpg,0,0\n9.jpg,0,0\n")
    assert read_layout(tmp_path).target.names == ("x", "y")


def test_a_label_column_that_is_given_is_never_another_tables(tmp_path):
    touch(tmp_path, *(f"train/{name}{frame}.jpg" for name in "abcd" for frame in "01"))
    frames = [(f"{name}{frame}", f"s{name}", number) for number, name in enumerate("abcd") for frame in "01"]
    write(
        tmp_path,
        train="image,sequence,label\n" + "".join(f"{i},{s},{n % 2}\n" for i, s, n in frames),
        train_counts="sequence,count\n"
        + "".join(f"s{name},{5 * number}\n" for number, name in enumerate("abcd")),
    )
    counted = read_layout(tmp_path, need="train", label_column="count", asked=Asked(metric="mae"))
    assert labels(counted) == {"sa": "0", "sb": "5", "sc": "10", "sd": "15"} and len(counted.train) == 8
    one_each = read_layout(tmp_path, need="train", label_column="label", asked=Asked(metric="accuracy"))
    assert labels(one_each)["b0"] == "1" and len(one_each.train) == 8
    write(tmp_path, train_counts="sequence,count\nx,1\ny,2\nz,3\n")
    text = refusal(tmp_path, need="train", label_column="count", asked=Asked(metric="mae"))
    assert (
        "train_counts.csv" in text
        and "'count'" in text
        and "'x', 'y', 'z'" in text
        and "'train/a0.jpg'" in text
    )


def test_an_id_column_that_is_given_names_the_table(tmp_path):
    touch(tmp_path, *(f"train/{name}.jpg" for name in "abcdefgh"))
    rows = [(name, number % 2, "xy"[number // 4]) for number, name in enumerate("abcdefgh")]
    write(
        tmp_path,
        train="image,label\n" + "".join(f"{name},{flag}\n" for name, flag, _ in rows),
        meta="name,species\n" + "".join(f"{name},{species}\n" for name, _, species in rows),
    )
    asked = Asked(metric="accuracy")
    assert labels(read_layout(tmp_path, need="train", asked=asked))["b"] == "1"
    assert labels(read_layout(tmp_path, need="train", id_column="name", asked=asked))["b"] == "x"
    text = refusal(tmp_path, need="train", id_column="name", label_column="label", asked=asked)
    assert "meta.csv has the column 'name'" in text and "train.csv the column 'label'" in text


def test_json_lines_end_at_line_ends_only(tmp_path):
    touch(tmp_path, "train/1.jpg", "train/2.jpg")
    rows = [{"image": "1.jpg", "label": "a\u2028b"}, {"image": "2.jpg", "label": "c"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    assert [row.label for row in read_layout(tmp_path, need="train").train] == ["a\u2028b", "c"]
    (tmp_path / "train.jsonl").write_text(text + "\n\n{", encoding="utf-8")
    with pytest.raises(UserError, match="row 4 is not valid JSON"):
        read_layout(tmp_path, need="train")


def test_half_a_character_in_json_is_named_with_its_entry(tmp_path):
    """Such a text cannot be written as UTF-8: write_table ends with a traceback."""
    touch(tmp_path, "train/1.jpg", "train/2.jpg")
    rows = [{"image": "1.jpg", "label": "a"}, {"image": "2.jpg", "label": "\ud83d"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="entry 2 holds"):
        read_layout(tmp_path, need="train")
