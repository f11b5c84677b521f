"""PyTorch's own ModuleInfo samples for the six recurrent modules, run on our classes in their place.

The samples, their references, the error cases and the expected failures come from PyTorch's module_db; what is checked
follows its TestModule, test by test, under the same names; on top of it everything is compared with torch.nn. The
tests of gradients are in test_module_info_gradients.py; TestModule's test_cpu_gpu_parity needs a GPU.
"""
# ruff: noqa: F401, F811 - the fixtures info and training are imported

from __future__ import annotations

import copy
import inspect
import io
import pickle
import unittest
from typing import Any

import pytest
import torch
from module_samples import (
    INFOS,
    all_are,
    backend_of,
    backends,
    dtypes,
    info,
    modes,
    modules,
    readable,
    run,
    same,
    samples,
    tensors,
    theirs,
    training,
)
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close
from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo
from torch.testing._internal.common_utils import freeze_rng_state

import torchrnn

# torch's kernels say so once a process, for torch.nn's LSTM and for ours on them alike
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def test_module_db_is_honoured() -> None:
    """On CUDA module_db does mark the layers: the fixture above has something to honour."""
    active = [
        d for d in INFOS["GRU"].decorators if d.device_type == "cuda" and d.test_name == "test_non_contiguous_tensors"
    ]
    assert active
    assert all(d.decorators == [unittest.expectedFailure] for d in active)


@modes
@dtypes
@backends
def test_forward(info: ModuleInfo, training: bool, dtype: torch.dtype, backend: str) -> None:
    packed: Any = {"with_packed_sequence": True} if info.module_cls in (torchrnn.RNN, torchrnn.GRU) else {}
    for name, sample, m in samples(info, dtype, training=training, **packed):
        output = run(m, sample, backend)
        same(output, run(theirs(m, sample), sample), name)
        inputs, options = sample.forward_input.args, sample.forward_input.kwargs
        if sample.reference_fn is not None and not isinstance(inputs[0], PackedSequence):
            with freeze_rng_state():
                same(output, sample.reference_fn(m, *inputs, **options), name)
        {torch.float32: m.float, torch.float64: m.double}[dtype]()
        same(run(m, sample, backend), output, name, rtol=0, atol=0)
        all_are(m, "cpu", dtype)


@modes
@dtypes
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_factory_kwargs(info: ModuleInfo, training: bool, dtype: torch.dtype, device: str) -> None:
    for _, sample, _ in samples(info, dtype, training=training):
        made = sample.constructor_input
        all_are(info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype), device, dtype)


