"""The generated C++, compiled and compared with torch: values, gradients, what is kept, what is said."""

import ctypes
import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import coupled
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_cells import ODD, clipped, multiplicative, passing, slstm, switch

import torchrnn.cells  # noqa: F401  (they enter the registry)
from torchrnn import codegen
from torchrnn.activation import PLAIN, Options
from torchrnn.cell import CELLS, Cell
from torchrnn.cells.gru import gru, gru_projected
from torchrnn.cells.lstm import lstm
from torchrnn.cells.rnn import rnn_relu, rnn_tanh

OUR_CELLS = [rnn_tanh, rnn_relu, lstm, gru, gru_projected]
ALL = {c.name: c for c in [*OUR_CELLS, coupled.coupled_lstm, *ODD.values()]}
SIMD = Path(codegen.__file__).parent.parent / "csrc" / "simd.h"

# scalar double; independent of csrc/simd.h, so that a mistake there is not hidden here
HELPERS = """
#include <cmath>
#include <initializer_list>
namespace cells {
template <class V> inline V splat(double x) { return x; }
inline double select(bool m, double a, double b) { return m ? a : b; }
inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double relu(double x) { return x < 0 ? 0 : x; }
inline double max(double a, double b) { return a != a || a > b ? a : b; }
inline double min(double a, double b) { return a != a || a < b ? a : b; }
inline double abs(double x) { return std::fabs(x); }
struct Options { int activation; double limit; };
inline double activate(const Options& o, double x) {
  return o.activation == 1 ? relu(x) : o.activation ? x : std::tanh(x);
}
inline double activate_backward(const Options& o, double d, double y) {
  return o.activation == 1 ? (y <= 0 ? 0 : d) : o.activation ? d : d * (1 - y * y);
}
inline double clip(const Options& o, double x) { return x > o.limit ? o.limit : x < -o.limit ? -o.limit : x; }
inline double clip_backward(const Options& o, double d, double x) { return std::fabs(x) <= o.limit ? d : 0; }
using std::exp; using std::log; using std::log1p; using std::expm1; using std::sqrt; using std::tanh; using std::erf;
"""
CALLS = """
extern "C" void NAME_forward(const double* a, const double* s, double* n, double* keep, long count) {
  using C = cells::NAME;
  for (long i = 0; i < count; i++)
    C::forward(a + i * C::columns, s + i * C::states, n + i * C::states, keep + i * (C::saved + 1));
}
extern "C" void NAME_backward(const double* keep, const double* s, const double* n, const double* d, double* da,
                              double* ds, long count) {
  using C = cells::NAME;
  for (long i = 0; i < count; i++)
    C::backward(keep + i * (C::saved + 1), s + i * C::states, n + i * C::states, d + i * C::states,
                da + i * C::columns, ds + i * C::states);
}
extern "C" void NAME_open_forward(const double* a, const double* s, double* n, double* keep, long count,
                                  int activation, double limit) {
  using C = cells::NAME;
  for (long i = 0; i < count; i++)
    C::open::forward(a + i * C::columns, s + i * C::states, n + i * C::states, keep + i * (C::open::saved + 1),
                     cells::Options{activation, limit});
}
extern "C" void NAME_open_backward(const double* keep, const double* s, const double* n, const double* d, double* da,
                                   double* ds, long count, int activation, double limit) {
  using C = cells::NAME;
  for (long i = 0; i < count; i++)
    C::open::backward(keep + i * (C::open::saved + 1), s + i * C::states, n + i * C::states, d + i * C::states,
                      da + i * C::columns, ds + i * C::states, cells::Options{activation, limit});
}
extern "C" void NAME_open_facts(int* out) {
  using C = cells::NAME;
  *out++ = C::open::saved;
  for (bool v : C::open::backward_reads_previous) *out++ = v;
  for (bool v : C::open::backward_reads_new) *out++ = v;
}
extern "C" void NAME_facts(int* out) {
  using C = cells::NAME;
  for (int v : {C::gates, C::states, C::extra, C::columns, C::saved}) *out++ = v;
  for (int v : C::h_column) *out++ = v;
  for (bool v : C::reads) *out++ = v;
  for (bool v : C::backward_reads_previous) *out++ = v;
  for (bool v : C::backward_reads_new) *out++ = v;
}
"""


