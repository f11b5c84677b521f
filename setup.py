"""The build of the kernels in csrc: one plain shared library over torch's stable ABI, each file with its own flags.

TORCHRNN_CXXFLAGS adds flags (sanitizers), TORCHRNN_EXTENSION=0 leaves the kernels out.
"""

import hashlib
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# no -march=native: the binary may travel; no -ffast-math: NaN and inf must
FLAGS = [
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
FLAGS += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # 2.10
ISA_FLAGS = {
    "isa_avx2": ["-mavx2", "-mfma"],
    "isa_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
ISA_FLAGS["isa_avx512bf16"] = [*ISA_FLAGS["isa_avx512"], "-mavx512bf16"]
EXTRA = os.environ.get("TORCHRNN_CXXFLAGS", "").split()
X86 = platform.machine().lower() in ("x86_64", "amd64")
# The linker keeps the first of equal inline functions: it must not be one that only newer processors can run.
SOURCES = sorted(Path("csrc").glob("*.cpp"), key=lambda s: (s.stem in ISA_FLAGS, s.stem))


def compiler() -> list[str] | None:
    """The C++ compiler as a command, or None: the code needs the vector extensions that GCC and Clang share."""
    if os.environ.get("TORCHRNN_EXTENSION") == "0" or sys.platform == "win32":
        return None
    for command in (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"):
        if command and shutil.which(command.split()[0]):
            return command.split()
    return None


def torch_version(folder: Path) -> tuple[int, ...]:
    """Major and minor of the torch in a folder; (0,) where there is none."""
    file = folder / "version.py"
    found = re.search(r"__version__ = '(\d+)\.(\d+)", file.read_text()) if file.exists() else None
    return tuple(map(int, found.groups())) if found else (0,)


def torch_folder() -> Path | None:
    """An installed torch whose headers serve: of this interpreter, or of the environment an isolated build is for."""
    spec = find_spec("torch")
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    prefixes = [{"base": p, "platbase": p} for p in (sys.prefix, sys.base_prefix)]
    sites = [*(sysconfig.get_path("platlib", vars=p) for p in prefixes), site.getusersitepackages()]
    folders += [Path(s, "torch") for s in sites]
    return next((f for f in folders if torch_version(f) >= (2, 10)), None)


class Build(build_ext):
    """Compiles the files side by side, keeps the objects in build/objects, links them."""

    def get_ext_filename(self, fullname: str) -> str:
        """No Python in the name: it is no Python module."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        torch = torch_folder()
        if torch is None:
            raise CompileError("the kernels need the headers of torch>=2.10: install torch first")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sources = [s for s in SOURCES if X86 or s.stem not in ISA_FLAGS]
            # the last take longest, so they start first
            objects = list(pool.map(lambda source: compile_object(source, torch), sources[::-1]))[::-1]
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        # torch is loaded before us, so no path to it is kept
        link = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        run([*(compiler() or ()), "-shared", *EXTRA, *map(str, objects), *link, "-o", str(library)])


def compile_object(source: Path, torch: Path) -> Path:
    """Compile one file, unless the same command has done so with the same file and headers."""
    command = [*(compiler() or ()), *FLAGS, *ISA_FLAGS.get(source.stem, ()), *EXTRA]
    command += ["-isystem", str(torch / "include"), "-c", str(source), "-o"]
    made_from = hashlib.sha256(" ".join([*command, *map(str, torch_version(torch))]).encode())
    for read in (source, *sorted(Path("csrc").rglob("*.h"))):
        made_from.update(read.read_bytes())
    result = Path("build/objects", made_from.hexdigest()[:12], source.stem + ".o")
    if not result.exists():
        result.parent.mkdir(parents=True, exist_ok=True)
        partial = result.with_suffix(".partial.o")
        run([*command, str(partial)])
        partial.replace(result)
    return result


def run(command: list[str]) -> None:
    """Run a compiler; its errors are ours."""
    print(" ".join(command) + "\n", end="", flush=True)  # whole lines, though several run at once
    if subprocess.run(command).returncode:
        raise CompileError("the kernels do not compile, see above; TORCHRNN_EXTENSION=0 installs torchrnn without them")


class Wheel(bdist_wheel):
    """A wheel that serves every Python 3: the library knows nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI, platform."""
        return "py3", "none", super().get_tag()[2]


if compiler() is None:
    print(
        "warning: torchrnn is built without its own CPU kernels (they need GCC or Clang; CXX may name one): "
        "layers run on torch's kernels or, slower, step by step",
        file=sys.stderr,
    )
setup(
    ext_modules=[Extension("torchrnn.libtorchrnn", list(map(str, SOURCES)))] if compiler() else [],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    # Gigabytes where torch brings CUDA: asked for only where no torch is installed yet.
    setup_requires=["torch>=2.10"] if compiler() and torch_folder() is None else [],
)
