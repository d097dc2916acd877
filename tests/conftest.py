"""What several rooms' tests share."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

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


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the planning options of the shell that runs the tests out of them."""
    from ompaffinity.placement.request import ENVIRONMENT

    for names in ENVIRONMENT.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


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
