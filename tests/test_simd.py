"""csrc/simd.h and vector_math.h, compiled for every instruction set this processor runs: accuracy, edges, lanes."""

import ctypes
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

CSRC = Path(__file__).parent.parent / "csrc"
CXX = os.environ.get("CXX", "g++").split()
pytestmark = pytest.mark.skipif(
    not CSRC.is_dir() or shutil.which(CXX[0]) is None, reason=f"needs csrc/ and a C++ compiler ({CXX[0]})"
)

FLAGS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64") and Path("/proc/cpuinfo").exists():
    has = set(Path("/proc/cpuinfo").read_text().split())
    if {"avx2", "fma"} <= has:
        FLAGS["avx2"] = ["-mavx2", "-mfma"]
        FLAGS["avx2 unfused"] = ["-mavx2", "-mfma", "-ffp-contract=off"]
    if {"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has:
        FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
REAL = {"f": np.float32, "d": np.float64}
CTYPE = {"f": "float", "d": "double"}
LANES = [(t, lanes) for t in "fd" for lanes in (1, 2, 4, 8, 16)]
HOT = ["exp", "tanh", "sigmoid", "relu", "sqrt"]  # for every number of lanes; the others for 4
MATH = [*HOT, "expm1", "log", "log1p", "softplus", "sign", "abs"]
OPERATIONS = [  # in C++ and in NumPy
    ("a + b", lambda a, b: a + b),
    ("a - b", lambda a, b: a - b),
    ("a * b", lambda a, b: a * b),
    ("a / b", lambda a, b: a / b),
    ("-a", lambda a, b: -a),
    ("(c += b, c *= b, c -= a, c)", lambda a, b: (a + b) * b - a),
    ("splat<V>(0.1)", lambda a, b: np.full_like(a, 0.1)),
    ("splat<V>(-0.0)", lambda a, b: np.full_like(a, -0.0)),
    ("select(a < b, a, one)", lambda a, b: np.where(a < b, a, 1)),
    ("select(a <= b, a, one)", lambda a, b: np.where(a <= b, a, 1)),
    ("select(a > b, a, one)", lambda a, b: np.where(a > b, a, 1)),
    ("select(a >= b, a, one)", lambda a, b: np.where(a >= b, a, 1)),
    ("select(a == b, a, one)", lambda a, b: np.where(a == b, a, 1)),
    ("select(a != b, a, one)", lambda a, b: np.where(a != b, a, 1)),
    ("select((a < b) & (a < one), a, b)", lambda a, b: np.where((a < b) & (a < 1), a, b)),
    ("select((a < b) | (a < one), a, b)", lambda a, b: np.where((a < b) | (a < 1), a, b)),
    ("select(!(a < b), a, b)", lambda a, b: np.where(~(a < b), a, b)),
    ("max(a, b)", np.maximum),
    ("min(a, b)", np.minimum),
    ("at_most(at_least(a, -1), 1)", lambda a, b: np.clip(a, -1, 1)),
    ("copysign(abs(a), b)", np.copysign),
]

PRELUDE = r"""
#include <stdint.h>
#include <stddef.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
namespace harness {
#include "simd.h"
#include "vector_math.h"
extern "C" int vector_bytes() { return TORCHRNN_VECTOR_BYTES; }
"""
PER_TYPE = r"""
extern "C" void load_first_@(const T* a, T* out, int n) { Vec<T, L>::load_first(a, n).store(out); }
extern "C" void store_first_@(const T* a, T* out, int n) { Vec<T, L>::load(a).store_first(out, n); }
extern "C" void fma_@(const T* a, const T* b, const T* c, T* out) {
  fma(Vec<T, L>::load(a), Vec<T, L>::load(b), Vec<T, L>::load(c)).store(out);
}
extern "C" void operations_@(const T* x, const T* y, T* out) {
  typedef Vec<T, L> V;
  V a = V::load(x), b = V::load(y), c = a, one = splat<V>(1);
  STORES
}
"""
PER_FUNCTION = r"""
extern "C" void NAME_@(const T* a, T* out, size_t n) {
  for (size_t i = 0; i + L <= n; i += L) NAME(Vec<T, L>::load(a + i)).store(out + i);
}
"""


def source():
    stores = " ".join(f"({text}).store(out + {i} * L);" for i, (text, _) in enumerate(OPERATIONS))
    text = PRELUDE
    for t, lanes in LANES:
        functions = "".join(PER_FUNCTION.replace("NAME", name) for name in MATH if name in HOT or lanes == 4)
        body = (PER_TYPE.replace("STORES", stores) + functions).replace("@", f"{t}{lanes}")
        text += f"#define T {CTYPE[t]}\n#define L {lanes}\n{body}#undef T\n#undef L\n"
    return text + "}\n"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simd")
    (folder / "harness.cpp").write_text(source())

    def build(isa):
        target = folder / f"{isa.replace(' ', '_')}.so"
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CSRC}", *FLAGS[isa]]
        done = subprocess.run([*CXX, *flags, "-o", target, folder / "harness.cpp"], capture_output=True, text=True)
        if done.returncode or "warning" in done.stderr:
            pytest.fail(f"{isa}: {done.stderr[:4000]}")
        return isa, ctypes.CDLL(str(target))

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(build, FLAGS))