def compiler() -> str:
    found = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if found is None:
        pytest.skip("no C++ compiler on this machine")
    return found


@pytest.fixture(scope="module")
def headers() -> dict[str, str]:
    return {name: codegen.header(cell) for name, cell in ALL.items()}


@pytest.fixture(scope="module")
def library(headers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("codegen")
    calls = "".join(CALLS.replace("NAME", codegen.struct_name(ALL[name])) for name in headers)
    (folder / "cells.cpp").write_text(HELPERS + "\n".join(headers.values()) + "}\n" + calls)
    # no contraction: torch rounds after each operation
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler(), *flags, "cells.cpp", "-o", "cells.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "cells.so"))


def facts(library: ctypes.CDLL, cell: Cell) -> dict[str, Any]:
    G, S = len(cell.gates), len(cell.states)
    out = (ctypes.c_int * (5 + G + 3 * S))()
    library[f"{codegen.struct_name(cell)}_facts"](out)
    values, parts = list(out), {}
    for name in ("gates", "states", "extra", "columns", "saved"):
        parts[name] = values.pop(0)
    ends = [0, G, G + S, G + 2 * S, G + 3 * S]
    names = ("h_column", "reads", "backward_reads_previous", "backward_reads_new")
    return parts | {name: tuple(values[a:b]) for name, (a, b) in zip(names, pairwise(ends), strict=True)}


def facts_with_options(library: ctypes.CDLL, cell: Cell) -> dict[str, Any]:
    S = len(cell.states)
    out = (ctypes.c_int * (1 + 2 * S))()
    library[f"{codegen.struct_name(cell)}_open_facts"](out)
    saved, *reads = out
    own = {"saved": saved, "backward_reads_previous": tuple(reads[:S]), "backward_reads_new": tuple(reads[S:])}
    return facts(library, cell) | own


def call(library: ctypes.CDLL, cell: Cell, function: str, *tensors: torch.Tensor, options: Options = PLAIN) -> None:
    more: list[Any] = []
    if options is not PLAIN:
        function = f"open_{function}"
        more = [ctypes.c_int(["tanh", "relu", "linear"].index(options.function)), ctypes.c_double(options.limit)]
    library[f"{codegen.struct_name(cell)}_{function}"](
        *(ctypes.c_void_p(t.data_ptr()) for t in tensors), ctypes.c_long(len(tensors[0])), *more
    )


def generated(
    library: ctypes.CDLL,
    cell: Cell,
    x: torch.Tensor,
    h: torch.Tensor,
    s: torch.Tensor,
    d: torch.Tensor,
    options: Options = PLAIN,
) -> dict[str, torch.Tensor]:
    """New states and gradients from the compiled functor; what it says it does not read is NaN."""
    f, nan = (facts if options is PLAIN else facts_with_options)(library, cell), torch.nan
    columns = f["h_column"]
    pre = torch.full((len(x), f["columns"]), nan, dtype=x.dtype)
    pre[:, : f["gates"]] = x
    for g, column in enumerate(columns):
        pre[:, column] = x[:, g] + h[:, g] if column == g else h[:, g]

    def only(values: torch.Tensor, read: tuple[int, ...]) -> torch.Tensor:
        return torch.where(torch.tensor(read, dtype=torch.bool), values, nan).contiguous()

    new, keep = torch.full_like(s, nan), torch.full((len(x), f["saved"] + 1), nan, dtype=x.dtype)
    call(library, cell, "forward", pre, only(s, f["reads"]), new, keep, options=options)
    dpre, ds = torch.full_like(pre, nan), torch.full_like(s, nan)
    given_back = only(s, f["backward_reads_previous"]), only(new, f["backward_reads_new"])
    call(library, cell, "backward", keep, *given_back, d, dpre, ds, options=options)
    return {"new": new, "dx": dpre[:, : f["gates"]], "dh": dpre[:, list(columns)], "ds": ds}


def expected(
    cell: Cell, x: torch.Tensor, h: torch.Tensor, s: torch.Tensor, d: torch.Tensor, options: Options = PLAIN
) -> dict[str, torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, h, s)]
    new = torch.cat(cell(leaves[0], leaves[1], leaves[2].split(1, -1), options), -1)
    grads = [None] * 3
    if new.requires_grad:
        grads = torch.autograd.grad(new, leaves, d, allow_unused=True)
    dx, dh, ds = (torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True))
    return {"new": new.detach(), "dx": dx, "dh": dh, "ds": ds}


