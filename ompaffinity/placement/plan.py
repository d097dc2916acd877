"""The plan: the placement of every rank, and the reason for every CPU left out."""

from __future__ import annotations

from ompaffinity.errors import NoMemoryNodeError, PlacementError
from ompaffinity.placement.architecture import ALL, rule_for
from ompaffinity.placement.cores import Core, unusable_cpus, usable_pools
from ompaffinity.placement.explain import left_out_groups, plan_messages
from ompaffinity.placement.memory import memory_nodes, memory_policy
from ompaffinity.placement.request import AUTO, check_request
from ompaffinity.placement.split import Share, reserve_cores, split_cores, wanted_reserve
from ompaffinity.records import Message, NamedTuple
from ompaffinity.topology.idlist import format_id_list
from ompaffinity.topology.model import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


class RankPlacement(NamedTuple):
    """What one rank gets. Ids are CPU and node numbers.

    `cpus[i]` is the CPU meant for OpenMP thread i, and `places[i]` the mask that this thread gets
    (thread 0's adds the helper CPUs). `affinity` is the mask of the process and of all its
    other threads. `nodes` are its memory nodes, also where `memory_policy` is ``"none"``.
    """

    rank: int
    local_rank: int
    bound: bool = True
    cpus: tuple[int, ...] = ()
    helper_cpus: tuple[int, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()
    affinity: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    memory_policy: str = "none"
    device: int | None = None


class LeftOut(NamedTuple):
    """CPUs that no rank gets, one reason, and what the user can do about it."""

    cpus: tuple[int, ...]
    reason: str
    detail: str


class Plan(NamedTuple):
    """The placements of all local ranks, plus what is left over and why."""

    architecture: str
    machine: str
    runtime: str
    granularity: str
    wait_policy: str
    ranks: tuple[RankPlacement, ...]
    reserved: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[Message, ...]


def make_plan(topology: Topology, request: PlacementRequest) -> Plan:
    """Decide which CPUs and which memory each rank gets. Same input, same plan.

    Raises:
        RequestError: the request makes no sense on any machine.
        PlacementError: this machine cannot meet it.
    """
    check_request(request)
    unusable = unusable_cpus(topology, request)
    if request.bind == "none":
        return _unbound_plan(topology, request, unusable)
    rule = _rule(topology, request)
    pools = usable_pools(topology, unusable, rule)
    if request.ranks > sum(len(pool.cores) for pool in pools) and "efficiency-core" in unusable.values():
        # A slow core of its own is better than half a fast one.
        widened = request._replace(kinds="all")
        unusable = unusable_cpus(topology, widened)
        pools = usable_pools(topology, unusable, rule)
    sharing = False
    if isinstance(request.bind, tuple):
        shares = _explicit_shares(topology, request.bind, unusable)
    else:
        usable = sum(len(core.cpus) for pool in pools for core in pool.cores)
        _check_named(topology, request)
        if request.ranks > usable:
            raise PlacementError(_too_many_ranks(request, usable))
        sharing = request.ranks > sum(len(pool.cores) for pool in pools)
        if sharing:
            pools = usable_pools(topology, unusable, rule, split_siblings=True)
        split = split_cores(pools, request.ranks, topology.distance, spread=request.distribute == "spread")
        shares = reserve_cores(split, wanted_reserve(request, rule))
    granularity = "thread" if request.granularity == AUTO else request.granularity
    shares = _within_quota(topology, shares)
    ranks = _placements(topology, request, shares, granularity)
    messages = plan_messages(topology, request, rule, pools, ranks, sharing=sharing)
    return Plan(
        architecture=topology.architecture,
        machine=topology.machine,
        runtime="omp" if request.runtime == AUTO else request.runtime,
        granularity=granularity,
        wait_policy=request.wait_policy,
        ranks=ranks,
        reserved=tuple(sorted(cpu for rank in ranks for cpu in rank.helper_cpus)),
        left_out=tuple(LeftOut(*group) for group in left_out_groups(topology, unusable, pools, ranks)),
        warnings=(*topology.messages, *messages),
    )


def _rule(topology: Topology, request: PlacementRequest) -> ArchitectureRule:
    rule = rule_for(topology.architecture)
    if request.threads_per_core is not None:
        rule = rule._replace(threads_per_core=min(request.threads_per_core, ALL))
    return rule


def _check_named(topology: Topology, request: PlacementRequest) -> None:
    """Refuse CPUs and nodes that were asked for by number and are not to be had."""
    if request.nodes is not None:
        strange = set(request.nodes) - {node.id for node in topology.nodes}
        if strange:
            known = format_id_list(node.id for node in topology.nodes) or "none"
            raise PlacementError(
                f"--nodes (or CPU_VISIBLE_MEMORY_NODES) names node {format_id_list(strange)},"
                f" which this machine does not have; its nodes are {known}"
            )
    if request.cpus is not None:
        _check_allowed("--cpus", topology, request.cpus)


def _check_allowed(option: str, topology: Topology, cpus: tuple[int, ...]) -> None:
    allowed = topology.allowed_cpus
    strange = set(cpus) - set(allowed)
    if strange:
        raise PlacementError(
            f"{option} names CPU {format_id_list(strange)}, which this process may not use;"
            f" it may use {format_id_list(allowed) or 'none'}"
        )


def _too_many_ranks(request: PlacementRequest, usable: int) -> str:
    if not usable:
        return "no CPU may be used: --cpus, --nodes, --kinds and the limits of this process leave none"
    return (
        f"{request.ranks} ranks were asked for, but only {usable} CPUs may be used; ask for at most {usable}"
        f" with --tp, --pp and --dp, or widen the CPUs that this process may use"
    )


def _explicit_shares(topology: Topology, lists: tuple[tuple[int, ...], ...], unusable: dict[int, str]) -> list[Share]:
    """The user's own lists: each CPU is a core of its own, in the order written; nothing is reserved."""
    _check_allowed("--bind", topology, tuple(cpu for cpus in lists for cpu in cpus))
    return [
        Share(
            tuple(
                Core((cpu,), (cpu,), topology.cpu(cpu).numa_node, topology.cpu(cpu).package)
                for cpu in cpus
                if cpu not in unusable
            )
        )
        for cpus in lists
    ]


def _within_quota(topology: Topology, shares: list[Share]) -> list[Share]:
    """Drop threads beyond the rank's part of the CPU quota, rounded down, at least one; the first ones stay."""
    quota = topology.limits.cpu_quota
    if quota is None:
        return shares
    limit = max(1, int(quota // len(shares)))
    kept = []
    for share in shares:
        cores, room = [], limit
        for core in share.compute:
            if room > 0:
                cores.append(core._replace(threads=core.threads[:room]))
                room -= len(core.threads)
        kept.append(Share(tuple(cores), share.reserved))
    return kept


def _placements(
    topology: Topology, request: PlacementRequest, shares: list[Share], granularity: str
) -> tuple[RankPlacement, ...]:
    threads = [tuple(cpu for core in share.compute for cpu in core.threads) for share in shares]
    helpers = [tuple(sorted(cpu for core in share.reserved for cpu in core.cpus)) for share in shares]
    homes = [{topology.cpu(cpu).numa_node for cpu in cpus} for cpus in threads]
    placements = []
    for rank, share in enumerate(shares):
        cpus, helper_cpus = threads[rank], helpers[rank]
        idle = {cpu for core in share.compute for cpu in core.cpus} - set(cpus)
        if not helper_cpus and not idle:
            # Nothing of its own is left for helper threads: they roam over the ranks of the node.
            idle = {
                cpu
                for other, near in enumerate(homes)
                if near & homes[rank]
                for cpu in (*threads[other], *helpers[other])
            }
        affinity = tuple(sorted({*cpus, *helper_cpus} if helper_cpus else {*cpus, *idle}))
        if granularity == "team":
            places = (tuple(sorted({*cpus, *helper_cpus})),) * len(cpus)
        else:
            places = (tuple(sorted({cpus[0], *helper_cpus})), *((cpu,) for cpu in cpus[1:]))
        try:
            nodes = memory_nodes(topology, cpus)
        except NoMemoryNodeError:
            nodes = ()
        policy = memory_policy(topology, request, nodes)
        placements.append(RankPlacement(rank, rank, True, cpus, helper_cpus, places, affinity, nodes, policy))
    return tuple(placements)


def _unbound_plan(topology: Topology, request: PlacementRequest, unusable: dict[int, str]) -> Plan:
    messages = plan_messages(topology, request, _rule(topology, request), [], (), sharing=False)
    ranks = tuple(RankPlacement(rank, rank, bound=False) for rank in range(request.ranks))
    groups = left_out_groups(
        topology, dict.fromkeys((cpu.id for cpu in topology.cpus), "unbound") | unusable, [], ranks
    )
    return Plan(
        topology.architecture,
        topology.machine,
        "omp" if request.runtime == AUTO else request.runtime,
        "thread" if request.granularity == AUTO else request.granularity,
        request.wait_policy,
        ranks,
        (),
        tuple(LeftOut(*group) for group in groups),
        (*topology.messages, *messages),
    )


def rank_size(placement: RankPlacement, topology: Topology) -> int:
    """Return how many cores a rank owns, helper cores included; a CPU of an unknown core counts as one."""
    cores = set()
    for cpu in (*placement.cpus, *placement.helper_cpus):
        core = topology.cpu(cpu).physical_core
        cores.add(core if core != UNKNOWN else UNKNOWN - 1 - cpu)
    return len(cores)
