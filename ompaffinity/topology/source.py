"""One machine from wherever it is: this one, a recording of any form, a synthetic description."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.messages import Message
from ompaffinity.topology.model import UNKNOWN, UNKNOWN_ARCHITECTURE, Limits, LogicalCPUInfo, Topology
from ompaffinity.topology.sysfs import allowed_cpus, read_online, read_sysfs
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.topology.tree import Tree

SOURCES = ("auto", "sysfs", "lscpu")
LIVE = "live"
"""The label of this machine: its host name is nobody's business."""
MAX_TEXT_BYTES = 64 * 2**20
HOTPLUG_TRIES = 3
MAX_LABEL = 200


def load_topology(
    *, machine: str | None = None, synthetic: str | None = None, architecture: str | None = None, source: str = "auto"
) -> Topology:
    """Return this machine, or the recorded one at the path `machine`, or the one that `synthetic` describes.

    A record is a directory or tar file that holds ``sys/``, a capture, a saved ``lscpu -J``, or an
    hwloc XML export. `architecture` names it for a machine that does not say. `source` is
    ``"auto"`` (sysfs, checked and completed by lscpu where it is lacking), ``"sysfs"`` or ``"lscpu"``.

    Raises:
        TopologyError: the machine cannot be read.
    """
    if machine is not None and synthetic is not None:
        raise TopologyError("--machine and --synthetic name two machines; give one of them")
    if source not in SOURCES:
        raise TopologyError(f"the source {source!r} is not one of {', '.join(SOURCES)}")
    if synthetic is not None:
        from ompaffinity.topology.synthetic import parse_synthetic

        _refuse_lscpu(source, "a synthetic machine")
        return parse_synthetic(synthetic, architecture or UNKNOWN_ARCHITECTURE)
    topology = _live(source)._replace(live=True) if machine is None else _recorded(machine, architecture, source)
    if architecture not in (None, topology.architecture):
        raise TopologyError(
            f"--arch {architecture} contradicts the machine, which says {topology.architecture}; leave --arch out"
        )
    return topology


@contextmanager
def recorded_tree(path: str) -> Iterator[Tree]:
    """Yield the files of a recorded machine, for what a Topology does not hold.

    Raises:
        TopologyError: there is no such record, or it holds no files (a capture, lscpu's output, hwloc XML).
    """
    if os.path.isdir(path):
        with DirectoryTree(_machine_directory(path)) as tree:
            yield tree
        return
    if is_text(path):
        raise TopologyError(f"{path} holds no files; record the machine's sys/ as a directory or tar file")
    from ompaffinity.topology.archive import open_archive

    yield open_archive(path)


def is_text(path: str) -> bool:
    """Return whether a record is a capture, a saved output of lscpu or an hwloc XML export: no files in it.

    Raises:
        TopologyError: there is no such record.
    """
    return not os.path.isdir(path) and _head(path).startswith((b"{", b"[", b"#", b"<"))


def recorded_text(path: str) -> bytes:
    """Return the content of a record of which `is_text` holds.

    Raises:
        TopologyError: it cannot be read, or is too large.
    """
    return _read(path, MAX_TEXT_BYTES)


def _live(source: str) -> Topology:
    from ompaffinity.topology.limits import live_affinity

    architecture = os.uname().machine
    with DirectoryTree("/") as tree:
        affinity = live_affinity()
        if source == "lscpu":
            return _by_lscpu(tree, architecture, LIVE, affinity)
        try:
            topology = _settled(tree, architecture, affinity)
        except TopologyError:
            if source == "sysfs":
                raise
            return _without_sysfs(tree, architecture, affinity)
        return _checked(topology, tree) if source == "auto" else topology


def _settled(tree: Tree, architecture: str, affinity: tuple[int, ...] | None) -> Topology:
    """Read sysfs until no CPU goes on or off line meanwhile, three times at most."""
    for _ in range(HOTPLUG_TRIES):
        topology = read_sysfs(tree, architecture=architecture, machine=LIVE, affinity=affinity)
        if read_online(tree) in (None, [cpu.id for cpu in topology.cpus if cpu.online]):
            break
    return topology


def _checked(topology: Topology, tree: Tree) -> Topology:
    """Let lscpu add the cores and packages that sysfs lacks; most machines lack none, and then it is not run."""
    if not any(cpu.online and UNKNOWN in (cpu.physical_core, cpu.package) for cpu in topology.cpus):
        return topology
    from ompaffinity.topology.reconcile import completed

    try:
        other = _by_lscpu(tree, topology.architecture, topology.machine, topology.limits.affinity)
    except TopologyError as error:
        message = Message("lscpu-unusable", "note", f"sysfs does not tell all cores and packages, and {error}")
        return topology._replace(messages=(*topology.messages, message))
    return completed(topology, other)