def check(library: ctypes.CDLL, cell: Cell, *inputs: torch.Tensor, options: Options = PLAIN) -> None:
    x, h, s, d = inputs
    ours, torchs = generated(library, cell, x, h, s, d, options), expected(cell, x, h, s, d, options)
    for name in torchs:
        finite = torchs[name][torchs[name].isfinite()]
        scale = max(1.0, float(finite.abs().max())) if len(finite) else 1.0
        torch.testing.assert_close(
            ours[name],
            torchs[name],
            rtol=1e-14,
            atol=1e-14 * scale,
            equal_nan=True,
            msg=lambda text, name=name: f"{cell.name} {name}: {text}",
        )


def inputs(cell: Cell, count: int) -> list[torch.Tensor]:
    G, S = len(cell.gates), len(cell.states)
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(count, k, dtype=torch.float64, generator=generator) for k in (G, G, S, S)]


@pytest.mark.parametrize("cell", ALL.values(), ids=ALL)
def test_forward_and_backward_are_torchs(library: ctypes.CDLL, cell: Cell) -> None:
    check(library, cell, *inputs(cell, 1000))


@pytest.mark.parametrize(
    "options",
    [Options("relu"), Options("linear", 0.5), Options("tanh", 0.25)],
    ids=["relu", "linear, clipped", "clipped"],
)
@pytest.mark.parametrize("cell", ALL.values(), ids=ALL)
def test_the_functions_with_options_are_torchs(library: ctypes.CDLL, cell: Cell, options: Options) -> None:
    check(library, cell, *inputs(cell, 1000), options=options)


@pytest.mark.parametrize("cell", [*OUR_CELLS, coupled.coupled_lstm], ids=lambda c: c.name)
def test_options_keep_at_most_one_number_more(library: ctypes.CDLL, cell: Cell) -> None:
    plain, free = facts(library, cell), facts_with_options(library, cell)
    # after the clip a tanh network's output no longer tells what was before it
    assert free["saved"] == plain["saved"] + (len(cell.states) == 1 and cell is not gru)


@pytest.mark.parametrize("cell", ALL.values(), ids=ALL)
def test_drawn_values(library: ctypes.CDLL, cell: Cell) -> None:
    G, S = len(cell.gates), len(cell.states)
    numbers = st.floats(-4, 4) | st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0])  # the kinks of the activations too

    @settings(max_examples=60, deadline=None)
    @given(st.lists(numbers, min_size=2 * G + 2 * S, max_size=2 * G + 2 * S))
    def run(drawn: list[float]) -> None:
        check(library, cell, *torch.tensor([drawn], dtype=torch.float64).split([G, G, S, S], -1))

    run()


@pytest.mark.parametrize("cell", [*OUR_CELLS, coupled.coupled_lstm, clipped], ids=lambda c: c.name)
def test_nan_and_inf_travel_as_in_torch(library: ctypes.CDLL, cell: Cell) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    check(library, cell, *(values[torch.randint(5, t.shape, generator=generator)] for t in inputs(cell, 500)))


