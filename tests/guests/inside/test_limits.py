"""What control groups leave is what is planned with, and a CPU that goes away is never pinned to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ompaffinity import OMPProcessManager, PlacementRequest, get_memory_affinity, init_cpu_memory_env, make_plan
from ompaffinity.bind.capacity import kv_cache_bytes, memory_budget
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.topology.source import load_topology
from tests.guests.inside.common import in_child, nodes_with_memory, ompaffinity, touched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GROUPS = Path("/sys/fs/cgroup")
MIB = 2**20


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group (v2) within another one."""
    for folder in (GROUPS, GROUPS / "outer"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text("+cpu +cpuset +memory")
    inner = GROUPS / "outer" / "inner"
    inner.mkdir()
    yield inner
    inner.rmdir()
    inner.parent.rmdir()


def within(group: Path, work: Callable[[], object]) -> Any:
    """Call a function in a child that is in a group."""

    def join() -> object:
        (group / "cgroup.procs").write_text("0")
        return work()

    return in_child(join)


def test_the_plan_keeps_to_the_cpus_of_the_group(guest: dict[str, Any], group: Path) -> None:
    last = guest["cpus"] - 1
    (group / "cpuset.cpus").write_text(f"{last - 1}-{last}")

    def work() -> list[Any]:
        topology = load_topology()
        plan = make_plan(topology, PlacementRequest())
        return [topology.allowed_cpus, plan.ranks[0].affinity, plan.ranks[0].cpus]

    allowed, affinity, cpus = within(group, work)
    assert allowed == [last - 1, last]
    assert set(cpus) <= set(affinity) <= set(allowed)
    assert cpus


def test_a_team_is_bound_within_the_group(guest: dict[str, Any], group: Path, library: str) -> None:
    last = guest["cpus"] - 1
    (group / "cpuset.cpus").write_text(f"{last - 1}-{last}")
    verdict = within(group, lambda: ompaffinity("verify", "--library", library))
    assert verdict["holds"]
    assert {thread["cpus"] for rank in verdict["ranks"] for thread in rank["threads"]} <= {
        format_id_list(cpus) for cpus in ([last - 1], [last], [last - 1, last])
    }


@pytest.mark.skipif(len(nodes_with_memory()) < 2, reason="not one of several nodes")
def test_memory_comes_from_the_nodes_of_the_group(group: Path) -> None:
    mine, other = nodes_with_memory()[-1], nodes_with_memory()[0]
    (group / "cpuset.mems").write_text(str(mine))

    def work() -> list[Any]:
        plan = OMPProcessManager(tensor_parallel_size=1, runtime="gomp").plan
        try:
            init_cpu_memory_env([other])
            reported = ""
        except RequestError as error:
            reported = str(error)
        return [get_memory_affinity(), plan.ranks[0].nodes, reported]

    allowed, nodes, reported = within(group, work)
    assert allowed == nodes == [mine]
    assert f"may not use the memory of node {other}" in reported
    assert "cpuset.mems" in reported


def test_a_quota_limits_the_threads(group: Path) -> None:
    (group.parent / "cpu.max").write_text("200000 100000")
    (group / "cpu.max").write_text("400000 100000")

    def work() -> list[Any]:
        topology = load_topology()
        plan = make_plan(topology, PlacementRequest(threads_per_core=2, reserve=0))
        return [topology.limits.cpu_quota, len(plan.ranks[0].cpus)]

    quota, threads = within(group, work)
    assert quota == 2
    assert threads <= 2


def test_the_tightest_limit_is_shared_by_the_ranks(group: Path) -> None:
    (group.parent / "memory.max").write_text(str(128 * MIB))
    (group / "memory.max").write_text(str(200 * MIB))

    def work() -> list[Any]:
        plan = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2))
        first = plan.ranks[0]
        memory = touched(16)
        return [memory_budget(first, 0.5), kv_cache_bytes(first, 1.0, model_bytes=0), len(memory)]

    budget, cache, _ = within(group, work)
    assert budget == 32 * MIB
    # What this process has touched is its own; the rest of what is left is shared.
    assert cache <= 64 * MIB


def test_never_pins_to_a_cpu_that_goes_offline() -> None:
    # In a child, for a mask that is restored while a CPU is offline stays without it.
    assert in_child(_start_without_a_cpu) == "bound where it may be"


def _start_without_a_cpu() -> str:
    plan = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2))
    gone = plan.ranks[1].cpus[-1]
    switch = Path(f"/sys/devices/system/cpu/cpu{gone}/online")
    switch.write_text("0")
    try:
        manager = OMPProcessManager(plan)
        with manager.configure_omp_envs(1) as placement:
            assert not placement.bound
        assert any(message.code == "affinity-not-permitted" for message in manager.messages)
        strict = OMPProcessManager(plan, strict=True)
        with pytest.raises(BindingError, match="gone since the plan"), strict.configure_omp_envs(1):
            pass
        fresh = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2))
        assert all(gone not in rank.affinity for rank in fresh.ranks)
        with OMPProcessManager(fresh, strict=True).configure_omp_envs(1) as placement:
            assert placement.bound
    finally:
        switch.write_text("1")
    with OMPProcessManager(plan, strict=True).configure_omp_envs(1) as placement:
        assert placement.bound
    return "bound where it may be"
