"""One machine from wherever it is: this one, a recording of any form, a synthetic description."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.messages import LSCPU_UNUSABLE, log_debug
from ompaffinity.topology.model import UNKNOWN, UNKNOWN_ARCHITECTURE, Limits, LogicalCPUInfo, Topology
from ompaffinity.topology.reconcile import completed, read_by_lscpu
from ompaffinity.topology.record import opened, refuse_lscpu
from ompaffinity.topology.sysfs import read_online, read_sysfs
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from ompaffinity.topology.record import RecordedMachine
    from ompaffinity.topology.tree import Tree

SOURCES = ("auto", "sysfs", "lscpu")
LIVE = "live"
"""The label of this machine: a host name would identify it."""
HOTPLUG_TRIES = 3


def load_topology(
    *,
    machine: str | RecordedMachine | None = None,
    synthetic: str | None = None,
    architecture: str | None = None,
    source: str = "auto",
) -> Topology:
    """Return this machine, or the recorded one at the path `machine`, or the one that `synthetic` describes.

    A record is a directory or tar file that holds ``sys/``, a capture, a saved ``lscpu -J``, or an
    hwloc XML export; a `RecordedMachine` is one that is open already. `architecture` names it for a machine
    that does not report it. `source` is ``"auto"`` (sysfs, checked and completed by lscpu where it is lacking),
    ``"sysfs"`` or ``"lscpu"``.

    Raises:
        TopologyError: the machine cannot be read.
    """
    if machine is not None and synthetic is not None:
        raise TopologyError("--machine and --synthetic name two machines; give one of them")
    if source not in SOURCES:
        raise TopologyError(f"the source {source!r} is not one of {', '.join(SOURCES)}")
    if synthetic is not None:
        from ompaffinity.topology.synthetic import parse_synthetic

        refuse_lscpu(source, "a synthetic machine")
        return _logged(parse_synthetic(synthetic, architecture or UNKNOWN_ARCHITECTURE))
    with opened(machine) as recording:
        topology = _live(source)._replace(live=True) if recording is None else recording.topology(architecture, source)
    if architecture not in (None, topology.architecture):
        raise TopologyError(
            f"--arch {architecture} contradicts the machine, which reports {topology.architecture}; leave --arch out"
        )
    return _logged(topology)


def _logged(topology: Topology) -> Topology:
    allowed, nodes = len(topology.allowed_cpus), len(topology.nodes)
    text = "read %d CPUs (%d allowed) and %d nodes from %s; limits: %s"
    log_debug(text, len(topology.cpus), allowed, nodes, topology.source, topology.limits)
    return topology


def _live(source: str) -> Topology:
    from ompaffinity.topology.limits import live_affinity

    architecture = os.uname().machine
    with DirectoryTree("/") as tree:
        affinity = live_affinity()
        if source == "lscpu":
            return read_by_lscpu(tree, architecture, LIVE, affinity)
        try:
            topology = _settled(tree, architecture, affinity)
        except TopologyError:
            if source == "sysfs":
                raise
            return _without_sysfs(tree, architecture, affinity)
        return _checked(topology, tree) if source == "auto" else topology


def _settled(tree: Tree, architecture: str, affinity: tuple[int, ...] | None) -> Topology:
    """Read sysfs until no CPU changes between online and offline meanwhile, three times at most."""
    for _ in range(HOTPLUG_TRIES):
        topology = read_sysfs(tree, architecture=architecture, machine=LIVE, affinity=affinity)
        listed = read_online(tree)
        online = {cpu.id for cpu in topology.cpus if cpu.online}
        # A faked list lacks CPUs that the mask has.
        if listed is None or online.difference(affinity or ()) <= set(listed) <= online:
            break
    return topology


def _checked(topology: Topology, tree: Tree) -> Topology:
    """Let lscpu add the cores and packages that sysfs lacks; most machines lack none, and then it is not run."""
    if not any(cpu.online and UNKNOWN in (cpu.physical_core, cpu.package) for cpu in topology.cpus):
        return topology
    try:
        other = read_by_lscpu(tree, topology.architecture, topology.machine, topology.limits.affinity)
    except TopologyError as error:
        return topology._replace(messages=(*topology.messages, LSCPU_UNUSABLE(reason=error)))
    return completed(topology, other)


def _without_sysfs(tree: Tree, architecture: str, affinity: tuple[int, ...] | None) -> Topology:
    """lscpu, or where it is of no use either (macOS) the bare CPUs, each a core of its own."""
    try:
        return read_by_lscpu(tree, architecture, LIVE, affinity)
    except TopologyError:
        import psutil

        cpus = tuple(LogicalCPUInfo(cpu) for cpu in affinity or range(psutil.cpu_count() or 1))
        return Topology(architecture, "flat", LIVE, cpus, limits=Limits(affinity=affinity))
