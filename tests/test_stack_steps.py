"""The options of a stack with what counts of a sequence: masks, resets, lists, nested tensors, batch shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stacked import F64, LAYERS, flat

import torchrnn

T, B, I, H = 6, 5, 3, 4
every_kind = pytest.mark.parametrize("kind", LAYERS)
MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ],
    dtype=torch.bool,
).t()  # (T, B)
RESET = torch.zeros(T, B, dtype=torch.bool)
RESET[3, 0] = RESET[2, 1] = RESET[5, 1] = RESET[1, 2] = RESET[4, 3] = RESET[1, 4] = RESET[5, 4] = True


def both(kind: str, **options: Any) -> tuple[Any, Any]:
    """A layer and the same one without sequences."""
    options |= F64
    made = [LAYERS[kind](I, H, return_sequences=sequences, **options) for sequences in (True, False)]
    for name, p in made[0].named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(p)
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def ends(output: torch.Tensor, counts: torch.Tensor, D: int) -> torch.Tensor:
    """Row by row: the output of the last step that counts, of the backward half that of the first; else zero."""
    rows = []
    for b in range(output.size(1)):
        t = counts[:, b].nonzero().flatten().tolist()
        half = output.size(2) // D
        last = output[t[-1], b] if t else torch.zeros(output.size(2), **F64)
        rows.append(torch.cat((last[:half], output[t[0], b, half:])) if t and D == 2 else last)
    return torch.stack(rows)


@every_kind
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("options", [{}, {"residual": True}, {"learn_initial_state": True}], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("said", ["mask", "reset", "mask reset", "lengths reset", "initial"])
def test_last_outputs_of_what_counts(
    kind: str, batch_first: bool, options: Any, bidirectional: bool, said: str
) -> None:
    layer, last = both(kind, num_layers=2, batch_first=batch_first, bidirectional=bidirectional, **options)
    x = torch.randn(T, B, I, **F64)
    given: dict[str, Any] = {}
    counts = torch.ones(T, B, dtype=torch.bool)
    if "mask" in said or said == "initial":
        counts = given["mask"] = MASK
    if "lengths" in said:
        given["lengths"] = [6, 2, 0, 4, 3]
        counts = torch.arange(T).unsqueeze(1) < torch.tensor(given["lengths"])
    if "reset" in said or said == "initial":
        given["reset"] = RESET
    if said == "initial":
        given["reset_to"] = "initial"
    x[~counts] = torch.nan
    x.requires_grad_()
    turned = {k: v.t() if batch_first and isinstance(v, torch.Tensor) else v for k, v in given.items()}
    result = [m(x.transpose(0, 1) if batch_first else x, **turned) for m in (layer, last)]
    output = result[0][0].transpose(0, 1) if batch_first else result[0][0]
    expected = ends(output, counts, 2 if bidirectional else 1)
    torch.testing.assert_close(result[1], expected, atol=1e-14, rtol=0)
    factor = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((y * factor).sum(), [x, *m.parameters()], allow_unused=True)
        for y, m in ((result[1], last), (expected, layer))
    ]
    for a, b in zip(*gradients, strict=True):
        a, b = (torch.zeros((), **F64) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= 1e-12


@every_kind
@pytest.mark.parametrize("mode", ["sum", "mean", "mul"])
def test_merged_last_outputs_with_resets(kind: str, mode: str) -> None:
    layer, _ = both(kind, bidirectional=True)
    merged, last = both(kind, bidirectional=True, merge_mode=mode)
    for m in (merged, last):
        m.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, **F64)
    f, b = ends(layer(x, mask=MASK, reset=RESET)[0], MASK, 2).chunk(2, -1)
    expected = {"sum": f + b, "mean": (f + b) / 2, "mul": f * b}[mode]
    torch.testing.assert_close(last(x, mask=MASK, reset=RESET), expected, atol=1e-14, rtol=0)
    f, b = layer(x, mask=MASK, reset=RESET)[0].chunk(2, -1)
    expected = {"sum": f + b, "mean": (f + b) / 2, "mul": f * b}[mode]
    torch.testing.assert_close(merged(x, mask=MASK, reset=RESET)[0], expected, atol=1e-14, rtol=0)


@every_kind
@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True},
        {"bidirectional": True, "merge_mode": "sum", "learn_initial_state": True},
        {"residual": True, "num_layers": 2, "batch_first_state": True},
        {"hidden_size": [4, 3], "bidirectional": True, "batch_first_state": True, "learn_initial_state": True},
    ],
    ids=str,
)
def test_lists_nested_tensors_and_batch_shapes(kind: str, options: dict[str, Any]) -> None:
    options = {"hidden_size": H, **options}
    size = options.pop("hidden_size")
    layer = LAYERS[kind](I, size, **options, **F64)
    last = LAYERS[kind](I, size, return_sequences=False, **options, **F64)
    for name, p in layer.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(p)
    last.load_state_dict(layer.state_dict())
    lengths = [3, 0, 6, 1]
    x = torch.randn(T, 4, I, **F64)
    output, states = layer(x, lengths=lengths)
    expected = last(x, lengths=lengths)
    if layer.merge_mode == "concat":
        known = torchrnn.last(output, lengths, bidirectional=layer.bidirectional)
        torch.testing.assert_close(expected, known, atol=1e-14, rtol=0)
    sequences = [x[:n, b] for b, n in enumerate(lengths)]
    outputs, found = layer(sequences)
    assert all(torch.equal(y, output[:n, b]) for b, (n, y) in enumerate(zip(lengths, outputs, strict=True)))
    nested = torch.nested.nested_tensor(sequences, layout=torch.jagged)
    for given in (sequences, nested):
        assert torch.equal(last(given), expected)
    for got in (found, layer(nested)[1]):
        assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(states), strict=True))

    output, states = layer(x)
    shaped, found = layer(x.unflatten(1, (2, 2)))
    assert torch.equal(shaped.flatten(1, 2), output)
    at = 0 if layer.batch_first_state else 1
    for a, b in zip(flat(found), flat(states), strict=True):
        assert torch.equal(a.flatten(at, at + 1), b)
    assert torch.equal(last(x.unflatten(1, (2, 2))).flatten(0, 1), last(x))

    def shared(state: Any, expand: bool) -> Any:
        if isinstance(state, torch.Tensor):
            one = state.narrow(at, 0, 1)
            return one.expand_as(state) if expand else one
        return type(state)(shared(s, expand) for s in state)

    for a, b in zip(flat(layer(x, shared(states, False))), flat(layer(x, shared(states, True))), strict=True):
        assert torch.equal(a, b)
