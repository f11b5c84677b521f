"""The table of a call: every row is evaluated as it is written, and has the shape and the numbers that it says."""

import re
from html.parser import HTMLParser
from itertools import product
from typing import Any

import pytest
import torch
from coupled import CoupledLSTM
from torch.nn.utils.rnn import pack_padded_sequence

import torchrnn
from torchrnn.seeing import table

T, B, I, H, P = 5, 3, 4, 6, 2
F64: dict[str, Any] = {"dtype": torch.float64}


def evaluated(layer, told, *args, **kwargs):
    """Every row of the table in the place of its name: what Python gives for it."""
    results = layer(*args, **kwargs)
    output, final, *trace = results if layer.return_sequences else (results, None)
    finals = final if isinstance(final, tuple) else (final,)
    space = {"output": output, "input": args[0], "torchrnn": torchrnn, **dict(layer.named_parameters()), **kwargs}
    space |= {f"{name}_n": value for name, value in zip(layer.cell.states, finals, strict=False)}
    hx = kwargs.get("hx", args[1] if len(args) > 1 else None)
    if hx is not None:
        hx = hx if isinstance(hx, tuple) else (hx,)
        space |= {f"{name}_0": value for name, value in zip(layer.cell.states, hx, strict=True)}
    space |= {"trace": trace[0]} if trace else {}
    space |= {letter: int(n) for letter, n in re.findall(r"(\w+) \w+ (\d+)(?: ·|$)", told.legend)}
    found = {}
    for section in told.sections:
        for row in section.rows:
            if hx is not None or not re.match(r"\w_0", row.name):
                found[row.name] = row, eval(row.name, {}, space), eval(row.same or "None", {}, space)
    return found


def check(layer, *args, **kwargs):
    told = torchrnn.explain(layer, *args, **kwargs)
    found = evaluated(layer, told, *args, **kwargs)
    for name, (row, value, same) in found.items():
        value = torch.as_tensor(value)
        if value.is_nested:
            assert [*row.shape.sizes[:1], *row.shape.sizes[2:]] == [value.shape[0], value.shape[2]], name
        else:
            assert row.shape.sizes == tuple(value.shape), name
        assert len(row.shape.letters) == len(row.shape.sizes), name
        if same is not None:
            torch.testing.assert_close(value, same, rtol=0, atol=0, msg=name)
    assert set(layer._weight_names()) <= set(found)
    assert all(len(line) <= 100 for line in str(told).split("\n"))
    return told


KINDS = {"LSTM": torchrnn.LSTM, "GRU": torchrnn.GRU, "RNN": torchrnn.RNN, "coupled": CoupledLSTM}
KINDS["GRU projected"] = lambda *a, **k: torchrnn.GRU(*a, proj_size=P, **k)


@pytest.mark.parametrize(("kind", "L", "D"), list(product(KINDS, (1, 2), (1, 2))))
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_row_is_what_it_says(kind, L, D, batch_first):
    layer = KINDS[kind](I, H, L, batch_first=batch_first, bidirectional=D == 2, **F64)
    dense = torch.randn(B, T, I, **F64) if batch_first else torch.randn(T, B, I, **F64)
    check(layer, dense)
    check(layer, dense[0] if batch_first else dense[:, 0])
    check(layer, dense, lengths=torch.tensor([5, 2, 0]))
    mask = torch.ones(dense.shape[:2], dtype=torch.bool)
    check(layer, dense, mask=mask, reset=~mask)
    check(layer, dense, return_all=True)
    check(layer, pack_padded_sequence(dense, [3, 5, 1], batch_first, enforce_sorted=False))
    check(layer, [torch.randn(n, I, **F64) for n in (2, 5)], return_all=True)
    check(layer, torch.nested.nested_tensor([torch.randn(n, I, **F64) for n in (2, 5)], layout=torch.jagged))
    two = torch.randn(2, B, T, I, **F64) if batch_first else torch.randn(T, 2, B, I, **F64)
    check(layer, two)
    states = [torch.randn(L * D, B, n, **F64) for n in [layer.proj_size or H, H][: len(layer.cell.states)]]
    check(layer, dense, states[0] if len(states) == 1 else tuple(states))
    check(layer, dense[:0])


@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": P},
        {"proj_size": P, "num_layers": 2, "bidirectional": True, "bias": False},
        {"merge_mode": "sum", "num_layers": 2, "bidirectional": True},
        {"merge_mode": "mul", "bidirectional": True, "bias": "single"},
        {"hidden_size": [6, 3]},
        {"hidden_size": [6, 3], "proj_size": P, "bidirectional": True, "learn_initial_state": True},
        {"residual": True, "num_layers": 2, "proj_size": I},
        {"batch_first_state": True, "num_layers": 2, "bidirectional": True},
        {"learn_initial_state": True, "num_layers": 2},
        {"return_sequences": False, "bidirectional": True},
        {"return_sequences": False, "hidden_size": [6, 3], "batch_first": True},
        {"output_dropout": 0.5, "dropout": 0.5, "num_layers": 2},
    ],
    ids=str,
)
def test_options_change_the_rows_that_they_should(options):
    layer = torchrnn.LSTM(I, options.pop("hidden_size", H), **options, **F64)
    dense = torch.randn(B, T, I, **F64) if layer.batch_first else torch.randn(T, B, I, **F64)
    check(layer, dense)
    check(layer, dense[0])
    check(layer, dense, lengths=[5, 2, 1])
    if layer.return_sequences:
        check(layer, dense, return_all=True)
        check(layer, torch.randn(*(1, *dense.shape) if layer.batch_first else (T, 2, B, I), **F64))


