"""Weighted interleave on a kernel that has it: planned where the weights differ, set, and proven."""

from __future__ import annotations

import pytest

from tests.guests.inside.common import in_new_python, ompaffinity
from tests.guests.inside.weights import WEIGHTS

MEBIBYTES = 64


def test_reads_the_weights_of_the_kernel() -> None:
    nodes = ompaffinity("topology")["nodes"]
    assert {node["node"]: node["interleave_weight"] for node in nodes} == WEIGHTS


def test_a_rank_on_nodes_of_different_weights_interleaves_by_them() -> None:
    (rank,) = ompaffinity("plan", "--tp", "1")["ranks"]
    assert (rank["memory_policy"], rank["nodes"]) == ("weighted-interleave", [*WEIGHTS])


def test_the_verdict_holds_with_the_policy_of_the_plan(library: str) -> None:
    verdict = ompaffinity("verify", "--tp", "1", "--library", library)
    assert verdict["holds"]
    assert verdict["ranks"][0]["policy"] == "weighted interleave:0-1"


def test_pages_of_a_worker_follow_the_weights() -> None:
    pages = in_new_python(f"""
        import json, subprocess, sys
        import ompaffinity
        manager = ompaffinity.OMPProcessManager(tensor_parallel_size=1, runtime="gomp")
        program = "import json; from tests.guests.inside.common import *"
        program += "; print(json.dumps(nodes_of(touched({MEBIBYTES}))))"
        with manager.configure_omp_envs(0):
            worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        answer = json.loads(worker.communicate()[0])
    """)
    assert {int(node) for node in pages} == set(WEIGHTS)
    assert pages["0"] / pages["1"] == pytest.approx(WEIGHTS[0] / WEIGHTS[1], rel=0.05)


def test_plain_interleave_is_kept_where_it_is_requested() -> None:
    verdict = ompaffinity("verify", "--tp", "1", "--memory-policy", "interleave")
    assert verdict["holds"]
    assert verdict["ranks"][0]["policy"] == "interleave:0-1"
