"""Watching: the gradients are those of a loop over the equations, and the figures say what they show."""

import subprocess
import sys
from itertools import combinations, product
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import torchrnn
from torchrnn.backends import reference

T, B, I, H = 6, 3, 4, 5
F64: dict[str, Any] = {"dtype": torch.float64}


def products(w, x, h, parts):
    return (
        (w["weight_ih"] @ x + w["bias_ih"]).unflatten(0, (parts, -1)),
        (w["weight_hh"] @ h + w["bias_hh"]).unflatten(0, (parts, -1)),
    )


def lstm_step(w, x, h, c):
    a, b = products(w, x, h, 4)
    i, f, g, o = a + b
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(w, x, h):
    a, b = products(w, x, h, 3)
    r, z = (a[:2] + b[:2]).sigmoid()
    n = (a[2] + r * b[2]).tanh()
    return ((1 - z) * n + z * h,)


def rnn_step(w, x, h):
    a, b = products(w, x, h, 1)
    return ((a + b)[0].tanh(),)


STEPS = {"RNN": rnn_step, "LSTM": lstm_step, "GRU": gru_step}


def loop(layer, x, T_of):
    """The layers row by row and step by step by their equations.

    Gives output of the top layer [row] (T_of, D·H), and each state [name][k][d][row][t], which keeps its gradient.
    """
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    names = layer.cell.states
    kept: dict[str, Any] = {n: [[[None] * len(x) for _ in range(D)] for _ in range(L)] for n in names}
    outputs, finals = [], []
    for b in range(len(x)):
        steps, final = list(x[b][: T_of[b]]), [torch.zeros(layer.hidden_size, **F64)] * D
        for k in range(L):
            sides = []
            for d in range(D):
                end = f"l{k}" + ("_reverse" if d else "")
                weights = {n.removesuffix(f"_{end}"): w for n, w in layer.named_parameters() if n.endswith(f"_{end}")}
                state: Any = (torch.zeros(layer.hidden_size, **F64),) * len(names)
                found: list[Any] = []
                for x_t in reversed(steps) if d else steps:
                    state = STEPS[layer.mode.split("_")[0]](weights, x_t, *state)
                    for s in state:
                        s.retain_grad()
                    found.append(state)
                final[d] = state[0]
                found = found[::-1] if d else found
                sides.append([s[0] for s in found])
                for i, name in enumerate(names):
                    kept[name][k][d][b] = [s[i] for s in found]
            steps = [torch.cat(pair) for pair in zip(*sides, strict=True)]
        outputs.append(steps)
        finals.append(final)
    return outputs, finals, kept


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize(("L", "D"), list(product((1, 2), (1, 2))))
@pytest.mark.parametrize("form", ["dense", "first", "lengths", "packed", "list", "one"])
def test_gradients_are_those_of_a_loop(kind, L, D, form):
    torch.manual_seed(0)
    layer = getattr(torchrnn, kind)(I, H, L, bidirectional=D == 2, batch_first=form == "first", **F64)
    x = torch.randn(T, B, I, **F64)
    sizes = [T, 2, 4] if form in ("lengths", "packed", "list") else [T] * B
    args: Any = (x,)
    kwargs: dict[str, Any] = {}
    if form == "first":
        args = (x.transpose(0, 1),)
    elif form == "lengths":
        kwargs = {"lengths": sizes}
    elif form == "packed":
        args = (pack_padded_sequence(x, sizes, enforce_sorted=False),)
    elif form == "list":
        args = ([x[:n, b] for b, n in enumerate(sizes)],)
    elif form == "one":
        args, sizes = (x[:, 0],), [T]
    seen = torchrnn.watch(layer, *args, **kwargs)["model"]
    _, finals, kept = loop(layer, [x[:, b] for b in range(len(sizes))], sizes)
    (torch.stack([f.square().sum() for final in finals for f in final]).sum() / 2).backward()
    for name, k, d in product(layer.cell.states, range(L), range(D)):
        gradient, value = seen.gradients[name][k, d], getattr(seen.trace, name)[k, d]
        if form == "one":
            gradient, value = gradient.unsqueeze(1), value.unsqueeze(1)
        for b, n in enumerate(sizes):
            for t in range(T):
                if t >= n:
                    assert not gradient[t, b].any()
                    continue
                expected = kept[name][k][d][b][t]
                grad = torch.zeros(H, **F64) if expected.grad is None else expected.grad
                torch.testing.assert_close(gradient[t, b], grad, rtol=0, atol=1e-12)
                torch.testing.assert_close(value[t, b], expected.detach(), rtol=0, atol=1e-12)
    counted = seen.counted if form != "one" else seen.counted.unsqueeze(1)
    assert counted.sum(0).tolist() == sizes
    norms = seen.gradient_norms(layer.cell.states[-1])
    expected = seen.gradients[layer.cell.states[-1]].square().sum(dim=tuple(range(3, seen.counted.dim() + 3))).sqrt()
    torch.testing.assert_close(norms, expected, rtol=0, atol=1e-12)


