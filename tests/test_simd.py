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
        body = PER_TYPE.replace("STORES", stores)
        body += "".join(PER_FUNCTION.replace("NAME", name) for name in MATH if name in HOT or lanes == 4)
        body = (
            body.replace("@", f"{t}{lanes}")
            .replace("const T*", f"const {CTYPE[t]}*")
            .replace("T* out", f"{CTYPE[t]}* out")
        )
        text += body.replace("Vec<T, L>", f"Vec<{CTYPE[t]}, {lanes}>").replace("L;", f"{lanes};")
    return text + "}\n"
