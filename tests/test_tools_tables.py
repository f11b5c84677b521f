"""Tables: what is read, and what each damaged file is told."""

import gzip
import hashlib
import json
import subprocess
import sys
import textwrap

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.tables import delimited, open_table


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(call, *arguments, **options):
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] in ".?"
    return message


def test_csv_is_read_as_strings_with_lines_of_rows(tmp_path):
    data = '\ufeffname,language\r\nO\'Neal,Irish\r\n\r\n"a ""b"",\r\nc",x\r\n,01\r\n'
    table = open_table(write(tmp_path, "t.csv", data))
    assert table.columns == {"name": pl.String, "language": pl.String}
    assert table.rows == 3
    assert table.column("name", "--text").to_list() == ["O'Neal", 'a "b",\r\nc', None]
    assert table.column("language", "--label").to_list() == ["Irish", "x", "01"]
    assert [table.where(row) for row in (1, 2, 3)] == [
        f"{tmp_path}/t.csv, row 1 (line 2)",
        f"{tmp_path}/t.csv, row 2 (line 4)",
        f"{tmp_path}/t.csv, row 3 (line 6)",
    ]
    assert table.digest == hashlib.sha256(data.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", "a;b\n1,5;2\n"), ("t.csv", "a\tb\n1,5\t2\n"), ("t.tsv", "a\tb\n1,5\t2\n"), ("t.csv", 'a,b\n"1,5",2')],
)
def test_delimiters(tmp_path, name, content):
    assert open_table(write(tmp_path, name, content)).frame(["a", "b"], "x").rows() == [("1,5", "2")]


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(
            st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * n), min_size=1
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_csv_returns_what_was_written(tmp_path_factory, rows):
    import csv
    import io

    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow([f"c{place}" for place in range(len(rows[0]))])
    writer.writerows(rows)
    path = write(tmp_path_factory.mktemp("csv"), "t.csv", text.getvalue())
    table = open_table(path)
    expected = [tuple(value or None for value in row) for row in rows]
    assert table.frame(list(table.columns), "x").rows() == expected


def test_more_rows_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "CHUNK", 3)
    content = "a,b\n" + "".join(f"{row},\n" for row in range(10))
    table = open_table(write(tmp_path, "t.csv", content))
    table.block_rows = 4
    assert table.column("a", "x").to_list() == [str(row) for row in range(10)]
    assert table.column("b", "x").null_count() == 10
    assert [(before, frame["a"].to_list()) for before, frame in table.blocks(["a"])] == [
        (0, ["0", "1", "2", "3"]),
        (4, ["4", "5", "6", "7"]),
        (8, ["8", "9"]),
    ]


def test_blank_lines_of_one_column_are_rows(tmp_path):
    table = open_table(write(tmp_path, "t.csv", b"\nname\nAda\n\n\nBo\n\n"), "x")
    assert table.column("name", "x").to_list() == ["Ada", None, None, "Bo"]
    assert [table.where(row) for row in (1, 2, 3, 4)] == [
        f"{tmp_path / 't.csv'}, row {row} (line {row + 2})" for row in (1, 2, 3, 4)
    ]
    two = open_table(write(tmp_path, "two.csv", b"a,b\n1,2\n\n3,4\n"), "x")
    assert two.column("a", "x").to_list() == ["1", "3"]


