"""Text to streams: what is read, what is refused, and the layout that stateful training stands on."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrnn.tools.runs.errors import UsageError
from torchrnn.tools.text import corpus as text
from torchrnn.tools.text.corpus import Streams
from torchrnn.tools.text.tokens import UNKNOWN, Characters


@given(length=st.integers(2, 400), batch_size=st.integers(1, 9), sequence_length=st.integers(1, 50))
def test_streams_are_contiguous_and_predict_the_next_character(length, batch_size, sequence_length):
    if length - 1 < batch_size:
        return
    streams = Streams.of(torch.arange(length), batch_size, sequence_length)
    chunks = list(streams)
    assert len(chunks) == len(streams)
    assert all(1 <= len(inputs) <= sequence_length for inputs, _ in chunks)
    inputs = torch.cat([inputs for inputs, _ in chunks])  # (N, B)
    targets = torch.cat([targets for _, targets in chunks])  # (N, B)
    assert torch.equal(targets, inputs + 1)  # each target is the character after its input
    used = (length - 1) // batch_size * batch_size
    assert torch.equal(inputs.t().flatten(), torch.arange(used))  # row after row, nothing twice, nothing left out
    assert length - 1 - used < batch_size


def test_streams_can_be_read_in_any_order():
    streams = Streams.of(torch.arange(100), 3, 7)
    for chunk, (inputs, targets) in enumerate(streams):
        again = streams[chunk]
        assert torch.equal(inputs, again[0])
        assert torch.equal(targets, again[1])


@given(st.text(min_size=1), st.text())
def test_vocabulary_gives_every_character_back(training, other):
    vocabulary = Characters.of(training)
    assert len(vocabulary) == len(set(training)) + 1
    assert "".join(vocabulary.decode(int(i)) for i in vocabulary.encode(training)) == training
    expected = "".join(c if c in set(training) else "\N{REPLACEMENT CHARACTER}" for c in other)
    assert "".join(vocabulary.decode(int(i)) for i in vocabulary.encode(other)) == expected


def test_vocabulary_reads_an_undecodable_prompt_as_unknown():
    assert Characters.of("ab").encode("a\udcff").tolist() == [1, UNKNOWN]


@given(st.text(min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_split_keeps_the_text_whole(whole, fraction):
    training, validation = text.split(whole, fraction)
    assert training + validation == whole
    assert abs(len(validation) - fraction * len(whole)) <= 0.5 + 1e-9


def test_validation_never_reaches_the_vocabulary():
    corpus = text.prepare("ab" * 90 + "xyxyxyxyxyxyxyxyxyxy", 0.1, 2, 8)
    assert corpus.vocabulary.remember() == {"characters": "ab"}
    assert corpus.unknown == 20
    assert bool((corpus.validation.inputs == UNKNOWN).all())


def test_without_a_file_the_text_is_pythons_documentation():
    documentation = text.read_text([])
    assert "assert" in documentation
    assert len(documentation) > 100_000


def test_a_python_without_its_documentation_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match=r"FILE is needed.*pydoc_data"):
        text.read_text([])


def test_files_are_joined_in_their_order_and_line_ends_are_one_character(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    (tmp_path / "b").write_bytes("τέσσερα".encode())
    assert text.read_text([tmp_path / "b", tmp_path / "a"]) == "τέσσερα\none\ntwo\nthree"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"text\0more", "line 1: byte 4 of the file is zero"),
        (b"caf\xe9 noir", "line 1: byte 3 of the file is not UTF-8.*iconv -f ISO-8859-1"),
        ("text".encode("utf-16"), "UTF-16.*iconv"),
    ],
)
def test_a_file_that_is_not_utf8_text_is_refused(tmp_path, data, message):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as error:
        text.read_text([path])
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="could not be read: No such file"):
        text.read_text([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="got the folder"):
        text.read_text([tmp_path])


def test_too_short_a_text_is_refused():
    with pytest.raises(UsageError, match="90 characters to train on, where 4 streams of 32 need at least 129"):
        text.prepare("x" * 100, 0.1, 4, 32)
    with pytest.raises(UsageError, match="leaves 1 to validate on"):
        text.prepare("x" * 100, 0.01, 4, 8)
