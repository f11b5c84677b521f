"""Files that are not what a command needs: each is refused with its name, the place and a repair; no run is harmed."""

import gzip
import io
import os
import tempfile
from pathlib import Path

import polars as pl
import pytest
from malformed import CLASSIFY, FORECAST, LISTS, ROWS, SHOPS, TEXT, lists, refused, series, texts, trained

from torchrnn.tools.tables import Table

WORDS = "the quick brown fox jumps over the lazy dog\n" * 40


def lines(rows, *changes):
    """A file of these rows, some of them replaced: (line from 1, what stands there)."""
    rows = list(rows)
    for line, text in changes:
        rows[line - 1] = text
    return ("\n".join(rows) + "\n").encode()


def parquet(rows):
    """The same table in Parquet."""
    out = io.BytesIO()
    pl.read_csv(lines(rows)).write_parquet(out)
    return out.getvalue()


def without(rows, line):
    return [*rows[: line - 1], *rows[line:]]


STEPS = ["id,w,x,y", *(f"s{row // 3},{row % 3},{row},{'pq'[row // 3 % 2]}" for row in range(36))]
TWO = ["time,shop,y", *(f"2024-01-{day:02},{shop},{day}" for day in range(1, 31) for shop in "ab")]
GOOD = lines(texts())
LATE = [f"{text}{row},{'pq'[row % 2]}" for row, text in enumerate(["abc"] * 3000)]

