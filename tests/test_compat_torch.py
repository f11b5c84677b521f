"""What torch itself puts around a model: checkpoints, hooks, counters, copies, parametrizations, autocast."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from agreement import LAYERS
from fused import needs_kernels
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import torchrnn

F64: Any = {"dtype": torch.float64}
T, B, I, H = 5, 3, 4, 6
KINDS = [torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU]
every_kind = pytest.mark.parametrize("make", KINDS)


def gradients(layer: nn.Module, run: Any, x: Tensor) -> list[Tensor]:
    results = [t for t in tree_leaves(run(x)) if t.is_floating_point()]
    return list(torch.autograd.grad(torch.stack([t.pow(2).sum() for t in results]).sum(), [x, *layer.parameters()]))


def close(got: Any, expected: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@every_kind
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(make: Any, reentrant: bool) -> None:
    layer, x = make(I, H, 2, **F64), torch.randn(T, B, I, requires_grad=True, **F64)
    lengths = torch.tensor([5, 2, 3])

    def run(x: Tensor) -> Any:
        y, h = layer(x, lengths=lengths)
        return y, *(h if isinstance(h, tuple) else (h,))

    if reentrant:
        x.grad = None
        torch.stack([t.pow(2).sum() for t in checkpoint(run, x, use_reentrant=True)]).sum().backward()  # pyright: ignore[reportGeneralTypeIssues,reportArgumentType]
        close([x.grad, *(p.grad for p in layer.parameters())], gradients(layer, run, x))
    else:
        close(gradients(layer, lambda x: checkpoint(run, x, use_reentrant=False), x), gradients(layer, run, x))


@every_kind
def test_hooks_of_saved_tensors(make: Any) -> None:
    layer, x = make(I, H, 2, **F64), torch.randn(T, B, I, requires_grad=True, **F64)
    expected = gradients(layer, layer, x)
    with save_on_cpu():
        close(gradients(layer, layer, x), expected)
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Any:
        packed.append(t)
        return t.detach().numpy().copy()

    with saved_tensors_hooks(pack, torch.from_numpy):
        close(gradients(layer, layer, x), expected)
    assert packed


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("name", [n for n in LAYERS if n != "coupled_lstm"])
@pytest.mark.parametrize("wanted", ["weights", "input too", "states too"])
def test_flops_are_those_of_the_equations(name: str, options: Any, wanted: str) -> None:
    """What FlopCounterMode counts for our operators is what it counts for the reference's matrix products."""
    layer, x = LAYERS[name](I, H, **options), torch.randn(T, B, I, requires_grad=wanted != "weights")
    hx = None
    if wanted == "states too":
        hx = [t.detach().requires_grad_() for t in tree_leaves(layer(x)[1])]
        hx = tuple(hx) if len(hx) > 1 else hx[0]

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            layer(x, hx)[0].sum().backward()
        return counter.get_total_flops()

    ours = count()
    with torchrnn.use("reference"):
        assert ours == count() > 0


