"""What only a machine with several threads per core shows: why plans name single CPUs, and each thread of a core."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from ompaffinity.topology.source import load_topology
from tests.guests.inside.common import description, ompaffinity, run

TEAM = """
import ctypes, json, os, sys
from ompaffinity.openmp.team import in_each_thread
runtime, masks = ctypes.CDLL(sys.argv[1]), {}
in_each_thread(runtime, lambda: masks.update({runtime.omp_get_thread_num(): sorted(os.sched_getaffinity(0))}))
print(json.dumps([masks[number] for number in sorted(masks)]))
"""

needs_llvm = pytest.mark.skipif("libomp.so.5" not in description()["libraries"], reason="LLVM's runtime is not there")


def masks(library: str, **environment: str) -> list[list[int]]:
    """Return the mask of each thread of a team, from the kernel."""
    found: list[list[int]] = json.loads(run(sys.executable, "-c", TEAM, library, **environment).splitlines()[-1])
    return found


def cores() -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for cpu in load_topology().cpus:
        found.setdefault(cpu.physical_core, []).append(cpu.id)
    return list(found.values())


@needs_llvm
def test_without_fine_granularity_a_thread_gets_the_whole_core() -> None:
    first, second = cores()[:2]
    listed = f"explicit,proclist=[{first[0]},{second[0]}]"
    assert masks("libomp.so.5", KMP_AFFINITY=listed, OMP_NUM_THREADS="2") == [first, second]
    assert masks("libomp.so.5", KMP_AFFINITY=f"granularity=fine,{listed}", OMP_NUM_THREADS="2") == [
        first[:1],
        second[:1],
    ]


def test_a_place_that_is_called_core_is_the_whole_core(library: str) -> None:
    first, second = cores()[:2]
    assert masks(library, OMP_PLACES="cores", OMP_PROC_BIND="close", OMP_NUM_THREADS="2") == [first, second]


def test_our_plan_gives_each_thread_one_cpu_and_no_two_of_them_a_core(guest: dict[str, Any], library: str) -> None:
    verdict = ompaffinity("verify", "--tp", "2", "--threads-per-core", "1", "--library", library)
    assert verdict["holds"]
    topology = load_topology()
    for rank in verdict["ranks"]:
        single = [int(thread["cpus"]) for thread in rank["threads"][1:]]
        assert len({topology.cpu(cpu).physical_core for cpu in single}) == len(single)
