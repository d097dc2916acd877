"""The cores that a plan may use, and why every other CPU may not be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.placement.model import Core, Pool
from ompaffinity.topology.kinds import PERFORMANCE
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import LogicalCPUInfo, Topology

NODE_LEVELS = ("l3", "cluster")


SPAN_LEVELS = ("node", *NODE_LEVELS)


NO_NODE_LEVELS = ("drawer", "book", "package", *NODE_LEVELS)


def unusable_cpus(topology: Topology, request: PlacementRequest) -> dict[int, str]:
    """Return {cpu: reason} of every CPU that no rank may get: the first reason that holds."""
    lists = [] if isinstance(request.bind, str) else [set(cpus) for cpus in request.bind]
    if request.cpus is not None:
        lists.append(set(request.cpus))
    # CPUs that the user names are taken as they are: isolated ones too, and with --bind slow ones too.
    named = set().union(*lists) if lists else None
    nodes = None if request.nodes is None else set(request.nodes)
    held = held_cpus(topology, request)
    performance_only = request.kinds == PERFORMANCE and isinstance(request.bind, str)
    reasons = {}
    for cpu in topology.cpus:
        if not cpu.online:
            reasons[cpu.id] = "offline"
        elif not cpu.allowed or cpu.id in held:
            reasons[cpu.id] = "not-allowed"
        elif (named is not None and cpu.id not in named) or (nodes is not None and cpu.numa_node not in nodes):
            reasons[cpu.id] = "not-requested"
        elif cpu.isolated and named is None:
            reasons[cpu.id] = "isolated"
        elif performance_only and cpu.kind not in (None, PERFORMANCE):
            reasons[cpu.id] = "efficiency-core"
    return reasons


def held_cpus(topology: Topology, request: PlacementRequest) -> dict[int, str]:
    """Return {cpu: name of the plan} of all CPUs on the cores that other plans hold."""
    held: dict[int, str] = {}
    for plan in request.avoid:
        cpus = set(plan.cpus)
        cores = {(cpu.physical_core, cpu.numa_node) for cpu in topology.cpus if cpu.id in cpus}
        for cpu in topology.cpus:
            shares_core = cpu.physical_core != UNKNOWN and (cpu.physical_core, cpu.numa_node) in cores
            if shares_core or cpu.id in cpus:
                held.setdefault(cpu.id, plan.name)
    return held


def usable_pools(
    topology: Topology,
    unusable: dict[int, str],
    rule: ArchitectureRule,
    *,
    split_siblings: bool = False,
    span: str = "node",
    ranks: int = 1,
) -> list[Pool]:
    """Return the usable cores by NUMA node, ascending by node.

    Siblings are chosen among the usable CPUs of their core, never by id. With `split_siblings`
    every CPU is a core of its own. With fewer `ranks` than nodes a `span` of ``"package"`` or
    ``"machine"`` joins the nodes of a package or all of them.
    """
    usable = [cpu for cpu in topology.cpus if cpu.id not in unusable]
    groups: dict[tuple[int, int], list[LogicalCPUInfo]] = {}
    for cpu in usable:
        # A core that the machine does not name, and CPUs of one core that it puts on two nodes, stand alone.
        alone = split_siblings or cpu.physical_core == UNKNOWN
        groups.setdefault((UNKNOWN - 1 - cpu.id if alone else cpu.physical_core, cpu.numa_node), []).append(cpu)
    with_nodes = has_node_pools(topology)
    found: dict[int, list[tuple[tuple[int, ...], Core]]] = {}
    for members in groups.values():
        first = members[0]
        cpus = tuple(cpu.id for cpu in members)
        count = rule.threads_per_core
        threads = cpus[-count:] if rule.last else cpus[:count]
        core = _core(first, cpus, threads)
        levels = (first.drawer, first.book, first.package, first.die, first.l3, first.cluster, first.physical_core)
        found.setdefault(first.numa_node if with_nodes else UNKNOWN, []).append(((*levels, first.id), core))
    sorted_cores = {node: [core for _, core in sorted(found[node])] for node in sorted(found)}
    if not with_nodes:
        return [_pool(UNKNOWN, cores, NO_NODE_LEVELS, whole=True) for cores in sorted_cores.values()]
    if span == "node" or ranks >= len(sorted_cores):
        return [_pool(node, cores, NODE_LEVELS) for node, cores in sorted_cores.items()]
    spans: dict[int, list[int]] = {}
    for node, cores in sorted_cores.items():
        # An unknown package is not the same one for all: such a node stands alone.
        package = cores[0].package if cores[0].package != UNKNOWN else UNKNOWN - 1 - node
        spans.setdefault(package if span == "package" else 0, []).append(node)
    pools = []
    for nodes in spans.values():
        per_rank = -(-len(sorted_cores) // ranks)
        near = list(range(len(nodes)))
        if not topology.equally_far:
            near = near_order(nodes, [1] * len(nodes), per_rank, topology.distance)
        cores = [core for place in near for core in sorted_cores[nodes[place]]]
        pools.append(_pool(min(nodes), cores, SPAN_LEVELS, whole=True))
    return sorted(pools, key=lambda pool: pool.node)


def single_core(cpu: LogicalCPUInfo) -> Core:
    """Return a core of this CPU alone."""
    return _core(cpu, (cpu.id,), (cpu.id,))


def _core(cpu: LogicalCPUInfo, cpus: tuple[int, ...], threads: tuple[int, ...]) -> Core:
    return Core(cpus, threads, cpu.numa_node, cpu.drawer, cpu.book, cpu.package, cpu.l3, cpu.cluster)


def has_node_pools(topology: Topology) -> bool:
    """Return whether NUMA nodes bound the ranks; on s390x a single node says nothing (kernel: arch/s390/numa)."""
    return bool(topology.nodes) and not (topology.architecture == "s390x" and len(topology.nodes) <= 1)


def near_order(nodes: list[int], counts: list[int], group: int, distance: Callable[[int, int], int]) -> list[int]:
    """Return the places of `nodes` so that of `counts` ranks on each every `group` in turn are near each other.

    Each group begins on the lowest node that is left, or on the one where the last group ended halfway.
    """
    left, order = list(range(len(nodes))), []
    apart = [0] * len(nodes)
    placed = 0
    while left:
        chosen = min(left, key=lambda place: (apart[place], nodes[place]))
        left.remove(chosen)
        order.append(chosen)
        placed += counts[chosen]
        # A group that ends with this node leaves nothing to be near to; one that began on it does.
        fresh = placed // group > (placed - counts[chosen]) // group
        for place in left:
            apart[place] = 0 if fresh else apart[place]
            apart[place] += distance(nodes[chosen], nodes[place]) if placed % group else 0
    return order


def _pool(node: int, cores: list[Core], levels: tuple[str, ...], *, whole: bool = False) -> Pool:
    counts = {level: len({getattr(core, level) for core in cores}) for level in levels}
    # A level with one group, or with a group for each core, gives no line to cut along.
    lines = tuple(level for level, count in counts.items() if 1 < count < len(cores))
    return Pool(node, tuple(cores), lines, whole)