BAD_TEXT = {
    "empty": (b"", "is empty"),
    "header alone": (b"a,b\n", "has no rows"),
    "blank lines": (b"\n\n\n", "is empty"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "begins as UTF-16 does. Convert it: iconv -f UTF-16"),
    "UTF-32": ("a,b\n1,2\n".encode("utf-32"), "begins as UTF-32 does"),
    "zero byte": (b"a,b\n1,\0\n", "line 2: byte 6 of the file is zero"),
    "Latin-1": ("a,b\n1,2\nMüller,3\n".encode("latin-1"), "line 3: byte 9 of the file is not UTF-8 (0xfc"),
    "Latin-1 after a mark": (b"\xef\xbb\xbfa,b\n1,\xff\n", "line 2: byte 9 of the file is not UTF-8 (0xff"),
    "cut character": ("a,b\n1,é".encode()[:-1], "line 2: byte 6 of the file is not UTF-8"),
    "Excel": (b"PK\x03\x04rest", "a ZIP archive, as Excel workbooks are"),
    "gzip": (gzip.compress(b"a,b\n1,2\n"), "compressed by gzip. Decompress it: gunzip -k"),
    "Parquet": (b"PAR1rest", "it is Parquet. Give it the ending .parquet"),
    "short row": (b"a,b\n1,2\n3\n", "row 2 (line 3): expected 2 values, one for each column, got 1: '3'"),
    "long row": (b"a,b\n1,2\n3,4,5\n", "row 2 (line 3): expected 2 values, one for each column, got 3: '3,4,5'"),
    "open quote": (b'a,b\n1,2\n"3,4\n5,6\n', "line 3: a value in double quotes does not end"),
    "text after a quote": (b'a,b\n"1"x,2\n', "line 2: a value in double quotes does not end"),
    "same name": (b"a,b,a\n1,2,3\n", "line 1: columns 1 and 3 are both called 'a'"),
    "same name but for spaces": (b"a, a\n1,2\n", "line 1: columns 1 and 2 are both called 'a'"),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_csv(tmp_path, name):
    content, expected = BAD_TEXT[name]
    path = write(tmp_path, "t.csv", content)
    message = refused(open_table, path, "--test-file")
    assert expected in message
    assert message.startswith(f"--test-file {path}")


def test_bad_names(tmp_path):
    assert "got the folder" in refused(open_table, tmp_path)
    assert "could not be read: No such file" in refused(open_table, tmp_path / "none.csv")
    assert "could not be read: No such file" in refused(open_table, tmp_path / "none.parquet")
    assert "must end in .csv, .tsv, .parquet, .jsonl, .ndjson, got '.xlsx'" in refused(open_table, tmp_path / "t.xlsx")


def test_a_column_that_is_not_there(tmp_path):
    table = open_table(write(tmp_path, "t.csv", "name,language\na,b\n"))
    message = refused(table.column, "Langage", "--label")
    assert message == (
        f"--label 'Langage': {tmp_path}/t.csv has no such column; its columns are 'name', 'language'. Did you mean "
        f"'language'?"
    )
    assert refused(table.require, ["zzz"], "--text").endswith("Name one of them.")


def test_a_header_without_a_name(tmp_path):
    assert list(open_table(write(tmp_path, "t.csv", ",a\n0,1\n")).columns) == ["column_1", "a"]


def test_numbers(tmp_path):
    table = open_table(write(tmp_path, "t.csv", "a,b,c,d\n 1,2.5,x,\n-1e3 ,NA,2,\n"))
    np.testing.assert_array_equal(table.numbers(["a"], "x"), [[1], [-1000]])
    np.testing.assert_array_equal(table.numbers(["b", "a"], "x", missing=True), [[2.5, 1], [np.nan, -1000]])
    assert refused(table.numbers, ["a", "b"], "--target") == (
        f"{tmp_path}/t.csv, row 2 (line 3), column 'b': --target needs a number, found 'NA' (rows without one: "
        f"1). Fill it in or leave the row out."
    )
    assert "row 1 (line 2), column 'c': --target needs a number, found 'x'" in refused(
        table.numbers, ["c"], "--target", missing=True
    )
    assert [table.is_numeric(name) for name in "abcd"] == [True, True, False, False]


@pytest.mark.parametrize("value", ["1,5", "1_000", "0x10", "inf", "-Infinity", "1e999", "true", "1 2", "५"])
def test_what_is_no_number(tmp_path, value):
    table = open_table(write(tmp_path, "t.tsv", f"a\n1\n{value}\n"))
    message = refused(table.numbers, ["a"], "x", missing=True)
    assert f"row 2 (line 3), column 'a': x needs a number, found {value!r}" in message


def test_json_lines(tmp_path):
    rows = [
        {"t": "a", "n": 1, "l": ["x"], "v": [1, 2.5], "e": []},
        {"t": "", "n": 2.5, "l": [], "v": [3], "b": True},
        {"l": ["y", "z"], "v": None, "n": None, "e": [1]},
    ]
    content = "\n\n".join(map(json.dumps, rows)) + "\n"
    table = open_table(write(tmp_path, "t.jsonl", content))
    got = {name: table.column(name, "x").to_list() for name in table.columns}
    assert got == {
        "t": ["a", "", None],
        "n": [1.0, 2.5, None],
        "l": [["x"], [], ["y", "z"]],
        "v": [[1.0, 2.5], [3.0], None],
        "e": [[], None, [1]],
        "b": [None, True, None],
    }
    assert table.where(3) == f"{tmp_path}/t.jsonl, row 3 (line 5)"


BAD_JSON = {
    "no JSON": ("{}\n{'a': 1}\n", "line 2: expected a JSON object, got \"{'a': 1}\""),
    "an array": ("[1, 2]\n", "line 1: expected a JSON object such as"),
    "cut": ('{"a": 1}\n{"a": ', "line 2: expected a JSON object"),
    "a key twice": ('{"a": 1, "a": 2}', "it has 'a' twice"),
    "half a character": ('{"a": "\\ud800"}', "line 1: expected a JSON object"),
    "deep": ("[" * 100_000, "line 1: expected a JSON object"),
    "empty": ("\n", "is empty"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(tmp_path, name):
    content, expected = BAD_JSON[name]
    assert expected in refused(open_table, write(tmp_path, "t.ndjson", content))


BAD_VALUES = {
    "mixed": (
        [1, "b"],
        "the column must be of one type: row 1 has an integer, row 2 (line 2) has text: 'b'. Make them the same",
    ),
    "list and text": ([["a"], "b"], "row 1 has a list of text, row 2 (line 2) has text"),
    "objects": ([{"x": 1}], "row 1 (line 1) holds an object"),
    "mixed list": ([["a", 1]], "row 1 (line 1) holds a list of several types"),
    "null in a list": ([[1, None]], "row 1 (line 1) holds a list of several types, of nulls"),
    "large": ([2**70], "row 1 (line 1) holds an integer beyond 64 bits"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_told_when_their_column_is_used(tmp_path, name):
    values, expected = BAD_VALUES[name]
    content = "\n".join(json.dumps({"a": value, "ok": 1}) for value in values)
    table = open_table(write(tmp_path, "t.jsonl", content))
    assert table.column("ok", "x").to_list() == [1] * len(values)
    message = refused(table.column, "a", "--text")
    assert expected in message
    assert message.startswith(f"--text 'a': {tmp_path}/t.jsonl")


def test_parquet_and_its_blocks(tmp_path):
    frame = pl.DataFrame({"a": list(range(10)), "l": [["x"] * n for n in range(10)], "b": [0.5] * 9 + [float("nan")]})
    frame.write_parquet(tmp_path / "t[1].parquet", row_group_size=3)
    table = open_table(tmp_path / "t[1].parquet")
    table.block_rows = 4
    assert (table.rows, table.block_count) == (10, 3)
    assert pl.concat([part for _, part in table.blocks(["a", "l", "b"])]).equals(frame, null_equal=True)
    assert "row 10, column 'b': x needs a number, found nan" in refused(table.numbers, ["b"], "x")
    assert "must hold numbers, and it holds lists (List(String))" in refused(table.numbers, ["l"], "x")


@pytest.mark.parametrize("cut", [4, 20, 400, -1])
def test_damaged_parquet(tmp_path, cut):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": list(range(1000))}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:cut])
    assert f"FILE {path} could not be read" in refused(open_table, path)


def test_a_parquet_file_that_is_damaged_inside(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": list(range(1000))}).write_parquet(path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:120] = bytes(116)
    path.write_bytes(data)
    assert f"FILE {path} could not be read" in refused(lambda: open_table(path).column("a", "x"))


def test_what_is_not_parquet(tmp_path):
    assert "begins with b'a,b" in refused(open_table, write(tmp_path, "t.parquet", "a,b\n"))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_blocks_of_a_large_file_take_the_memory_of_one(tmp_path):
    """A file whose column is some 160 MB in memory, read block by block in a process of its own."""
    path = tmp_path / "large.parquet"
    part = pl.DataFrame({"t": [f"{n:x}" * 12 for n in range(10**9, 10**9 + 1_600_000)]})
    part.write_parquet(path, row_group_size=50_000)
    code = f"""
        from pathlib import Path
        from torchrnn.tools.tables import open_table
        table = open_table(Path({str(path)!r}))
        table.block_rows = 50_000
        peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        table.block(0, ["t"])
        before, held = peak(), 0
        for _, frame in table.blocks(["t"]):
            held += frame.estimated_size()
        by_blocks = peak() - before
        table.column("t", "x")
        print(held, by_blocks, peak() - before)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    held, by_blocks, whole = map(int, result.stdout.split())
    assert held > 150e6
    assert by_blocks < 40e6 < whole
