"""Layouts of university classes, hackathons and label tools: what their hosts make of names, ids and labels."""

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