def _by_lscpu(
    tree: Tree, architecture: str, machine: str, affinity: tuple[int, ...] | None, root: str | None = None
) -> Topology:
    """What lscpu says; dies, clusters, kinds and isolated CPUs, which it does not know, from sysfs."""
    from ompaffinity.topology.limits import read_limits
    from ompaffinity.topology.lscpu import read_lscpu
    from ompaffinity.topology.nodes import read_nodes, whole_memory
    from ompaffinity.topology.reconcile import disagreement

    rows = read_lscpu(architecture, root)
    limits = read_limits(tree, affinity)
    online = [row.id for row in rows if row.online]
    allowed = allowed_cpus(online, limits)
    try:
        by_sysfs = read_sysfs(tree, architecture=architecture, machine=machine, affinity=affinity)
    except TopologyError:
        by_sysfs = Topology(architecture, "sysfs", machine, rows)
    known = {cpu.id: cpu for cpu in by_sysfs.cpus}
    cpus = tuple(_added(row, known.get(row.id, row))._replace(allowed=row.id in allowed) for row in rows)
    nodes = read_nodes(tree, online, limits)
    topology = Topology(architecture, "lscpu", machine, cpus, nodes, limits, (), whole_memory(tree, nodes))
    return topology._replace(messages=tuple(disagreement(topology, by_sysfs)))


def _added(row: LogicalCPUInfo, other: LogicalCPUInfo) -> LogicalCPUInfo:
    return row._replace(die=other.die, cluster=other.cluster, kind=other.kind, isolated=other.isolated)


def _without_sysfs(tree: Tree, architecture: str, affinity: tuple[int, ...] | None) -> Topology:
    """lscpu, or where it is of no use either (macOS) the bare CPUs, each a core of its own."""
    try:
        return _by_lscpu(tree, architecture, LIVE, affinity)
    except TopologyError:
        import psutil

        cpus = tuple(LogicalCPUInfo(cpu) for cpu in affinity or range(psutil.cpu_count() or 1))
        return Topology(architecture, "flat", LIVE, cpus, limits=Limits(affinity=affinity))


def _recorded(path: str, architecture: str | None, source: str) -> Topology:
    from ompaffinity.topology.cpuinfo import recorded_architecture

    label = _label(path)
    if os.path.isdir(path):
        folder = _machine_directory(path)
        with DirectoryTree(folder) as tree:
            name = _named(recorded_architecture(tree), architecture)
            if source == "lscpu":
                return _by_lscpu(tree, name, label, None, folder)
            return read_sysfs(tree, architecture=name, machine=label)
    if is_text(path):
        _refuse_lscpu(source, "a record of this form")
        return _recorded_text(path, label, architecture)
    from ompaffinity.topology.archive import open_archive

    archive = open_archive(path)
    name = _named(recorded_architecture(archive), architecture)
    if source == "lscpu":
        import tempfile

        with tempfile.TemporaryDirectory(prefix="ompaffinity-") as folder:
            archive.write_to(folder)
            return _by_lscpu(archive, name, label, None, folder)
    return read_sysfs(archive, architecture=name, machine=label)


def _recorded_text(path: str, label: str, architecture: str | None) -> Topology:
    """A capture, a saved output of lscpu, or an hwloc XML export, told apart by what it holds."""
    content = _read(path, MAX_TEXT_BYTES)
    if content.lstrip().startswith(b"<"):
        from ompaffinity.topology.hwloc import parse_hwloc

        topology = parse_hwloc(content, label)
        return topology._replace(architecture=_named(topology.architecture, architecture))
    import json

    from ompaffinity.topology.lscpu import saved_topology
    from ompaffinity.topology.snapshot import parse_capture

    text = content.decode("utf-8", "replace")
    if '"schema"' in text:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TopologyError(f"{os.path.basename(path)} is not JSON ({error})") from None
        if isinstance(document, dict):
            capture = parse_capture(document)
            return capture._replace(architecture=_named(capture.architecture, architecture))
    return saved_topology(text, label, architecture or UNKNOWN_ARCHITECTURE)


def _named(recorded: str, asked: str | None) -> str:
    """Return the architecture that a machine says, or where it says none the one that the user says."""
    return asked if asked is not None and recorded == UNKNOWN_ARCHITECTURE else recorded


def _head(path: str) -> bytes:
    """Return the first bytes that are no blanks, to tell the forms of records apart."""
    if not os.path.exists(path):
        raise TopologyError(f"there is no file or directory {path}")
    if not os.path.isfile(path):
        raise TopologyError(f"{path} is neither a file nor a directory")
    return _read(path, 512).lstrip(b"\xef\xbb\xbf \t\r\n")


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise TopologyError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > limit and limit == MAX_TEXT_BYTES:
        raise TopologyError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB; it is no record of a machine")
    return content


def _refuse_lscpu(source: str, what: str) -> None:
    if source == "lscpu":
        raise TopologyError(f"--source lscpu cannot read {what}; leave --source out")


def _machine_directory(path: str) -> str:
    """Return the directory that holds ``sys/``: `path` itself or its only such folder."""
    if os.path.isdir(os.path.join(path, "sys")):
        return path
    try:
        folders = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    except OSError as error:
        raise TopologyError(f"cannot read the directory {path}: {error.strerror}") from None
    found = [folder for folder in folders if os.path.isdir(os.path.join(folder, "sys"))]
    if not found:
        raise TopologyError(f"{path} holds no recorded machine: no sys/ in it or one folder down")
    if len(found) > 1:
        raise TopologyError(f"{path} holds {len(found)} recorded machines; name one of them, such as {found[0]}")
    return found[0]


def _label(path: str) -> str:
    """Return the base name of a record without the endings of its form."""
    name = os.path.basename(os.path.normpath(path)) or "root"
    for ending in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".json", ".xml"):
        name = name.removesuffix(ending)
    return printable(name)


def printable(label: str) -> str:
    """Return a label as a capture can hold it: one line, without control characters, not endless."""
    return "".join(character if character.isprintable() else "?" for character in label)[:MAX_LABEL]
