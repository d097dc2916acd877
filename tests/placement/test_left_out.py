"""The reasons why CPUs are left out of a plan."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.model import UNKNOWN_ARCHITECTURE, Limits
from tests.placement.machines import codes, plan_for, synthetic, with_distances
from tests.placement.test_explain import gpu_plan, memoryless_machine, texts


def details(plan: Plan) -> dict[str, str]:
    return {group.reason: group.detail for group in plan.left_out}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"span": "node"}, "more nodes than ranks; 4 ranks"),
        ({}, "each rank gets equally many whole nodes of one package; 4 ranks"),
        (
            {"tensor_parallel_size": 2},
            "each rank gets equally many whole nodes of one package, and a tensor-parallel group stays in one package"
            " at a small cost; 4 ranks",
        ),
    ],
)
def test_names_why_nodes_are_unused(request_: dict[str, Any], reason: str) -> None:
    topology = synthetic("package:4 numa:1 core:4 pu:1")
    (text,) = texts(make_plan(topology, PlacementRequest(**request_)), "nodes-unused")
    assert f" of 4 NUMA nodes are not used: {reason}" in text


def test_names_nodes_without_usable_memory_as_unused() -> None:
    (text,) = texts(make_plan(memoryless_machine(), PlacementRequest()), "nodes-unused")
    assert text.startswith("1 of 2 NUMA nodes are not used: this process may use no memory there")


def test_a_node_that_is_too_small_for_a_rank_is_named_so() -> None:
    plan = plan_for("numa:2 core:8 pu:1", 2, cpus=tuple(range(9)))
    assert details(plan)["unused-node"] == "too few CPUs there for a rank as large as the others"


def test_nodes_without_gpus_are_named_with_the_option_that_lends_them() -> None:
    plan = gpu_plan(synthetic("package:3 numa:1 core:2 pu:1"), 1)
    (text,) = texts(plan, "nodes-unused")
    assert text.startswith("nodes 0,2: no GPU of the ranks is next to them; --span package")
    assert details(plan)["unused-node"].startswith("no GPU of the ranks is next to them")
    assert "nodes-unused" not in codes(gpu_plan(synthetic("package:3 numa:1 core:2 pu:1"), None))


@pytest.mark.parametrize(
    ("architecture", "siblings", "detail"),
    [
        ("x86_64", 2, "one thread per core on x86_64; --threads-per-core all uses them"),
        ("ppc64le", 8, "4 threads per core on ppc64le; --threads-per-core all uses them"),
        (UNKNOWN_ARCHITECTURE, 2, "one thread per core; --threads-per-core all uses them"),
    ],
)
def test_names_how_many_siblings_get_threads(architecture: str, siblings: int, detail: str) -> None:
    assert details(plan_for(f"core:2 pu:{siblings}", architecture=architecture))["smt-sibling"] == detail


def test_names_the_siblings_of_gpu_ranks_as_usable_by_other_threads() -> None:
    plan = gpu_plan(synthetic("package:2 numa:1 core:4 pu:2", "x86_64"), 0, 1)
    assert "(their rank's other threads may run there)" in details(plan)["smt-sibling"]


def test_names_the_plan_or_the_process_that_holds_cpus() -> None:
    topology = synthetic("core:8 pu:1")
    topology = topology._replace(cpus=tuple(cpu._replace(allowed=cpu.id != 7) for cpu in topology.cpus))
    avoid = (HeldCPUs("a.json", (0, 1)), HeldCPUs("process 5", (2,), pid=5), HeldCPUs("b.json", ()))
    detail = details(make_plan(topology, PlacementRequest(avoid=avoid)))["not-allowed"]
    assert detail.startswith("the plan a.json holds 0-1 (--avoid); process 5 is bound to 2 (--avoid); 7 outside the")
    assert "b.json" not in detail
    held_only = details(plan_for("core:8 pu:1", avoid=avoid))["not-allowed"]
    assert held_only.endswith("process 5 is bound to 2 (--avoid)")
    assert "--avoid" not in details(make_plan(topology, PlacementRequest()))["not-allowed"]


def test_names_why_nothing_is_bound() -> None:
    assert details(plan_for("core:2 pu:1", bind="none"))["unbound"].startswith("nothing is bound with --bind none")
    unbound = gpu_plan(synthetic("numa:2 core:2 pu:1"), None)
    assert details(unbound)["unbound"] == "no GPU rank could be bound; the warnings give the reasons"


def test_listed_cpus_are_left_out_by_a_quota_alone() -> None:
    topology = with_distances(synthetic("core:4 pu:1"), [[10]])._replace(limits=Limits(cpu_quota=2.0))
    plan = make_plan(topology, PlacementRequest(bind=((0, 1, 2),)))
    assert {group.reason: group.cpus for group in plan.left_out} == {"not-requested": (3,), "quota": (2,)}
