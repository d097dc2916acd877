"""Decide: a topology and a request become a plan. Pure: no file, clock or environment is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import NoMemoryNodeError, PlacementError
from ompaffinity.placement.architecture import ALL, rule_for
from ompaffinity.placement.check import check_allowed, check_avoided, check_named, check_request
from ompaffinity.placement.explain import DETAILS, left_out_groups, plan_messages
from ompaffinity.placement.gpu_ranks import gpu_shares
from ompaffinity.placement.memory import memory_nodes, memory_policy, usable_memory_nodes
from ompaffinity.placement.model import LeftOut, Plan, RankPlacement, Share
from ompaffinity.placement.pools import single_core, unusable_cpus, usable_pools
from ompaffinity.placement.request import AUTO
from ompaffinity.placement.reserve import reserve_cores, wanted_reserve
from ompaffinity.placement.split import split_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.messages import Message
    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.model import Core, Pool
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


def make_plan(topology: Topology, request: PlacementRequest, *, talking: bool = False) -> Plan:
    """Decide which CPUs and which memory each rank gets. Same input, same plan.

    Ranks of a tensor- or pipeline-parallel group have threads that talk to each other; `talking` ranks have such
    threads whatever the sizes say (Ray's actors do).

    Raises:
        RequestError: the request makes no sense on any machine.
        PlacementError: this machine cannot meet it.
    """
    request = check_request(request)
    unusable = unusable_cpus(topology, request)
    rule = _rule(topology, request)
    # A GPU's worker has few OpenMP threads and many others, which share its CPUs.
    usual = "team" if request.for_gpus else "thread"
    granularity = usual if request.granularity == AUTO else request.granularity
    pools: list[Pool] = []
    idle: frozenset[Core] = frozenset()
    sharing = False
    check_avoided(topology, request)
    told: list[Message] = []
    if request.for_gpus:
        check_named(topology, request)
        found = gpu_shares(topology, request, rule)
        pools, unusable, told = found.pools, found.unusable, found.messages
        shares = found.shares
        if not any(shares):
            unusable = dict.fromkeys((cpu.id for cpu in topology.cpus), "unbound") | unusable
        idle = _idle(pools, shares)
        ranks = _placements(topology, request, _within_quota(topology, shares), granularity, talking=talking)
    elif request.bind == "none":
        ranks = tuple(RankPlacement(rank, rank, bound=False) for rank in range(request.ranks))
        unusable = dict.fromkeys((cpu.id for cpu in topology.cpus), "unbound") | unusable
    elif isinstance(request.bind, tuple):
        shares = _explicit_shares(topology, request, request.bind)
        ranks = _placements(topology, request, _within_quota(topology, shares), granularity, talking=talking)
    else:
        check_named(topology, request)
        pools, unusable, sharing = _pools(topology, request, rule, unusable)
        shares = _shares(topology, request, rule, pools)
        idle = _idle(pools, shares)
        ranks = _placements(topology, request, _within_quota(topology, shares), granularity, talking=talking)
    ranks = with_sharing(ranks)
    if request.utilization is not None:
        from ompaffinity.placement.memory import planned_budget

        ranks = tuple(
            rank._replace(memory_budget=planned_budget(topology, rank, request.utilization)) for rank in ranks
        )
    return Plan(
        architecture=topology.architecture,
        machine=topology.machine,
        runtime="omp" if request.runtime == AUTO else request.runtime,
        granularity=granularity,
        wait_policy=request.wait_policy,
        ranks=ranks,
        reserved=tuple(sorted(cpu for rank in ranks for cpu in rank.helper_cpus)),
        left_out=tuple(
            LeftOut(*group) for group in left_out_groups(topology, request, rule, unusable, pools, idle, ranks)
        ),
        messages=(
            *topology.messages,
            *dict.fromkeys(told),
            *plan_messages(topology, request, rule, pools, ranks, sharing=sharing),
        ),
    )


def _idle(pools: list[Pool], shares: Sequence[Share | None]) -> frozenset[Core]:
    """Return the cores that stay idle in the pools that ranks use."""
    given = {core for share in shares if share for core in (*share.compute, *share.reserved)}
    used = [pool for pool in pools if not given.isdisjoint(pool.cores)]
    return frozenset(core for pool in used for core in pool.cores) - given


def usable_room(topology: Topology, request: PlacementRequest) -> tuple[int, int]:
    """Return how many cores, and how many CPUs, an automatic plan may use here: what a machine counts for.

    A CPU quota counts as so many cores, and at least as one. Both are 0 where nothing may be used.

    Raises:
        PlacementError: the request names CPUs or nodes that the machine does not have.
    """
    check_named(topology, request)
    pools = usable_pools(topology, unusable_cpus(topology, request), _rule(topology, request))
    cores = [core for pool in pools for core in pool.cores]
    quota = topology.limits.cpu_quota
    most = len(cores) if quota is None else max(1, int(quota))
    return min(len(cores), most), sum(len(core.cpus) for core in cores)


def with_sharing(ranks: tuple[RankPlacement, ...]) -> tuple[RankPlacement, ...]:
    """Return the placements with how many ranks use each of their nodes."""
    users: dict[int, int] = {}
    for rank in ranks:
        for node in rank.nodes:
            users[node] = users.get(node, 0) + 1
    return tuple(
        rank._replace(node_ranks=tuple(users[node] for node in rank.nodes), local_world_size=len(ranks))
        for rank in ranks
    )


def _pools(
    topology: Topology, request: PlacementRequest, rule: ArchitectureRule, unusable: dict[int, str]
) -> tuple[list[Pool], dict[int, str], bool]:
    """Return the usable cores by node, why the other CPUs are not usable, and whether ranks must share cores.

    Raises:
        PlacementError: there are fewer usable CPUs than ranks.
    """
    pools = usable_pools(topology, unusable, rule, span=request.span, ranks=request.ranks)
    if request.ranks > sum(len(pool.cores) for pool in pools) and "efficiency-core" in unusable.values():
        # A slow core of its own is better than half a fast one.
        unusable = unusable_cpus(topology, request._replace(kinds="all"))
        pools = usable_pools(topology, unusable, rule, span=request.span, ranks=request.ranks)
    usable = sum(len(core.cpus) for pool in pools for core in pool.cores)
    if request.ranks > usable and not (usable and request.oversubscribe):
        raise PlacementError(_too_many_ranks(request, usable, unusable))
    if request.ranks > sum(len(pool.cores) for pool in pools):
        # The siblings that the architecture wants to use are shared out; the others only if these are too few.
        wanted = {cpu for pool in pools for core in pool.cores for cpu in core.threads}
        if request.ranks <= len(wanted):
            others = {cpu.id for cpu in topology.cpus if cpu.id not in unusable} - wanted
            unusable = unusable | dict.fromkeys(others, "smt-sibling")
        return usable_pools(topology, unusable, rule, split_siblings=True), unusable, True
    return pools, unusable, False


def _rule(topology: Topology, request: PlacementRequest) -> ArchitectureRule:
    rule = rule_for(topology.architecture)
    if request.threads_per_core is not None:
        rule = rule._replace(threads_per_core=min(request.threads_per_core, ALL))
    return rule


def _too_many_ranks(request: PlacementRequest, usable: int, unusable: dict[int, str]) -> str:
    if usable:
        return (
            f"{request.ranks} ranks were asked for, but only {usable} CPUs may be used; ask for at most {usable}"
            " with --tp, --pp and --dp, widen the CPUs that this process may use, or let ranks share CPUs"
            " (--oversubscribe)"
        )
    if request.avoid:
        names = ", ".join(plan.name for plan in request.avoid)
        return f"no CPU may be used beside what --avoid {names} holds"
    reasons = list(unusable.values())
    counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in DETAILS if reason in reasons)
    remedy = "; --cpus LIST uses isolated ones that it names" if "isolated" in reasons else ""
    return f"no CPU may be used ({counts}){remedy}"


def _explicit_shares(
    topology: Topology, request: PlacementRequest, lists: tuple[tuple[int, ...], ...]
) -> list[Share | None]:
    """The user's own lists: each CPU is a core of its own, in the order written; nothing is reserved."""
    check_allowed("--bind", topology, request, tuple(cpu for cpus in lists for cpu in cpus))
    return [Share(tuple(single_core(topology.cpu(cpu)) for cpu in cpus)) for cpus in lists]


def _shares(
    topology: Topology, request: PlacementRequest, rule: ArchitectureRule, pools: list[Pool]
) -> list[Share | None]:
    """Return the cores of each rank; with more ranks than CPUs (--oversubscribe) neighbours share a CPU."""
    cores = [core for pool in pools for core in pool.cores]
    if request.ranks > len(cores):
        return [Share((cores[rank * len(cores) // request.ranks],)) for rank in range(request.ranks)]
    spread = request.distribute == "spread"
    distance = None if topology.equally_far else topology.distance
    split = split_cores(pools, request.ranks, distance, spread=spread, group=request.group)
    return [*reserve_cores(split, wanted_reserve(request, rule))]


def _within_quota(topology: Topology, shares: list[Share | None]) -> list[Share | None]:
    """Drop threads beyond the rank's part of the CPU quota, rounded down, at least one; the first ones stay."""
    quota = topology.limits.cpu_quota
    if quota is None:
        return shares
    limit = max(1, int(quota // max(1, sum(share is not None for share in shares))))
    kept: list[Share | None] = []
    for share in shares:
        if share is None:
            kept.append(None)
            continue
        cores, room = [], limit
        for core in share.compute:
            if room > 0:
                cores.append(core._replace(threads=core.threads[:room]))
                room -= len(core.threads)
        kept.append(Share(tuple(cores), share.reserved))
    return kept


def _placements(
    topology: Topology, request: PlacementRequest, shares: list[Share | None], granularity: str, *, talking: bool
) -> tuple[RankPlacement, ...]:
    threads = [tuple(cpu for core in share.compute for cpu in core.threads) if share else () for share in shares]
    helpers = [tuple(sorted(cpu for core in share.reserved for cpu in core.cpus)) if share else () for share in shares]
    try:
        usable = usable_memory_nodes(topology, request.nodes)
    except NoMemoryNodeError:
        usable = ()
    owned_on: dict[int, set[int]] = {}
    for cpu in (cpu for group in (*threads, *helpers) for cpu in group):
        owned_on.setdefault(topology.cpu(cpu).numa_node, set()).add(cpu)
    owned = [cpu for group in threads for cpu in group]
    wide = not request.for_gpus and (talking or request.group > 1 or len(set(owned)) < len(owned))
    shared: dict[frozenset[int], tuple[int, ...]] = {}
    placements = []
    for rank, share in enumerate(shares):
        device = request.gpu_of_rank[rank] if request.for_gpus else None
        if share is None:
            placements.append(RankPlacement(rank, rank, bound=False, gpu=device))
            continue
        cpus, helper_cpus = threads[rank], helpers[rank]
        siblings = {cpu for core in share.compute for cpu in core.cpus} - set(cpus)
        roam = siblings.union(helper_cpus) if request.for_gpus else set(helper_cpus) or siblings
        affinity = tuple(sorted({*cpus, *roam}))
        if not roam and wide:
            # Nothing of its own is left for the threads that talk to the other ranks, so they run on the CPUs of all
            # ranks of the node. A rank that works for itself has none, and would only move to a busier CPU.
            nodes_of_rank = frozenset(topology.cpu(cpu).numa_node for cpu in cpus)
            if nodes_of_rank not in shared:
                shared[nodes_of_rank] = tuple(sorted(cpu for node in nodes_of_rank for cpu in owned_on[node]))
            affinity = shared[nodes_of_rank]
        # What the first thread starts later inherits its mask: it keeps all that the other threads leave.
        if granularity == "team":
            team = affinity if request.for_gpus else tuple(sorted({*cpus, *helper_cpus}))
            places = (affinity, *(team for _ in cpus[1:]))
        else:
            others = set(cpus[1:])
            first = tuple(cpu for cpu in affinity if cpu not in others) if others else affinity
            if len(first) == 1:
                # Nothing is left: then it shares the CPUs of the others, for later threads must not crowd on its own.
                first = affinity
            places = (first, *((cpu,) for cpu in cpus[1:]))
        nodes = memory_nodes(topology, _near_memory(request, topology, rank, cpus), usable)
        placements.append(
            RankPlacement(
                rank=rank,
                local_rank=rank,
                cpus=cpus,
                helper_cpus=helper_cpus,
                places=places,
                affinity=affinity,
                nodes=nodes,
                memory_policy=memory_policy(topology, request, nodes),
                gpu=device,
            )
        )
    return tuple(placements)


def _near_memory(request: PlacementRequest, topology: Topology, rank: int, cpus: tuple[int, ...]) -> tuple[int, ...]:
    """Return the CPUs whose memory a rank uses: its own, or those of the node that the user names beside its CPUs."""
    if request.numa_bind_cpus is None or request.numa_bind_nodes is None:
        return cpus
    return topology.node(request.numa_bind_nodes[request.gpu_of_rank[rank]]).cpus[:1]
