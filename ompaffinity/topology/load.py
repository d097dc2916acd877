"""One machine from wherever it is: this one, a directory, a tar file, a synthetic description."""

from __future__ import annotations

import os

from ompaffinity.errors import TopologyError
from ompaffinity.topology.model import Topology
from ompaffinity.topology.sysfs import allowed_cpus, read_sysfs
from ompaffinity.topology.tree import DirectoryTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree

SOURCES = ("auto", "sysfs", "lscpu")


def load_topology(
    *, machine: str | None = None, synthetic: str | None = None, architecture: str | None = None, source: str = "auto"
) -> Topology:
    """Return this machine, or the recorded one at the path `machine`, or the one that `synthetic` describes.

    `architecture` names it for a machine that does not say. `source` is ``"auto"`` (sysfs, or
    lscpu where sysfs cannot be read), ``"sysfs"`` or ``"lscpu"``.

    Raises:
        TopologyError: the machine cannot be read.
    """
    if machine is not None and synthetic is not None:
        raise TopologyError("--machine and --synthetic name two machines; give one of them")
    if source not in SOURCES:
        raise TopologyError(f"the source {source!r} is not one of {', '.join(SOURCES)}")
    if source == "lscpu" and (synthetic is not None or machine is not None):
        raise TopologyError("--source lscpu reads this machine only; a recorded one is read through sysfs")
    if synthetic is not None:
        from ompaffinity.topology.synthetic import parse_synthetic

        return parse_synthetic(synthetic, architecture or "unknown")
    if machine is not None:
        return _recorded(machine, architecture)
    return _live(source)


def _live(source: str) -> Topology:
    from ompaffinity.topology.limits import live_affinity

    architecture = os.uname().machine
    with DirectoryTree("/") as tree:
        affinity = live_affinity()
        if source == "lscpu":
            return _live_lscpu(tree, architecture, affinity)
        try:
            return read_sysfs(tree, architecture=architecture, machine="live", affinity=affinity)
        except TopologyError:
            if source == "sysfs":
                raise
            return _live_lscpu(tree, architecture, affinity)


def _live_lscpu(tree: Tree, architecture: str, affinity: tuple[int, ...] | None) -> Topology:
    """What lscpu says, with the dies, clusters, kinds and isolated CPUs that it does not know from sysfs."""
    from ompaffinity.topology.limits import read_limits
    from ompaffinity.topology.lscpu import parse_lscpu, run_lscpu
    from ompaffinity.topology.nodes import read_nodes

    rows = parse_lscpu(run_lscpu(architecture))
    limits = read_limits(tree, affinity)
    online = [row.id for row in rows if row.online]
    allowed = allowed_cpus(online, limits)
    try:
        known = {cpu.id: cpu for cpu in read_sysfs(tree, architecture=architecture, machine="live").cpus}
    except TopologyError:
        known = {}
    cpus = []
    for row in rows:
        other = known.get(row.id, row)
        cpus.append(
            row._replace(
                die=other.die,
                cluster=other.cluster,
                kind=other.kind,
                isolated=other.isolated,
                allowed=row.id in allowed,
            )
        )
    return Topology(architecture, "lscpu", "live", tuple(cpus), read_nodes(tree, online, limits), limits)


def _recorded(path: str, architecture: str | None) -> Topology:
    from ompaffinity.topology.cpuinfo import recorded_architecture

    if os.path.isdir(path):
        folder = _machine_directory(path)
        with DirectoryTree(folder) as tree:
            return read_sysfs(tree, architecture=architecture or recorded_architecture(tree), machine=_label(path))
    if not os.path.exists(path):
        raise TopologyError(f"there is no file or directory {path}")
    from ompaffinity.topology.tree import open_archive

    archive = open_archive(path)
    return read_sysfs(archive, architecture=architecture or recorded_architecture(archive), machine=_label(path))


def _machine_directory(path: str) -> str:
    """Return the directory that holds ``sys/``: `path` itself or its only such folder."""
    try:
        folders = [path, *(os.path.join(path, name) for name in sorted(os.listdir(path)))]
    except OSError as error:
        raise TopologyError(f"cannot read the directory {path}: {error.strerror}") from None
    found = [folder for folder in folders if os.path.isdir(os.path.join(folder, "sys"))]
    if not found:
        raise TopologyError(f"{path} holds no recorded machine: no sys/ in it or one folder down")
    if found[0] != path and len(found) > 1:
        raise TopologyError(f"{path} holds {len(found)} recorded machines; name one of them, such as {found[0]}")
    return found[0]


def _label(path: str) -> str:
    """Return the base name of a record without the endings of archives."""
    name = os.path.basename(os.path.normpath(path))
    for ending in (".gz", ".bz2", ".xz", ".tar", ".tgz"):
        name = name.removesuffix(ending)
    return name
