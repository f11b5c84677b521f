"""Pictures: nothing overlaps, every text is there, and the inside of a cell computes what the cell does."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from coupled import CoupledLSTM
from odd_cells import ODD
from torch import sigmoid, tanh

import torchrnn
from torchrnn.cell import CELLS
from torchrnn.seeing import inside, layered
from torchrnn.seeing.svg import Box, Picture

SVG = "{http://www.w3.org/2000/svg}"


def crosses(a, b, box):
    """Whether the line from a to b goes through a box: cut at its four edges, something is left."""
    low, high = 0.0, 1.0
    for start, end, least, most in (
        (a[0], b[0], box.x, box.x + box.width),
        (a[1], b[1], box.y, box.y + box.height),
    ):
        if start == end:
            if not least < start < most:
                return False
            continue
        first, last = sorted(((least - start) / (end - start), (most - start) / (end - start)))
        low, high = max(low, first), min(high, last)
    return high - low > 1e-9


def check(picture):
    """Nothing overlaps, and the file says what the picture says."""
    texts, nodes = picture.texts, picture.nodes
    for a, b in combinations(texts, 2):
        assert not a.overlaps(b), (a, b)
    for a, b in combinations(nodes, 2):
        assert not a.overlaps(b), (a, b)
    for text, node in product(texts, nodes):
        assert node.holds(text) or not node.overlaps(text), (text, node)
    for line in picture.lines:
        for a, b in pairwise(line):
            for box in texts:
                assert not crosses(a, b, box), (a, b, box)
            for box in nodes:
                assert not crosses(a, b, Box(box.x + 1, box.y + 1, box.width - 2, box.height - 2)), (a, b, box)
    root = ElementTree.fromstring(str(picture))
    assert root.tag == f"{SVG}svg"
    assert [t.text for t in root.iter(f"{SVG}text")] == [t.text for t in texts]
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    frame = Box(left, top, width, height)
    for one in (*texts, *nodes, *(Box(x, y, 0, 0) for line in picture.lines for x, y in line)):
        assert frame.holds(one)
    assert picture._repr_svg_() == str(picture)
    return {t.text for t in texts}


LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (torchrnn.LSTM, {}),
    "two": (torchrnn.GRU, {"num_layers": 2, "bidirectional": True}),
    "wide": (torchrnn.LSTM, {"hidden_size": 123456, "bidirectional": True}),
    "all": (
        torchrnn.LSTM,
        {"num_layers": 3, "bidirectional": True, "proj_size": 20, "merge_mode": "sum", "residual": True}
        | {"dropout": 0.1, "batch_first": True, "learn_initial_state": True},
    ),
    "sizes": (torchrnn.RNN, {"hidden_size": [100, 3], "bidirectional": True, "batch_first_state": True}),
    "residual": (torchrnn.RNN, {"num_layers": 2, "residual": True, "batch_first_state": True}),
    "last": (torchrnn.LSTM, {"num_layers": 2, "bidirectional": True, "return_sequences": False}),
    "last sum": (torchrnn.GRU, {"bidirectional": True, "return_sequences": False, "merge_mode": "sum"}),
    "last one": (torchrnn.GRU, {"num_layers": 3, "return_sequences": False, "residual": True}),
    "own": (CoupledLSTM, {"num_layers": 2}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("T", [None, 1, 2, 6, 7, 10**6])
def test_unrolled(name, T):
    kind, options = LAYERS[name]
    with torch.device("meta"):
        layer = kind(50, **({"hidden_size": 100} | options))
    texts = check(torchrnn.draw(layer, T))
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    shown = [str(t) for t in range(T)] if T and T <= 6 else ["0", "1", "T-1" if T is None else str(T - 1)]
    step = "[:, {}]" if layer.batch_first else "[{}]"
    assert {f"input{step.format(t)}" for t in shown} <= texts
    assert not layer.return_sequences or {f"output{step.format(t)}" for t in shown} <= texts
    for state, end, k in product(layer.cell.states, "0n", range(L * D)):
        if isinstance(layer.hidden_size, list):
            place = f"{k // D}][:, {k % D}"
        else:
            place = f":, {k}" if layer.batch_first_state else k
        assert f"{state}_{end}[{place}]" in texts
    shapes = {tuple(map(int, re.findall(r"\d+", t))) for t in texts if re.fullmatch(r"(\w )?\(B, \d+\)", t)}
    widths = {w.size(1) for name, w in layer.named_parameters() if "weight_ih" in name}  # of what goes into a layer
    assert {(width,) for width in widths} <= shapes


def test_a_layer_that_does_not_know_its_input():
    assert "(B, I)" in check(torchrnn.draw(torchrnn.GRU(None, 8)))


@torchrnn.cell(gates="p q u v w y", states="h a b c")
def odd(x, h, s):
    p = torch.where(x.p > h.p, s.a, s.b.clamp(-1, 1))
    q = F.gelu(x.q + h.q) * 0.5
    u, v = torch.maximum(x.u, h.u), torch.lerp(s.c, p, 0.3)
    w, y = sigmoid(0.1234567 * x.w - 0.1234568 * x.w - h.w) / (1 + p.abs()), torch.addcmul(x.y, q, v, value=0.25)
    b = s.a - u
    b.mul_(0.5).exp_()
    return y * tanh(w), p * q + b, b, -(2 - v) + s.h**2


@torchrnn.cell(gates="a", states="h c")
def hardly(x, h, s):
    return s.c, x.a * 1.0


@torchrnn.cell(gates="f n", states="h")
def limited(x, h, s):
    f = sigmoid(x.f + h.f)
    return (1 - f) * s.h + f * tanh(x.n + h.n)


def test_the_inside_of_every_cell_computes_what_the_cell_does():
    options = torchrnn.GRU(3, 4, activation="softsign", cell_clip=0.1)._options
    plain = torchrnn.GRU(3, 4)._options
    cells = [cell for cell in (*CELLS.values(), *ODD.values()) if not cell.late]
    assert {"lstm", "gru", "rnn_tanh", "odd", "hardly", "coupled_lstm"} <= {cell.name for cell in cells}
    for cell, chosen in product(cells, (plain, options)):
        G, S = len(cell.gates), len(cell.states)
        x, W = torch.randn(5, G * 7, dtype=torch.float64), torch.randn(G * 7, 7, dtype=torch.float64)
        states = tuple(torch.randn(S, 5, 7, dtype=torch.float64))
        h = torch.nn.functional.linear(states[0], W)
        given = {f"x.{n}": v for n, v in zip(cell.gates, x.chunk(G, -1), strict=True)}
        given |= {f"h.{n}": v for n, v in zip(cell.gates, h.chunk(G, -1), strict=True)}
        given |= {f"{n}[t-1]": v for n, v in zip(cell.states, states, strict=True)}
        values: dict[Any, Any] = {}
        graph = inside.trace(cell, chosen)
        for node in graph.nodes:
            values[node] = node.apply(*(values[a] for a in node.args)) if node.apply else None
            if node.kind in ("x", "h", "previous"):
                values[node] = given[node.label].clone()
            elif node.kind == "new":
                values[node] = values[node.args[0]]
        expected = cell(x, h, states, chosen)
        found = {node.label: value for node, value in values.items() if node.kind == "new"}
        assert list(found) == [f"{name}[t]" for name in cell.states]
        for value, right in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(value).expand_as(right), right, rtol=0, atol=1e-15)
        for name, value in zip(cell.gates, cell.gate_values(x, W, None, states, chosen), strict=True):
            if name in graph.gates:
                torch.testing.assert_close(values[graph.gates[name]], value, rtol=0, atol=1e-15)
        check(torchrnn.draw(cell))


def test_the_inside_of_a_single_step_has_its_sizes_and_options():
    texts = check(torchrnn.draw(torchrnn.LSTMCell(50, 100, activation="softsign", cell_clip=2.0)))
    assert {"(B, 50)", "x (B, 400)", "(B, 100)", "softsign", "clamp(·, -2, 2)", "+ bias_hh", "i", "f", "g"} <= texts
    texts = check(torchrnn.draw(torchrnn.LSTM.cell))
    assert {"(B, I)", "x (B, 4·H)", "h[t-1]", "c[t-1]", "h[t]", "c[t]", "σ", "tanh", "×", "+", "x.o", "h.o"} <= texts
    assert "+ bias_hh" not in check(torchrnn.draw(torchrnn.GRUCell(3, 4, bias="single")))
    assert not {"+ bias_ih", "+ bias_hh"} & check(torchrnn.draw(torchrnn.GRUCell(3, 4, bias=False)))


def test_arguments_whose_order_matters_have_letters():
    texts = check(torchrnn.draw(odd))
    assert {"where(a, b, c)", "lerp(a, b, 0.3)", "addcmul(a, b, c, value=0.25)", "a ÷ b", "− a", "· ^ 2"} <= texts
    picture = torchrnn.draw(odd)
    letters = [t for t in picture.texts if t.text in "abc" and t.height < 13]
    assert sorted(t.text for t in letters).count("c") == 2  # where and addcmul


def test_mistakes():
    with pytest.raises(TypeError, match=r"what must be a torchrnn layer, single step or cell, got LSTM: torchrnn.conv"):
        torchrnn.draw(torch.nn.LSTM(3, 4))
    with pytest.raises(TypeError, match="T must be a whole number of steps or None, got float"):
        torchrnn.draw(torchrnn.LSTM(3, 4), 2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="T must be at least 1, got 0: without a step there is nothing to draw"):
        torchrnn.draw(torchrnn.LSTM(3, 4), 0)
    with pytest.raises(ValueError, match="T=3 is for a layer, unrolled in time; a cell is one step"):
        torchrnn.draw(torchrnn.LSTM.cell, 3)
    with pytest.raises(ValueError, match="'gru_reset_before' cannot be drawn: it multiplies with weight_hh within"):
        torchrnn.draw(torchrnn.GRUCell(3, 4, reset_after=False))

    @torchrnn.cell(gates="a", states="h")
    def branching(x, h, s):
        return x.a if x.a > 0 else h.a

    del CELLS["branching"]
    with pytest.raises(ValueError, match="'branching' cannot be drawn, its step depends on a value"):
        torchrnn.draw(branching)


def test_a_picture_is_saved_as_it_is_shown(tmp_path):
    picture = torchrnn.draw(torchrnn.GRU.cell)
    picture.save(tmp_path / "gru.svg")
    assert (tmp_path / "gru.svg").read_text(encoding="utf-8") == str(picture)
    assert repr(picture) == "<picture: gru: the inside of one step>"
    assert str(torchrnn.draw(torchrnn.GRU.cell)) == str(picture)  # the same every time


def test_names_with_signs_of_xml():
    picture = Picture("a < b & c")
    picture.text(0, 0, '<x> & "y"')
    check(picture)


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_is_placed_without_overlaps(seed):
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    count = number(5, 40)
    edges = sorted({tuple(sorted((number(0, count), number(0, count)))) for _ in range(number(4, 3 * count))})
    edges = [(a, b) for a, b in edges if a < b]
    column = [0] * count
    for a, b in edges:
        column[b] = max(column[b], column[a] + 1)
    for a, b in edges * count:
        column[b] = max(column[b], column[a] + 1)
    into = [sum(v == n for _, v in edges) for n in range(count)]  # a node has room for its arrows
    sizes = [(float(number(30, 150)), number(20, 70) + layered.PORT * into[n]) for n in range(count)]
    ordered = [bool(number(0, 2)) for _ in range(count)]
    placed = layered.place(sizes, edges, column, ordered)
    boxes = [Box(x - w / 2, y - h / 2, w, h) for (x, y), (w, h) in zip(placed.centres, sizes, strict=True)]
    for a, b in combinations(boxes, 2):
        assert not a.overlaps(b)
    for (u, v), way in zip(edges, placed.routes, strict=True):
        assert way[0] == (boxes[u].x + boxes[u].width, placed.centres[u][1])
        assert way[-1][0] == pytest.approx(boxes[v].x)
        for a, b in pairwise(way):
            assert b[0] >= a[0] - 1e-9
            inner = [Box(o.x + 1, o.y + 1, o.width - 2, o.height - 2) for o in boxes]
            assert a[1] != b[1] or not any(crosses(a, b, o) for o in inner)
            assert a[1] == b[1] or b[0] - a[0] == pytest.approx(44)  # it bends between columns only


@pytest.mark.parametrize("kind", [torchrnn.RNN, torchrnn.RNNCell, torchrnn.LSTM, torchrnn.GRU])
def test_the_cell_of_a_class_is_drawn(kind: Any) -> None:
    assert str(torchrnn.draw(kind.cell)) == str(torchrnn.draw(kind(2, 3).cell))
