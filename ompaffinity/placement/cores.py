"""The cores that a plan may use, and why every other CPU may not be used."""

from __future__ import annotations

from ompaffinity.records import NamedTuple
from ompaffinity.topology.kinds import PERFORMANCE
from ompaffinity.topology.model import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.placement.architecture import ArchitectureRule
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import LogicalCPUInfo, Topology


class Core(NamedTuple):
    """The usable CPUs of one physical core, ascending, and which of them get OpenMP threads."""

    cpus: tuple[int, ...]
    threads: tuple[int, ...]
    node: int
    package: int


class Pool(NamedTuple):
    """The usable cores of one NUMA node, neighbours in the machine side by side.

    `node` is `UNKNOWN` for the cores of a machine without NUMA information.
    """

    node: int
    cores: tuple[Core, ...]


def unusable_cpus(topology: Topology, request: PlacementRequest) -> dict[int, str]:
    """Return {cpu: reason} of every CPU that no rank may get: the first reason that holds."""
    lists = [] if isinstance(request.bind, str) else [set(cpus) for cpus in request.bind]
    if request.cpus is not None:
        lists.append(set(request.cpus))
    # CPUs that the user names are taken as they are: isolated ones too, and with --bind slow ones too.
    named = set().union(*lists) if lists else None
    nodes = None if request.nodes is None else {*request.nodes, UNKNOWN}
    performance_only = request.kinds == PERFORMANCE and isinstance(request.bind, str)
    reasons = {}
    for cpu in topology.cpus:
        if not cpu.online:
            reasons[cpu.id] = "offline"
        elif not cpu.allowed:
            reasons[cpu.id] = "not-allowed"
        elif (named is not None and cpu.id not in named) or (nodes is not None and cpu.numa_node not in nodes):
            reasons[cpu.id] = "not-requested"
        elif cpu.isolated and named is None:
            reasons[cpu.id] = "isolated"
        elif performance_only and cpu.kind not in (None, PERFORMANCE):
            reasons[cpu.id] = "efficiency-core"
    return reasons


def usable_pools(
    topology: Topology, unusable: dict[int, str], rule: ArchitectureRule, *, split_siblings: bool = False
) -> list[Pool]:
    """Return the usable cores by NUMA node, ascending by node.

    Siblings are chosen among the usable CPUs of their core, never by id. With `split_siblings`
    every CPU is a core of its own.
    """
    usable = [cpu for cpu in topology.cpus if cpu.id not in unusable]
    groups: dict[tuple[int, int], list[LogicalCPUInfo]] = {}
    for cpu in usable:
        # A core that the machine does not name, and CPUs of one core that it puts on two nodes, stand alone.
        alone = split_siblings or cpu.physical_core == UNKNOWN
        groups.setdefault((UNKNOWN - 1 - cpu.id if alone else cpu.physical_core, cpu.numa_node), []).append(cpu)
    with_nodes = bool(topology.nodes) and not (topology.architecture == "s390x" and len(topology.nodes) <= 1)
    pools: dict[int, list[tuple[tuple[int, ...], Core]]] = {}
    for members in groups.values():
        first = members[0]
        cpus = tuple(cpu.id for cpu in members)
        count = rule.threads_per_core
        core = Core(cpus, cpus[-count:] if rule.last else cpus[:count], first.numa_node, first.package)
        levels = (first.drawer, first.book, first.package, first.die, first.l3, first.cluster, first.physical_core)
        place = (*levels, first.id)
        pools.setdefault(first.numa_node if with_nodes else UNKNOWN, []).append((place, core))
    return [Pool(node, tuple(core for _, core in sorted(pools[node]))) for node in sorted(pools)]
