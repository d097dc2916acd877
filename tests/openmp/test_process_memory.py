from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import ompaffinity
from ompaffinity.errors import RequestError
from ompaffinity.memory.pages import NoRoomError
from ompaffinity.memory.policy import thread_policy
from ompaffinity.openmp import process_memory
from ompaffinity.openmp.process_memory import MemoryBinding, init_cpu_memory_env
from tests.conftest import ROOT
from tests.memory.test_policy import in_thread
from tests.openmp.libraries import GOMP, needs_gomp
from tests.openmp.test_manager import needs_libnuma


def in_new_python(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_nodes_change_nothing() -> None:
    assert init_cpu_memory_env([]) == MemoryBinding("none", ())


@pytest.mark.parametrize("nodes", ["0", [True], [-1], [0.5], None, [[0]]])
def test_nodes_are_node_numbers(nodes: Any) -> None:
    with pytest.raises(RequestError, match="must be a list of node numbers"):
        init_cpu_memory_env(nodes)


def test_a_policy_is_one_that_there_is() -> None:
    with pytest.raises(RequestError, match="it must be one of auto, bind"):
        init_cpu_memory_env([0], policy="strict")


@needs_libnuma
def test_a_node_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(RequestError, match="this machine has no node 901; its nodes are"):
        init_cpu_memory_env([901])


@needs_libnuma
@pytest.mark.parametrize(("policy", "mode"), [("auto", 2), ("interleave", 3), ("preferred", 1)])
def test_the_calling_thread_gets_the_policy(policy: str, mode: int) -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])
    before = thread_policy()

    def work() -> Any:
        binding = init_cpu_memory_env(nodes, policy=policy)
        return binding, thread_policy()

    binding, during = in_thread(work)
    assert (during.mode, during.nodes) == (mode, nodes)
    assert binding.nodes == nodes
    assert binding.warnings == ()
    assert set(binding.anonymous) <= set(ompaffinity.get_memory_affinity())
    assert thread_policy() == before


@needs_libnuma
@needs_gomp
def test_the_team_gets_the_policy_too_and_its_own_back() -> None:
    modes = in_new_python(f"""
        import ctypes, json, threading
        import ompaffinity
        from ompaffinity.memory.policy import thread_policy
        from ompaffinity.openmp.process_memory import give_back_team_policy, take_team_policy
        from ompaffinity.openmp.team import in_each_thread
        runtime = ctypes.CDLL({GOMP!r})
        runtime.omp_set_num_threads(3)
        def modes():
            found = []
            in_each_thread(runtime, lambda: found.append(thread_policy().mode))
            return found
        answer = [modes()]
        granted, before = take_team_policy("bind", tuple(ompaffinity.get_memory_affinity()[:1]))
        answer += [modes(), len(before)]
        give_back_team_policy(before)
        answer += [modes()]
        print(json.dumps(answer))
    """)
    assert modes == [[0] * 3, [2] * 3, 3, [0] * 3]


@needs_libnuma
@needs_gomp
def test_binding_a_process_and_undoing_it_includes_the_memory_of_its_team() -> None:
    answer = in_new_python(f"""
        import ctypes, json
        import ompaffinity
        from ompaffinity.memory.policy import thread_policy
        from ompaffinity.openmp.team import in_each_thread
        runtime = ctypes.CDLL({GOMP!r})
        nodes = tuple(ompaffinity.get_memory_affinity()[:1])
        placement = ompaffinity.OMPProcessManager(tensor_parallel_size=1, runtime="gomp").plan.ranks[0]
        binding = ompaffinity.bind_current_process(placement._replace(memory_policy="bind", nodes=nodes))
        during, after = [], []
        in_each_thread(runtime, lambda: during.append(thread_policy().mode), threads=len(placement.cpus))
        binding.undo()
        in_each_thread(runtime, lambda: after.append(thread_policy().mode), threads=len(placement.cpus))
        print(json.dumps([len(placement.cpus), during, after]))
    """)
    threads, during, after = answer
    assert during == [2] * threads
    assert after == [0] * threads


def test_what_cannot_be_moved_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(nodes: Any) -> int:
        raise NoRoomError("the nodes are full")

    monkeypatch.setattr(process_memory, "_migrate", full)
    monkeypatch.setattr(process_memory, "why_unusable", lambda nodes: None)
    binding = in_thread(lambda: init_cpu_memory_env([0]))
    assert [message.code for message in binding.warnings][-1] == "memory-nearly-full"
    assert binding.moved_bytes == 0


def test_a_full_node_is_not_filled_further(monkeypatch: pytest.MonkeyPatch) -> None:
    from ompaffinity.memory import capacity
    from ompaffinity.memory.capacity import MachineMemory

    monkeypatch.setattr(process_memory, "_anonymous", lambda: {0: 2**30})
    monkeypatch.setattr(capacity, "machine_memory", lambda: MachineMemory({}, {1: 2**29}, None, None))
    with pytest.raises(NoRoomError, match="1024 MiB of this process are elsewhere, but node 1 has 512 MiB"):
        process_memory._migrate((1,))
