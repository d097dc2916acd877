"""A recorded machine in a tar file, held in memory: nothing of it is ever unpacked onto the disk, save for lscpu."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from ompaffinity.errors import TopologyError
from ompaffinity.topology.tree import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ompaffinity.topology.tree import Tree

Value = TypeVar("Value")

MAX_ARCHIVE_BYTES = 512 * 2**20
"""Of all members, unpacked; those that are not kept are skipped."""
MAX_KEPT_BYTES = 96 * 2**20
MAX_ARCHIVE_MEMBERS = 200_000
"""A record has about 60 files per CPU."""
MAX_HEADER_BYTES, MAX_HEADERS_BYTES = 2**16, 16 * 2**20
"""Of one extended header (a long name, pax), and of all of them: tarfile reads as many bytes as a header names."""
MAX_DEPTH = 40
"""Folders in a member's name; those of sysfs have about 20."""
MAX_TARGET = 4096
"""PATH_MAX, limits.h."""
MAX_STEPS = 256
"""Components of a path, those of the links in it included."""
BLOCK = 512
PLAIN_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
MAGIC_BYTES = 6

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


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


class _Stream:
    """An archive's bytes, uncompressed, within limits: tarfile reads headers of any size."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._name = name
        self._header_bytes = 0
        self.in_member = False
        """Whether the content of a member is read, which has limits of its own."""
        start = file.read(MAGIC_BYTES)
        file.seek(0)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        self._file: IO[bytes] = file if opener is None else opener(file, "rb")
        self._position = 0

    def read(self, size: int) -> bytes:
        if size < 0:
            raise _too_large(self._name)
        if not self.in_member and size > BLOCK:
            self._header_bytes += size
            if size > MAX_HEADER_BYTES or self._header_bytes > MAX_HEADERS_BYTES:
                raise TopologyError(f"{self._name} has larger headers than the record of a machine needs")
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, place: int) -> int:
        if place > 2 * MAX_ARCHIVE_BYTES:
            raise _too_large(self._name)
        # The readers of compressed files take microseconds to seek to where they are.
        if place != self._position:
            self._position = self._file.seek(place)
        return place

    def tell(self) -> int:
        return self._position


class _Header(tarfile.TarInfo):
    """The header of a member; of plain ones only the fields that a record needs are read, which is much faster."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Return the header in a block of 512 bytes (POSIX.1-2008, pax, "ustar"); tarfile reads rare ones."""
        kind = bytes(buf[156:157])
        try:
            size, checksum = int(buf[124:135], 8), int(buf[148:154], 8)
        except ValueError:
            return super().frombuf(buf, encoding, errors)
        if (
            len(buf) != BLOCK
            or size < 0
            or kind not in PLAIN_KINDS
            or sum(buf) - sum(buf[148:156]) + 8 * 32 != checksum
        ):
            return super().frombuf(buf, encoding, errors)
        name, prefix = (bytes(part).partition(b"\0")[0].decode(encoding, errors) for part in (buf[:100], buf[345:500]))
        if kind == tarfile.AREGTYPE and name.endswith("/"):
            kind = tarfile.DIRTYPE
        if kind == tarfile.DIRTYPE:
            name = name.rstrip("/")
        member = cls(f"{prefix}/{name}" if prefix else name)
        member.type, member.size = kind, size
        if kind == tarfile.SYMTYPE:
            member.linkname = bytes(buf[157:257]).partition(b"\0")[0].decode(encoding, errors)
        return member


def _too_large(name: str) -> TopologyError:
    return TopologyError(f"{name} is too large: it unpacks to more than {MAX_ARCHIVE_BYTES >> 20} MiB")


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
        stream = _Stream(file, name)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:", tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                # tarfile keeps the header of every member.
                archive.members.clear()  # type: ignore[attr-defined]
                count += 1
                total += max(member.size, 0)
                if count > MAX_ARCHIVE_MEMBERS:
                    raise TopologyError(
                        f"{name} has more than {MAX_ARCHIVE_MEMBERS} files; record the machine's /sys alone"
                    )
                stream.in_member = True
                kept += _keep(archive, member, content, stream)
                stream.in_member = False
                if total > MAX_ARCHIVE_BYTES or kept > MAX_KEPT_BYTES:
                    raise _too_large(name)
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
    return {name.removeprefix(root): value for name, value in members.items() if name.startswith(root)}


def _keep(archive: tarfile.TarFile, member: tarfile.TarInfo, content: _Content, stream: _Stream) -> int:
    """Keep a member, and return how many bytes that takes."""
    name = _member_name(member.name)
    if member.issym() or member.islnk():
        if len(member.linkname) > MAX_TARGET:
            raise TopologyError(
                f"the link {member.name[:60]!r} in the archive has a target of {len(member.linkname)} bytes"
            )
        if member.issym():
            content.links[name] = member.linkname
        else:
            content.hard_links[name] = _member_name(member.linkname)
        return len(member.linkname)
    if member.isdir():
        return 0
    if not member.isreg():
        raise TopologyError(f"the archive member {member.name[:60]!r} is a device or a pipe; such a file is not read")
    if member.issparse():
        file = archive.extractfile(member)
        content.files[name] = b"" if file is None else file.read(MAX_FILE_BYTES)
    else:
        stream.seek(member.offset_data)
        content.files[name] = stream.read(min(member.size, MAX_FILE_BYTES))
        if len(content.files[name]) < min(member.size, MAX_FILE_BYTES):
            raise tarfile.ReadError("unexpected end of data")
    return len(name) + len(content.files[name])


def _member_name(name: str) -> str:
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
