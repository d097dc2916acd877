"""A recorded machine in a tar file, held in memory: nothing of it is ever unpacked onto the disk, save for lscpu."""

from __future__ import annotations

import lzma
import os
import re
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, TypeVar, cast

from ompaffinity.errors import TopologyError
from ompaffinity.records import NamedTuple
from ompaffinity.topology.tar_stream import (
    MAX_ARCHIVE_BYTES,
    PlainMember,
    TarHeader,
    TarStream,
    members_of,
    too_large,
)
from ompaffinity.topology.tree import MAX_FILE_BYTES

if TYPE_CHECKING:
    from ompaffinity.topology.tree import Tree

Value = TypeVar("Value")

MAX_KEPT_BYTES = 96 * 2**20
MAX_ARCHIVE_MEMBERS = 200_000
"""A record has about 60 files per CPU."""
MAX_DEPTH = 40
"""Folders in a member's name; those of sysfs have about 20."""
MAX_TARGET = 4096
"""PATH_MAX, limits.h."""
MAX_STEPS = 256
"""Components of a path, those of the links in it included."""
UNUSUAL_NAME = re.compile(r"//|/\.|/$")


class ArchiveTree:
    """Files held in memory, with symbolic links that never lead outside."""

    def __init__(self, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
        self._files = files
        self._links = links or {}
        self._names: dict[str, set[str]] = {}
        for path in (*files, *self._links):
            parent, _, name = path.rpartition("/")
            while name:
                known = self._names.setdefault(parent, set())
                if name in known:
                    break
                known.add(name)
                parent, _, name = parent.rpartition("/")

    def read(self, path: str, most: int = MAX_FILE_BYTES) -> bytes | None:  # noqa: ARG002
        return self._files.get(self._resolve(path))

    def names(self, path: str) -> list[str]:
        return sorted(self._names.get(self._resolve(path), ()))

    def at(self, path: str) -> Tree:
        return _Below(self, path)

    def write_to(self, folder: str) -> None:
        """Write the regular files of ``sys/`` and ``proc/`` below an empty private directory.

        Raises:
            TopologyError: a name in the archive cannot be a file's.
        """
        try:
            for path, content in self._files.items():
                if path.startswith(("sys/", "proc/")):
                    target = os.path.join(folder, path)
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    with open(target, "wb") as file:
                        file.write(content)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TopologyError(f"the archive cannot be unpacked for lscpu: {reason}") from None

    def _resolve(self, path: str) -> str:
        if not self._links:
            return path
        waiting = path.split("/")[::-1]
        done: list[str] = []
        for _ in range(MAX_STEPS):
            if not waiting:
                return "/".join(done)
            part = waiting.pop()
            if part == "..":
                del done[-1:]
            elif part not in ("", "."):
                done.append(part)
                target = self._links.get("/".join(done))
                if target is not None:
                    if target.startswith("/"):
                        done.clear()
                    else:
                        done.pop()
                    waiting += target.split("/")[::-1]
        return ""


class _Below:
    """The part of an archive below a directory."""

    def __init__(self, tree: ArchiveTree, folder: str) -> None:
        self._tree = tree
        self._folder = folder

    def read(self, path: str, most: int = MAX_FILE_BYTES) -> bytes | None:  # noqa: ARG002
        return self._tree.read(f"{self._folder}/{path}")

    def names(self, path: str) -> list[str]:
        return self._tree.names(f"{self._folder}/{path}")

    def at(self, path: str) -> Tree:
        return _Below(self._tree, f"{self._folder}/{path}")


def open_archive(path: str) -> ArchiveTree:
    """Read the tar file at a path, as `read_archive` does.

    Raises:
        TopologyError: as `read_archive`, or there is no such file.
    """
    try:
        with open(path, "rb") as file:
            return read_archive(file, os.path.basename(path))
    except OSError as error:
        raise TopologyError(f"cannot read {path}: {error.strerror}") from None


def read_archive(file: IO[bytes], name: str) -> ArchiveTree:
    """Read an open tar file (plain, gzip, bzip2 or xz) into memory; errors call it `name`.

    Raises:
        TopologyError: it is no tar file, is damaged, names absolute paths, ``..`` or device
            files, or would unpack to more than 512 MiB.
    """
    content = _Content({}, {}, {})
    total = kept = count = 0
    try:
        stream = TarStream(file, name)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:", tarinfo=TarHeader) as archive:
            for member in members_of(archive, stream):
                count += 1
                total += max(member.size, 0)
                if count > MAX_ARCHIVE_MEMBERS:
                    raise TopologyError(
                        f"{name} has more than {MAX_ARCHIVE_MEMBERS} files; record the machine's /sys alone"
                    )
                stream.in_member = True
                if isinstance(member, PlainMember):
                    kept += _keep(member, content, stream)
                else:
                    kept += _keep_rare(archive, member, content, stream)
                stream.in_member = False
                if total > MAX_ARCHIVE_BYTES or kept > MAX_KEPT_BYTES:
                    raise too_large(name)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TopologyError(
            f"cannot read {name}: it is no capture, lscpu output or hwloc XML, and no tar file ({reason})"
        ) from None
    root = _root_of([*content.files, *content.links])
    if root is None:
        raise TopologyError(f"{name} holds no recorded machine: no sys/ at its root or one folder down")
    links = _under(content.links, root)
    links |= {path: "/" + target.removeprefix(root) for path, target in _under(content.hard_links, root).items()}
    return ArchiveTree(_under(content.files, root), links)


class _Content(NamedTuple):
    """The members of an archive by name: content, targets of symbolic links, names that hard links repeat."""

    files: dict[str, bytes]
    links: dict[str, str]
    hard_links: dict[str, str]


def _under(members: dict[str, Value], root: str) -> dict[str, Value]:
    if not root:
        return members
    return {name.removeprefix(root): value for name, value in members.items() if name.startswith(root)}


def _keep(member: PlainMember, content: _Content, stream: TarStream) -> int:
    """Keep a plain member, and return how many bytes that takes."""
    if member.kind == tarfile.DIRTYPE:
        _member_name(member.name)
        return 0
    if member.kind == tarfile.SYMTYPE:
        return _keep_link(member.name, member.target, content.links)
    return _keep_file(member.name, member.size, content, stream)


def _keep_rare(archive: tarfile.TarFile, member: tarfile.TarInfo, content: _Content, stream: TarStream) -> int:
    """Keep a member that tarfile has read, and return how many bytes that takes."""
    if member.issym():
        return _keep_link(member.name, member.linkname, content.links)
    if member.islnk():
        return _keep_link(member.name, _member_name(member.linkname), content.hard_links)
    name = _member_name(member.name)
    if member.isdir():
        return 0
    if not member.isreg():
        raise TopologyError(f"the archive member {member.name[:60]!r} is a device or a pipe; such a file is not read")
    if member.issparse():
        file = archive.extractfile(member)
        content.files[name] = b"" if file is None else file.read(MAX_FILE_BYTES)
        return len(name) + len(content.files[name])
    stream.seek(member.offset_data)
    return _keep_file(name, member.size, content, stream)


def _keep_link(name: str, target: str, links: dict[str, str]) -> int:
    if len(target) > MAX_TARGET:
        raise TopologyError(f"the link {name[:60]!r} in the archive has a target of {len(target)} bytes")
    links[_member_name(name)] = target
    return len(target)


def _keep_file(name: str, size: int, content: _Content, stream: TarStream) -> int:
    kept = min(size, MAX_FILE_BYTES)
    data = stream.read(kept)
    if len(data) < kept:
        raise tarfile.ReadError("unexpected end of data")
    content.files[_member_name(name)] = data
    return len(name) + kept


def _member_name(name: str) -> str:
    """Return a member's path in the archive, without empty parts.

    Raises:
        TopologyError: it leads out of the archive, or is too deep.
    """
    if name.startswith(("sys/", "proc/")) and not UNUSUAL_NAME.search(name) and name.count("/") < MAX_DEPTH:
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise TopologyError(f"the archive member {name[:60]!r} leads outside the archive; such a file is not read")
    if len(parts) > MAX_DEPTH:
        raise TopologyError(
            f"the archive member {name[:60]!r} is in more than {MAX_DEPTH} folders; such a file is not read"
        )
    return "/".join(parts)


def _root_of(names: list[str]) -> str | None:
    """Return the prefix before ``sys/``: empty, one folder, or None where there is no such folder."""
    tops = {name.split("/", 1)[0] for name in names}
    if "sys" in tops:
        return ""
    folders = {name.split("/", 2)[0] for name in names if name.split("/", 2)[1:2] == ["sys"]}
    if len(folders) != 1:
        folders = tops if len(tops) == 1 and any(name.split("/", 2)[1:2] == ["proc"] for name in names) else set()
    return f"{folders.pop()}/" if folders else None