TAPS: list[torch.Tensor] = []


@torchrnn.cell(gates="i f g o", states="h c")
def tapped_lstm(x, h, s, options):
    """An LSTM with a zero added to c at every step, by whose gradient that of c is known."""
    i, f, g, o = torch.sigmoid(x.i + h.i), torch.sigmoid(x.f + h.f), options.activation(x.g + h.g), x.o + h.o
    c = options.clip(f * s.c + i * g)
    TAPS.append(torch.zeros_like(c, requires_grad=True))
    c = c + TAPS[-1]
    return torch.sigmoid(o) * options.activation(c), c


class Tapped(torchrnn.Recurrent):
    cell = tapped_lstm


@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 2, "bidirectional": True},
        {"hidden_size": [5, 3], "bidirectional": True},
        {"residual": True, "num_layers": 2, "merge_mode": "sum", "bidirectional": True},
        {"batch_first_state": True, "num_layers": 2},
        {"learn_initial_state": True, "bias": "single", "activation": "softsign", "cell_clip": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("says", ["nothing", "lengths", "mask and reset"])
def test_gradients_under_options_are_those_of_an_added_zero(options, says):
    torch.manual_seed(0)
    options = dict(options)
    H_of = options.pop("hidden_size", H)
    layer, tapped = torchrnn.LSTM(I, H_of, **options, **F64), Tapped(I, H_of, **options, **F64)
    tapped.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, **F64)
    kwargs: dict[str, Any] = {}
    if says == "lengths":
        kwargs = {"lengths": [6, 2, 4]}
    elif says == "mask and reset":
        kwargs = {"mask": torch.rand(T, B) > 0.3, "reset": torch.rand(T, B) > 0.7}
    seen = torchrnn.watch(layer, x, **kwargs)["model"]
    plain = layer(x, return_all=True, **kwargs)[2]
    for name in plain:
        for found, value in zip(getattr(seen.trace, name), getattr(plain, name), strict=True):
            torch.testing.assert_close(found, value.detach(), rtol=0, atol=1e-12)
    TAPS.clear()
    with torchrnn.use("reference"):
        _, (final, _) = tapped(x, **kwargs)
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    final = final[-1] if isinstance(final, list) else final[..., -D:, :] if layer.batch_first_state else final[-D:]
    rows = torch.autograd.grad(final.square().sum() / 2, TAPS)
    assert len(rows) % (L * D) == 0
    steps = len(rows) // (L * D)
    for k, d in product(range(L), range(D)):
        mine = torch.cat(rows[(k * D + d) * steps : (k * D + d + 1) * steps])
        found = seen.gradients["c"][k][d][seen.counted]
        assert mine.shape == found.shape
        order = [torch.tensor(sorted(range(len(v)), key=v[:, 0].tolist().__getitem__)) for v in (mine, found)]
        torch.testing.assert_close(found[order[1]], mine[order[0]], rtol=0, atol=1e-12)


def test_weights_and_their_gradients_stay_as_they_are():
    layer, x = torchrnn.LSTM(I, H, 2), torch.randn(T, B, I)
    before = {name: w.clone() for name, w in layer.state_dict().items()}
    layer(x)[0].sum().backward()
    grads = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    with torch.no_grad():
        torchrnn.watch(layer, x)
    assert all(torch.equal(before[name], w) for name, w in layer.state_dict().items())
    now = [p.grad for p in layer.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(grads, now, strict=True))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    assert reference.onlooker.get() is None
    assert len(layer(x)) == 2
    assert not torchrnn.watch(layer, x)["model"].trace.h.requires_grad


