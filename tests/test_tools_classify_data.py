"""Classification's data: what becomes of rows, the split, what is learned of the training part, and the order."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from tools_tables import prepare, refused, write

from torchrnn.tools.classify import encoded, split, tokens
from torchrnn.tools.classify.learned import Counts, Learned
from torchrnn.tools.classify.order import Order
from torchrnn.tools.classify.reading import Reader
from torchrnn.tools.classify.settings import ClassifySettings
from torchrnn.tools.runs.errors import ToolError
from torchrnn.tools.tables import open_table


def sequences(data, part):
    """All sequences of a part, as lists, each with its class or classes."""
    found = []
    for values, lengths, classes in data.part(part).in_order(3):
        for place, length in enumerate(lengths.tolist()):
            wanted = classes[:length, place] if classes.ndim == 2 else classes[place]
            assert not values[length:, place].any()
            found.append((values[:length, place].tolist(), wanted.tolist()))
    return found


def test_tokens_of_all_kinds():
    texts = pl.Series(["añ😀", None, "", " a  b\t"])
    for kind, expected, lengths in (
        ("characters", list("añ😀 a  b\t"), [3, 0, 0, 6]),
        ("words", ["añ😀", "a", "b"], [1, 0, 0, 2]),
        ("bytes", [chr(byte) for byte in "añ😀 a  b\t".encode()], [7, 0, 0, 6]),
    ):
        flat, found = tokens.split(texts, kind)
        assert found.tolist() == lengths
        assert tokens.count(flat) == Counter(expected)
        known = tokens.Vocabulary.of(tokens.count(flat), kind != "words", 100)
        assert [known.shown(number) for number in known.encode(flat)] == expected
        fewer = tokens.Vocabulary(known.tokens[1:], known.single)
        assert (fewer.encode(flat) == 0).tolist() == [token == known.tokens[0] for token in expected]
    flat, found = tokens.split(pl.Series([["a b", "c"], None, []], dtype=pl.List(pl.String)), "characters")
    assert (flat.to_list(), found.tolist()) == (["a b", "c"], [2, 0, 0])


def test_the_most_frequent_tokens_are_kept():
    counts = Counter({"b": 3, "a": 3, "z": 9, "c": 1})
    assert tokens.Vocabulary.of(counts, False, 3).tokens == ["z", "a", "b"]
    assert tokens.Vocabulary.of(counts, True, 3).tokens == ["a", "b", "z"]


def test_texts_become_numbers(tmp_path):
    rows = ["text,label,part", "abca, x ,train", "b,y,Train", "ca,x,validation", "dab,y,test"]
    data, counts = prepare(write(tmp_path, rows), text="text", label="label", split="part")
    assert data.learned.labels == ["x", "y"]
    assert data.learned.vocabulary
    assert data.learned.vocabulary.tokens == ["a", "b", "c"]
    assert sequences(data, split.TRAINING) == [([2], 1), ([1, 2, 3, 1], 0)]
    assert sequences(data, split.VALIDATION) == [([3, 1], 0)]
    assert sequences(data, split.TEST) == [([0, 1, 2], 1)]  # d is unknown: only the test part has it
    assert counts.unknown(data.learned.vocabulary, split.TEST) == {"d": 1}


def test_numbers_are_scaled_by_the_training_part_alone(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"a": (1e9 + rng.normal(size=n)).tolist(), "b": [7] * n, "y": "even" if n % 2 else "odd"} for n in range(1, 41)
    ]
    data, _ = prepare(write(tmp_path, rows, "t.jsonl"), steps_columns=("a", "b"), label="y")
    training = [rows[i] for i in np.flatnonzero(data.sources[0].parts == split.TRAINING)]
    values = np.concatenate([row["a"] for row in training])
    assert 30 <= len(training) < 40
    np.testing.assert_allclose(data.learned.mean, [values.mean(), 7], rtol=1e-15)
    np.testing.assert_allclose(data.learned.deviation, [values.std(), 1], rtol=1e-6)
    got = sorted(sequences(data, split.TRAINING), key=lambda found: len(found[0]))
    for (steps, _), row in zip(got, sorted(training, key=lambda row: len(row["a"])), strict=True):
        np.testing.assert_allclose(steps, np.stack([(np.array(row["a"]) - values.mean()) / values.std(), 0 * np.array(row["b"])], 1), atol=1e-5)  # fmt: skip # noqa: E501


def test_rows_of_steps_are_grouped_and_ordered(tmp_path):
    rows = [
        "id,when,x,y",
        "b,2026-01-02,4,p",
        "a,2026-01-10,2,q",
        "b,2026-01-01,3,p",
        "a,2026-01-09,1,q",
        "c,2026-01-01,9,p",
    ]
    path = write(tmp_path, rows)
    options = {"steps_columns": ("x",), "sequence": "id", "label": "y"}
    by_file = Reader(open_table(path), ClassifySettings(**options)).block(0)
    assert (by_file.flat[:, 0].tolist(), by_file.lengths.tolist()) == ([4, 3, 2, 1, 9], [2, 2, 1])
    by_time = Reader(open_table(path), ClassifySettings(**options, time="when")).block(0)
    assert by_time.flat[:, 0].tolist() == [3, 4, 1, 2, 9]
    assert by_time.labels.to_list() == ["p", "q", "p"]
    assert by_time.rows.tolist() == [1, 2, 5]


def test_tags_from_lists_and_from_text(tmp_path):
    rows = [{"t": ["u", "v"], "y": ["A", "B"]}, {"t": ["v"], "y": ["B"]}, {"t": ["u"], "y": ["A"]}] * 5
    lists, _ = prepare(write(tmp_path, rows, "t.jsonl"), text="t", label="y")
    plain = ["t,y", *(f"{' '.join(row['t'])},{' '.join(row['y'])}" for row in rows)]
    texts, _ = prepare(write(tmp_path, plain), text="t", label="y", tokens="words", tagging=True)
    for part in range(3):
        assert sequences(lists, part) == sequences(texts, part)
        assert lists.learned.vocabulary
        known = {lists.learned.vocabulary.tokens.index(token) + 1: "uv".index(token) for token in "uv"}
        assert all(tags == [known[number] for number in steps] for steps, tags in sequences(lists, part))


def test_labels_may_be_numbers_and_truth_values(tmp_path):
    for labels, names in (([1, 2], ["1", "2"]), ([1.0, 2.0], ["1", "2"]), ([True, False], ["false", "true"])):
        rows = [{"t": "ab", "y": label} for label in labels * 5]
        data, _ = prepare(write(tmp_path, rows, "t.jsonl"), text="t", label="y")
        assert data.learned.labels == names
    rows = [{"t": "ab", "y": label} for label in (1.0, 1.5)]
    assert "row 2 (line 2), column 'y': --label needs classes, found the number 1.5" in refused(
        write(tmp_path, rows, "t.jsonl"), text="t", label="y"
    )


def test_the_split_is_of_each_label_the_same_and_follows_from_the_seed():
    codes = np.repeat([0, 1, 2, 3], [100, 10, 3, 1])
    kept = np.ones(len(codes), dtype=bool)
    kept[5] = False
    parts = split.by_chance(codes, kept, 0.1, 0.2, seed=1)
    counts = [[int(((parts == part) & (codes == code)).sum()) for part in range(4)] for code in range(4)]
    assert counts == [[69, 10, 20, 1], [7, 1, 2, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert parts[5] == split.LEFT_OUT
    np.testing.assert_array_equal(parts, split.by_chance(codes, kept, 0.1, 0.2, seed=1))
    assert (parts != split.by_chance(codes, kept, 0.1, 0.2, seed=2)).any()


def test_files_of_their_own_for_validation_and_test(tmp_path):
    main = write(tmp_path, ["t,y", "a,x", "b,y", "a,x", "b,y"])
    other = write(tmp_path, ["y,t", "x,a"], "v.csv")
    data, _ = prepare(main, text="t", label="y", validation_file=str(other), test_file=str(other))
    assert [data.part(part).count for part in range(3)] == [4, 1, 1]


def test_rows_are_left_out_only_when_told(tmp_path):
    path = write(tmp_path, ["t,y", *["ab,x", "ba,y"] * 6, ",x", "ab,", "a,x"])
    data, _ = prepare(path, text="t", label="y", skip_incomplete=True)
    assert data.sources[0].left_out == 2
    assert sum(data.part(part).count for part in range(3)) == 13


def test_what_is_learned_survives_config_toml_and_damage_is_told(tmp_path):
    data, _ = prepare(write(tmp_path, ["t,y", *["ab,x", "ba,y"] * 6]), text="t", label="y")
    content = json.loads(json.dumps(data.learned.to_dict()))
    again = Learned.from_dict(content)
    assert again.to_dict() == data.learned.to_dict()
    for damaged in ({}, {**content, "labels": 3}, {**content, "vocabulary": ["ab"]}, {"labels": ["x"], "mean": "z"}):
        with pytest.raises(ToolError, match="damaged or was changed by hand"):
            Learned.from_dict(damaged)


def test_counts_of_blocks_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(1e6, 2.0, (100, 3))
    counts = Counts()
    for part in np.split(values, [0, 10, 11, 60]):
        counts.add(part)
    np.testing.assert_allclose(counts.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(counts.squares / counts.values, values.var(0), rtol=1e-10)


def test_batches_pad_and_take():
    whole = encoded.Encoded(np.arange(1, 7), np.array([3, 1, 2]), np.array([7, 8, 9]), False)
    batch = whole.take(np.array([2, 0])).batch()
    assert batch.values.T.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert (batch.lengths.tolist(), batch.classes.tolist()) == ([2, 3], [9, 7])
    tags = encoded.Encoded(np.arange(1, 7), np.array([3, 1, 2]), np.arange(10, 16), True).take(np.array([1, 2])).batch()
    assert tags.classes.T.tolist() == [[13, -100], [14, 15]]


@pytest.mark.parametrize("sizes", [[1000], [3, 0, 500, 40, 1], [7]])
@pytest.mark.parametrize("together", [1, 3])
def test_the_order_reads_every_sequence_once_an_epoch(sizes, together):
    lengths = [np.random.default_rng(n).integers(1, 50, n) for n in sizes]
    order = Order(lengths, 8, seed=3, together=together)
    everything = {(group, place) for group, n in enumerate(sizes) for place in range(n)}
    epochs = []
    for epoch in range(2):
        batches = [order.rows(epoch * order.steps + step) for step in range(order.steps)]
        read = [pair for groups, places in batches for pair in zip(groups.tolist(), places.tolist(), strict=True)]
        assert len(read) == len(everything)
        assert set(read) == everything
        epochs.append(read)
    assert len(everything) < 10 or epochs[0] != epochs[1]
    # it follows from the step alone, in whatever order steps are asked for
    fresh = Order(lengths, 8, seed=3, together=together)
    for step in (2 * order.steps - 1, 0, order.steps - 1):
        np.testing.assert_array_equal(fresh.rows(step), Order(lengths, 8, 3, together).rows(step))


def test_batches_are_of_similar_length():
    lengths = [np.random.default_rng(0).integers(1, 1000, 10_000)]
    order = Order(lengths, 32, seed=0)
    spread = [np.ptp(lengths[0][places]) for _, places in map(order.rows, range(order.steps))]
    assert np.median(spread) < 60
    means = [lengths[0][places].mean() for _, places in map(order.rows, range(32))]
    assert np.abs(np.diff(means)).mean() > 100  # and not sorted from batch to batch


def test_batches_of_short_sequences_hold_several_lengths():
    lengths = [np.random.default_rng(0).integers(1, 101, 10_000)]
    order = Order(lengths, 32, seed=0)
    spread = [np.ptp(lengths[0][places]) for _, places in map(order.rows, range(order.steps))]
    assert 20 < np.median(spread) < 40  # a quarter of all: four batches are sorted together


def test_streamed_parts_give_the_same_sequences(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdef"), rng.integers(1, 30))) for _ in range(60_000)]
    frame = pl.DataFrame({"t": texts, "y": [str(len(text) % 3) for text in texts]})
    frame.write_parquet(tmp_path / "t.parquet", row_group_size=5000)
    options = {"text": "t", "label": "y", "batch_size": 512}
    held, _ = prepare(tmp_path / "t.parquet", **options)
    streamed, _ = prepare(tmp_path / "t.parquet", **options, memory=1)
    assert not held.part(split.TRAINING).streamed
    assert streamed.part(split.TRAINING).streamed
    assert len(streamed.part(split.TRAINING).lengths) > 1 or streamed.sources[0].reader.block_count == 1
    for part in range(3):
        key = lambda found: (len(found[0]), found)  # noqa: E731
        assert sorted(sequences(held, part), key=key) == sorted(sequences(streamed, part), key=key)
    epoch = [streamed.training(step, lambda n: slice(0, n)) for step in range(streamed.order.steps)]
    assert sum(len(batch.lengths) for batch in epoch if batch) == held.part(split.TRAINING).count
