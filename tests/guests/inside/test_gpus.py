"""Displays behind bridges on known nodes: what the kernel reports of them, and workers bound next to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import ompaffinity
from ompaffinity.bind.mempolicy import thread_policy
from tests.guests.inside.common import in_child, run
from tests.guests.inside.common import ompaffinity as read_json

MODES = {0: "default", 1: "preferred", 2: "bind", 3: "interleave"}
"""linux/mempolicy.h"""
HOMES = [None, 0, 1, 1]


def main_policy() -> str:
    policy = thread_policy()
    return f"{MODES[policy.mode]} {ompaffinity.format_id_list(policy.nodes)}".strip()


def state() -> Any:
    return [sorted(os.sched_getaffinity(0)), main_policy()]


def test_each_device_and_its_node() -> None:
    document = read_json("devices")
    assert [device["nodes"] for device in document["devices"]] == [[], [0], [1], [1]]
    assert [device["source"] for device in document["devices"]] == [None, "sysfs", "sysfs", "sysfs"]
    assert [message["code"] for message in document["warnings"]] == ["device-node-unknown"]
    assert ompaffinity.get_all_device_numa_nodes() == HOMES
    assert ompaffinity.get_auto_numa_nodes() == HOMES
    config = ompaffinity.NUMABindConfig(True)
    assert [ompaffinity.get_numa_node_if_available(config, gpu) for gpu in range(4)] == HOMES
    by_hand = ompaffinity.NUMABindConfig(True, [1, 1, 0, 0])
    assert [ompaffinity.get_numa_node_if_available(by_hand, gpu) for gpu in range(4)] == [1, 1, 0, 0]
    assert ompaffinity.get_numa_node_if_available(ompaffinity.NUMABindConfig(), 1) is None


def test_in_a_narrower_mask() -> None:
    def narrowed() -> Any:
        os.sched_setaffinity(0, {0, 1})
        return ompaffinity.get_auto_numa_nodes()

    assert in_child(narrowed) == [None, 0, None, None]


def test_the_plan() -> None:
    plan = read_json("plan", "--tp", "4", "--numa-bind")
    assert [rank["bound"] for rank in plan["ranks"]] == [False, True, True, True]
    assert [rank["nodes"] for rank in plan["ranks"]] == [[], [0], [1], [1]]
    assert [rank["affinity"] for rank in plan["ranks"]] == ["", "0-3", "4-5", "6-7"]
    by_hand = read_json("plan", "--tp", "2", "--gpus", "3,0", "--numa-bind-nodes", "1", "0", "0", "1")
    assert [(rank["device"], rank["nodes"]) for rank in by_hand["ranks"]] == [(3, [1]), (0, [1])]


@pytest.mark.parametrize("method", ["spawn", "fork", "popen"])
def test_workers_are_next_to_their_devices(method: str) -> None:
    before = state()
    found = [started(method, rank) for rank in range(4)]
    assert state() == before
    assert found == [
        [list(range(8)), before[1]],
        [[0, 1, 2, 3], "bind 0"],
        [[4, 5], "bind 1"],
        [[6, 7], "bind 1"],
    ]


def test_an_engine_has_the_nodes_of_its_workers_and_they_divide_them() -> None:
    config = SimpleNamespace(tensor_parallel_size=2)

    def engine() -> Any:
        with ompaffinity.configure_subprocess(config, 0, 1, "EngineCore"):
            code = (
                "import json; from tests.guests.inside import test_gpus as t;"
                "print(json.dumps([t.state(), t.started('spawn', 0, 1), t.started('spawn', 1, 1)]))"
            )
            return json.loads(run(sys.executable, "-c", code))

    # Its workers' GPUs are 2 and 3.
    assert in_child(engine) == [[[4, 5, 6, 7], "bind 1"], [[4, 5], "bind 1"], [[6, 7], "bind 1"]]


def test_an_engine_over_two_nodes() -> None:
    config = SimpleNamespace(tensor_parallel_size=3)

    def engine() -> Any:
        with ompaffinity.configure_subprocess(config, 0, process_kind="EngineCore") as placement:
            assert placement.gpus == (0, 1, 2)
            return json.loads(run(sys.executable, "-c", PRINT))

    mask, policy = in_child(engine)
    assert mask == [0, 1, 2, 3, 4, 5]
    assert policy == "interleave 0-1"


PRINT = "import json; from tests.guests.inside.test_gpus import state; print(json.dumps(state()))"


def started(method: str, local_rank: int, dp_local_rank: int | None = None) -> Any:
    """Return the state of a worker that is started as the rank of a server with two (or four) GPUs."""
    config = SimpleNamespace(tensor_parallel_size=4 if dp_local_rank is None else 2)
    with ompaffinity.configure_subprocess(config, local_rank, dp_local_rank):
        if method == "popen":
            return json.loads(run(sys.executable, "-c", PRINT))
        with multiprocessing.get_context(method).Pool(1) as pool:
            return pool.apply(state)


def test_run_and_the_proof() -> None:
    done = run(
        *(sys.executable, "-m", "ompaffinity", "run", "--tp", "2", "--gpus", "1,3", "--runtime", "gomp", "--"),
        *(sys.executable, "-c", PRINT),
    )
    # The two on node 1 are not both used, so that rank 1 has all of it.
    assert '[[0, 1, 2, 3], "bind 0"]' in done
    assert '[[4, 5, 6, 7], "bind 1"]' in done
    verdict = read_json("verify", "--tp", "3", "--gpus", "1,2,3", "--library", "libgomp.so.1")
    assert verdict["holds"]


def test_exec_takes_the_gpu_of_the_local_rank() -> None:
    words = (sys.executable, "-m", "ompaffinity", "exec", "--numa-bind", "--local-rank", "3", "--local-world-size", "4")
    assert json.loads(run(*words, "--", sys.executable, "-c", PRINT)) == [[6, 7], "bind 1"]


def test_a_whole_process_moves_to_a_node() -> None:
    def moved() -> Any:
        ready, end = threading.Event(), threading.Event()

        def wait() -> None:
            ready.set()
            end.wait()

        other = threading.Thread(target=wait)
        other.start()
        ready.wait()
        odd = threading.Thread(target=end.wait)
        os.sched_setaffinity(0, {0})
        odd.start()
        os.sched_setaffinity(0, set(range(8)))
        binding = ompaffinity.numa_bind_to_node(1)
        masks = {name: sorted(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")}
        policy = main_policy()
        binding.undo()
        back = {name: sorted(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")}
        end.set()
        return [
            masks[str(threading.get_native_id())],
            masks[str(other.native_id)],
            masks[str(odd.native_id)],
            policy,
            [thread.thread_id == odd.native_id for thread in binding.not_bound],
            sorted(map(len, back.values())),
            main_policy(),
        ]

    assert in_child(moved) == [[4, 5, 6, 7], [4, 5, 6, 7], [0], "bind 1", [True], [1, 8, 8], "default"]


def test_a_process_that_may_not_go_there_stays() -> None:
    def stayed() -> Any:
        os.sched_setaffinity(0, {0, 1})
        binding = ompaffinity.numa_bind_to_node(1)
        return [state(), [message.code for message in binding.messages]]

    mask_and_policy, codes = in_child(stayed)
    assert mask_and_policy == [[0, 1], "default"]
    assert codes == ["outside-binding"]


def test_a_tool_that_binds_first_is_not_undone() -> None:
    words = (sys.executable, "-m", "ompaffinity", "exec", "--numa-bind", "--local-rank", "2", "--local-world-size", "4")

    def bound() -> Any:
        os.sched_setaffinity(0, {5, 6})
        return json.loads(run(*words, "--", sys.executable, "-c", PRINT))

    assert in_child(bound) == [[5], "bind 1"]
