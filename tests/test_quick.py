"""The short way of ordinary calls: it is taken, gives what the long way gives, and leaves the errors to it."""

import itertools
from typing import Any

import pytest
import torch
from fused import needs_kernels
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchrnn
from torchrnn import call, layer, step
from torchrnn.backends import quick

pytestmark = needs_kernels

LAYERS = (torchrnn.RNN, torchrnn.LSTM, torchrnn.GRU)
CELLS = (torchrnn.RNNCell, torchrnn.LSTMCell, torchrnn.GRUCell)
GIVEN = itertools.product(LAYERS, (False, True), (False, True), (False, True), (False, True))


def _all_results(module: Any, x: Tensor, hx: list[Tensor], by_long_way: bool) -> Any:
    """Results and all gradients; the long way is that of a call for which a backend is forced."""
    module.zero_grad()
    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx)]
    states = None if not hx else leaves[1] if len(hx) == 1 else tuple(leaves[1:])
    if by_long_way:
        with torchrnn.use("cpu"):
            found = module(leaves[0], states)
    else:
        found = module(leaves[0], states)
    flat = [t for part in (found if isinstance(found, tuple) else (found,)) for t in _flat(part)]
    torch.stack([(t * torch.arange(1, t.numel() + 1).view(t.shape)).sum() for t in flat]).sum().backward()
    return flat, [t.grad for t in (*leaves, *module.parameters())]


def _flat(part: Any) -> tuple[Tensor, ...]:
    return part if isinstance(part, tuple) else (part,)


@pytest.fixture
def no_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the call went the long way")

    monkeypatch.setattr(layer, "choose", never)
    monkeypatch.setattr(step, "choose", never)


def _states(module: Any, B: int, dtype: torch.dtype, LD: int | None = None) -> list[Tensor]:
    shape = (B, 5) if LD is None else (LD, B, 5)
    return [torch.randn(shape, dtype=dtype) for _ in module.cell.states]