def test_what_the_rows_claim():
    told = str(torchrnn.explain(torchrnn.LSTM(I, H, 2, bidirectional=True), torch.randn(T, B, I)))
    flat = re.sub(r"\s+", " ", told)
    assert "T time 5 · B batch 3 · I input 4 · H hidden 6 · G gates 4 · L layers 2 · D directions 2" in flat
    assert "h_n[-2] (B, H) = (3, 6) the last layer, forward; equal to output[-1][..., :H]" in flat
    assert "h_n.view(L, D, B, H) (L, D, B, H) = (2, 2, 3, 6) [k, 0] is layer k forward, [k, 1] backward" in flat
    assert "weight_ih_l0[6:12] (H, I) = (6, 4) gate f, the forget gate" in flat
    assert "weight_hh_l1_reverse (G·H, H) = (24, 6) multiplies h of the step after" in flat
    first = torchrnn.explain(torchrnn.GRU(I, H, batch_first=True), torch.randn(B, T, I))
    assert "not the last step: with batch_first the last sequence" in re.sub(r"\s+", " ", str(first))
    uneven = torchrnn.explain(torchrnn.GRU(I, [6, 3]), torch.randn(T, B, I))
    assert "H hidden H0 6, H1 3" in uneven.legend


def test_lengths_take_the_claim_back_that_the_last_output_is_the_last_state():
    layer, x = torchrnn.GRU(I, H), torch.randn(T, B, I)
    same = [row.same for s in torchrnn.explain(layer, x).sections for row in s.rows if row.same]
    assert same == ["output[-1]"]
    told = torchrnn.explain(layer, x, lengths=[5, 2, 1])
    assert not [row.same for s in told.sections for row in s.rows if row.same]
    assert "torchrnn.last(output, lengths)" in [row.name for s in told.sections for row in s.rows]


@pytest.mark.parametrize("kind", [torchrnn.RNNCell, torchrnn.LSTMCell, torchrnn.GRUCell])
@pytest.mark.parametrize("bias", [True, False, "single"])
@pytest.mark.parametrize("x", [torch.randn(B, I), torch.randn(I)], ids=["batch", "one"])
def test_cells(kind, bias, x):
    cell = kind(I, H, bias=bias)
    told = torchrnn.explain(cell, x)
    new = cell(x)
    space = dict(cell.named_parameters()) | {"input": x}
    space |= dict(zip(cell.cell.states, new if isinstance(new, tuple) else (new,), strict=True))
    rows = [row for section in told.sections for row in section.rows]
    for row in rows:
        assert str(row.shape).endswith(f"= {tuple(eval(row.name, {}, space).shape)}")
    assert {row.name for row in rows} >= {*space, *cell.cell.states}
    assert "given" in str(torchrnn.explain(cell, x, new))
    assert all(len(line) <= 100 for line in str(told).split("\n"))


class Cells(HTMLParser):
    """The text of each cell of the table, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_a_notebook_shows_the_same_table():
    told = torchrnn.explain(torchrnn.LSTM(I, H, 2, bidirectional=True), torch.randn(T, B, I))
    html = Cells()
    html.feed(told._repr_html_())
    expected = []
    for section in told.sections:
        expected.append(section.title)
        for row in section.rows:
            expected += [row.name, str(row.shape), row.sentence]
    assert html.open == []
    assert html.cells == expected
    escaped = table.html(["<i>"], [table.Section("a < b", [table.Row("x", None, "<b>")])])
    assert "&lt;i&gt;" in escaped
    assert "&lt;b&gt;" in escaped


def test_text_fits_whatever_it_holds():
    long = "a_name_that_is_much_longer_than_any_column_of_the_table_could_ever_be"
    shape = table.shape(*((f"letter{k}", 10**k) for k in range(9)))
    lines = table.text([f"  {'word ' * 60}"], [table.Section("title " * 40, [table.Row(long, shape, "what " * 40)])])
    assert max(map(len, lines.split("\n"))) <= 100
    assert re.sub(r"\s+", "", lines).count("what") == 40


def test_nothing_is_run_and_no_random_number_drawn():

    class Unrun(torchrnn.LSTM):
        def forward(self, *args, **kwargs):
            raise AssertionError

    layer = Unrun(I, H, 2, dropout=0.5)
    state = torch.get_rng_state()
    x = torch.randn(T, B, I)
    torch.set_rng_state(state)
    torchrnn.explain(layer, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_projection_projects() -> None:
    said = {
        kind: str(torchrnn.explain(kind(3, 5, proj_size=2), torch.randn(4, 1, 3)))
        for kind in (torchrnn.GRU, torchrnn.LSTM)
    }
    assert "projects the H numbers of s to P" in said[torchrnn.GRU]
    assert "projects the H numbers of h to P" in said[torchrnn.LSTM]
