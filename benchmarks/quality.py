"""How good the plans are on every recorded machine, for 1, 2, 3, 4 and 8 ranks.

Of each plan: how much of the usable cores it uses, how much smaller the smallest rank is than the largest one, how many
ranks straddle an L3, and how far (SLIT distance, 10 = local) their memory is. Needs the recorded machines.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.conditions import Conditions
from ompaffinity.errors import OMPAffinityError
from ompaffinity.placement.plan import make_plan, usable_room
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import UNKNOWN, Topology
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from ompaffinity.placement.model import Plan

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
RANKS = (1, 2, 3, 4, 8)


def main() -> None:
    """Measure, print, and write ``benchmarks/results/quality.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    usual = os.environ.get("OMPAFFINITY_MACHINES", ROOT.parent.parent / "shared" / "machines")
    parser.add_argument("--machines", type=Path, default=Path(usual))
    options = parser.parse_args()
    paths = sorted(path for path in (options.machines / "sysfs").glob("*") if path.name.endswith(".tar.gz"))
    if not paths:
        raise SystemExit(f"no recorded machines in {options.machines}; OMPAFFINITY_MACHINES names another folder")
    conditions = Conditions()
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for path in paths:
        try:
            topology = load_topology(machine=str(path))
        except OMPAffinityError as error:
            unreadable.append(f"{path.name}: {error}")
            continue
        for ranks in RANKS:
            request = PlacementRequest(tensor_parallel_size=ranks)
            row: dict[str, Any] = {"machine": topology.machine, "ranks": ranks}
            room = usable_room(topology, request)
            try:
                row |= _judged(topology, make_plan(topology, request), room[0])
            except OMPAffinityError as error:
                row |= {"refused": str(error), "usable_cpus": room[1]}
            rows.append(row)
    text = _report(rows, len(paths) - len(unreadable))
    text += "".join(f"\nNot read: {reason}\n" for reason in unreadable)
    conditions.write("quality", text, {"plans": rows})


def _judged(topology: Topology, plan: Plan, cores: int) -> dict[str, Any]:
    def core(cpu: int) -> tuple[int, int]:
        info = topology.cpu(cpu)
        return (info.physical_core, info.numa_node) if info.physical_core != UNKNOWN else (UNKNOWN - 1 - cpu, 0)

    used = [{core(cpu) for cpu in (*rank.cpus, *rank.helper_cpus)} for rank in plan.ranks]
    sizes = [len(rank.cpus) for rank in plan.ranks]
    straddling = 0
    for rank, owned in zip(plan.ranks, used):
        caches = {topology.cpu(cpu).l3 for cpu in (*rank.cpus, *rank.helper_cpus)} - {UNKNOWN}
        room = [len({core(cpu.id) for cpu in topology.cpus if cpu.allowed and cpu.l3 == l3}) for l3 in caches]
        straddling += len(caches) > 1 and len(owned) <= max(room)
    distances = [
        topology.distance(topology.cpu(cpu).numa_node, node)
        for rank in plan.ranks
        for cpu in rank.cpus
        for node in rank.nodes
        # Some machines' firmware reports 0, which is no distance.
        if topology.distance(topology.cpu(cpu).numa_node, node) > 0
    ]
    nodes = {topology.cpu(cpu).numa_node for rank in plan.ranks for cpu in rank.cpus}
    touched = {core(cpu.id) for cpu in topology.cpus if cpu.allowed and cpu.numa_node in nodes}
    return {
        # Slow cores that a plan takes for lack of others are more than the usual ones.
        "cores_used": min(1.0, len(set().union(*used)) / cores),
        "cores_used_of_touched_nodes": len(set().union(*used)) / len(touched),
        "smallest_to_largest": min(sizes) / max(sizes),
        "straddling_ranks": straddling,
        "memory_distance": statistics.mean(distances) if distances else None,
        "codes": sorted({message.code for message in plan.messages if message.level == "warning"}),
    }


def _report(rows: list[dict[str, Any]], machines: int) -> str:
    lines = [
        f"{machines} recorded machines\n",
        "| ranks | plans | refused: fewer CPUs | cores used | of the nodes used | smallest / largest rank, mean | least"
        " | ranks that straddle an L3 needlessly | distance to memory, mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ranks in RANKS:
        of = [row for row in rows if row["ranks"] == ranks]
        made = [row for row in of if "refused" not in row]
        few = [row for row in of if "refused" in row and row["usable_cpus"] < ranks]
        if len(made) + len(few) < len(of):
            raise SystemExit(f"{len(of) - len(made) - len(few)} plans for {ranks} ranks are missing")
        distances = [row["memory_distance"] for row in made if row["memory_distance"] is not None]
        lines.append(
            f"| {ranks} | {len(made)} | {len(few)} | {_mean(made, 'cores_used')} |"
            f" {_mean(made, 'cores_used_of_touched_nodes')} | {_mean(made, 'smallest_to_largest')} |"
            f" {min(row['smallest_to_largest'] for row in made):.2f} | {sum(row['straddling_ranks'] for row in made)} |"
            f" {statistics.mean(distances):.2f} |"
        )
    return "\n".join(lines) + "\n"


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    return f"{statistics.mean(row[name] for row in rows):.3f}"


if __name__ == "__main__":
    main()