@needs_kernels
def test_flops_of_a_program_s_first_call() -> None:
    program = """
import torch, torchrnn
from torch.utils.flop_counter import FlopCounterMode
layer, x = torchrnn.GRU(3, 5), torch.randn(7, 2, 3)
with FlopCounterMode(display=False) as counter:
    layer(x)
print(counter.get_total_flops())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(said) == 2 * 15 * (3 + 5) * 14


@needs_kernels
def test_flops_of_steps_lengths_and_graphs() -> None:
    layer, x, lengths = torchrnn.GRU(I, H), torch.randn(T, B, I), [5, 1, 2]

    def count(run: Any, *args: Any, **said: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            torch.stack([t.sum() for t in tree_leaves(run(*args, **said))]).sum().backward()
        return counter.get_total_flops()

    dense, ragged = count(layer, x), count(layer, x, lengths=lengths)
    products = 3 * H * (I + H) * 2
    assert dense == products * T * B * 2 + 3 * H * H * 2 * (T - 1) * B
    assert ragged == products * 8 * 2 + 3 * H * H * 2 * (8 - B)
    cell, row = torchrnn.LSTMCell(I, H), torch.randn(B, I)
    ours = count(cell, row)
    with torchrnn.use("reference"):
        assert ours == count(cell, row)

    def loop(row: torch.Tensor) -> Any:
        return cell(row, cell(row, cell(row)))

    ours = count(loop, row)
    with torchrnn.use("reference"):
        assert ours == count(loop, row)
    assert count(torch.export.export(layer, (x,)).module(), x) == dense


@needs_kernels
def test_the_profiler_names_the_operators() -> None:
    layer, x = torchrnn.LSTM(I, H), torch.randn(T, B, I)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        layer(x)[0].sum().backward()
    assert {"torchrnn::stack", "torchrnn::stack_backward"} <= {event.key for event in seen.key_averages()}


@every_kind
def test_averages_of_weights(make: Any) -> None:
    layer, x = make(I, H), torch.randn(T, B, I)
    swa, ema = AveragedModel(layer), AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    first = copy.deepcopy(layer)
    for copied in (swa, ema):
        copied.update_parameters(layer)
    for p in layer.parameters():
        p.data.add_(1)
    for copied in (swa, ema):
        copied.update_parameters(layer)
    half = copy.deepcopy(layer)
    for p, a, b in zip(half.parameters(), first.parameters(), layer.parameters(), strict=True):
        p.data.copy_((a + b) / 2)
    for copied in (swa, ema):
        torch.testing.assert_close(copied(x)[0], half(x)[0])


@every_kind
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal", "prune"])
def test_weights_made_of_others(make: Any, how: str) -> None:
    layer, x = make(I, H, **F64), torch.randn(T, B, I, **F64)
    if how == "prune":
        prune.l1_unstructured(layer, "weight_hh_l0", amount=0.5)
    else:
        getattr(parametrizations, how)(layer, "weight_hh_l0")
    layer.eval()  # the spectral norm's iteration stands still
    plain = make(I, H, **F64)
    with torch.no_grad():
        for name in plain._flat_weights_names:
            getattr(plain, name).copy_(getattr(layer, name))
    close(tree_leaves(layer(x)), tree_leaves(plain(x)))
    layer.train()
    layer(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    expected = tree_leaves(layer.eval()(x))
    if how == "prune":  # until it is removed torch copies no pruned module of any kind
        assert (layer.weight_hh_l0 == 0).sum() == layer.weight_hh_l0.numel() // 2
        prune.remove(layer, "weight_hh_l0")
    close(tree_leaves(copy.deepcopy(layer)(x)), expected)


@every_kind
def test_skip_init(make: Any) -> None:
    layer = nn.utils.skip_init(make, I, H, num_layers=2, bidirectional=True)
    layer.load_state_dict(make(I, H, num_layers=2, bidirectional=True).state_dict())
    assert layer(torch.randn(T, B, I))[0].isfinite().all()


@every_kind
@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimisers(make: Any, optimiser: Any, how: Any) -> None:
    layer, x = make(I, H, 2), torch.randn(T, B, I)
    twin = copy.deepcopy(layer)
    for model, options in ((layer, how), (twin, {"foreach": False})):
        steps = optimiser(model.parameters(), lr=0.1, **options)
        for _ in range(3):
            steps.zero_grad()
            model(x)[0].pow(2).sum().backward()
            steps.step()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": [5, 3, 0]},
    "mask": {"mask": torch.arange(T * B).view(T, B) % 3 > 0},
    "reset": {"reset": torch.arange(T * B).view(T, B) % 4 == 0},
    "all": {"return_all": True},
}


def tensors_of(results: Any) -> list[Tensor]:
    trace = [t for of in results[2:] for kind in (of.states, of.gates) for t in tree_leaves(list(kind.values()))]
    return [*tree_leaves(results[:2]), *trace]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "stacked"])
@every_kind
def test_autocast_is_a_layer_of_its_type(make: Any, options: Any, dtype: torch.dtype) -> None:
    layer, x = make(I, H, **options), torch.randn(T, B, I)
    narrow = make(I, H, dtype=dtype, **options)
    narrow.load_state_dict(layer.state_dict())
    for said in CALLS.values():
        with torch.autocast("cpu", dtype):
            results = tensors_of(layer(x, **said))
            mixed = tensors_of(layer(x.to(dtype), **said))
        for got, also, expected in zip(results, mixed, tensors_of(narrow(x.to(dtype), **said)), strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, expected)
            assert torch.equal(also, expected)
        layer.zero_grad()
        results[0].float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_autocast_on_a_backend_of_ones_choice(backend: str) -> None:
    layer, cell, x = torchrnn.GRU(I, H), torchrnn.LSTMCell(I, H), torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16), torchrnn.use(backend):
        assert [t.dtype for t in (*layer(x), *cell(x[0]))] == [torch.bfloat16] * 4
        assert layer.double()(x.double())[0].dtype == torch.float64  # autocast leaves it alone
    assert layer.float()(x)[0].dtype == torch.float32


@needs_kernels
def test_autocast_in_a_graph_and_in_transforms() -> None:
    layer, x = torchrnn.GRU(I, H), torch.randn(T, B, I)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)[0]
        got = compiled(x)[0]
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, expected, atol=2e-2, rtol=2e-2)
        assert torch.equal(torch.vmap(layer, 1, 1)(x.unsqueeze(2))[0].squeeze(2), expected)


@every_kind
def test_the_scaler_of_gradients(make: Any) -> None:
    layer, x = make(I, H), torch.randn(T, B, I)
    steps, scaler = torch.optim.SGD(layer.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=256.0)
    before = [p.detach().clone() for p in layer.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = layer(x)[0].float().pow(2).mean()
    scaler.scale(loss).backward()
    scaler.step(steps)
    scaler.update()
    assert scaler.get_scale() == 256.0  # no gradient overflowed
    assert all(not torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))


@every_kind
def test_gradients_in_eval_mode_and_of_gradients(make: Any) -> None:
    layer, x = make(I, H, 2, dropout=0.5, **F64).eval(), torch.randn(T, B, I, requires_grad=True, **F64)
    first = torch.autograd.grad(layer(x)[0].pow(2).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.pow(2).sum(), [x, *layer.parameters()])
    with torchrnn.use("reference"):
        again = torch.autograd.grad(layer(x)[0].pow(2).sum(), x, create_graph=True)[0]
        close([first, *second], [again, *torch.autograd.grad(again.pow(2).sum(), [x, *layer.parameters()])])
