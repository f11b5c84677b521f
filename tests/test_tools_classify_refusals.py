"""Data and options that `torchrnn classify` refuses, each with the row, the column and what stands there."""

import pytest
from tools_tables import refused, write

from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import UsageError

GOOD = ["ab,x", "ba,y"] * 6
REFUSED = {
    "no label": (
        ["t,y", *GOOD, "ab, "],
        {},
        "row 13 (line 14), column 'y': there is no label. Fill it in, or give --skip",
    ),
    "no text": (["t,y", *GOOD, ",x"], {}, "row 13 (line 14), column 't': the sequence is empty"),
    "one label": (
        ["t,y", *["ab,x"] * 9],
        {},
        "expected at least two different labels in the training part, found only 'x'",
    ),
    "no classes": (["t,y", *(f"ab,{n}" for n in range(50))], {}, "50 different labels in 50 rows. Expected classes"),
    "a word of the split": (
        ["t,y,s", "a,x,train", "a,y,tran"],
        {"split": "s"},
        "row 2 (line 3), column 's': --split must",
    ),
    "no validation rows": (
        ["t,y,s", "a,x,train", "a,y,train"],
        {"split": "s"},
        "of 2 rows none is in the validation part",
    ),
    "no training rows": (["t,y,s", "a,x,val", "a,y,val"], {"split": "s"}, "of 2 rows none is in the training part"),
    "a label of the test part": (
        ["t,y,s", "a,x,train", "a,y,train", "a,x,val", "a,z,test", "a,w,test"],
        {"split": "s"},
        "row 5 (line 6), column 'y': the label 'w' is in the test part and not in the training part",
    ),
    "too few rows": (["t,y", "a,x", "b,y"], {}, "of 2 rows none is in the validation part"),
    "no column": (["t,y", *GOOD], {"label": "z"}, "--label 'z': "),
    "numbers wanted": (
        ["t,y", *GOOD],
        {"text": "", "steps_columns": ("t",)},
        "the column holds text, expected a list of",
    ),
    "tags wanted": (["t,y", "ab,x y z"], {"tagging": True}, "expected a label for each of the 2 tokens, found 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_tables(tmp_path, name):
    rows, options, expected = REFUSED[name]
    assert expected in refused(write(tmp_path, rows), **{"text": "t", "label": "y", **options})


STEPS = ["id,w,x,y", "a,1,1,p", "a,2,2,p", "b,1,3,q"]
REFUSED_STEPS = {
    "no name": ([*STEPS, ",1,1,p"], {}, "row 4 (line 5), column 'id': --sequence needs the name"),
    "two labels": (
        [*STEPS, "a,3,1,q"],
        {},
        "row 4 (line 5), column 'y': sequence 'a' has the label 'p' in row 1 and 'q'",
    ),
    "a time twice": (
        [*STEPS, "b,1.0,1,q"],
        {"time": "w"},
        "row 4 (line 5), column 'w': sequence 'b' has this time already in row 3",
    ),
    "no time": (
        ["id,w,x,y", "a,soon,1,p", "a,2026-01-01,1,p"],
        {"time": "w"},
        "row 1 (line 2), column 'w': --time needs a",
    ),
    "no number": ([*STEPS, "b,2,?,q"], {}, "row 4 (line 5), column 'x': --steps-columns needs a number, found '?'"),
    "a gap": ([*STEPS, "b,2,,q"], {}, "row 4 (line 5), column 'x': --steps-columns needs a number, found nothing"),
}


@pytest.mark.parametrize("name", REFUSED_STEPS)
def test_refused_steps(tmp_path, name):
    rows, options, expected = REFUSED_STEPS[name]
    assert expected in refused(write(tmp_path, rows), steps_columns=("x",), sequence="id", label="y", **options)


LISTS = [{"a": [1, 2], "b": [1, 2], "y": "p"}, {"a": [3.5], "b": [4], "y": "q"}]
REFUSED_LISTS = {
    "ragged": (
        [{"a": [1, 2], "b": [1], "y": "p"}],
        "row 3 (line 3), column 'b': the lists of a row must be of one length",
    ),
    "no number": (
        [{"a": [1, float("nan")], "b": [1, 2], "y": "p"}],
        "row 3 (line 3), column 'a': value 2 of the list must",
    ),
    "infinite": ([{"a": [1], "b": [float("inf")], "y": "p"}], "row 3 (line 3), column 'b': value 1 of the list must"),
    "mixed": ([{"a": ["x"], "b": [1], "y": "p"}], "row 1 has a list of numbers, row 3 (line 3) has a list of text"),
    "empty": ([{"a": [], "b": [], "y": "p"}], "row 3 (line 3), column 'a': the sequence is empty"),
    "missing": ([{"b": [], "y": "p"}], "row 3 (line 3), column 'a': the sequence is empty"),
}


@pytest.mark.parametrize("name", REFUSED_LISTS)
def test_refused_lists(tmp_path, name):
    rows, expected = REFUSED_LISTS[name]
    path = write(tmp_path, [*LISTS, *rows], "t.jsonl")
    assert expected in refused(path, steps_columns=("a", "b"), label="y")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "--label is needed"),
        ({"label": "y"}, "one of the two, got neither"),
        ({"label": "y", "text": "t", "steps_columns": ("a",)}, "one of the two, got both"),
        ({"label": "y", "text": "t", "sequence": "s"}, "give it with --steps-columns"),
        ({"label": "y", "steps_columns": ("a",), "time": "s"}, "give it with --sequence"),
        ({"label": "y", "text": "y"}, "is also read by the model"),
        ({"label": "y", "steps_columns": ("a", "a")}, "names 'a' twice"),
        ({"label": "y", "text": "t", "split": "y"}, "--split and --label are both 'y'"),
        ({"label": "y", "text": "t", "split": "s", "test_file": "f"}, "--test-file do too: give one"),
        ({"validation": 0.5, "test": 0.5}, "--validation must be with --test below 1"),
        ({"pool": "first"}, "--pool must be one of last, mean, max, got first"),
        ({"memory": 0}, "--memory must be at least 1"),
    ],
)
def test_refused_options(options, expected):
    with pytest.raises(UsageError, match=expected):
        ClassifySettings(**options).check_columns()