@modes
@dtypes
def test_multiple_device_transfer(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    """To the meta device, a forward there that computes shapes only, and back with the weights restored."""
    on_meta = samples(info, dtype, training=training, device="meta")
    for (name, sample, m), (_, meta_sample, _) in zip(samples(info, dtype, training=training), on_meta, strict=True):
        before, weights = run(m, sample), copy.deepcopy(m.state_dict())
        m.to("meta")
        all_are(m, "meta", dtype)
        shapes = [(t.shape, t.dtype, t.device.type) for t in tensors(run(m, meta_sample))]
        assert shapes == [(t.shape, t.dtype, "meta") for t in tensors(before)], name
        m.to_empty(device="cpu").load_state_dict(weights)
        all_are(m, "cpu", dtype)
        same(run(m, sample), before, name, rtol=0, atol=0)


@modes
def test_device_ctx_init(info: ModuleInfo, training: bool) -> None:
    for name, sample, m in samples(info, torch.float32, training=training):
        made = sample.constructor_input
        with torch.device("meta"):
            on_meta = info.module_cls(*made.args, **made.kwargs)
        all_are(on_meta, "meta", torch.float32)
        described = [[(k, p.shape, p.stride(), p.requires_grad) for k, p in x.named_parameters()] for x in (on_meta, m)]
        assert described[0] == described[1], name


@modes
def test_repr(info: ModuleInfo, training: bool) -> None:
    for _, sample, m in samples(info, torch.float32, training=training):
        assert repr(m) == repr(theirs(m, sample))
        assert str(m) == str(theirs(m, sample))


@modes
@dtypes
@pytest.mark.parametrize("how", ["torch.save", "pickle", "state_dict"])
def test_pickle(info: ModuleInfo, training: bool, dtype: torch.dtype, how: str) -> None:
    for name, sample, m in samples(info, dtype, training=training):
        before, file = run(m, sample), io.BytesIO()
        if how == "torch.save":
            torch.save(m, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
        elif how == "pickle":
            loaded = pickle.loads(pickle.dumps(m))
        else:
            torch.save(m.state_dict(), file)
            file.seek(0)
            made = sample.constructor_input
            loaded = info.module_cls(*made.args, **made.kwargs, dtype=dtype).train(training)
            loaded.load_state_dict(torch.load(file, weights_only=True))
        assert type(loaded) is type(m)
        assert loaded.training is m.training is training
        same(run(loaded, sample), before, name, rtol=0, atol=0)


@modules
def test_check_inplace(info: ModuleInfo) -> None:
    """No module takes ``inplace``, so none may write to what it is given."""
    assert "inplace" not in inspect.signature(info.module_cls).parameters
    for name, sample, m in samples(info, torch.float32):
        given = tensors((sample.forward_input.args, m.state_dict()))
        versions, copies = [t._version for t in given], [t.clone() for t in given]
        run(m, sample)
        assert [t._version for t in given] == versions, name
        assert all(map(torch.equal, given, copies)), name


@modes
@dtypes
def test_memory_format(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    """These modules have no images: whatever format is asked for, results and gradients are contiguous and the same."""
    assert not info.module_memformat_affects_out
    for name, sample, m in samples(info, dtype, grad=True, training=training):
        expected = run(m, sample)
        for memory_format in (torch.preserve_format, torch.contiguous_format):
            outputs = run(m.to(memory_format=memory_format), sample)  # pyright: ignore[reportCallIssue]
            same(outputs, expected, name, rtol=0, atol=0)
            asking = [*tensors(sample.forward_input.args), *m.parameters()]
            grads = torch.autograd.grad([t.sum() for t in tensors(outputs)], asking)
            assert all(t.is_contiguous() for t in (*tensors(outputs), *grads)), name


@modules
def test_if_train_and_eval_modes_differ(info: ModuleInfo) -> None:
    for name, sample, m in samples(info, torch.float32):
        del m.training
        try:
            run(m, sample)
            reads = False
        except AttributeError as error:
            assert "'training'" in str(error)  # noqa: PT017 - any other attribute is a defect
            reads = True
        assert reads == info.train_and_eval_differ, name


@pytest.mark.parametrize("info", ["RNN", "LSTM", "GRU"], indirect=True)
@backends
def test_dropout_is_for_training(info: ModuleInfo, backend: str) -> None:
    x = torch.ones(3, 2, 4)
    m, plain = info.module_cls(4, 8, 2, dropout=0.5), info.module_cls(4, 8, 2)
    plain.load_state_dict(m.state_dict())
    with backend_of(backend):
        assert not torch.equal(m(x)[0], m(x)[0])
        same(m.eval()(x), plain(x), "eval", rtol=0, atol=0)


@modes
@dtypes
def test_errors(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    assert info.module_error_inputs_func is not None
    cases = info.module_error_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training)
    assert cases
    for case in cases:
        made, given = case.module_error_input.constructor_input, case.module_error_input.forward_input
        for cls in (getattr(torch.nn, info.module_cls.__name__), info.module_cls):  # torch.nn: the case is a real one
            if case.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(case.error_type, match=case.error_regex):
                    cls(*made.args, **made.kwargs)
            else:
                m = cls(*made.args, **made.kwargs)
                with pytest.raises(case.error_type, match=case.error_regex):
                    m(*given.args, **given.kwargs)


@modules
@pytest.mark.parametrize("swap", [False, True], ids=["assign", "swap"])
@pytest.mark.parametrize("with_grad", [False, True], ids=["no_grad_set", "grad_set"])
def test_to(info: ModuleInfo, swap: bool, with_grad: bool) -> None:
    """A conversion keeps the Parameters and converts their gradients, whichever way torch does it."""
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for name, sample, m in samples(info, torch.float32):
            if with_grad:
                for p in m.parameters():
                    p.grad = torch.ones_like(p)
            before = {k: (id(p), p.detach().clone()) for k, p in m.named_parameters()}
            m.to(torch.float64)
            all_are(m, "cpu", torch.float64)
            for k, p in m.named_parameters():
                assert id(p) == before[k][0], (name, k)
                assert_close(p.detach(), before[k][1].double(), rtol=0, atol=0)
                assert (p.grad is not None and p.grad.dtype == torch.float64) == with_grad
            for t in sample.forward_input.args:
                assert tensors(t)[0].dtype == torch.float32
            with pytest.raises(RuntimeError, match="dtype"):
                run(m, sample)
            run(m.float(), sample)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@modules
@pytest.mark.parametrize("swap", [False, True], ids=["assign", "swap"])
def test_to_empty(info: ModuleInfo, swap: bool) -> None:
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for name, sample, m in samples(info, torch.float32):
            with torch.no_grad():  # a graph would hold on to the weights, and held ones cannot be swapped
                before = run(m, sample)
            weights = copy.deepcopy(m.state_dict())
            ids = [id(p) for p in m.parameters()]
            m.to_empty(device="meta")
            all_are(m, "meta", torch.float32)
            m.to_empty(device="cpu")
            all_are(m, "cpu", torch.float32)
            assert not swap or [id(p) for p in m.parameters()] == ids, name
            m.reset_parameters()  # pyright: ignore[reportCallIssue]
            assert all(p.isfinite().all() and p.abs().max() > 0 for p in m.parameters()), name
            m.load_state_dict(weights)
            with torch.no_grad():
                same(run(m, sample), before, name, rtol=0, atol=0)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")  # torch says so to every module
@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.complex128], ids=readable)
def test_other_dtypes(info: ModuleInfo, training: bool, dtype: torch.dtype) -> None:
    """Beyond those in module_db: ours does what torch.nn does, and runs where torch.nn cannot."""
    ran = 0
    for name, sample, m in samples(info, dtype, training=training):
        if dtype.is_complex and sample.constructor_input.kwargs.get("nonlinearity") == "relu":
            for module in (m, theirs(m, sample)):
                with pytest.raises(RuntimeError, match="not supported for complex"):
                    run(module, sample)
            continue
        output = run(m, sample)
        assert {t.dtype for t in tensors(output)} == {dtype}, name
        assert all(t.isfinite().all() for t in tensors(output)), name
        try:
            expected = run(theirs(m, sample), sample)
        except RuntimeError as error:
            assert "not implemented" in str(error)  # noqa: PT017 - torch.nn has no kernel for this dtype
            continue
        # torch rounds 16-bit numbers at every step, our kernels only what they store
        tolerance = {} if dtype.is_complex else {"atol": 8 * torch.finfo(dtype).eps, "rtol": 8 * torch.finfo(dtype).eps}
        same(output, expected, name, **tolerance)
        ran += 1
    assert ran or dtype.is_complex