# a name: the command, the file's name, its bytes, and what the message must say besides the file's name
REFUSED = {
    # bytes
    "an empty text": (TEXT, "f.txt", b"", "is empty"),
    "a text of white space": (TEXT, "f.txt", b" \n\t\n" * 90, "is empty"),
    "Latin-1 in a text": (TEXT, "f.txt", lines([WORDS, "caf\xe9"]).replace(b"\xc3", b""), "line 42", "ISO-8859-1"),
    "UTF-16 in a text": (TEXT, "f.txt", WORDS.encode("utf-16"), "UTF-16", "iconv"),
    "a zero in a text": (TEXT, "f.txt", WORDS.encode() + b"a\nb\0c\n" * 20, "line 42", "zero"),
    "a text of ten letters": (TEXT, "f.txt", b"abcdefghij", "too short", "--batch-size"),
    "gzip as text": (TEXT, "f.txt", gzip.compress(WORDS.encode() * 9), "gzip"),
    "an empty table": (CLASSIFY, "f.csv", b"", "is empty"),
    "blank lines": (CLASSIFY, "f.csv", b"\n\n\n", "is empty"),
    "a header alone": (CLASSIFY, "f.csv", b"t,y\n", "has no rows"),
    "an empty JSON": (LISTS, "f.jsonl", b"\n", "is empty"),
    "Parquet called CSV": (CLASSIFY, "f.csv", parquet(texts()), "Parquet", ".parquet"),
    "gzip called CSV": (CLASSIFY, "f.csv", gzip.compress(GOOD), "gzip", "gunzip"),
    "CSV called Parquet": (CLASSIFY, "f.parquet", GOOD, "PAR1"),
    "half a Parquet": (CLASSIFY, "f.parquet", parquet(texts())[:200], "damaged"),
    "a Parquet without its middle": (CLASSIFY, "f.parquet", parquet(texts())[:4] + parquet(texts())[-40:], "damaged"),
    "UTF-16": (CLASSIFY, "f.csv", GOOD.decode().encode("utf-16"), "UTF-16", "iconv"),
    "UTF-32": (CLASSIFY, "f.csv", GOOD.decode().encode("utf-32"), "UTF-32", "iconv"),
    "a Latin-1 byte": (CLASSIFY, "f.csv", lines(texts(), (9, "caf?,p")).replace(b"?", b"\xe9"), "line 9", "0xe9"),
    "a byte order mark, then Latin-1": (
        CLASSIFY,
        "f.csv",
        b"\xef\xbb\xbf" + lines(texts(), (5, "?,p")).replace(b"?", b"\xe9"),
        "line 5",
        "0xe9",
    ),
    "zeros": (CLASSIFY, "f.csv", lines(texts(), (7, "a\0b,p")), "line 7", "zero"),
    "no ending": (CLASSIFY, "table", GOOD, "must end in .csv"),
    "another ending": (CLASSIFY, "f.xlsx", b"PK\x03\x04 ...", "must end in .csv"),
    # the shape of a table
    "a short row": (CLASSIFY, "f.csv", lines(texts(), (6, "abc")), "row 5 (line 6)", "expected 2 values", "got 1"),
    "a long row": (CLASSIFY, "f.csv", lines(texts(), (6, "a,b,p")), "row 5 (line 6)", "got 3", "double quotes"),
    "a quote that stays open": (CLASSIFY, "f.csv", lines(texts(), (8, '"abc,p')), "line 8", "double quotes"),
    "text after a quote": (CLASSIFY, "f.csv", lines(texts(), (8, '"abc"d,p')), "line 8", "double quotes"),
    "a huge field in a short row": (CLASSIFY, "f.csv", lines(texts(), (4, "x" * 2_000_000)), "row 3 (line 4)"),
    "a column twice": (CLASSIFY, "f.csv", lines(texts(), (1, "t,t")), "line 1", "'t'", "Rename"),
    "a missing column": (CLASSIFY, "f.csv", lines(texts(), (1, "T,label")), "--text 't'", "Did you mean 'T'"),
    "another separator": (CLASSIFY, "f.csv", lines(texts()).replace(b",", b"|"), "no such column", "'t|y'"),
    "a tab-separated file with commas": (CLASSIFY, "f.tsv", GOOD, "no such column"),
    # what stands in it
    "a row without a label": (CLASSIFY, "f.csv", lines(texts(), (11, "abc,")), "row 10 (line 11)", "column 'y'"),
    "a row without a text": (CLASSIFY, "f.csv", lines(texts(), (11, ",p")), "row 10 (line 11)", "column 't'"),
    "one label": (CLASSIFY, "f.csv", lines(["t,y", *["ab,x"] * 20]), "two different labels", "'x'"),
    "a label in each row": (CLASSIFY, "f.csv", lines(["t,y", *(f"ab,{n}" for n in range(40))]), "40 different labels"),
    "a text in a late row of numbers": (
        ROWS,
        "f.csv",
        lines([*STEPS, *(f"t{row},0,1,p" for row in range(3000)), "u,0,one,p"]),
        "row 3,037 (line 3,038)",
        "column 'x'",
        "'one'",
    ),
    "a time that is none": (ROWS, "f.csv", lines(STEPS, (9, "s2,soon,8,p")), "row 8 (line 9)", "column 'w'", "soon"),
    "a time twice": (ROWS, "f.csv", lines(STEPS, (3, "s0,0,5,p")), "row 2 (line 3)", "column 'w'"),
    "two labels of a sequence": (ROWS, "f.csv", lines(STEPS, (3, "s0,1,5,q")), "row 2 (line 3)", "column 'y'"),
    "an infinite number": (ROWS, "f.csv", lines(STEPS, (9, "s2,1,inf,p")), "row 8 (line 9)", "column 'x'", "inf"),
    "NaN": (ROWS, "f.csv", lines(STEPS, (9, "s2,1,NaN,p")), "row 8 (line 9)", "column 'x'"),
    # JSON lines
    "no JSON": (LISTS, "f.jsonl", lines(lists(), (4, "{'a': 1}")), "line 4", "JSON object"),
    "half an object": (LISTS, "f.jsonl", lines(lists(), (24, '{"a": [1, 2'))[:-3], "line 24"),
    "a list in place of an object": (LISTS, "f.jsonl", lines(lists(), (4, "[1, 2]")), "line 4", "JSON object"),
    "a name twice": (LISTS, "f.jsonl", lines(lists(), (4, '{"a": [1], "a": [2]}')), "line 4", "'a' twice"),
    "deep brackets": (LISTS, "f.jsonl", lines(lists(), (4, "[" * 100_000)), "line 4"),
    "a number of many digits": (LISTS, "f.jsonl", lines(lists(), (4, '{"a": ' + "9" * 5000 + "}")), "line 4"),
    "an integer beyond 64 bits": (LISTS, "f.jsonl", lines(lists(), (4, '{"y": 99999999999999999999}')), "line 4"),
    "half a surrogate pair": (LISTS, "f.jsonl", lines(lists(), (4, '{"y": "\\ud800"}')), "line 4"),
    "two types": (LISTS, "f.jsonl", lines(lists(), (5, '{"a": "x", "b": [1], "y": "p"}')), "row 5 (line 5)", "'a'"),
    "unequal lists": (LISTS, "f.jsonl", lines(lists(), (5, '{"a": [1, 2], "b": [1], "y": "p"}')), "row 5", "'b'"),
    "lists of lists": (LISTS, "f.jsonl", lines(lists(), (5, '{"a": [[1]], "b": [1], "y": "p"}')), "row 5", "'a'"),
    "a null in a list": (LISTS, "f.jsonl", lines(lists(), (5, '{"a": [null], "b": [1], "y": "p"}')), "row 5", "'a'"),
    "empty lists": (LISTS, "f.jsonl", lines(lists(), (5, '{"a": [], "b": [], "y": "p"}')), "row 5 (line 5)", "'a'"),
    "NaN in a list": (LISTS, "f.jsonl", lines(lists(), (5, '{"a": [NaN], "b": [1], "y": "p"}')), "row 5", "'a'"),
    # series
    "no time": (FORECAST, "f.csv", lines(series(), (4, "soon,1")), "row 3 (line 4)", "column 'time'", "'soon'"),
    "an unknown form of time": (
        FORECAST,
        "f.csv",
        lines(["time,y", *(f"{day:02}.01.24,1" for day in range(1, 31))]),
        "row 1 (line 2)",
        "--time-format",
    ),
    "a day that is not": (FORECAST, "f.csv", lines(series(), (4, "2024-01-32,1")), "row 3 (line 4)", "'2024-01-32'"),
    "a year that is not": (FORECAST, "f.csv", lines(series(), (2, "99999-01-01,1")), "row 1 (line 2)", "'time'"),
    "a time twice in a series": (FORECAST, "f.csv", lines(series(), (5, "2024-01-03,1")), "row 4 (line 5)", "repeat"),
    "times out of order": (FORECAST, "f.csv", lines(series(), (5, "2024-01-01,1")), "row 4 (line 5)", "Sort"),
    "a gap": (FORECAST, "f.csv", lines(without(series(), 9)), "row 8 (line 9)", "--fill-gaps"),
    "other zones": (
        FORECAST,
        "f.csv",
        lines(["time,y", *(f"2024-01-01T{h:02}:00:00+0{h // 12 + 1}:00,1" for h in range(24))]),
        "row 13 (line 14)",
        "'time'",
    ),
    "a zone in one row": (FORECAST, "f.csv", lines(series(), (5, "2024-01-04T00:00Z,1")), "row 4 (line 5)", "'time'"),
    "two series, and no --id": (FORECAST, "f.csv", lines(TWO), "row 2 (line 3)", "--id"),
    "two steps": (
        SHOPS,
        "f.csv",
        lines([*TWO[:1], *TWO[1::2], "2024-02-01,c,1", "2024-02-02,c,1", "2024-02-02,d,1"]).replace(
            b"2024-02-02,c", b"2024-02-01 12:00,c"
        ),
        "row 32 (line 33)",
        "'time'",
    ),
    "two series of two steps": (
        SHOPS,
        "f.csv",
        lines(
            [
                "time,shop,y",
                *(
                    f"2024-01-{day:02} {hour},{shop},1"
                    for day in range(1, 21)
                    for shop, hour in (("a", "00:00"), ("b", "00:00"), ("b", "12:00"))
                ),
            ]
        ),
        "'a'",
        "row ",
    ),
    "a name of a series missing": (SHOPS, "f.csv", lines(TWO, (8, "2024-01-04,,1")), "row 7 (line 8)", "'shop'"),
    "text in numbers": (FORECAST, "f.csv", lines(series(), (31, "2024-01-30,1 kg")), "row 30 (line 31)", "'1 kg'"),
    "a number too large": (FORECAST, "f.csv", lines(series(), (31, "2024-01-30,1e99")), "row 30 (line 31)", "1e30"),
    "no value at all": (
        FORECAST,
        "f.csv",
        lines(f"{row.split(',')[0]},{'y' if row == 'time,y' else ''}" for row in series()),
        "--target 'y'",
        "no value at all",
    ),
    "a series of three rows": (FORECAST, "f.csv", lines(series()[:4]), "--validation"),
    "a horizon longer than the series": ([*FORECAST, "--horizon=500"], "f.csv", lines(series()), "--horizon"),
    "an unknown covariate": ([*FORECAST, "--known=price"], "f.csv", lines(series()), "--known 'price'", "'y'"),
    "a column of time that is a target": ([*FORECAST, "--past=time"], "f.csv", lines(series()), "--past 'time'"),
    "numbers beyond 64 bits as times": (FORECAST, "f.csv", lines(series(), (2, "9" * 30 + ",1")), "row 1 (line 2)"),
    "times far apart": (
        FORECAST,
        "f.csv",
        lines(["time,y", *(f"{10**17 * row},1" for row in range(9)), "999999999999999999,1"]),
        "row 10",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, tmp_path_factory, name):
    command, file, data, *says = REFUSED[name]
    runs, _ = trained(tmp_path_factory)
    path = tmp_path / file
    path.write_bytes(data)
    run = runs[command[0]]
    refused([*command, path, "--run", run, "--overwrite"], [file, *says], run)


PLACES = {"text": (TEXT, "f.txt"), "classify": (CLASSIFY, "f.csv"), "Parquet": (CLASSIFY, "f.parquet")}
PLACES |= {"forecast": (FORECAST, "f.jsonl")}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_no_file(tmp_path, tmp_path_factory, name):
    command, file = PLACES[name]
    run = trained(tmp_path_factory)[0][command[0]]
    options = ["--run", run, "--overwrite"]
    path = tmp_path / file
    refused([*command, path, *options], [file, "No such file"], run)
    refused([*command, tmp_path / ("x" * 300 + file), *options], [file, "too long"], run)
    refused([*command, path / file, *options], [file, "No such file"], run)
    path.mkdir()
    refused([*command, path, *options], [file, "got the folder"], run)
    path.rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)
        refused([*command, path, *options], [file, "a pipe or a device"], run)
        path.unlink()
        path.symlink_to("/dev/zero")
        refused([*command, path, *options], [file, "a pipe or a device"], run)
        path.unlink()
    path.symlink_to(path)
    refused([*command, path, *options], [file, "symbolic links"], run)


