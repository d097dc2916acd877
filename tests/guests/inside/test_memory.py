"""Memory is where the policy puts it: set, read back from the kernel, pages touched and asked after one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from ompaffinity.bind.mempolicy import set_thread_policy, take_policy, thread_policy
from ompaffinity.bind.pages import mapped_memory
from tests.guests.inside.common import in_child, in_new_python, nodes_of, nodes_with_memory, ompaffinity, run, touched

SAMPLE = 6
ROOM = 12
"""MiB that fit into the smallest node of any guest."""


def sample_of_nodes() -> list[int]:
    """Return the first nodes with memory, those around the ends of a mask's word, and the last one."""
    nodes = nodes_with_memory()
    return sorted({*nodes[:3], *(node for node in nodes if node in (63, 64, 65)), nodes[-1]})[-SAMPLE:]


@pytest.mark.parametrize("policy", ["bind", "preferred", "preferred-many"])
def test_pages_come_from_the_node_that_the_policy_names(policy: str) -> None:
    for node in sample_of_nodes():

        def work(node: int = node) -> list[Any]:
            set_thread_policy(policy, [node])
            return [nodes_of(touched(4)), thread_policy().nodes]

        pages, reported = in_child(work)
        assert list(pages) == [str(node)]
        assert reported == [node]


def test_interleaved_pages_are_spread_evenly() -> None:
    def work() -> dict[int, int]:
        set_thread_policy("interleave", sample_of_nodes())
        return nodes_of(touched(6))

    counts = {int(node): count for node, count in in_child(work).items()}
    assert sorted(counts) == sample_of_nodes()
    assert max(counts.values()) - min(counts.values()) <= 2


def test_several_preferred_nodes_read_as_the_kernel_words_them() -> None:
    first, second = sample_of_nodes()[:2]

    def work() -> list[Any]:
        accepted = take_policy("preferred", [first, second])
        memory = touched(2)
        return [accepted.policy, list(mapped_memory().bytes_by_policy), len(memory)]

    listed = f"{first}-{second}" if second == first + 1 else f"{first},{second}"
    assert in_child(work)[:2] == ["preferred-many", [f"prefer (many):{listed}"]]


def test_a_node_that_cannot_be_used_is_refused_with_the_reason_and_nothing_crashes(guest: dict[str, Any]) -> None:
    without = [node for node, reported in guest["nodes"].items() if not reported["mebibytes"]]
    for node in (*without, max(guest["nodes"]) + 1, 1000):

        def work(node: int = node) -> list[Any]:
            accepted = take_policy("bind", [node])
            return [accepted.policy, str(accepted.refusal), thread_policy().mode]

        policy, reason, mode = in_child(work)
        assert (policy, mode) == ("none", 0)
        assert ("has no memory" if node in without else f"has no node {node}") in reason


def test_what_was_touched_already_is_moved() -> None:
    source, target = sample_of_nodes()[0], sample_of_nodes()[-1]
    answer = in_new_python(f"""
        import ompaffinity
        from ompaffinity.bind.pages import mapped_memory
        from ompaffinity.bind.mempolicy import MODES, set_thread_policy
        from tests.guests.inside.common import nodes_of, touched
        set_thread_policy("preferred", [{source}])
        memory = touched({ROOM})
        before = nodes_of(memory)
        binding = ompaffinity.init_cpu_memory_env([{target}])
        answer = [before, nodes_of(memory), binding.anonymous, binding.policy, binding.moved_bytes, binding.messages]
    """)
    before, after, anonymous, policy, moved, warnings = answer
    assert list(before) == [str(source)]
    assert list(after) == [str(target)]
    # The Python that runs has pages of its own; they come along.
    assert anonymous[str(target)] >= 0.99 * sum(anonymous.values())
    assert policy == "bind"
    # What was moved may nearly fill a small node.
    assert {code for code, *_ in warnings} <= {"memory-nearly-full"}
    assert moved >= ROOM * 2**20


def test_several_nodes_take_what_is_elsewhere() -> None:
    *targets, source = sample_of_nodes()[:3]
    answer = in_new_python(f"""
        import ompaffinity
        from ompaffinity.bind.mempolicy import set_thread_policy
        from tests.guests.inside.common import nodes_of, touched
        set_thread_policy("preferred", [{source}])
        memory = touched({ROOM})
        binding = ompaffinity.init_cpu_memory_env({targets})
        fresh = nodes_of(touched(4))
        answer = [nodes_of(memory), fresh, binding.policy, binding.messages]
    """)
    moved, fresh, policy, warnings = answer
    assert {int(node) for node in moved} <= set(targets)
    assert {int(node) for node in fresh} == set(targets)
    assert (policy, warnings) == ("interleave", [])


def test_nothing_is_moved_into_a_node_without_room() -> None:
    smallest = nodes_with_memory()[-1]
    answer = in_new_python(f"""
        import ompaffinity
        from ompaffinity.bind.capacity import machine_memory
        from tests.guests.inside.common import touched
        available = machine_memory().available[{smallest}]
        memory = touched(available // 2**20 + 16)
        binding = ompaffinity.init_cpu_memory_env([{smallest}], policy="preferred")
        answer = [binding.moved_bytes, [message.code for message in binding.messages], binding.policy]
    """)
    assert answer == [0, ["memory-nearly-full"], "preferred"]


