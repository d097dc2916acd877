"""A process that moves to a node with all of its threads; what needs several nodes is tried in a guest."""

from __future__ import annotations

import os
import threading

import pytest

import ompaffinity
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.integrations.vllm import numa_node
from ompaffinity.topology.model import Topology
from tests.conftest import CPUS, needs_two_cpus


def halves(monkeypatch: pytest.MonkeyPatch) -> Topology:
    """Let the machine have two nodes, 0 with its first CPU, and 1 with the rest of them."""
    real = ompaffinity.load_topology()
    node = real.nodes[0] if real.nodes else ompaffinity.MemoryNodeInfo(1, 1)
    nodes = (
        node._replace(id=0, cpus=(CPUS[0],), has_memory=True, allowed=True, distances=None),
        node._replace(id=1, cpus=tuple(CPUS[1:]), has_memory=False, total_memory=0, allowed=True, distances=None),
    )
    topology = real._replace(
        nodes=nodes, cpus=tuple(cpu._replace(numa_node=int(cpu.id != CPUS[0])) for cpu in real.cpus)
    )
    monkeypatch.setattr(numa_node, "load_topology", lambda: topology)
    return topology


@needs_two_cpus
def test_every_thread_is_bound_and_unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    halves(monkeypatch)
    ready, end = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        end.wait()

    other = threading.Thread(target=wait)
    other.start()
    ready.wait()
    try:
        binding = ompaffinity.numa_bind_to_node(1)
        masks = [os.sched_getaffinity(thread) for thread in (0, other.native_id or 0)]
        binding.undo()
        back = [os.sched_getaffinity(thread) for thread in (0, other.native_id or 0)]
    finally:
        end.set()
        other.join()
    assert masks == [set(CPUS[1:])] * 2
    assert back == [set(CPUS)] * 2
    assert binding.messages == []


@needs_two_cpus
def test_widens_no_mask_and_keeps_those_without_allowed_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    halves(monkeypatch)
    os.sched_setaffinity(0, {CPUS[0]})
    try:
        binding = ompaffinity.numa_bind_to_node(1)
        assert os.sched_getaffinity(0) == {CPUS[0]}
        assert [message.code for message in binding.messages] == ["outside-binding"]
        assert not binding.bound
    finally:
        os.sched_setaffinity(0, set(CPUS))


@needs_two_cpus
def test_a_thread_without_cpus_there_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    halves(monkeypatch)
    ready, end = threading.Event(), threading.Event()

    def wait() -> None:
        os.sched_setaffinity(0, {CPUS[0]})
        ready.set()
        end.wait()

    other = threading.Thread(target=wait)
    other.start()
    ready.wait()
    number = other.native_id or 0
    try:
        binding = ompaffinity.numa_bind_to_node(1)
        kept = os.sched_getaffinity(number)
        binding.undo()
    finally:
        end.set()
        other.join()
    assert kept == {CPUS[0]}
    assert number not in binding.bound
    reason = f"was bound to CPU {CPUS[0]} before, none of which is there"
    assert [(thread[0], thread[2]) for thread in binding.not_bound] == [(number, reason)]


@needs_two_cpus
def test_the_nodes_with_cpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    halves(monkeypatch)
    with pytest.raises(RequestError, match=r"^node 2 is no NUMA node with CPUs of this machine; these are 0-1$"):
        ompaffinity.numa_bind_to_node(2)


def test_a_node_that_is_none() -> None:
    for wrong in (4711, -1, True, "0", None):
        with pytest.raises(RequestError, match="no NUMA node with CPUs"):
            ompaffinity.numa_bind_to_node(wrong)  # type: ignore[arg-type]


@needs_two_cpus
def test_what_the_kernel_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    halves(monkeypatch)

    def refused(thread: int, cpus: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    with pytest.raises(BindingError, match="not permitted"):
        ompaffinity.numa_bind_to_node(1)
    monkeypatch.undo()
    assert os.sched_getaffinity(0) == set(CPUS)