FACTS = {  # extra, saved, h_column, reads, backward reads the previous and the new states
    rnn_tanh: (0, 0, (0,), (0,), (0,), (1,)),
    rnn_relu: (0, 0, (0,), (0,), (0,), (1,)),
    lstm: (0, 4, (0, 1, 2, 3), (0, 1), (0, 1), (0, 1)),
    gru: (1, 4, (0, 1, 3), (1,), (1,), (0,)),
    gru_projected: (1, 4, (0, 1, 3), (0, 1), (0, 1), (0, 0)),
    coupled.coupled_lstm: (0, 3, (0, 1, 2), (0, 1), (0, 1), (0, 1)),
    multiplicative: (2, 4, (3, 4, 2), (1,), (1,), (0,)),
    slstm: (0, 4, (0, 1, 2, 3), (0, 1, 1, 1), (0, 1, 1, 1), (1, 1, 1, 1)),
    switch: (0, 1, (0, 1), (1,), (0,), (0,)),
    passing: (2, 0, (2, 3), (0, 1, 0), (0, 0, 0), (0, 0, 0)),
}


@pytest.mark.parametrize("cell", FACTS, ids=lambda c: c.name)
def test_what_a_header_says_of_its_cell(library: ctypes.CDLL, cell: Cell) -> None:
    f = facts(library, cell)
    names = ("extra", "saved", "h_column", "reads", "backward_reads_previous", "backward_reads_new")
    assert tuple(f[name] for name in names) == FACTS[cell]
    assert (f["gates"], f["states"], f["columns"]) == (len(cell.gates), len(cell.states), f["gates"] + f["extra"])


@pytest.mark.parametrize(
    "mode",
    [torch.inference_mode, torch.no_grad, lambda: torch.device("meta"), lambda: torch.autocast("cpu")],
    ids=["inference_mode", "no_grad", "device", "autocast"],
)
def test_a_header_does_not_depend_on_the_modes_of_its_caller(headers: dict[str, str], mode: Any) -> None:
    with mode():
        assert codegen.header(lstm) == headers["lstm"]


def test_a_leaky_unit_keeps_one_value_not_its_mask_and_its_value() -> None:
    def leaky(x: Any, h: Any, s: Any) -> Any:
        return F.leaky_relu(x.a + h.a) * F.leaky_relu(x.a + h.a)

    assert 'saved = 1;\n  static constexpr char kept[] = "a_a";\n' in codegen.header(Cell(leaky, ("a",), ("h",)))


def test_the_names_of_the_step_are_in_the_code(headers: dict[str, str]) -> None:
    assert "const V c = f * previous[1] + i * g;" in headers["lstm"]
    assert "const V dc = " in headers["lstm"]
    assert "const V n = tanh(pre[2] + r * h_n);" in headers["gru"]
    for name in ("int_", "do_", "next_", "max_"):  # taken in C++
        assert f"const V {name} = " in headers["multiplicative"]
    assert all(text.isascii() for text in headers.values())


def test_nothing_is_computed_twice_or_in_vain(headers: dict[str, str]) -> None:
    assert headers["multiplicative"].split("struct open")[0].count("sigmoid(") == 1
    functors = [(name, part) for name, text in headers.items() for part in text.split("struct open")]
    for name, text in functors:
        for line in text.split("\n"):
            declared = line.strip().removeprefix("const V ").split(" = ")[0]
            if line.strip().startswith("const V ") and " = " in line and "[" not in line:
                assert text.count(declared) > 1, (name, declared)


