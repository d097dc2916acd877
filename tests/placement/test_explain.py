"""The messages of a plan, and the details of the CPUs that no rank has: each one where it applies, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.devices.model import GPUHome
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.topology.model import UNKNOWN, Limits, Topology
from tests.placement.machines import codes, plan_for, synthetic, without_nodes


def texts(plan: Plan, code: str) -> list[str]:
    return [message.message for message in plan.messages if message.code == code]


def gpu_plan(topology: Topology, *nodes: int | None, **request: Any) -> Plan:
    homes = tuple(GPUHome(() if node is None else (node,)) for node in nodes)
    return make_plan(
        topology, PlacementRequest(tensor_parallel_size=len(nodes), numa_bind=True, gpu_homes=homes, **request)
    )


def test_a_plan_that_needs_no_explanation_has_no_message() -> None:
    assert plan_for("package:2 numa:1 core:4 pu:2", 2).messages == ()
    assert gpu_plan(synthetic("package:2 numa:1 core:4 pu:2", "x86_64"), 0, 1).messages == ()


def test_names_at_most_eight_running_processes() -> None:
    def holders(count: int) -> str:
        held = tuple(HeldCPUs(f"process {cpu}", (cpu,), pid=cpu + 1) for cpu in range(count))
        (text,) = texts(plan_for("core:12 pu:1", avoid=(*held, HeldCPUs("x.json", (11,)))), "keeps-off-live")
        return text.partition("bound to: ")[2]

    assert holders(2) == "CPU 0 of process 0, 1 of process 1"
    assert holders(8).endswith("7 of process 7")
    assert holders(9).endswith("7 of process 7, and of 1 more")
    assert "keeps-off-live" not in codes(plan_for("core:12 pu:1", avoid=(HeldCPUs("x.json", (11,)),)))


def test_reports_the_sizes_of_uneven_ranks() -> None:
    (text,) = texts(plan_for("core:7 pu:1", 2, reserve=0), "uneven-ranks")
    assert text.startswith("the ranks have 3 to 4 threads;")


def test_reports_more_ranks_than_nodes_with_their_numbers() -> None:
    assert texts(plan_for("numa:2 core:4 pu:1", 3), "ranks-exceed-nodes") == [
        "3 ranks share 2 NUMA nodes and the memory there"
    ]
    assert "ranks-exceed-nodes" not in codes(plan_for("numa:2 core:4 pu:1", 2))


@pytest.mark.parametrize(
    ("ranks", "request_", "numbers", "level"),
    [
        (2, {}, "1 of 2 cores", "note"),
        (2, {"reserve": 9}, "1 of 9 cores", "warning"),
        (2, {"reserve_per_rank": 3}, "1 of 6 cores", "warning"),
        (2, {"reserve": 0, "kv_transfer": True}, "1 of 2 cores", "warning"),
        (2, {"reserve": 2, "kv_transfer": True}, "1 of 4 cores", "warning"),
        (5, {}, "1 of 5 CPUs", "note"),
    ],
)
def test_reports_how_much_of_the_reserve_is_impossible(
    ranks: int, request_: dict[str, Any], numbers: str, level: str
) -> None:
    plan = plan_for("core:3 pu:2", ranks, **request_)
    (text,) = texts(plan, "reserve-impossible")
    assert text.startswith(f"{numbers} could be reserved")
    assert codes(plan)["reserve-impossible"] == level


def test_reports_no_reserve_of_gpu_ranks_that_keep_none() -> None:
    topology = synthetic("package:2 numa:1 core:2 pu:1", "ppc64le")
    assert "reserve-impossible" in codes(gpu_plan(topology, 0, 0))
    assert "reserve-impossible" not in codes(gpu_plan(topology, None))
    assert "reserve-impossible" not in codes(gpu_plan(topology, 0, 0, share=True))
    listed = make_plan(topology, PlacementRequest(numa_bind_cpus=((0, 1),)))
    assert "reserve-impossible" not in codes(listed)


def test_reports_ranks_that_share_cores_or_cpus() -> None:
    assert texts(plan_for("core:2 pu:2", 3), "ranks-share-cores")[0].startswith("3 ranks exceed the physical cores")
    full = plan_for("core:2 pu:2", 4)
    assert "(4 CPUs in all)" in texts(full, "ranks-share-cores")[0]
    assert "oversubscribed" not in codes(full)
    (text,) = texts(plan_for("core:2 pu:2", 5, oversubscribe=True), "oversubscribed")
    assert text.startswith("5 ranks share 4 CPUs")


def test_reports_siblings_of_a_core_on_two_nodes_if_ranks_have_them() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    split = topology._replace(cpus=tuple(cpu._replace(physical_core=cpu.id % 2) for cpu in topology.cpus))
    (text,) = texts(make_plan(split, PlacementRequest(tensor_parallel_size=2, reserve=0)), "ranks-share-cores")
    assert "several NUMA nodes (CPU 0-3)" in text
    assert "ranks-share-cores" not in codes(make_plan(split, PlacementRequest(cpus=(0, 1))))


@pytest.mark.parametrize(("quota", "ranks", "level"), [(2.0, 2, "note"), (2.0, 3, "warning"), (4.0, 2, None)])
def test_a_quota_below_the_cpus_is_a_warning_if_not_all_ranks_run_at_once(
    quota: float, ranks: int, level: str | None
) -> None:
    topology = synthetic("core:4 pu:1")._replace(limits=Limits(cpu_quota=quota))
    plan = make_plan(topology, PlacementRequest(tensor_parallel_size=ranks, reserve=0))
    assert codes(plan).get("quota-below-cpus") == level
    for text in texts(plan, "quota-below-cpus"):
        assert f"is 2 CPUs, fewer than the 4 in the mask: the plan has {ranks} OpenMP threads in all" in text
        assert ("more than run at once" in text) == (level == "warning")


def test_reports_missing_numa_information_as_a_warning_if_a_memory_policy_is_requested() -> None:
    machine = without_nodes(synthetic("core:4 pu:1"))
    levels = [
        codes(make_plan(machine, PlacementRequest(memory_policy=policy)))["no-numa-information"]
        for policy in ("auto", "none", "bind")
    ]
    assert levels == ["note", "note", "warning"]


def test_reports_a_mask_that_lacks_online_cpus() -> None:
    topology = synthetic("core:4 pu:1")
    (text,) = texts(make_plan(topology._replace(limits=Limits(affinity=(0, 1))), PlacementRequest()), "outside-binding")
    assert "has CPU 0-1 of 0-3" in text
    whole = make_plan(topology._replace(limits=Limits(affinity=(0, 1, 2, 3))), PlacementRequest())
    assert "outside-binding" not in codes(whole)


def test_reports_unknown_cores_of_allowed_cpus_only() -> None:
    topology = synthetic("core:4 pu:1")
    cpus = (topology.cpus[0], topology.cpus[1]._replace(physical_core=UNKNOWN), *topology.cpus[2:])
    (text,) = texts(make_plan(topology._replace(cpus=cpus), PlacementRequest()), "unknown-cores")
    assert "so CPU 1 are planned" in text
    forbidden = (cpus[0], cpus[1]._replace(allowed=False), *cpus[2:])
    assert "unknown-cores" not in codes(make_plan(topology._replace(cpus=forbidden), PlacementRequest()))


def test_reports_isolated_cpus_in_use_and_their_siblings() -> None:
    topology = synthetic("core:3 pu:2")
    isolated = topology._replace(cpus=tuple(cpu._replace(isolated=cpu.id in (1, 3)) for cpu in topology.cpus))
    plan = make_plan(isolated, PlacementRequest(cpus=(1, 2, 4, 5), reserve=0))
    assert texts(plan, "isolated-cpus-used")[0].startswith("the plan uses CPU 1, ")
    assert texts(plan, "isolated-siblings")[0].startswith("CPU 2 of the plan")
    assert not {"isolated-cpus-used", "isolated-siblings"} & set(
        codes(make_plan(isolated, PlacementRequest(cpus=(4, 5))))
    )


def memoryless_machine() -> Topology:
    """Return a machine of two nodes, of which the second has no memory."""
    topology = synthetic("numa:2 core:2 pu:1", "x86_64")
    return topology._replace(
        nodes=(topology.nodes[0], topology.nodes[1]._replace(has_memory=False, total_memory=0)),
    )


@pytest.mark.parametrize(
    ("request_", "is_reported"),
    [
        ({"numa_bind_nodes": (1,)}, True),
        ({"numa_bind_cpus": ((2, 3),)}, True),
        ({"numa_bind_nodes": (0,), "numa_bind_cpus": ((2, 3),)}, False),
        ({"numa_bind_nodes": (0,)}, False),
        ({"bind": ((2, 3),)}, True),
    ],
)
def test_reports_nodes_without_memory_unless_the_user_names_another(
    request_: dict[str, Any], is_reported: bool
) -> None:
    found = texts(make_plan(memoryless_machine(), PlacementRequest(**request_)), "memoryless-node")
    assert found == ["this process may use no memory on node 1; their ranks use node 0"] * is_reported
