import gzip
import subprocess
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.tables import load_table, name_the_ids, write_table
from pipeline.wording import natural_key, nearest, numbered


def save(tmp_path, data):
    path = tmp_path / "table.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refusal(tmp_path, data):
    with pytest.raises(UserError) as caught:
        load_table(save(tmp_path, data))
    assert "table.csv" in str(caught.value)
    return str(caught.value)


def test_every_cell_stays_the_text_it_was(tmp_path):
    cells = [
        "007",
        "1e5",
        "1.0",
        "nan",
        "NA",
        "None",
        "null",
        "true",
        "1",
        "",
        " x ",
        "2020-01-01",
        "inf",
        "=1+1",
    ]
    table = load_table(save(tmp_path, "id,label\n" + "".join(f"{cell},{cell}\n" for cell in cells)))
    assert table.column("id") == cells
    assert table.column("label") == cells


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_dialects(tmp_path, delimiter, line_end, mark):
    text = mark + line_end.join([f"id{delimiter}label", f"1{delimiter}ü", f"2{delimiter}b", ""])
    table = load_table(save(tmp_path, text))
    assert table.columns == ("id", "label")
    assert table.cells == (("1", "ü"), ("2", "b"))
    assert table.lines == (2, 3)
    assert (table.delimiter, table.has_byte_order_mark) == (delimiter, bool(mark))


def test_quoted_commas_quotes_and_newlines(tmp_path):
    table = load_table(save(tmp_path, 'id,label\n1,"a, b"\n2,"say ""hi"""\n3,"two\nlines"\n4,x\n'))
    assert table.column("label") == ["a, b", 'say "hi"', "two\nlines", "x"]
    assert table.lines == (2, 3, 4, 6)


def test_decimal_commas_in_a_semicolon_file(tmp_path):
    assert load_table(save(tmp_path, "id;cat;dog\n1;0,5;0,5\n")).cells == (("1", "0,5", "0,5"),)


def test_a_comma_in_the_header_of_a_semicolon_file(tmp_path):
    assert load_table(save(tmp_path, "id;name, first\n1;x\n")).columns == ("id", "name, first")


def test_semicolons_inside_a_comma_file(tmp_path):
    assert load_table(save(tmp_path, "id;x,label;y\n1;2,3;4\n")).columns == ("id;x", "label;y")


def test_blank_lines_are_no_rows_and_row_numbers_count_them(tmp_path):
    table = load_table(save(tmp_path, "id,label\n\n1,a\n\n2,b\n\n"))
    assert (table.cells, table.lines) == ((("1", "a"), ("2", "b")), (3, 5))


def test_one_column(tmp_path):
    assert load_table(save(tmp_path, "id\n1\n2\n")).column("id") == ["1", "2"]


def test_ragged_rows_are_listed_with_their_numbers(tmp_path):
    message = refusal(tmp_path, "id,label\n1,a\n2\n3,b,c\n4,d\n5,e,f\n")
    assert "row 3: 1 cell for 2 columns (cells are separated by commas)" in message
    assert "rows 4, 6: 3 cells for 2 columns" in message


def test_every_problem_is_reported_at_once(tmp_path):
    message = refusal(tmp_path, b"id,,id\n1,caf\xe9,x\n2,a\x00b,x\n3,a\n")
    assert "row 1: column 2 has no name" in message
    assert "row 1: the column name 'id' occurs 2 times" in message
    assert "not UTF-8 in row 2 ('1,café,x' if it is Latin-1)" in message
    assert "iconv -f LATIN1 -t UTF-8" in message
    assert "NUL bytes in row 3" in message
    assert "row 4: 2 cells for 3 columns" in message


@pytest.mark.parametrize("first", [0, 1])
def test_a_pandas_index_is_left_out_with_a_note(tmp_path, first):
    table = load_table(save(tmp_path, f",id,label\n{first},7,a\n{first + 1},9,b\n"))
    assert (table.columns, table.cells) == (("id", "label"), (("7", "a"), ("9", "b")))
    assert "pandas index" in table.notes[0]


def test_an_unnamed_column_that_does_not_number_the_rows_is_refused(tmp_path):
    assert "index=False" in refusal(tmp_path, ",id,label\n5,1,a\n3,2,b\n")
    assert "index=False" in refusal(tmp_path, "id,,label\n5,0,a\n3,1,b\n")


def test_columns_without_name_and_cells_are_left_out_with_a_note(tmp_path):
    table = load_table(save(tmp_path, "id,label,,\n7,a,,\n9,, ,\n"))
    assert (table.columns, table.cells) == (("id", "label"), (("7", "a"), ("9", "")))
    assert "without a name" in table.notes[0]
    assert load_table(save(tmp_path, ";;id\n0;;7\n1;;9\n")).cells == (("7",), ("9",))
    assert "columns 3, 4 have no name" in refusal(tmp_path, "id,label,,\n7,a,,x\n")


def test_packed_tables_are_read_directly(tmp_path):
    import zipfile

    text = b"id,label\n1,a\n"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("t.csv", text)
        archive.writestr("__MACOSX/._t.csv", b"x")
    for name in ("t.csv.gz", "t.csv.zip"):
        assert load_table(tmp_path / name).cells == (("1", "a"),)
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "a") as archive:
        archive.writestr("u.csv", text)
    with pytest.raises(UserError, match=r"t\.csv\.zip holds 2 files"):
        load_table(tmp_path / "t.csv.zip")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text)[:-6])
    with pytest.raises(UserError, match=r"t\.csv\.gz cannot be unpacked"):
        load_table(tmp_path / "t.csv.gz")


