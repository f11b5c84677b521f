"""Features of a call: what a batch may be, and what is said about its steps."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from docs.features import plain
from docs.features.subject import (
    B,
    Feature,
    H,
    I,
    Subject,
    T,
    Wrong,
    batch,
    gradients,
    same,
    same_with_gradients,
    weights,
)

LENGTHS = torch.tensor([5, 2, 3])


def until(lengths: Tensor) -> Tensor:
    """Which steps count (T, B)."""
    return torch.arange(T).unsqueeze(1) < lengths


def dense(of: Subject) -> None:
    """Two layers, both directions, a state that is not zero."""
    layer, x = of.layer(2, bidirectional=True), batch().requires_grad_()
    hx = of.given(layer)
    same_with_gradients(layer, x, layer(x, of.hx(hx)), of.expected(layer, x, hx))


def packed(of: Subject) -> None:
    """Rows in any order."""
    layer, x = of.layer(2, bidirectional=True), batch().requires_grad_()
    output, final = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    got = pad_packed_sequence(output)[0], final
    same_with_gradients(layer, x, got, of.expected(layer, x, counts=until(LENGTHS)))


def lengths(of: Subject) -> None:
    """One row is empty, and the padding is NaN."""
    layer, n = of.layer(2, bidirectional=True), torch.tensor([2, 0, 5])
    x = batch().masked_fill(~until(n).unsqueeze(-1), torch.nan).requires_grad_()
    same_with_gradients(layer, x, layer(x, lengths=n), of.expected(layer, x, counts=until(n)))


def mask(of: Subject) -> None:
    """Steps are left out anywhere."""
    layer, x = of.layer(2, bidirectional=True), batch().requires_grad_()
    counts = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0]]).bool()
    same_with_gradients(layer, x, layer(x, mask=counts), of.expected(layer, x, counts=counts))


def reset(of: Subject) -> None:
    """The same as each piece by itself, from zero."""
    layer, x = of.layer(), batch().requires_grad_()
    begins = torch.zeros(T, B, dtype=torch.bool)
    begins[2, :2] = True
    first, second = of.expected(layer, x[:2, :2]), of.expected(layer, x[2:, :2])
    whole = of.expected(layer, x[:, 2:])
    output = torch.cat((torch.cat((first[0], second[0])), whole[0]), 1)
    finals = [torch.cat(parts, 1) for parts in zip(second[1:], whole[1:], strict=True)]
    same_with_gradients(layer, x, layer(x, reset=begins), [output, *finals])


def pieces(x: Tensor) -> list[Tensor]:
    """The rows, each with its own length."""
    return [x[:n, b] for b, n in enumerate(LENGTHS.tolist())]


def listed(of: Subject) -> None:
    """A list of sequences comes back as one."""
    layer, x = of.layer(), batch().requires_grad_()
    output, *finals = of.expected(layer, x, counts=until(LENGTHS))
    same_with_gradients(layer, x, layer(pieces(x)), [pieces(output), finals])


def nested(of: Subject) -> None:
    """A jagged nested tensor comes back as one."""
    layer, x = of.layer(), batch().requires_grad_()
    result, final = layer(torch.nested.as_nested_tensor(pieces(x), layout=torch.jagged))
    output, *finals = of.expected(layer, x, counts=until(LENGTHS))
    same_with_gradients(layer, x, [result.unbind(), final], [pieces(output), finals])


def several_batches(of: Subject) -> None:
    """(T, B1, B2, I)."""
    layer, x = of.layer(), batch(T, 2, 3, I).requires_grad_()
    expected = [t.unflatten(1, (2, 3)) for t in of.expected(layer, x.flatten(1, 2))]
    same_with_gradients(layer, x, layer(x), expected)


def no_steps(of: Subject) -> None:
    """The states stay as they are."""
    layer = of.layer()
    hx = of.given(layer)
    same(layer(batch(0, B, I), of.hx(hx)), [torch.zeros(0, B, H), *hx])


def no_rows(of: Subject) -> None:
    """And a backward through it gives zeros."""
    layer = of.layer()
    output, final = layer(batch(T, 0, I))
    same([output, final], [torch.zeros(T, 0, H), *of.zeros(layer, 0)])
    same(torch.autograd.grad(output.sum(), layer.weight_hh_l0), torch.zeros_like(layer.weight_hh_l0))


def everything(of: Subject) -> None:
    """By name, and differentiable."""
    layer, x = of.layer(), batch().requires_grad_()
    trace = layer(x, return_all=True)[2]
    zeros = [tuple(s[0, 0] for s in of.zeros(layer, 1))]
    ran = [plain.row(of.step, weights(layer), x[:, b], zeros) for b in range(B)]
    got, expected = [], []
    for n, name in enumerate(trace.states):
        got.append(trace.states[name][0, 0])
        expected.append(torch.stack([torch.stack([s[n] for s in r.states]) for r in ran], 1))
    for name in ran[0].gates[0]:
        got.append(trace.gates[name][0, 0])
        expected.append(torch.stack([torch.stack([g[name] for g in r.gates]) for r in ran], 1))
    same_with_gradients(layer, x, got, expected)


def projection(of: Subject) -> None:
    """The output is projected to two features."""
    layer, x = of.layer(2, bidirectional=True, proj_size=2), batch().requires_grad_()
    same_with_gradients(layer, x, layer(x), of.projected().expected(layer, x))


def state_for_all(of: Subject) -> None:
    """A state of batch 1 is that of every row."""
    layer, x = of.layer(), batch().requires_grad_()
    hx = of.given(layer, 1)
    same_with_gradients(layer, x, layer(x, of.hx(hx)), of.expected(layer, x, [s.expand(-1, B, -1) for s in hx]))


def evaluated(of: Subject) -> None:
    """`layer.eval()`, then the dense batch."""
    layer, x = of.layer(2, bidirectional=True).eval(), batch().requires_grad_()
    same_with_gradients(layer, x, layer(x), of.expected(layer, x))


def float16(of: Subject) -> None:
    """The numbers are float16, the equations' float64."""
    narrow(of, torch.float16, 1e-2)