class Model(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.first = torchrnn.GRU(I, H)
        self.second = torchrnn.RNN(H, 2, bidirectional=True)
        self.head, self.fail = nn.Linear(4, 3), fail

    def forward(self, x):
        y, _ = self.first(x)
        y, _, trace = self.second(torch.cat((y, self.first(x.flip(0))[0])), return_all=True)
        assert trace.h.shape == (1, 2, 2 * T, B, 2)
        if self.fail:
            raise KeyError
        return {"scores": self.head(torchrnn.last(y, bidirectional=True))}


def test_a_model_with_several_layers_and_calls():
    model, x = Model().double(), torch.randn(T, B, I, **F64)
    watched = torchrnn.watch(model, x, loss=lambda r: r["scores"].logsumexp(-1).sum())
    assert list(watched) == ["first", "first (2)", "second"]
    torch.testing.assert_close(watched.result["scores"], model(x)["scores"])
    assert float(watched.loss) == pytest.approx(model(x)["scores"].logsumexp(-1).sum().item())
    h = watched["first"].trace.h[0, 0].clone().requires_grad_()  # the loss as a function of what goes into the second
    y = model.second(torch.cat((h, watched["first (2)"].trace.h[0, 0])))[0]
    model.head(torchrnn.last(y, bidirectional=True)).logsumexp(-1).sum().backward()
    torch.testing.assert_close(watched["first"].gradients["h"][0, 0, -1], h.grad[-1], rtol=0, atol=1e-12)
    assert "first (2): GRU(4, 5)" in repr(watched)
    torchrnn.watch(model, x)  # half the squares of the scores
    broken = Model(fail=True)
    with pytest.raises(KeyError):
        torchrnn.watch(broken, x.float())
    assert not broken.first._forward_hooks
    assert reference.onlooker.get() is None


def test_saturation_counts_the_steps_that_count():
    layer, x = torchrnn.LSTM(I, H, 2, **F64), 4 * torch.randn(T, B, I, **F64)
    seen = torchrnn.watch(layer, x, lengths=[6, 2, 0])["model"]
    found = seen.saturation(0.3)
    assert list(found) == ["i", "f", "g", "o"]
    for name, (low, high) in {"i": (0.3, 0.7), "g": (-0.4, 0.4)}.items():
        values = getattr(seen.trace, name)[0, 0]
        steps = torch.cat((values[:6, 0], values[:2, 1])).tolist()
        for unit in range(H):
            shares = [sum(s[unit] < low for s in steps) / 8, sum(s[unit] > high for s in steps) / 8]
            assert found[name][0][0, unit].tolist() == pytest.approx(shares)
    assert list(torchrnn.watch(torchrnn.RNN(I, H), x.float())["model"].saturation()) == ["h"]
    assert not torchrnn.watch(torchrnn.RNN(I, H, nonlinearity="relu"), x.float())["model"].saturation()


def test_eigenvalues_satisfy_their_equation():
    layer = torchrnn.LSTM(I, H, 2, bidirectional=True, **F64)
    found = torchrnn.watch(layer, torch.randn(T, B, I, **F64))["model"].eigenvalues()
    assert list(found) == [name for name, _ in layer.named_parameters() if "weight_hh" in name]
    for name, values in found.items():
        for block, own in zip(getattr(layer, name).detach().chunk(4), values, strict=True):
            for value in own:
                smallest = torch.linalg.svdvals(block - value * torch.eye(H, **F64))[-1]
                assert float(smallest) < 1e-12
    projected: Any = torchrnn.LSTM(I, H, proj_size=2, **F64)
    (values,) = torchrnn.watch(projected, torch.randn(T, B, I, **F64))["model"].eigenvalues().values()
    assert values.shape == (4, 2)
    traces = [(projected.weight_hr_l0 @ w).trace().item() for w in projected.weight_hh_l0.chunk(4)]
    assert values.sum(-1).real.tolist() == pytest.approx(traces)


def test_mistakes():
    x = torch.randn(T, B, I)
    with pytest.raises(TypeError, match=r"LSTM has none: torchrnn.convert\(model\) turns"):
        torchrnn.watch(nn.LSTM(I, H), x)
    with pytest.raises(TypeError, match="model must be a module with recurrent layers of torchrnn inside, got int"):
        torchrnn.watch(5, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="layer '0' has return_sequences=False, so it has one output and no steps"):
        torchrnn.watch(nn.Sequential(torchrnn.GRU(I, H, return_sequences=False)), x)
    layer = torchrnn.GRU(I, H)
    with pytest.raises(TypeError, match="loss must return a Tensor of one number, got float"):
        torchrnn.watch(layer, x, loss=lambda r: r[0].sum().item())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"loss must return one number, got \(6, 3, 5\): take its mean or sum"):
        torchrnn.watch(layer, x, loss=lambda r: r[0])
    with pytest.raises(ValueError, match="the loss depends on nothing that requires a gradient: was it detached"):
        torchrnn.watch(layer, x, loss=lambda r: r[0].detach().sum())
    for given, lengths in ((x[:0], None), (x, [0, 0, 0])):
        with pytest.raises(ValueError, match="there is no step to see: every row that 'model' got is empty"):
            torchrnn.watch(layer, given, lengths=lengths)
    with pytest.raises(ValueError, match="there is no step to see: the model did not call"):
        torchrnn.watch(Unused(), x)
    frozen = torchrnn.GRU(I, H).requires_grad_(False)
    with pytest.raises(ValueError, match=r"requires a gradient"):
        torchrnn.watch(frozen, x)
    seen = torchrnn.watch(layer, x)
    with pytest.raises(ValueError, match="state must be one of h, got 'c'"):
        seen["model"].gradient_norms("c")
    with pytest.raises(ValueError, match="name must be one of 'model', got 'rnn'"):
        seen.plot_states("rnn")
    with pytest.raises(ValueError, match="row must be below the batch of 3, got 3"):
        seen.plot_states(row=3)
    relu = torchrnn.watch(torchrnn.RNN(I, H, nonlinearity="relu"), x)
    with pytest.raises(ValueError, match="no gate or state of 'rnn_relu' is squashed into a range"):
        relu.plot_gates()


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = torchrnn.GRU(I, H), nn.Linear(I, 1)

    def forward(self, x):
        return self.head(x)