@pytest.mark.skipif(os.name != "posix", reason="files are not closed to anybody by their mode elsewhere")
@pytest.mark.parametrize("name", PLACES)
def test_files_that_may_not_be_read(tmp_path_factory, name):
    command, file = PLACES[name]
    run = trained(tmp_path_factory)[0][command[0]]
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others, too
        inside = Path(folder) / "inside"
        inside.mkdir()
        os.chmod(folder, 0o755)
        path = inside / file
        path.write_bytes(GOOD)
        path.chmod(0)
        says = [file, "Permission denied"]
        arguments = [*command, path, "--run", Path(folder) / "run"]
        refused(arguments, says, run, nobody=True)
        inside.chmod(0)  # even whether the file is there cannot be told
        refused(arguments, says, run, nobody=True)
        inside.chmod(0o755)


OTHER = {
    "text": ([], "f.txt", b"caf\xe9\n", "line 1"),
    "classify": ([], "f.csv", lines(texts(), (3, "abc,z")), "row 2 (line 3)", "column 'y'", "'z'"),
    "lists": ([], "f.jsonl", lines(lists(), (3, '{"a": [1], "b": [null], "y": "p"}')), "row 3 (line 3)", "'b'"),
    "forecast": ([], "f.csv", lines(series(), (9, "2024-01-08,x")), "row 8 (line 9)", "column 'y'"),
}
SHORT = {
    "classify": ([], "f.csv", lines(texts(), (1, "s,y")), "--text 't'", "'s', 'y'"),
    "lists": ([], "f.jsonl", lines(lists(), (3, '{"a": [1], "b": [1, 2]}')), "row 3 (line 3)", "column 'b'"),
    "forecast": ([], "f.csv", lines(series()[:4]), "3 rows", "--history"),
    "text": ([], "f.csv", GOOD, "predicts no rows"),
}