def test_the_vectors_of_the_kernel_take_the_code(headers: dict[str, str], tmp_path: Path) -> None:
    parts = [SIMD, SIMD.with_name("vector_math.h")]
    if not all(p.exists() for p in parts):
        pytest.skip("csrc/ is not in this installation")
    known = "".join(p.read_text() for p in parts)
    missing = {f"{name}(" for name in ("log", "log1p", "expm1", "erf") if f" {name}(" not in known}
    text = ["#include <stdint.h>", "#include <stddef.h>", "#ifdef __x86_64__", "#include <immintrin.h>", "#endif"]
    text += ["namespace cells {", *(f'#include "{p}"' for p in parts), "typedef Vec<double, 2> V;"]
    text += ["struct Options { int activation; double limit; };"]
    for name in ("activate", "clip"):
        text += [f"V {name}(const Options&, V); V {name}_backward(const Options&, V, V);"]
    for name, code in headers.items():
        if not any(call in code for call in missing):
            name = codegen.struct_name(ALL[name])
            text += [code, f"template void {name}::forward(const V*, const V*, V*, V*);"]
            text += [f"template void {name}::backward(const V*, const V*, const V*, const V*, V*, V*);"]
            last = "const Options&);"
            text += [f"template void {name}::open::forward(const V*, const V*, V*, V*, {last}"]
            text += [f"template void {name}::open::backward(const V*, const V*, const V*, const V*, V*, V*, {last}"]
    (tmp_path / "all.cpp").write_text("\n".join([*text, "}", ""]))
    subprocess.run([compiler(), "-std=c++17", "-fsyntax-only", "-w", "all.cpp"], cwd=tmp_path, check=True)


def softmax(x: Any, h: Any, s: Any) -> Any:
    return torch.softmax(x.a + h.a, -1)


def power(x: Any, h: Any, s: Any) -> Any:
    return (x.a + h.a) ** 2.7


def branch(x: Any, h: Any, s: Any) -> Any:
    return x.a if x.a > 0 else h.a


def dropout(x: Any, h: Any, s: Any) -> Any:
    return F.dropout(x.a + h.a, 0.5)


def integer(x: Any, h: Any, s: Any) -> Any:
    return (x.a + h.a).to(torch.int64) * 1.0


def by_unit(x: Any, h: Any, s: Any) -> Any:
    return torch.ones(5) * x.a + h.a


def too_many(x: Any, h: Any, s: Any) -> Any:
    return x.a, h.a


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (softmax, NotImplementedError, r"cell 'softmax' uses aten._softmax.default, .* add a rule .* or run the cell"),
        (power, NotImplementedError, r"cell 'power' uses aten.pow.* a multiple of 1/2, at most 16, not 2.7"),
        (branch, NotImplementedError, r"cell 'branch' has no C\+\+ form.* no branch that depends on a value"),
        (dropout, NotImplementedError, r"cell 'dropout' uses aten.bernoulli_"),
        (integer, NotImplementedError, r"cell 'integer' uses .*its result is an integer"),
        (by_unit, NotImplementedError, r"cell 'by_unit' .* makes the state h of shape \(5,\)"),
        (too_many, TypeError, r"cell 'too_many': the step function must return 1 states \(h\), got 2"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_has_no_form_is_said(step: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codegen.header(Cell(step, ("a",), ("h",)))


def test_the_headers_checked_in_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    if not codegen.FOLDER.exists():
        pytest.skip("csrc/cells is not in this installation")
    assert codegen.main(["--check"]) == 0, capsys.readouterr().out


def test_check_catches_an_edited_a_missing_and_a_strange_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--folder", str(tmp_path)]
    assert codegen.main(folder) == 0
    assert codegen.main(["--check", *folder]) == 0
    assert capsys.readouterr().out == ""
    own = {c.name for c in OUR_CELLS}
    assert {f.stem for f in tmp_path.iterdir()} == own | {"all"}
    assert own <= set(CELLS)
    assert "X(gru) X(gru_projected) X(lstm) X(rnn_relu) X(rnn_tanh)\n" in (tmp_path / "all.h").read_text()
    (tmp_path / "lstm.h").write_text((tmp_path / "lstm.h").read_text().replace("sigmoid(pre[1])", "tanh(pre[1])"))
    (tmp_path / "gru.h").unlink()
    (tmp_path / "no_cell.h").write_text("struct no_cell {};\n")
    assert codegen.main(["--check", *folder]) == 1
    out = capsys.readouterr().out
    for line in (
        "-    const V f = tanh(pre[1]);",
        "+    const V f = sigmoid(pre[1]);",
        "+struct gru {",
        "-struct no_cell",
    ):
        assert line in out