@pytest.mark.parametrize(("kind", "bias", "both", "first", "given"), list(GIVEN))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_bit_for_bit(kind: Any, bias: bool, both: bool, first: bool, given: bool, dtype: torch.dtype) -> None:
    module = kind(3, 5, 2, bias=bias, bidirectional=both, batch_first=first, dtype=dtype)
    x = torch.randn(4, 2, 3, dtype=dtype)
    hx = _states(module, 4 if first else 2, dtype, 4 if both else 2) if given else []
    expected = _all_results(module, x, hx, by_long_way=True)  # and the kernels are loaded
    torch.testing.assert_close(_all_results(module, x, hx, by_long_way=False), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("B", [1, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_bit_for_bit(kind: Any, B: int, dtype: torch.dtype) -> None:
    module = kind(3, 5, dtype=dtype)
    x, hx = torch.randn(B, 3, dtype=dtype), _states(module, B, dtype)
    expected = _all_results(module, x, hx, by_long_way=True)
    torch.testing.assert_close(_all_results(module, x, hx, by_long_way=False), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
@pytest.mark.parametrize("gradients", [False, True])
def test_ordinary_calls_take_it(kind: Any, gradients: bool, request: pytest.FixtureRequest) -> None:
    module = kind(3, 5)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(4, 2, 3)
    hx = _states(module, 2, torch.float32, None if kind in CELLS else 1)
    hx = hx[0] if len(hx) == 1 else tuple(hx)
    module(x, hx)  # the first call loads the kernels
    request.getfixturevalue("no_long_way")
    with torch.set_grad_enabled(gradients):
        module(x, hx)


@pytest.mark.parametrize("kind", LAYERS)
def test_others_do_not(kind: Any) -> None:
    module, x = kind(3, 5), torch.randn(4, 2, 3)
    module(x)
    assert quick.layers(module, x, None) is not None
    assert quick.layers(module, x[0], None) is None  # unbatched
    assert quick.layers(module, x[:0], None) is None
    assert quick.layers(module, x.bfloat16(), None) is None
    assert quick.layers(module, x.double(), None) is None  # the weights are not
    assert quick.layers(module, torch.randn(4, 2, 4), None) is None
    assert quick.layers(module, x.to_sparse(), None) is None
    assert quick.layers(module, x.to("meta"), None) is None
    assert quick.layers(kind(3, 5, 2, dropout=0.5), x, None) is None
    assert quick.layers(kind(3, 5, bias="single"), x, None) is None
    assert quick.layers(kind(3, 5, cell_clip=1.0), x, None) is None
    wrong = [torch.zeros(s) for s in ((2, 5), (1, 3, 5), (1, 2, 4), (2, 2, 5), (1, 1, 5))]
    wrong += [torch.zeros(1, 2, 5).double(), torch.zeros(1, 2, 5, device="meta")]
    for h in wrong:
        states = (h,) * len(module.cell.states)
        assert quick.layers(module, x, states if len(states) > 1 else h) is None
    assert quick.layers(module, x, (torch.zeros(1, 2, 5),) * 3) is None
    assert quick.layers(module, x, [torch.zeros(1, 2, 5)] * len(module.cell.states)) is None  # as torch.nn: a tuple
    with torchrnn.use("reference"):
        assert quick.layers(module, x, None) is None
    with torch.autocast("cpu"):
        assert quick.layers(module, x, None) is None
    assert call.surrounded() is False


@pytest.mark.parametrize("kind", CELLS)
def test_other_steps_do_not(kind: Any) -> None:
    module, x, h = kind(3, 5), torch.randn(2, 3), torch.randn(2, 5)
    alone = len(module.cell.states) == 1
    hx = h if alone else (h, h)
    module(x, hx)
    assert quick.one_step(module, x, hx) is not None
    assert quick.one_step(module, x, (h, h) if alone else h) is None
    for other in (h[0], h[:1], h[:, :4], h.double(), h.to("meta"), torch.nn.Parameter(h)):
        assert quick.one_step(module, x, other if alone else (other, other)) is None
    for other in (x[0], x[:1], x[:, :2], x.double(), x.bfloat16(), x.to("meta"), x.to_sparse()):
        assert quick.one_step(module, other, hx) is None
    assert quick.one_step(module, x[:0], h[:0] if alone else (h[:0], h[:0])) is None
    assert quick.one_step(kind(3, 5, bias=False), x, hx) is None
    assert quick.one_step(kind(3, 5, dtype=torch.float64), x, hx) is None


def test_parametrized_weights_are_what_they_are_now() -> None:
    module: Any = torchrnn.GRU(3, 5)
    x = torch.randn(4, 2, 3)
    module(x)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    expected, _ = module(x)
    module.parametrizations.weight_hh_l0.original0.data *= 2
    assert not torch.equal(module(x)[0], expected)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_weights_that_do_not_fit_are_named(kind: Any) -> None:
    module: Any = kind(3, 5)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(4, 2, 3)
    hx = _states(module, 2, torch.float32, None if kind in CELLS else 1)
    hx = hx[0] if len(hx) == 1 else tuple(hx)
    module(x, hx)
    name = "weight_hh" if kind in CELLS else "weight_hh_l0"
    good = getattr(module, name)
    for wrong, said in (
        (good.detach().double(), f"{name} must be torch.float32 on cpu .*, got torch.float64"),
        (
            good.detach().to("meta"),
            f"{name} must be torch.float32 on cpu .*, got torch.float32 on meta: load every weight",
        ),
        (torch.randn(2, 5), f"{name} must be .*, got \\(2, 5\\)"),
    ):
        setattr(module, name, torch.nn.Parameter(wrong))
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients), pytest.raises(torchrnn.ArgumentError, match=said):
                module(x, hx)
    setattr(module, name, None)
    with pytest.raises(TypeError, match=f"{name} must be a Tensor"):
        module(x, hx)


def test_a_weight_without_values_gives_no_numbers() -> None:
    module: Any = torchrnn.LSTM(3, 5, 2)
    x = torch.randn(4, 2, 3)
    module(x)
    module.bias_hh_l1 = torch.nn.Parameter(module.bias_hh_l1.detach().to("meta"))
    ours, theirs = "bias_hh_l1 must be torch.float32 on cpu", "one device"  # of the short way and of the operator
    mask = torch.tensor([[True, False]] * 4)
    for given, words in (({"lengths": [4, 2]}, ours), ({"return_all": True}, theirs), ({"mask": mask}, ours)):
        with pytest.raises(RuntimeError, match=words):
            module(x, **given)


@pytest.mark.parametrize("kind", LAYERS)
def test_zeros_that_are_kept_are_no_one_else_s(kind: Any) -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    small, large = (kind(3, H, dtype=torch.float64) for H in (5, 6))
    expected = [module(x)[0].detach() for module in (small, large)]
    for around in (torch.inference_mode, torch.no_grad):
        with around():
            results = [module(x) for _ in range(3) for module in (small, large)]
            for (output, finals), wanted in zip(results, expected * 3, strict=True):
                torch.testing.assert_close(output, wanted, rtol=0, atol=1e-14)
                for final in _flat(finals):
                    final.fill_(7.0)  # what is kept is nothing that anybody was given
    kept = [t for zeros in quick._ZEROS.values() for t in zeros]
    assert kept
    assert not any(t.any() or t.is_inference() or t.requires_grad for t in kept)
    small(x)[0].sum().backward()
    with FakeTensorMode(), torch.no_grad():
        assert type(kind(3, 7)(torch.randn(4, 2, 3))[0]) is not Tensor
    assert all(type(t) is Tensor for zeros in quick._ZEROS.values() for t in zeros)


def test_zeros_are_not_kept_where_a_mode_looks_on() -> None:
    class Ones(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            func = torch.ones if func is torch.zeros else func
            return func(*args, **(kwargs or {}))

    class Spoils(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.torchrnn.stack.default:
                for state in args[2]:
                    state.fill_(7.0)
            return result

    layer, x = torchrnn.GRU(3, 4), torch.randn(5, 2, 3)
    expected = layer(x)[0].detach()
    with torch.no_grad():
        for mode in (Ones, Spoils, Ones):
            with mode():
                layer(x)
            torch.testing.assert_close(layer(x)[0], expected)
