"""The cores that a plan may use, and why every other CPU may not be used."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ompaffinity.placement.core_types import choose_cores
from ompaffinity.placement.model import Core, Pool
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.core_types import CoreChoice
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import LogicalCPUInfo, Topology

NODE_LEVELS = ("l3", "cluster")


SPAN_LEVELS = ("node", *NODE_LEVELS)


NO_NODE_LEVELS = ("drawer", "book", "package", *NODE_LEVELS)


EFFICIENCY_CORE = "efficiency-core"
"""The reason of slow cores: the last one, so a CPU that has it is usable but for its speed."""


def unusable_cpus(topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> dict[int, str]:
    """Return {cpu: reason} of every CPU that no rank may get: the first reason that holds.

    `held` are the CPUs of other plans.
    """
    cpu_filter = _CPUFilter(topology, request, held)
    reasons = ((cpu.id, cpu_filter.reason(cpu)) for cpu in topology.cpus)
    unusable = {cpu: reason for cpu, reason in reasons if reason is not None}
    if request.cpu_lists is None:
        unusable |= dict.fromkeys(core_choice(topology, request, unusable).left_out, EFFICIENCY_CORE)
    return unusable


def core_choice(topology: Topology, request: PlacementRequest, unusable: Mapping[int, str]) -> CoreChoice:
    """Return which kinds of cores the ranks use, among the CPUs that are usable whatever their kind."""
    usable = (cpu for cpu in topology.cpus if unusable.get(cpu.id, EFFICIENCY_CORE) == EFFICIENCY_CORE)
    return choose_cores(usable, request.core_type)


class _CPUFilter:
    """Which CPUs a request uses."""

    def __init__(self, topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> None:
        lists = [request.cpus] if request.cpus is not None else []
        lists += request.cpu_lists or ()
        self._held = held
        # CPUs that the user names are used although they are isolated. Where all that this process may use are, it was
        # started there on purpose.
        self._uses_isolated = bool(lists) or all(cpu.isolated for cpu in topology.cpus if cpu.allowed)
        self._named = {cpu for cpus in lists for cpu in cpus} if lists else None
        self._home = topology.home
        self._nodes = None if request.nodes is None else {topology.home_node(node) for node in request.nodes}

    def reason(self, cpu: LogicalCPUInfo) -> str | None:
        """Return the first reason that holds, None for a usable CPU."""
        if not cpu.online:
            return "hidden" if cpu.hidden else "offline"
        if not cpu.allowed or cpu.id in self._held:
            return "not-allowed"
        if not self._is_requested(cpu):
            return "not-requested"
        return "isolated" if cpu.isolated and not self._uses_isolated else None

    def _is_requested(self, cpu: LogicalCPUInfo) -> bool:
        named = self._named is None or cpu.id in self._named
        return named and (self._nodes is None or self._home(cpu.id) in self._nodes)


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
    topology: Topology, unusable: Container[int], rule: ArchitectureRule, *, span: str = "node", ranks: int = 1
) -> tuple[Pool, ...]:
    """Return the usable cores by NUMA node, ascending by node.

    Siblings are chosen among the usable CPUs of their core, never by id. With fewer `ranks` than nodes a `span` of
    ``"package"`` or ``"machine"`` joins the nodes of a package or all of them.
    """
    groups: dict[tuple[int, int, int], list[LogicalCPUInfo]] = {}
    for cpu in topology.cpus:
        if cpu.id not in unusable:
            # A core that the machine does not name, and CPUs of one core that it puts on two nodes, stand alone.
            alone = cpu.id if cpu.physical_core == UNKNOWN else UNKNOWN
            groups.setdefault((cpu.physical_core, cpu.numa_node, alone), []).append(cpu)
    by_node = _cores_by_node(topology, groups.values(), rule)
    if has_node_pools(topology) and span in ("package", "machine") and ranks < len(by_node):
        return _joined_pools(topology, by_node, span, ranks)
    return _node_pools(topology, by_node)


def single_cpu_pools(topology: Topology, cpus: Container[int]) -> tuple[Pool, ...]:
    """Return these CPUs by NUMA node, ascending by node, each as a core of its own."""
    groups = [[cpu] for cpu in topology.cpus if cpu.id in cpus]
    return _node_pools(topology, _cores_by_node(topology, groups, None))


def _cores_by_node(
    topology: Topology, groups: Iterable[list[LogicalCPUInfo]], rule: ArchitectureRule | None
) -> dict[int, list[Core]]:
    """Return {node: cores, neighbours in the machine side by side}, ascending by node; one core for each group.

    Without a `rule` all CPUs of a core get OpenMP threads. The only node is `UNKNOWN` where nodes do not bound ranks.
    """
    with_nodes = has_node_pools(topology)
    found: dict[int, list[tuple[tuple[int, ...], Core]]] = {}
    for members in groups:
        first = members[0]
        cpus = tuple(cpu.id for cpu in members)
        core = _core(first, cpus, cpus if rule is None else _threads(cpus, rule))
        levels = (first.drawer, first.book, first.package, first.die, first.l3, first.cluster, first.physical_core)
        home = topology.home(first.id) if with_nodes else UNKNOWN
        found.setdefault(home, []).append(((*levels, first.id), core._replace(node=home if with_nodes else core.node)))
    order = sorted(found, key=lambda node: (node == UNKNOWN, node))
    return {node: [core for _, core in sorted(found[node])] for node in order}


def _threads(cpus: tuple[int, ...], rule: ArchitectureRule) -> tuple[int, ...]:
    return cpus[-rule.threads_per_core :] if rule.last else cpus[: rule.threads_per_core]


def _node_pools(topology: Topology, by_node: dict[int, list[Core]]) -> tuple[Pool, ...]:
    if not has_node_pools(topology):
        return tuple(_pool(node, cores, NO_NODE_LEVELS, whole=True) for node, cores in by_node.items())
    return tuple(_pool(node, cores, NODE_LEVELS) for node, cores in by_node.items())


def _joined_pools(topology: Topology, by_node: dict[int, list[Core]], span: str, ranks: int) -> tuple[Pool, ...]:
    """Return one pool for each package, or one for the machine, in which near nodes are side by side."""
    spans: dict[tuple[int, int] | None, list[int]] = {}
    for node, cores in by_node.items():
        package = cores[0].package
        # An unknown package is not the same one for all: such a node stands alone.
        alone = node if package == UNKNOWN else UNKNOWN
        spans.setdefault((package, alone) if span == "package" else None, []).append(node)
    per_rank = -(-len(by_node) // ranks)
    pools = []
    for nodes in spans.values():
        near = list(range(len(nodes)))
        if not topology.equally_far:
            near = near_order(nodes, [1] * len(nodes), per_rank, topology.distance)
        cores = [core for place in near for core in by_node[nodes[place]]]
        pools.append(_pool(min(nodes), cores, SPAN_LEVELS, whole=True))
    return tuple(sorted(pools, key=lambda pool: pool.node))


def single_core(cpu: LogicalCPUInfo) -> Core:
    """Return a core of this CPU alone."""
    return _core(cpu, (cpu.id,), (cpu.id,))


def _core(cpu: LogicalCPUInfo, cpus: tuple[int, ...], threads: tuple[int, ...]) -> Core:
    return Core(cpus, threads, cpu.numa_node, cpu.drawer, cpu.book, cpu.package, cpu.l3, cpu.cluster)


def has_node_pools(topology: Topology) -> bool:
    """Return whether NUMA nodes bound the ranks; on s390x a single node is no information (kernel: arch/s390/numa)."""
    return bool(topology.nodes) and not (topology.architecture == "s390x" and len(topology.nodes) <= 1)


def near_order(nodes: list[int], counts: list[int], group: int, distance: Callable[[int, int], int]) -> list[int]:
    """Return the places of `nodes` so that of `counts` ranks on each every `group` in turn are near each other.

    Each group begins on the lowest node that is left, or on the one where the last group ended halfway.
    """
    left, order = list(range(len(nodes))), []
    apart: Counter[int] = Counter()
    placed = 0
    while left:
        chosen = min(left, key=lambda place: (apart[place], nodes[place]))
        left.remove(chosen)
        order.append(chosen)
        placed += counts[chosen]
        # A group that ends with this node leaves nothing to be near to; one that began on it does.
        if placed // group > (placed - counts[chosen]) // group:
            apart.clear()
        if placed % group:
            apart.update({place: distance(nodes[chosen], nodes[place]) for place in left})
    return order


def _pool(node: int, cores: list[Core], levels: tuple[str, ...], *, whole: bool = False) -> Pool:
    counts = {level: len({getattr(core, level) for core in cores}) for level in levels}
    # A level with one group, or with a group for each core, gives no line to cut along.
    lines = tuple(level for level, count in counts.items() if 1 < count < len(cores))
    return Pool(node, tuple(cores), lines, whole)