@pytest.fixture(params=FLAGS)
def library(request, libraries):
    return libraries[request.param]


def pointers(*arrays):
    return [ctypes.c_void_p(a.ctypes.data) for a in arrays]


def apply(library, name, x, lanes=4):
    """The function of every element of x, whose size is a multiple of 16."""
    out = np.full_like(x, 7)
    letter = "f" if x.dtype == np.float32 else "d"
    getattr(library, f"{name}_{letter}{lanes}")(*pointers(x, out), ctypes.c_size_t(x.size))
    return out


def arguments(real, count):
    """Every exponent and sign with `count` mantissas in all, the range where functions curve, and what is special."""
    rng = np.random.default_rng(0)
    info = np.finfo(real)
    exponents, bits = (1 << info.iexp) - 1, np.uint32 if real is np.float32 else np.uint64
    e = np.repeat(np.arange(exponents, dtype=bits), count // (2 * exponents))
    m = rng.integers(0, 1 << info.nmant, e.size, dtype=bits)
    positive = ((e << bits(info.nmant)) | m).view(real)
    limit = -np.log(info.smallest_subnormal) * 1.05
    curve = np.concatenate([rng.uniform(-limit, limit, count // 4), rng.uniform(-3, 3, count // 4)]).astype(real)
    edges = [0, 1, 0.5, 2, 10, 20, 22, 40, info.max, info.tiny, info.smallest_subnormal, np.inf, np.sqrt(0.5)]
    edges += [np.log(info.max), -np.log(info.tiny), -np.log(info.smallest_subnormal), limit, 104, 746, 88.75, 709.8]
    edges = np.array(edges, real)
    with np.errstate(over="ignore", under="ignore"):
        neighbours = [np.nextafter(edges, real(direction)) for direction in (np.inf, -np.inf)]
    edges = np.concatenate([edges, *neighbours, [real(np.nan)]])
    x = np.concatenate([positive, -positive, curve, edges, -edges])
    return np.concatenate([x, np.ones(-x.size % 16, real)])


def reference(name, x):
    if name == "sigmoid":
        e = np.exp(-np.abs(x))
        return np.where(x < 0, e, 1) / (1 + e)
    if name == "softplus":
        return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))
    if name == "relu":
        return np.where(x <= 0, 0, x)
    if name == "sign":
        return np.nan_to_num(np.sign(x))
    return getattr(np, name)(x)


def errors(got, want):
    """In units in the last place of want; zero where got is want correctly rounded, or both are NaN."""
    info = np.finfo(got.dtype)
    magnitude = np.where(np.isfinite(want) & (want != 0), np.abs(want), 1)
    unit = np.ldexp(np.ones_like(want), np.maximum(np.frexp(magnitude)[1] - 1, info.minexp) - info.nmant)
    right = (got == want.astype(got.dtype)) | (np.isnan(got) & np.isnan(want))
    return np.where(right, 0, np.nan_to_num(np.abs(got - want) / unit, nan=np.inf))


@pytest.mark.parametrize("name", MATH)
@pytest.mark.parametrize(("letter", "bound"), [("f", 2), ("d", 4)])
def test_error_in_ulp(libraries, letter, bound, name):
    x = arguments(REAL[letter], 1 << 22 if letter == "f" else 1 << 18)
    wide = np.float64 if letter == "f" else np.longdouble
    if np.finfo(wide).nmant < np.finfo(REAL[letter]).nmant + 8:
        wide = np.float64  # no wider type here: the reference is itself an ulp off, within the bound of 4
    with np.errstate(all="ignore"):
        want = reference(name, x.astype(wide))
        for isa, library in libraries.items():
            got = apply(library, name, x)
            error = errors(got, want)
            worst = int(np.argmax(error))
            assert error[worst] <= bound, f"{isa}: {name}({x[worst]!r}) = {got[worst]!r}, {error[worst]:.3f} ulp off"


@pytest.mark.parametrize("letter", "fd")
def test_special_values(library, letter):
    inf, nan, real = np.inf, np.nan, REAL[letter]
    x = np.array([0.0, -0.0, inf, -inf, nan, -nan, 1000, -1000] * 2, real)
    expected = {
        "exp": [1, 1, inf, 0, nan, nan, inf, 0],
        "expm1": [0.0, -0.0, inf, -1, nan, nan, inf, -1],
        "log": [-inf, -inf, inf, nan, nan, nan, None, nan],
        "log1p": [0.0, -0.0, inf, nan, nan, nan, None, nan],
        "tanh": [0.0, -0.0, 1, -1, nan, nan, 1, -1],
        "sigmoid": [0.5, 0.5, 1, 0, nan, nan, 1, 0],
        "softplus": [None, None, inf, 0, nan, nan, 1000, 0],
        "relu": [0.0, -0.0, inf, 0, nan, nan, 1000, 0],
        "sign": [0, 0, 1, -1, 0, 0, 1, -1],
        "abs": [0, 0, inf, inf, nan, nan, 1000, 1000],
        "sqrt": [0.0, -0.0, inf, nan, nan, nan, None, nan],
    }
    for name, values in expected.items():
        for got, want in zip(apply(library, name, x), values * 2, strict=True):
            if want is not None:
                np.testing.assert_equal(got, real(want), err_msg=name)
                assert np.isnan(want) or np.signbit(got) == np.signbit(real(want)), f"{name} gave {got} for {want}"


def test_gradual_underflow(library):
    x = np.full(16, -100, np.float32)
    assert apply(library, "sigmoid", x)[0] == np.float32(3.783506e-44)
    assert apply(library, "exp", x)[0] == np.float32(3.783506e-44)
    x = np.full(16, 1e-45, np.float32)
    for name in ("tanh", "expm1", "log1p"):
        assert apply(library, name, x)[0] == x[0], name


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid"])
@pytest.mark.parametrize("letter", "fd")
def test_saturation(library, name, letter):
    """Never beyond the limits, and never turning back on the way to them."""
    real = REAL[letter]
    far = apply(library, name, np.linspace(1, 800, 1 << 16).astype(real))
    near = apply(library, name, -np.linspace(1, 800, 1 << 16).astype(real))
    step = 4 * np.finfo(real).eps  # neighbours may differ by their rounding, no more
    assert np.all(far[1:] >= far[:-1] * (1 - step))
    assert np.all(near[1:] <= near[:-1] + abs(near[:-1]) * step)
    assert far.max() == far[-1] == (np.inf if name == "exp" else 1)
    assert near.min() == near[-1] == (-1 if name == "tanh" else 0)


@pytest.mark.parametrize("name", HOT)
@pytest.mark.parametrize("letter", "fd")
def test_same_bits_for_every_number_of_lanes(library, name, letter):
    x = arguments(REAL[letter], 1 << 14)
    want = apply(library, name, x, 1)
    for lanes in (2, 4, 8, 16):
        np.testing.assert_array_equal(apply(library, name, x, lanes), want)


@pytest.mark.parametrize(("letter", "lanes"), LANES)
def test_operations(library, letter, lanes):
    real = REAL[letter]
    values = np.array([0.0, -0.0, 1, -1, 0.3, -2.5, np.inf, -np.inf, np.nan], real)
    pairs = np.array([(a, b) for a in values for b in values], real)
    pairs = np.concatenate([pairs, np.ones((-len(pairs) % lanes, 2), real)])
    for start in range(0, len(pairs), lanes):
        a, b = np.ascontiguousarray(pairs[start : start + lanes].T)
        out = np.empty((len(OPERATIONS), lanes), real)
        getattr(library, f"operations_{letter}{lanes}")(*pointers(a, b, out))
        with np.errstate(all="ignore"):
            for got, (text, operation) in zip(out, OPERATIONS, strict=True):
                want = operation(a, b).astype(real)
                rtol = 4 * np.finfo(real).eps if "+=" in text else 0  # the compiler may fuse it
                np.testing.assert_allclose(got, want, rtol=rtol, atol=0, err_msg=f"{text} of {a} and {b}")
                signed = ~np.isnan(want) & ((want != 0) | ("max" not in text) & ("min" not in text))
                np.testing.assert_array_equal(np.signbit(got)[signed], np.signbit(want)[signed], err_msg=text)


@pytest.mark.parametrize(("letter", "lanes"), LANES)
def test_fma(library, letter, lanes):
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, lanes)).astype(REAL[letter])
    out = np.empty_like(a)
    getattr(library, f"fma_{letter}{lanes}")(*pointers(a, b, c, out))
    np.testing.assert_allclose(out, a.astype(np.float64) * b + c, atol=4 * np.finfo(a.dtype).eps)