def narrow(of: Subject, dtype: torch.dtype, tolerance: float, n: Tensor | None = None) -> None:
    """A layer of another type, dense or with lengths, against float64 with its weights; torch.nn's with packing."""
    layer, exact = of.layer(dtype=dtype), of.layer(dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x = batch().to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    if n is None:
        got = layer(x)
    elif of.ours:
        got = layer(x, lengths=n)
    else:
        output, final = layer(pack_padded_sequence(x, n, enforce_sorted=False))
        got = pad_packed_sequence(output)[0], final
    expected = of.expected(exact, wide, counts=None if n is None else until(n))
    if any(t.dtype is not dtype for t in got[:1]):
        raise Wrong(f"the output is {got[0].dtype}")
    same(got, expected, tolerance)
    ours, theirs = [x, *layer.parameters()], [wide, *exact.parameters()]
    same(gradients(got, ours), gradients(expected, theirs), tolerance)


FEATURES = [
    Feature("dense batch, forward and backward", dense),
    Feature("the same after `eval()`", evaluated),
    Feature("`PackedSequence`", packed),
    Feature("rows of different lengths without packing: `lengths=`", lengths),
    Feature("steps left out anywhere: `mask=`", mask),
    Feature("a sequence begins inside a row: `reset=`", reset),
    Feature("list of sequences", listed),
    Feature("jagged nested tensor", nested),
    Feature("several batch dimensions", several_batches),
    Feature("T = 0", no_steps),
    Feature("B = 0", no_rows),
    Feature("states and gates of all steps: `return_all=True`", everything),
    Feature("`proj_size`", projection),
    Feature("initial state of batch 1 for all rows", state_for_all),
    Feature("float16", float16),
]
