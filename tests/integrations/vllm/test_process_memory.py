from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import ompaffinity
from ompaffinity.bind import affinity, memory_fallbacks, team_policy
from ompaffinity.bind.capacity import FullNodes
from ompaffinity.bind.mempolicy import thread_policy
from ompaffinity.bind.pages import NoRoomError
from ompaffinity.errors import RequestError
from ompaffinity.integrations.vllm import process_memory
from ompaffinity.integrations.vllm.process_memory import MemoryBinding, init_cpu_memory_env
from tests.bind.test_mempolicy import in_thread
from tests.conftest import ROOT, needs_libnuma


def in_new_python(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_nodes_change_nothing() -> None:
    binding = init_cpu_memory_env([])
    assert isinstance(binding, MemoryBinding)
    assert (binding.policy, binding.nodes, binding.threads, binding.messages) == ("none", (), (), [])


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
    assert binding.messages == []
    assert set(binding.anonymous) <= set(ompaffinity.get_memory_affinity())
    assert thread_policy() == before


def test_what_cannot_be_moved_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(nodes: Any) -> int:
        raise NoRoomError("the nodes are full")

    monkeypatch.setattr(process_memory, "_migrate", full)
    monkeypatch.setattr(process_memory, "why_unusable", lambda nodes: None)
    binding = in_thread(lambda: init_cpu_memory_env([0]))
    assert [message.code for message in binding.messages][-1] == "memory-nearly-full"
    assert binding.moved_bytes == 0


def test_a_full_node_is_not_filled_further(monkeypatch: pytest.MonkeyPatch) -> None:
    from ompaffinity.bind.capacity import MachineMemory

    monkeypatch.setattr(process_memory, "_anonymous", lambda: {0: 2**30})
    monkeypatch.setattr(process_memory, "machine_memory", lambda: MachineMemory({}, {1: 2**29}, None, None))
    with pytest.raises(NoRoomError, match="1024 MiB of this process are elsewhere, but node 1 has 512 MiB"):
        process_memory._migrate((1,))


def test_reports_pages_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_migrate", lambda nodes: (0, 2**30))
    monkeypatch.setattr(process_memory, "why_unusable", lambda nodes: None)
    binding = in_thread(lambda: init_cpu_memory_env([0], policy="none"))
    assert [message.code for message in binding.messages] == ["pages-not-moved"]
    assert "1024 MiB of this process stayed" in binding.messages[0].message


@needs_libnuma
def test_no_policy_is_the_kernels_default() -> None:
    nodes = ompaffinity.get_memory_affinity()[:1]

    def work() -> Any:
        init_cpu_memory_env(nodes, policy="bind", migrate=False)
        binding = init_cpu_memory_env(nodes, policy="none", migrate=False)
        return binding, thread_policy()

    binding, policy = in_thread(work)
    assert (binding.policy, len(binding.threads), binding.messages) == ("none", 1, [])
    assert (policy.mode, policy.nodes) == (0, ())


@needs_libnuma
def test_warns_of_a_nearly_full_node_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from ompaffinity.bind.mempolicy import AcceptedPolicy
    from ompaffinity.bind.process import bind_current_process

    monkeypatch.setattr(memory_fallbacks, "full_nodes", lambda nodes: FullNodes(nodes, 2**20, 2**30))
    monkeypatch.setattr(memory_fallbacks, "accepted_policy", lambda policy, nodes: AcceptedPolicy(policy, nodes))
    monkeypatch.setattr(team_policy, "take_policy", lambda policy, nodes: AcceptedPolicy(policy, tuple(nodes)))
    monkeypatch.setattr(process_memory, "why_unusable", lambda nodes: None)
    for strict in (False, True):
        manager = ompaffinity.OMPProcessManager(
            tensor_parallel_size=1, runtime="gomp", memory_policy="bind", strict=strict
        )
        assert [message.code for message in manager.messages].count("memory-nearly-full") == 1
        again = ompaffinity.OMPProcessManager(manager.plan)
        assert [message.code for message in again.messages].count("memory-nearly-full") == 1
    binding = in_thread(lambda: init_cpu_memory_env([0], migrate=False))
    assert "memory-nearly-full" in [message.code for message in binding.messages]
    process = bind_current_process(manager.plan.ranks[0])
    process.undo()
    assert "memory-nearly-full" in [message.code for message in process.messages]


class TestWhatThePlanSays:
    """Two ranks on two nodes, and a kernel that accepts one of them less."""

    def plan(self, monkeypatch: pytest.MonkeyPatch, accept: Any) -> Any:
        from tests.placement.machines import plan_for

        monkeypatch.setattr(memory_fallbacks, "accepted_policy", accept)
        monkeypatch.setattr(memory_fallbacks, "full_nodes", lambda nodes: None)
        return memory_fallbacks.with_accepted_memory(
            plan_for("package:2 [numa(memory=64GiB)] core:4 pu:1", 2, utilization=1.0)
        )

    def test_reports_each_refusal_and_keeps_nodes_and_budgets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ompaffinity.bind.mempolicy import AcceptedPolicy, MemoryPolicyError

        def accept(policy: str, nodes: Any) -> AcceptedPolicy:
            return AcceptedPolicy("preferred" if nodes == (1,) else "none", nodes, MemoryPolicyError("refused"))

        plan = self.plan(monkeypatch, accept)
        assert [rank.memory_policy for rank in plan.ranks] == ["none", "preferred"]
        assert [(rank.nodes, rank.node_ranks, rank.memory_budget) for rank in plan.ranks] == [
            ((0,), (1,), 64 * 2**30),
            ((1,), (1,), 64 * 2**30),
        ]
        reported = [message.message for message in plan.messages if message.code == "memory-policy-not-permitted"]
        assert reported == [
            "rank 0: memory policy none instead of bind 0, because refused",
            "rank 1: memory policy preferred 1 instead of bind 1, because refused",
        ]

    def test_reports_one_reason_for_all_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ompaffinity.bind.mempolicy import AcceptedPolicy, MemoryPolicyError

        plan = self.plan(monkeypatch, lambda policy, nodes: AcceptedPolicy("none", (), MemoryPolicyError("refused")))
        reported = [message.message for message in plan.messages if message.code == "memory-policy-not-permitted"]
        assert reported == ["rank 0-1: memory policy none instead of bind 0, because refused"]


def test_a_worker_whose_cpus_are_refused_still_shares_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "set_mask", lambda number, cpus: "refused")
    manager = ompaffinity.OMPProcessManager(tensor_parallel_size=2, oversubscribe=True, runtime="gomp")
    with manager.configure_omp_envs(1) as placement:
        here = ompaffinity.current_placement()
    assert here == placement
    assert not placement.bound
    assert (placement.cpus, placement.places, placement.affinity, placement.memory_policy) == ((), (), (), "none")
    assert placement.local_world_size == 2
    assert placement.node_ranks == manager.plan.ranks[1].node_ranks
