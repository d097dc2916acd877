"""What several rooms' tests share."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ompaffinity.bind.mempolicy import LibnumaMissingError, load_libnuma
from tests.gpu_machine import gpu_machine as gpu_machine

ROOT = Path(__file__).resolve().parent.parent

# A property's run time is no measure on a busy machine, and CI must not draw other examples than a developer.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("fuzz", deadline=None, max_examples=100_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


RECORDED = Path(os.environ.get("OMPAFFINITY_MACHINES", ROOT.parent / "shared" / "machines"))
"""Recorded machines with their true answers; they are not part of a user's checkout."""


def recorded_names(folder: str, ending: str) -> list[str]:
    """Return the names of the recorded machines of one form; one name that leads to a skip where there are none."""
    return sorted(path.name.removesuffix(ending) for path in (RECORDED / folder).glob(f"*{ending}")) or ["none"]


@pytest.fixture(scope="session")
def recorded_machines() -> Path:
    """The folder of recorded machines."""
    if not (RECORDED / "expected").is_dir():
        pytest.skip(f"no recorded machines in {RECORDED}; OMPAFFINITY_MACHINES names another folder")
    return RECORDED


OUTSIDE_VARIABLES = (
    *("OMPAFFINITY_", "VLLM_CPU_", "CPU_VISIBLE_MEMORY_NODES"),  # planning options
    *("OMP_", "GOMP_", "KMP_", "MKL_"),  # OpenMP runtimes
    *("RANK", "LOCAL_", "WORLD_SIZE", "MPI_", "OMPI_", "PMI", "SLURM_"),  # launchers
    *("CUDA_", "HIP_", "ROCR_", "GPU_DEVICE_ORDINAL"),  # visible GPUs
    "COLUMNS",  # the width of tables
)
"""Prefixes of the variables that change what the package does, and that the shell of a developer may have."""


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Unset the variables of the shell that runs the tests; of session scope, so that every fixture starts without."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(OUTSIDE_VARIABLES)]:
            patch.delenv(name)
        yield


SENT_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
"""The signals that tests send to their children, and the one that the kernel sends when a child ends."""


@pytest.fixture(scope="session", autouse=True)
def _default_signals() -> Iterator[None]:
    """Stop ignoring the signals that pytest was started with ignored: under nohup, or as a script's background job.

    Children inherit what is ignored (signal(7)), so the signals that tests send to them would have no effect.
    """
    ignored = [number for number in SENT_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        # Python's own handler of SIGINT, which it installs only where SIGINT is not ignored at its start.
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ompaffinity`` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "ompaffinity", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


# The conditions that a machine may not meet, each with the reason that a skipped test gives.

CPUS = sorted(os.sched_getaffinity(0))
"""The CPUs that the tests may use."""

COMPETITORS = ("competitor", "competitor-ended")
"""Kinds of changes that a watch reports on a busy machine, whatever the test does."""

needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="two ranks or two OpenMP threads need two CPUs")

ONE_OR_TWO = [1, pytest.param(2, marks=needs_two_cpus)]
"""Numbers of ranks: parameters of a test."""


def needs_program(name: str) -> pytest.MarkDecorator:
    """Skip where the program is not in PATH."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def has_libnuma() -> bool:
    """Whether libnuma loads."""
    try:
        load_libnuma()
    except LibnumaMissingError:
        return False
    return True


needs_libnuma = pytest.mark.skipif(not has_libnuma(), reason="libnuma1 is not installed")


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="unshare -m and mount need root and util-linux")

needs_drawsvg = pytest.mark.skipif(
    importlib.util.find_spec("drawsvg") is None, reason="drawsvg is not installed (the extra [svg])"
)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra [ray])")

needs_nvml = pytest.mark.skipif(
    importlib.util.find_spec("pynvml") is None or shutil.which("gcc") is None,
    reason="nvidia-ml-py (the extra [nvidia]) or gcc is not installed",
)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a stand-in driver, and of one that is old."""
    folders = {}
    for name, flags in (("new", []), ("old", ["-DOLD_DRIVER"])):
        folders[name] = tmp_path_factory.mktemp(name)
        source = str(ROOT / "tests" / "devices" / "nvml_standin.c")
        library = str(folders[name] / "libnvidia-ml.so.1")
        subprocess.run(
            ["gcc", "-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", *flags, "-o", library, source],
            check=True,
        )
    return folders
