"""The library of kernels: it loads, it runs on each instruction set, and it needs nothing but torch's stable ABI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrnn import _extension

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not _extension.LIBRARY.exists(), reason="built without a C++ compiler")
USE = """
import torch, torchrnn
from torchrnn import _extension
assert _extension.missing() is None, _extension.missing()
for layer in torchrnn.LSTM(5, 7), torchrnn.GRU(5, 37), torchrnn.RNN(3, 65):
    x = torch.randn(4, 3, layer.input_size)
    with torchrnn.use("reference"):
        expected = layer(x)[0]
    torch.testing.assert_close(layer(x)[0], expected)
print(torch.ops.torchrnn.isa())
"""


def use(**environment: str) -> subprocess.CompletedProcess[str]:
    """In a fresh process: load the library, compare each layer with the reference, print the instruction set."""
    environment = {k: v for k, v in os.environ.items() if k != "TORCHRNN_ISA"} | environment
    return subprocess.run([sys.executable, "-W", "error", "-c", USE], env=environment, capture_output=True, text=True)


def test_it_loads_and_names_its_instruction_set() -> None:
    assert _extension.missing() is None
    assert torch.ops.torchrnn.isa() in ("baseline", "avx2", "avx512", "avx512bf16")


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512bf16"])
def test_each_instruction_set_can_be_forced(isa: str) -> None:
    result = use(TORCHRNN_ISA=isa)
    if "must be one of those that this processor has" in result.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert result.stdout.strip() == isa, result.stderr


def test_an_unknown_instruction_set_is_an_error() -> None:
    result = use(TORCHRNN_ISA="mmx")
    assert result.returncode
    assert "RuntimeError: TORCHRNN_ISA must be one of those that this processor has (" in result.stderr
    assert "baseline), got 'mmx'" in result.stderr


def test_an_absent_library_is_a_reason_not_an_exception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_extension, "LIBRARY", tmp_path / "absent.so")
    assert "built without its own kernels" in (_extension.missing.__wrapped__() or "")
    (tmp_path / "absent.so").write_bytes(b"not a library")
    assert "do not load" in (_extension.missing.__wrapped__() or "")


def test_importing_torchrnn_does_not_load_it() -> None:
    code = "import torchrnn; print('libtorchrnn' in open('/proc/self/maps').read())"
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.skipif(not (shutil.which("nm") and shutil.which("readelf")), reason="needs nm and readelf")
class TestBinary:
    """One binary for every torch from 2.10 on and every Python."""

    def test_it_needs_torch_and_the_c_and_cpp_libraries_only(self) -> None:
        dynamic = subprocess.check_output(["readelf", "-d", _extension.LIBRARY], text=True)
        needed = {line.split("[")[1].split(".so")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
        sanitizers = {"libasan", "libubsan"}
        needed = {n for n in needed if not n.startswith("ld-linux")}  # the C library's own loader: thread-local memory
        assert needed <= {"libtorch_cpu", "libstdc++", "libgcc_s", "libm", "libc", "libpthread", *sanitizers}
        assert "PATH" not in dynamic

    def test_of_torch_it_uses_the_stable_abi_only(self) -> None:
        undefined = subprocess.check_output(["nm", "-D", "--undefined-only", _extension.LIBRARY], text=True)
        names = [line.split()[-1].split("@")[0] for line in undefined.splitlines()]
        assert any(name.startswith("aoti_torch_") for name in names)
        mangled = ("2at", "3c10", "5torch")  # the namespaces of torch, as the compiler writes them
        assert not [
            n for n in names if n.startswith(("Py", "_Py")) or (n.startswith("_Z") and any(m in n for m in mangled))
        ]

    def test_it_exports_nothing_of_its_own(self) -> None:
        defined = subprocess.check_output(["nm", "-D", "--defined-only", _extension.LIBRARY], text=True)
        assert "torchrnn" not in defined, defined


class TestBuild:
    """What `setup.py` does where there is no compiler, and where there is one that fails."""

    def build(self, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        (folder / "torchrnn").mkdir()
        command = [sys.executable, "setup.py", "--quiet", "build_ext"]
        environment = {**os.environ, "TORCHRNN_EXTENSION": "1", **environment}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    def test_without_a_compiler_one_line_says_what_is_lost(self, tmp_path: Path) -> None:
        result = self.build(tmp_path, PATH=str(tmp_path), CXX="")
        assert result.returncode == 0, result.stderr
        assert "warning: torchrnn is built without its own CPU kernels" in result.stderr
        assert not list(tmp_path.rglob("*.so"))

    @pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")
    def test_what_does_not_compile_is_an_error(self, tmp_path: Path) -> None:
        result = self.build(tmp_path, CXX="false")
        assert result.returncode
        assert "error: the kernels do not compile" in result.stderr
