"""Synthetic machines, with the odd ones likely: sparse ids, holes, mixed SMT, nodes without CPUs or memory, cpusets."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ompaffinity.placement.architecture import ARCHITECTURES
from ompaffinity.placement.request import SIZES, PlacementRequest
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, MemoryNodeInfo, Topology

GIB = 2**30


@st.composite
def topologies(draw: st.DrawFn, max_cores: int = 12, numa: bool | None = None) -> Topology:
    """Draw a machine with at least one allowed CPU, its groups numbered by first CPU."""
    cores = draw(st.integers(1, max_cores))
    threads = draw(st.lists(st.sampled_from((1, 2, 2, 4)), min_size=cores, max_size=cores))
    if draw(st.booleans()):
        threads = [threads[0]] * cores
    total = sum(threads)
    ids = sorted(draw(st.sets(st.integers(0, 3 * total), min_size=total, max_size=total)))
    order = draw(st.permutations(ids)) if draw(st.booleans()) else ids
    with_nodes = draw(st.booleans()) if numa is None else numa
    core_of = {}
    position = 0
    for core, count in enumerate(threads):
        for cpu in order[position : position + count]:
            core_of[cpu] = core
        position += count
    node_of_core = _drawn_groups(draw, cores, 4)
    package_of_core = [node // 2 for node in node_of_core]
    l3_of_core = [node * 2 + draw(st.integers(0, 1)) for node in node_of_core]
    node_ids = sorted(draw(st.sets(st.integers(0, 80), min_size=6, max_size=6)))
    online = {cpu for cpu in ids if draw(st.integers(0, 9)) > 0} or {ids[0]}
    allowed = {cpu for cpu in online if draw(st.integers(0, 4)) > 0} or {min(online)}
    isolated = {cpu for cpu in ids if draw(st.integers(0, 19)) == 0} - {min(allowed)}
    nodes_of_cpus = {cpu: node_ids[node_of_core[core]] if with_nodes else UNKNOWN for cpu, core in core_of.items()}
    cpus = _numbered(
        [
            LogicalCPUInfo(
                id=cpu,
                physical_core=core_of[cpu] if cpu in online else UNKNOWN,
                numa_node=nodes_of_cpus[cpu] if cpu in online else UNKNOWN,
                package=package_of_core[core_of[cpu]] if cpu in online else UNKNOWN,
                l3=l3_of_core[core_of[cpu]] if cpu in online else UNKNOWN,
                online=cpu in online,
                allowed=cpu in allowed,
                isolated=cpu in isolated,
            )
            for cpu in ids
        ]
    )
    nodes = _drawn_nodes(draw, node_ids, cpus) if with_nodes else ()
    return Topology(draw(st.sampled_from(ARCHITECTURES)), "drawn", "drawn", tuple(cpus), nodes)


@st.composite
def requests(draw: st.DrawFn, ranks: int | None = None) -> PlacementRequest:
    """Draw a request that makes sense on any machine."""
    request = PlacementRequest(
        threads_per_core=draw(st.sampled_from((None, None, 1, 2))),
        reserve=draw(st.sampled_from((None, None, 0, 1, 3))),
        kv_transfer=draw(st.booleans()),
        distribute=draw(st.sampled_from(("close", "spread"))),
        runtime=draw(st.sampled_from(("auto", "gomp", "iomp", "omp"))),
        granularity=draw(st.sampled_from(("auto", "thread", "team"))),
        span=draw(st.sampled_from(("auto", "auto", "node", "package", "machine"))),
    )
    size: Any = {draw(st.sampled_from(SIZES)): ranks or draw(st.integers(1, 6))}
    return request._replace(**size)


def _drawn_groups(draw: st.DrawFn, members: int, most: int) -> list[int]:
    """Draw consecutive group numbers from 0, in order, some of them small."""
    cuts = sorted(draw(st.lists(st.integers(0, members), min_size=0, max_size=most - 1)))
    return [sum(cut <= member for cut in cuts) for member in range(members)]


def _drawn_nodes(draw: st.DrawFn, node_ids: list[int], cpus: list[LogicalCPUInfo]) -> tuple[MemoryNodeInfo, ...]:
    used = {cpu.numa_node for cpu in cpus} - {UNKNOWN}
    listed = [node for node in node_ids if node in used or draw(st.integers(0, 3)) == 0]
    with_distances = draw(st.booleans())
    allowed = {node for node in listed if draw(st.integers(0, 4)) > 0} or set(listed[:1])
    nodes = []
    for node in listed:
        size = draw(st.sampled_from((GIB, GIB, 16 * GIB, 0, UNKNOWN)))
        distances = {other: 10 if other == node else 10 + 2 * abs(other - node) for other in listed}
        nodes.append(
            MemoryNodeInfo(
                total_memory=size,
                available_memory=size // 2 if size > 0 else size,
                id=node,
                cpus=tuple(cpu.id for cpu in cpus if cpu.numa_node == node),
                has_memory=None if size == UNKNOWN else size > 0,
                allowed=node in allowed,
                distances=distances if with_distances else None,
            )
        )
    return tuple(nodes)


def _numbered(cpus: list[LogicalCPUInfo]) -> list[LogicalCPUInfo]:
    """Renumber the groups of every level by their first CPU, as readers do."""
    for level in ("physical_core", "package", "l3"):
        numbers: dict[int, int] = {}
        for place, cpu in enumerate(cpus):
            group = getattr(cpu, level)
            if group != UNKNOWN:
                number: Any = numbers.setdefault(group, len(numbers))
                cpus[place] = cpu._replace(**{level: number})
    return cpus
