"""Decide: a topology and a request become a plan. Pure: no file, clock or environment is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.placement.architecture import rule_for
from ompaffinity.placement.check import check_for_machine, check_named, check_request
from ompaffinity.placement.cpu_ranks import assign_cpu_ranks
from ompaffinity.placement.explain import plan_messages
from ompaffinity.placement.left_out import left_out_cpus
from ompaffinity.placement.memory import planned_budget, with_sharing
from ompaffinity.placement.model import Plan
from ompaffinity.placement.place import place_ranks
from ompaffinity.placement.pools import held_cpus, unusable_cpus, usable_pools
from ompaffinity.placement.request import AUTO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ompaffinity.placement.model import Assignment
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def make_plan(topology: Topology, request: PlacementRequest) -> Plan:
    """Decide which CPUs and which memory each rank gets. Same input, same plan.

    Raises:
        RequestError: the request makes no sense on any machine.
        PlacementError: this machine cannot meet it.
    """
    request = check_request(request)
    held = held_cpus(topology, request)
    check_for_machine(topology, request, held)
    assignment = _assigned(topology, request, held)
    granularity = _granularity(request)
    ranks = with_sharing(place_ranks(topology, request, assignment, granularity))
    if request.utilization is not None:
        budgets = [planned_budget(topology, rank, request.utilization) for rank in ranks]
        ranks = tuple(rank._replace(memory_budget=budget) for rank, budget in zip(ranks, budgets))
    return Plan(
        architecture=topology.architecture,
        machine=topology.machine,
        runtime="omp" if request.runtime == AUTO else request.runtime,
        granularity=granularity,
        wait_policy=request.wait_policy,
        ranks=ranks,
        reserved=tuple(sorted(cpu for rank in ranks for cpu in rank.helper_cpus)),
        left_out=left_out_cpus(topology, request, assignment, ranks),
        messages=(
            *topology.messages,
            *assignment.messages,
            *plan_messages(topology, request, assignment, ranks),
        ),
        live=topology.live,
        avoided=request.avoid,
    )


def _assigned(topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> Assignment:
    if not request.for_gpus:
        return assign_cpu_ranks(topology, request, held)
    # Most plans have no GPU, and every module takes a part of every start.
    from ompaffinity.placement.gpu_ranks import assign_gpu_ranks

    return assign_gpu_ranks(topology, request, held)


def _granularity(request: PlacementRequest) -> str:
    if request.granularity != AUTO:
        return request.granularity
    # A GPU's worker has few OpenMP threads and many others, which share its CPUs.
    return "team" if request.for_gpus else "thread"


def usable_room(topology: Topology, request: PlacementRequest) -> tuple[int, int]:
    """Return the number of cores, and of CPUs, that an automatic plan may use on this machine.

    A CPU quota limits the cores, to at least one. Both are 0 where nothing may be used.

    Raises:
        PlacementError: the request names CPUs or nodes that the machine does not have.
    """
    held = held_cpus(topology, request)
    check_named(topology, request, held)
    rule = rule_for(topology.architecture, request.threads_per_core)
    pools = usable_pools(topology, unusable_cpus(topology, request, held), rule)
    cores = [core for pool in pools for core in pool.cores]
    quota = topology.limits.cpu_quota
    most = len(cores) if quota is None else max(1, int(quota))
    return min(len(cores), most), sum(len(core.cpus) for core in cores)