@pytest.mark.parametrize(("encoding", "said"), [("utf-16", "is UTF-16"), ("latin-1", "not UTF-8 in row 2")])
def test_the_command_for_another_encoding_works_when_pasted(tmp_path, encoding, said):
    path = tmp_path / "my table's.csv"
    path.write_bytes("id,label\n1,\u00e9\n".encode(encoding))
    with pytest.raises(UserError) as caught:
        load_table(path)
    assert said in str(caught.value)
    command = str(caught.value).partition("with: ")[2]
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert load_table(path).cells == (("1", "\u00e9"),)


def test_a_packed_table_in_another_encoding_has_no_command_that_would_spoil_it(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress("id,label\n1,a\n".encode("utf-16")))
    with pytest.raises(UserError, match=r"is UTF-16.*unpack it") as caught:
        load_table(path)
    assert "mv " not in str(caught.value)


def test_an_open_quote_names_the_row_where_it_begins(tmp_path):
    assert "row 3: quotes" in refusal(tmp_path, 'id,label\n1,a\n2,"b\n3,c\n')


def test_quotes_inside_a_cell(tmp_path):
    assert "row 2: quotes" in refusal(tmp_path, 'id,label\n1,"a"b\n')


def test_empty_file(tmp_path):
    assert "it is empty: a header row is needed" in refusal(tmp_path, "")
    assert "it is empty: a header row is needed" in refusal(tmp_path, "\ufeff\n\n")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        load_table(tmp_path / "nowhere.csv")


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_table(tmp_path)


def test_written_bytes(tmp_path):
    path = tmp_path / "out.csv"
    write_table(path, ("id", "label"), [("1", "a,b"), ("2", 'say "hi"'), (3, "ü"), ("=1", " x ")])
    assert path.read_bytes() == 'id,label\n1,"a,b"\n2,"say ""hi"""\n3,ü\n=1, x \n'.encode()


def test_a_row_of_another_width_leaves_the_former_file(tmp_path):
    path = save(tmp_path, "id,label\n1,old\n")
    with pytest.raises(ValueError, match="row 3 has 1 cells for 2 columns"):
        write_table(path, ("id", "label"), [("1", "new"), ("2",)])
    assert path.read_text() == "id,label\n1,old\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)


@settings(max_examples=80, deadline=None)
@given(columns=st.lists(cell.filter(str.strip), min_size=1, max_size=4, unique=True), data=st.data())
def test_what_is_written_is_read_back(tmp_path_factory, columns, data):
    columns = (
        ["id", *columns]
        if "id" not in columns
        else ["id", *(name for name in columns if name != "id"), "other"]
    )
    if len(set(columns)) != len(columns):
        return
    rows = data.draw(st.lists(st.tuples(*[cell] * len(columns)), max_size=5))
    path = tmp_path_factory.mktemp("round") / "table.csv"
    write_table(path, columns, rows)
    table = load_table(path)
    assert table.columns == tuple(columns)
    assert list(table.cells) == rows
    assert table.delimiter == ","


def test_row_numbers_are_capped():
    assert numbered([7]) == "row 7"
    assert numbered([9, 3, 3]) == "rows 3, 9"
    assert numbered(range(2, 30)) == "rows 2, 3, 4, 5, 6 and 23 more"


def test_nearest_prefers_a_difference_in_case():
    assert nearest("Dress", ["dresses", "dress"]) == " (nearest: 'dress')"
    assert nearest("drss", ["hat", "dress"]) == " (nearest: 'dress')"
    assert nearest("zzz", ["hat", "dress"]) == ""


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_an_ignored_column_can_be_named(tmp_path, mark):
    path = save(tmp_path, f'""{mark}a{mark}b\n1{mark}x{mark}y\n2{mark}z{mark}w\n')
    table = load_table(path)
    assert table.columns == ("a", "b") and dict(table.numbering) == {2: "1", 3: "2"}
    subprocess.run(name_the_ids(table).partition("name it: ")[2], shell=True, check=True)
    assert load_table(path).columns == ("id", "a", "b") and not load_table(path).numbering


def test_a_table_of_numbers_without_a_header_is_told_once(tmp_path):
    text = refusal(tmp_path, "3,0,0,0,255,255\n4,0,0,7,255,0\n")
    assert "no header" in text and "6 columns" in text and len(text.splitlines()) == 2
    assert "'0' occurs 3 times" in refusal(tmp_path, "id,0,0,0\n4,0,0,7\n")


def test_a_cell_may_be_longer_than_the_limit_of_pythons_reader(tmp_path):
    """A mask as text: it was taken for quotes that do not close."""
    mask = "1 2 " * 50_000
    assert load_table(save(tmp_path, f"id,mask\na,{mask}\n")).cells == (("a", mask),)


@pytest.mark.parametrize("packed", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_is_a_message_however_it_is_packed(tmp_path, packed):
    path = tmp_path / "table.csv.zip"
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("table.csv", "id,b\n" + "1,2\n" * 1000)
    data = bytearray(path.read_bytes())
    data[50] ^= 255
    data[60] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"table\.csv\.zip cannot be") as caught:
        load_table(path)
    assert "None" not in str(caught.value)


def test_numbers_of_any_length_are_sorted_by_value():
    names = ["a" + "9" * 5000, "a1", "a" + "9" * 4999 + "8", "a007", "a10", "a", "a0", "a00"]
    assert sorted(names, key=natural_key) == [
        *("a", "a0", "a00", "a1", "a007", "a10", "a" + "9" * 4999 + "8", "a" + "9" * 5000)
    ]