def test_warns_of_a_nearly_full_node_before_the_kernel_kills() -> None:
    node = ompaffinity("plan", "--tp", "1", "--span", "node")["ranks"][0]["nodes"][0]
    holder = f"""
        import sys
        from ompaffinity.bind.capacity import machine_memory
        from ompaffinity.bind.mempolicy import set_thread_policy
        from tests.guests.inside.common import touched
        set_thread_policy("preferred", [{node}])
        memory = touched(machine_memory().available[{node}] // 2**20 - 24)
        print("full", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(holder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "full\n"
            plan = ompaffinity("plan", "--tp", "1", "--span", "node")
        finally:
            process.communicate("")
    messages = [message["message"] for message in plan["warnings"] if message["code"] == "memory-nearly-full"]
    assert len(messages) == 1
    assert f"node {node} has" in messages[0]
    assert "kills" in messages[0]


def test_a_worker_starts_with_its_memory_policy(guest: dict[str, Any]) -> None:
    ranks = min(4, guest["cpus"])
    answer = in_new_python(f"""
        import json, subprocess, sys
        import ompaffinity
        manager = ompaffinity.OMPProcessManager(tensor_parallel_size={ranks}, runtime="gomp")
        program = "import json; from tests.guests.inside.common import *; print(json.dumps(nodes_of(touched(4))))"
        answer = []
        for rank in range({ranks}):
            with manager.configure_omp_envs(rank) as placement:
                worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
            answer.append((placement.nodes, placement.memory_policy, json.loads(worker.communicate()[0])))
    """)
    for nodes, policy, pages in answer:
        assert policy in ("bind", "interleave")
        assert {int(node) for node in pages} == set(nodes)


def test_the_caller_keeps_its_own_policy() -> None:
    from ompaffinity import OMPProcessManager

    before = thread_policy()
    manager = OMPProcessManager(tensor_parallel_size=1, runtime="gomp")
    with manager.configure_omp_envs(0) as placement:
        assert thread_policy().nodes == placement.nodes
    assert thread_policy() == before
    assert nodes_of(touched(1))


@pytest.mark.parametrize("asked", ["bind", "preferred", "interleave"])
def test_binds_the_cpus_with_a_message_where_the_kernel_refuses_policies(asked: str) -> None:
    command = [sys.executable, "-m", "tests.bind.seccomp", sys.executable, "-m", "ompaffinity"]
    options = ["--tp", "1", "--memory-policy", asked, "--json"]
    plan = json.loads(run(*command, "plan", *options))
    assert plan["ranks"][0]["memory_policy"] == "none"
    assert plan["ranks"][0]["cpus"]
    reported = {message["code"]: message["message"] for message in plan["warnings"] if message["level"] == "warning"}
    assert "--cap-add SYS_NICE" in reported["memory-policy-not-permitted"]
    verdict = json.loads(run(*command, "verify", *options))
    assert verdict["holds"]


def test_memory_that_is_bound_elsewhere_is_found_out(guest: dict[str, Any], library: str) -> None:
    """A worker that sets a policy of its own, on another node than in its plan."""
    plan = ompaffinity("plan", "--tp", "1", "--span", "node")
    mine = plan["ranks"][0]["nodes"]
    other = next(node for node in nodes_with_memory() if node not in mine)
    family = guest["libraries"][library]
    worker = f"""
        import ctypes, sys
        from ompaffinity.bind.mempolicy import set_thread_policy
        from ompaffinity.openmp.team import in_each_thread
        from tests.guests.inside.common import touched
        in_each_thread(ctypes.CDLL({library!r}))
        set_thread_policy("bind", [{other}])
        memory = touched(8)
        print("ready", flush=True)
        sys.stdin.read()
    """
    starter = f"""
        import subprocess, sys
        import ompaffinity
        manager = ompaffinity.OMPProcessManager(tensor_parallel_size=1, runtime={family!r}, span="node")
        with manager.configure_omp_envs(0):
            worker = subprocess.Popen([sys.executable, "-c", {textwrap.dedent(worker)!r}], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True)
        worker.stdout.readline()
        done = subprocess.run([sys.executable, "-m", "ompaffinity", "verify", "--pid", str(worker.pid), "--json"],
            capture_output=True, text=True)
        worker.communicate("")
        answer = [done.returncode, done.stdout]
    """
    status, text = in_new_python(starter)
    assert status == 1
    (rank,) = json.loads(text)["ranks"]
    (difference,) = rank["differences"]
    assert difference["subject"] == "memory"
    assert f"bind:{other}" in difference["message"]
    assert "the program set its own" in difference["cause"]
    assert all(thread["holds"] is not False for thread in rank["threads"])


def test_budgets_of_a_plan_fit_the_nodes(guest: dict[str, Any]) -> None:
    plan = ompaffinity("plan", "--tp", str(min(4, guest["cpus"])), "--utilization", "0.9")
    sizes = {node: found["mebibytes"] * 2**20 for node, found in guest["nodes"].items()}
    users = [node for rank in plan["ranks"] for node in rank["nodes"]]
    for rank in plan["ranks"]:
        share = sum(sizes[node] / users.count(node) for node in rank["nodes"])
        assert 0 < rank["memory_budget_bytes"] <= 0.9 * share