@pytest.mark.parametrize(("letter", "lanes"), LANES)
def test_partial_load_and_store(library, letter, lanes):
    real = REAL[letter]
    for n in range(lanes + 1):
        source = np.full(lanes, np.nan, real)
        source[:n] = np.arange(1, n + 1)
        out = np.full(lanes + 2, -7, real)
        getattr(library, f"load_first_{letter}{lanes}")(*pointers(source, out[1:]), n)
        np.testing.assert_array_equal(out, [-7, *range(1, n + 1), *[0] * (lanes - n), -7])
        full, out = np.arange(1, lanes + 1, dtype=real), np.full(lanes + 2, -7, real)
        getattr(library, f"store_first_{letter}{lanes}")(*pointers(full, out[1:]), n)
        np.testing.assert_array_equal(out, [-7, *range(1, n + 1), *[-7] * (lanes - n + 1)])


@pytest.mark.skipif(not hasattr(ctypes.pythonapi, "PyObject_Call") or os.name != "posix", reason="needs mprotect")
@pytest.mark.parametrize(("letter", "lanes"), LANES)
def test_partial_access_at_the_end_of_memory(library, letter, lanes):
    """The elements end where a page begins that may be neither read nor written."""
    import mmap

    page, real = mmap.PAGESIZE, REAL[letter]
    memory = mmap.mmap(-1, 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    address = whole.ctypes.data + page
    start = ctypes.c_void_p(address)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(start, page, 0) == 0
    try:
        out = np.empty(lanes, real)
        for n in range(lanes + 1):
            last = ctypes.c_void_p(address - n * np.dtype(real).itemsize)
            getattr(library, f"load_first_{letter}{lanes}")(last, *pointers(out), n)
            getattr(library, f"store_first_{letter}{lanes}")(*pointers(out), last, n)
    finally:
        assert libc.mprotect(start, page, 3) == 0


def test_vector_bytes(libraries):
    expected = {"baseline": 16, "avx2": 32, "avx2 unfused": 32, "avx512": 64}
    assert {isa: library.vector_bytes() for isa, library in libraries.items()} == {isa: expected[isa] for isa in FLAGS}


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_code_leaves_its_namespace(libraries):
    """A weak function compiled for AVX-512 could be the one the linker gives to the baseline."""
    for isa, library in libraries.items():
        symbols = subprocess.run(["nm", "-C", library._name], capture_output=True, text=True, check=True).stdout
        weak = [line for line in symbols.splitlines() if line[17:18] in "WVu" and line[:16].strip()]
        assert [line for line in weak if "harness::" not in line] == [], isa