@pytest.mark.parametrize(
    ("command", "name"), [("evaluate", name) for name in OTHER] + [("predict", name) for name in SHORT]
)
def test_files_for_a_trained_model(tmp_path, tmp_path_factory, command, name):
    options, file, data, *says = (OTHER if command == "evaluate" else SHORT)[name]
    run = trained(tmp_path_factory)[0][name]
    path = tmp_path / file
    path.write_bytes(data)
    out = ["--out", tmp_path / "out.csv"] if command == "predict" else []
    refused([command, run, path, *options, *out], says, run)
    assert not (tmp_path / "out.csv").exists()
    for empty in (tmp_path / f"none{path.suffix}", tmp_path / f"empty{path.suffix}"):
        if name != "text" or command == "evaluate":
            refused([command, run, empty], [empty.name], run)
        empty.write_bytes(b"")


def test_a_file_that_shrinks_meanwhile(tmp_path, tmp_path_factory, monkeypatch):
    run = trained(tmp_path_factory)[0]["classify"]
    path = tmp_path / "f.parquet"
    path.write_bytes(parquet(texts(400)))
    block = Table.block

    def shrunk(self, index, names):
        path.write_bytes(path.read_bytes()[:100])
        return block(self, index, names)

    monkeypatch.setattr(Table, "block", shrunk)
    refused([*CLASSIFY, path, "--run", run, "--overwrite"], [path.name, "changed meanwhile"], run)
