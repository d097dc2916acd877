"""A parallel region without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import needs_two_cpus
from tests.openmp.libraries import LIBRARIES

TEAM = """
import ctypes, json, os, sys
from ompaffinity.openmp.team import in_each_thread
runtime = ctypes.CDLL(sys.argv[1])
masks = {}
threads = in_each_thread(
    runtime, lambda: masks.setdefault(runtime.omp_get_thread_num(), sorted(os.sched_getaffinity(0))), int(sys.argv[2])
)
print(json.dumps([len(set(threads)), [masks[number] for number in sorted(masks)]]))
"""


@needs_two_cpus
@pytest.mark.parametrize(("family", "library"), list(LIBRARIES.values()))
def test_the_threads_of_a_team_are_bound_as_the_environment_asks(family: str, library: str) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    places = f"{{{first}}},{{{first}}},{{{second}}},{{{second}}}"
    environment = {**os.environ, "OMP_PLACES": places, "OMP_PROC_BIND": "spread", "OMP_NUM_THREADS": "3"}
    found = []
    for threads in (2, 0):
        command = [sys.executable, "-c", TEAM, library, str(threads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == [2, [[first], [second]]], family
    assert found[1][0] == 3
