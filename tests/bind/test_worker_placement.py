"""The placement that a process was started with, and the memory file that keeps it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.placement.document import PUBLISHED_NAME
from tests.conftest import ROOT

PUBLISH = f"""
import os
from ompaffinity.bind.worker_placement import current_placement, publish_placement
publish_placement()
publish_placement()
links = [os.readlink(f"/proc/self/fd/{{number}}") for number in os.listdir("/proc/self/fd")[:-1]]
print(sum({PUBLISHED_NAME!r} in link for link in links), current_placement() is not None)
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files")
@pytest.mark.parametrize(("is_worker", "printed"), [(True, "1 True"), (False, "0 False")])
def test_a_worker_publishes_its_placement_once(is_worker: bool, printed: str) -> None:
    environ = OMPProcessManager(runtime="gomp").environment(0) if is_worker else dict(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH], capture_output=True, text=True, check=True, cwd=ROOT, env=environ, timeout=60
    )
    assert done.stdout == f"{printed}\n"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memory files")
def test_a_worker_without_memory_files_publishes_nothing() -> None:
    code = f"import os; del os.memfd_create\n{PUBLISH}"
    environ = OMPProcessManager(runtime="gomp").environment(0)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environ, timeout=60
    )
    assert done.stdout == "0 True\n"