def test_without_matplotlib_it_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import torch, torchrnn;"
        "w = torchrnn.watch(torchrnn.GRU(3, 4), torch.randn(5, 2, 3)); print(w['model'].gradient_norms().shape)\n"
        "try: w.plot_states()\n"
        "except ModuleNotFoundError as e: print(e, e.name)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert said == (
        "torch.Size([1, 1, 5])\nfigures need the package matplotlib, which is not installed: "
        "pip install 'torchrnn[tools]' matplotlib\n"
    )


def look(figure):
    """All texts of a figure that are drawn: none overlaps another, none is cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    ticks = [axis.get_ticklabels(which="both") for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    drawn_ticks = [t.label1 for a in figure.axes for axis in (a.xaxis, a.yaxis) for t in axis._update_ticks()]
    beyond = {id(t) for labels in ticks for t in labels} - {id(t) for t in drawn_ticks}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in beyond]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    drawn = [(name, box) for name, box in boxes if box.width > 1]
    for (name, a), (other, b) in combinations(drawn, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (name, other)
    width, height = figure.canvas.get_width_height()
    for name, box in drawn:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, name  # noqa: PT018
    assert figure._repr_png_().startswith(b"\x89PNG")
    return {name for name, _ in drawn}


WATCHED: dict[str, Any] = {
    "rnn": lambda: torchrnn.RNN(I, H),
    "lstm": lambda: torchrnn.LSTM(I, H, 2, bidirectional=True),
    "gru": lambda: torchrnn.GRU(I, H, 3, batch_first=True),
    "sizes": lambda: torchrnn.LSTM(I, [H, 3]),
    "projected": lambda: torchrnn.LSTM(I, H, proj_size=2),
    "projected gru": lambda: torchrnn.GRU(I, H, proj_size=2, bidirectional=True),
}


@pytest.mark.parametrize("name", WATCHED)
def test_figures(name):
    layer = WATCHED[name]()
    x = torch.randn(30, B, I)
    watched = torchrnn.watch(layer, x.transpose(0, 1) if layer.batch_first else x, lengths=[30, 7, 1])
    states = watched.plot_states(row=1)
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    texts = look(states)
    for state, k, d in product(layer.cell.states, range(L), range(D)):
        assert f"{state} of layer {k}" + ("" if D == 1 else (" forward", " backward")[d]) in texts
    images = [axes.images[0].get_array() for axes in states.axes if axes.images]
    assert len(images) == L * D * len(layer.cell.states)
    found = watched["model"].trace.h[0]
    assert torch.allclose(torch.tensor(images[0]).float(), found[0, :7, 1].T)
    assert {"real part", "imaginary part"} <= look(watched.plot_eigenvalues())
    gates = look(watched.plot_gates())
    assert "share of steps < 0.1" in gates or name == "rnn"
    assert "norm of ∂loss/∂h[t]" in look(watched.plot_gradients())


def test_the_figure_of_gradients_beside_each_other():
    x = torch.randn(40, B, I)
    rnn, lstm = torchrnn.watch(torchrnn.RNN(I, H), x), torchrnn.watch(torchrnn.LSTM(I, H), x)
    figure = rnn.plot_gradients(LSTM=lstm)
    assert {"RNN", "LSTM", "step t"} <= look(figure)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    for label, watched in (("RNN", rnn), ("LSTM", lstm)):
        assert torch.tensor(lines[label]).tolist() == pytest.approx(
            watched["model"].gradient_norms()[0, 0].tolist(), rel=1e-6
        )
    one = torchrnn.watch(torchrnn.RNN(I, H), x[:, 0])
    look(one.plot_states())
    one.plot_gates()
