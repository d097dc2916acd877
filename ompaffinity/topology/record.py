"""A recorded machine, opened once: a directory, a tar file, a capture, an hwloc XML export or a saved ``lscpu -J``."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN_ARCHITECTURE
from ompaffinity.topology.reconcile import read_by_lscpu
from ompaffinity.topology.sysfs import read_sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ompaffinity.topology.archive import ArchiveTree
    from ompaffinity.topology.directory_record import DirectoryRecord
    from ompaffinity.topology.hwloc import Export
    from ompaffinity.topology.model import Topology

MAX_TEXT_BYTES = 32 * 2**20
MAX_VALUES, MAX_ELEMENTS = 2_000_000, 400_000
"""Values of a JSON text, and elements and attributes of an XML text: each takes a hundred bytes of memory or more."""
MAX_LABEL = 200
HEAD_BYTES = 512
BLANKS = b"\xef\xbb\xbf \t\r\n"
"""What may stand before the first character of a text: a byte order mark and blanks."""


class RecordedMachine(NamedTuple):
    """A recorded machine under the `label` that a topology bears. One of the other fields has its content.

    `tree` are its files, `capture` is the JSON object of a capture, `export` an hwloc XML export, and `lscpu` a saved
    output of lscpu.
    """

    label: str
    tree: DirectoryRecord | ArchiveTree | None = None
    capture: dict[str, Any] | None = None
    export: Export | None = None
    lscpu: str | None = None

    def topology(self, architecture: str | None = None, source: str = "auto") -> Topology:
        """Return the machine; `architecture` names that of a record without one, `source` is as in `load_topology`.

        Raises:
            TopologyError: the record is damaged, or `source` cannot read its form.
        """
        if self.tree is not None:
            return _of_files(self.tree, self.label, architecture, source)
        refuse_lscpu(source, "a record of this form")
        if self.lscpu is not None:
            from ompaffinity.topology.lscpu import saved_topology

            return saved_topology(self.lscpu, self.label, architecture or UNKNOWN_ARCHITECTURE)
        if self.export is not None:
            from ompaffinity.topology.hwloc import exported_topology

            topology = exported_topology(self.export, self.label)
        else:
            from ompaffinity.topology.snapshot import parse_capture

            topology = parse_capture(self.capture or {})
        return topology._replace(architecture=_named(topology.architecture, architecture))


@contextmanager
def opened(machine: str | RecordedMachine | None) -> Iterator[RecordedMachine | None]:
    """Open the record at a path for the length of a context. None, and what is open already, are passed on.

    Raises:
        TopologyError: there is no such record, or it cannot be read.
    """
    if not isinstance(machine, str):
        yield machine
    elif os.path.isdir(machine):
        from ompaffinity.topology.directory_record import open_record

        with open_record(machine) as record:
            yield RecordedMachine(_label(machine), tree=record)
    else:
        yield _recorded_file(machine)


def printable(label: str) -> str:
    """Return a label as a capture can hold it: one line, without control characters, not endless."""
    return "".join(character if character.isprintable() else "?" for character in label)[:MAX_LABEL]


def refuse_lscpu(source: str, what: str) -> None:
    """Check that lscpu is not asked to read a machine that it cannot read.

    Raises:
        TopologyError: it is.
    """
    if source == "lscpu":
        raise TopologyError(f"--source lscpu cannot read {what}; leave --source out")


def _of_files(tree: DirectoryRecord | ArchiveTree, label: str, architecture: str | None, source: str) -> Topology:
    from ompaffinity.topology.cpuinfo import recorded_architecture

    name = _named(recorded_architecture(tree), architecture)
    if source != "lscpu":
        return read_sysfs(tree, architecture=name, machine=label)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ompaffinity-") as folder:
        tree.write_to(folder)
        return read_by_lscpu(tree, name, label, None, folder)


def _recorded_file(path: str) -> RecordedMachine:
    if not os.path.exists(path):
        raise TopologyError(f"there is no file or directory {path}")
    try:
        # Without O_NONBLOCK the opening of a FIFO waits for a writer without limit.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TopologyError(f"{path} is neither a file nor a directory")
            head = file.read(HEAD_BYTES).lstrip(BLANKS)
            file.seek(0)
            if head.startswith((b"{", b"[", b"#", b"<", b"Architecture:")):
                return _recorded_text(file, path)
            from ompaffinity.topology.archive import read_archive

            return RecordedMachine(_label(path), tree=read_archive(file, os.path.basename(path)))
    except OSError as error:
        raise TopologyError(f"cannot read {path}: {error.strerror}") from None


def _recorded_text(file: IO[bytes], path: str) -> RecordedMachine:
    """Return a capture, a saved output of lscpu, or an hwloc XML export, distinguished by the content."""
    content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise TopologyError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB; it is no record of a machine")
    _check_size(content, path)
    label = _label(path)
    if content.lstrip(BLANKS).startswith(b"<"):
        from ompaffinity.topology.hwloc import parsed_export

        return RecordedMachine(label, export=parsed_export(content))
    text = content.decode("utf-8-sig", "replace")
    if '"schema"' in text:
        import json

        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TopologyError(f"{os.path.basename(path)} is not JSON ({error})") from None
        if isinstance(document, dict):
            return RecordedMachine(label, capture=document)
    return RecordedMachine(label, lscpu=text)


def _check_size(content: bytes, path: str) -> None:
    """Refuse a text that would take more memory than the record of any machine.

    Raises:
        TopologyError: it has too many parts.
    """
    parts = {"values": (sum(map(content.count, (b",", b"[", b"{"))), MAX_VALUES)}
    if content.lstrip(BLANKS).startswith(b"<"):
        parts = {"elements": (content.count(b"<"), MAX_ELEMENTS), "attributes": (content.count(b"="), 4 * MAX_ELEMENTS)}
    for name, (count, most) in parts.items():
        if count > most:
            raise TopologyError(f"{path} has more than {most} {name}; it is no record of a machine")


def _named(recorded: str, asked: str | None) -> str:
    """Return the architecture that a record has, or else the one that the user names."""
    return asked if asked is not None and recorded == UNKNOWN_ARCHITECTURE else recorded


def _label(path: str) -> str:
    """Return the base name of a record without the endings of its form."""
    name = os.path.basename(os.path.normpath(path)) or "root"
    for ending in (".gz", ".bz2", ".xz", ".tar", ".tgz", ".json", ".xml"):
        name = name.removesuffix(ending)
    return printable(name)
