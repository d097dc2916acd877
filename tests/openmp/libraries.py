"""The real OpenMP runtimes that tests may find here, and marks that skip where one is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOMP = "libgomp.so.1"
LLVM = "libomp.so.5"
# Where scripts/install-system-packages unpacks it.
NEWER_LLVM = "/usr/local/lib/ompaffinity-tests/usr/lib/llvm-19/lib/libomp.so.5"


def loadable(library: str) -> bool:
    """Whether the library loads, asked in a child: an OpenMP runtime must not get into this process."""
    code = f"import ctypes; ctypes.CDLL({library!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def intel_library() -> str | None:
    """Return the path of libiomp5 in the package intel-openmp; None if it is not installed."""
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(Path(str(file.locate())).resolve()) for file in files if file.name == "libiomp5.so"), None)


INTEL = intel_library()

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_gomp = pytest.mark.skipif(not loadable(GOMP), reason="libgomp1 is not installed")
needs_llvm = pytest.mark.skipif(not loadable(LLVM), reason="libomp5 is not installed")
needs_newer_llvm = pytest.mark.skipif(
    not Path(NEWER_LLVM).exists(), reason="a newer libomp is not unpacked; scripts/install-system-packages does it"
)
needs_intel = pytest.mark.skipif(INTEL is None, reason="intel-openmp is not installed; [test-runtimes] brings it")
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed; [test-runtimes] brings it"
)

LIBRARIES = {
    "gomp": pytest.param("gomp", GOMP, marks=needs_gomp),
    "llvm": pytest.param("iomp", LLVM, marks=needs_llvm),
    "newer-llvm": pytest.param("iomp", NEWER_LLVM, marks=needs_newer_llvm),
    "intel": pytest.param("iomp", INTEL, marks=needs_intel),
}
"""(family, file) of each: parameters of a test."""
