"""Small machines for placement tests, and short ways to plan for them."""

from __future__ import annotations

from ompaffinity.placement.model import Core, Plan, Pool
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, MemoryNodeInfo, Topology
from ompaffinity.topology.source import load_topology


def synthetic(text: str, architecture: str = "x86_64") -> Topology:
    """Return the machine that hwloc's synthetic description `text` describes."""
    return load_topology(synthetic=text, architecture=architecture)


def plan_for(text: str, ranks: int = 1, architecture: str = "x86_64", **request: object) -> Plan:
    """Plan tensor-parallel ranks on a synthetic machine; `request` are fields of `PlacementRequest`."""
    return make_plan(synthetic(text, architecture), PlacementRequest(tensor_parallel_size=ranks, **request))  # type: ignore[arg-type]


def threads(plan: Plan) -> list[tuple[int, ...]]:
    """Return the CPUs of each rank, in the order of its threads."""
    return [rank.cpus for rank in plan.ranks]


def codes(plan: Plan) -> dict[str, str]:
    """Return {code: level} of the messages."""
    return {message.code: message.level for message in plan.messages}


def reasons(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return {reason: CPUs} of the CPUs that no rank has."""
    return {group.reason: group.cpus for group in plan.left_out}


def with_distances(topology: Topology, matrix: list[list[int]]) -> Topology:
    """Return the machine with these distances between its nodes: one row per node, 10 is local."""
    nodes = [node._replace(distances=dict(enumerate(row))) for node, row in zip(topology.nodes, matrix)]
    return topology._replace(nodes=tuple(nodes))


def without_nodes(topology: Topology) -> Topology:
    """Return the machine without NUMA information."""
    return topology._replace(nodes=(), cpus=tuple(cpu._replace(numa_node=UNKNOWN) for cpu in topology.cpus))


def pool_of(
    l3_sizes: list[int], cluster_size: int = 0, *, node: int = 0, package: int = 0, whole: bool = False
) -> Pool:
    """Return a pool of one-CPU cores in L3s of these sizes, in them clusters of `cluster_size` cores (0: none)."""
    cores: list[Core] = []
    for l3, size in enumerate(l3_sizes):
        for place in range(size):
            number = 1000 * node + len(cores)
            cluster = 1000 * l3 + place // cluster_size if cluster_size else UNKNOWN
            cores.append(Core((number,), (number,), node, UNKNOWN, UNKNOWN, package, 100 * node + l3, cluster))
    counts = {"l3": len({core.l3 for core in cores}), "cluster": len({core.cluster for core in cores})}
    return Pool(node, tuple(cores), tuple(name for name, count in counts.items() if 1 < count < len(cores)), whole)


def machine_of(packages: list[list[int]]) -> Topology:
    """Return a machine with so many cores in each node of each package: one CPU per core, nodes equally far."""
    cpus: list[LogicalCPUInfo] = []
    nodes: list[MemoryNodeInfo] = []
    for package, sizes in enumerate(packages):
        for size in sizes:
            number, first = len(nodes), len(cpus)
            cpus += [LogicalCPUInfo(cpu, cpu, number, package) for cpu in range(first, first + size)]
            members = tuple(range(first, first + size))
            nodes.append(MemoryNodeInfo(2**30, 2**30, number, members, has_memory=True))
    return Topology("x86_64", "drawn", "drawn", tuple(cpus), tuple(nodes))
