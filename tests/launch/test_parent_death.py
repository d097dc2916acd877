"""Children that are killed with the process that started them."""

from __future__ import annotations

import subprocess
import sys

from ompaffinity.launch.parent_death import PARENT_HAS_ENDED
from tests.conftest import ROOT
from tests.launch.test_run import is_alive, wait_until

STARTER = """
import subprocess, sys
from ompaffinity.launch.parent_death import killed_with_parent
child = subprocess.Popen(["sleep", "300"], preexec_fn=killed_with_parent(), start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
ORPHAN = """
import os, sys
from ompaffinity.launch.parent_death import killed_with_parent
ask = killed_with_parent()
if os.fork() == 0:
    # The parent that it was made for has not ended, but this child's child has another one.
    child = os.fork()
    if child == 0:
        ask()
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_child_is_killed_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
    wait_until(lambda: not is_alive(child))


def test_a_child_whose_parent_has_ended_starts_nothing() -> None:
    assert subprocess.run([sys.executable, "-c", ORPHAN], check=False, cwd=ROOT).returncode == PARENT_HAS_ENDED
