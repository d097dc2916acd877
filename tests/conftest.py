"""What several rooms' tests share."""

from __future__ import annotations

import os
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
