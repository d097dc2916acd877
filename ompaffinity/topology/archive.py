"""A recorded machine in a tar file, held in memory: nothing of it is ever unpacked onto the disk, save for lscpu."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from ompaffinity.errors import TopologyError
from ompaffinity.topology.tree import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
BUFFER_BYTES = 2**18
ADLER_MODULUS = 65521
UNUSUAL_NAME = re.compile(r"//|/\.|/$")

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
    """An archive's bytes, uncompressed and buffered, within limits: tarfile reads headers of any size."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._name = name
        self._header_bytes = 0
        self.in_member = False
        """Whether the content of a member is read, which has limits of its own."""
        start = file.read(MAGIC_BYTES)
        file.seek(0)
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        self._file: IO[bytes] = file if opener is None else opener(file, "rb")
        self._buffer = b""
        self._start = self._position = 0
        """Where the buffer starts in the archive, and where the next read does."""

    def read(self, size: int) -> bytes:
        if size < 0:
            raise _too_large(self._name)
        if not self.in_member and size > BLOCK:
            self._header_bytes += size
            if size > MAX_HEADER_BYTES or self._header_bytes > MAX_HEADERS_BYTES:
                raise TopologyError(f"{self._name} has larger headers than the record of a machine needs")
        first = self._position - self._start
        if first + size > len(self._buffer):
            # The block before stays, because tarfile reads its last byte again.
            kept = self._buffer[max(0, first - BLOCK) :]
            self._start = self._position - min(first, BLOCK)
            first = min(first, BLOCK)
            self._buffer = kept + self._file.read(max(size, BUFFER_BYTES))
        data = self._buffer[first : first + size]
        self._position += len(data)
        return data

    def block_at(self, place: int) -> bytes:
        """Return the block at a place, and stay behind it."""
        first = place - self._start
        if 0 <= first <= len(self._buffer) - BLOCK:
            self._position = place + BLOCK
            return self._buffer[first : first + BLOCK]
        self.seek(place)
        return self.read(BLOCK)

    def seek(self, place: int) -> int:
        if place > 2 * MAX_ARCHIVE_BYTES:
            raise _too_large(self._name)
        if not self._start <= place <= self._start + len(self._buffer):
            self._file.seek(place)
            self._buffer, self._start = b"", self._file.tell()
            place = self._start
        self._position = place
        return place

    def tell(self) -> int:
        return self._position


class _Plain(NamedTuple):
    """The fields of a plain member's header that a record needs."""

    name: str
    kind: bytes
    size: int
    target: str = ""


def _plain_header(block: bytes) -> _Plain | None:
    """Return the header of a plain member (POSIX.1-2008, pax, "ustar"), None where only tarfile can read the block."""
    kind = block[156:157]
    try:
        size, checksum = int(block[124:135], 8), int(block[148:154], 8)
    except ValueError:
        return None
    # The checksum is the sum of all bytes, with blanks in its own place. Adler-32 has the sum, too (RFC 1950).
    total = checksum - 8 * 32 + sum(block[148:156])
    is_intact = zlib.adler32(block) & 0xFFFF == (total + 1) % ADLER_MODULUS
    if kind not in PLAIN_KINDS or len(block) != BLOCK or size < 0 or not is_intact:
        return None
    name, prefix = _text(block[:100]), _text(block[345:500])
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        kind = tarfile.DIRTYPE
    target = _text(block[157:257]) if kind == tarfile.SYMTYPE else ""
    return _Plain(f"{prefix}/{name}" if prefix else name, kind, size, target)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class _Header(tarfile.TarInfo):
    """The header of a member behind an extended one; plain ones are read faster than tarfile does."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Return the header in a block of 512 bytes."""
        plain = _plain_header(bytes(buf))
        if plain is None:
            return super().frombuf(buf, encoding, errors)
        member = cls(plain.name.rstrip("/") if plain.kind == tarfile.DIRTYPE else plain.name)
        member.type, member.size, member.linkname = plain.kind, plain.size, plain.target
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
            for member in _members(archive, stream):
                count += 1
                total += max(member.size, 0)
                if count > MAX_ARCHIVE_MEMBERS:
                    raise TopologyError(
                        f"{name} has more than {MAX_ARCHIVE_MEMBERS} files; record the machine's /sys alone"
                    )
                stream.in_member = True
                if isinstance(member, _Plain):
                    kept += _keep(member, content, stream)
                else:
                    kept += _keep_rare(archive, member, content, stream)
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
    if not root:
        return members
    return {name.removeprefix(root): value for name, value in members.items() if name.startswith(root)}


def _members(archive: tarfile.TarFile, stream: _Stream) -> Iterator[_Plain | tarfile.TarInfo]:
    """Return the members of an archive, one after the other; the stream is at the content of a plain one.

    Raises:
        tarfile.TarError: the archive is damaged.
    """
    member = archive.next()
    while member is not None:
        # tarfile keeps the header of every member.
        archive.members.clear()  # type: ignore[attr-defined]
        yield member
        # Headers for all members may change what a plain one has.
        while not archive.pax_headers:
            plain = _plain_header(stream.block_at(archive.offset))
            if plain is None:
                # Where the content before is cut, there is nothing here either.
                stream.seek(archive.offset - 1)
                if not stream.read(1):
                    raise tarfile.ReadError("unexpected end of data")
                break
            # A link or a folder has no content, whatever its size is.
            size = plain.size if plain.kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            archive.offset += BLOCK + -(-size // BLOCK) * BLOCK
            yield plain
        member = archive.next()


def _keep(member: _Plain, content: _Content, stream: _Stream) -> int:
    """Keep a plain member, and return how many bytes that takes."""
    if member.kind == tarfile.DIRTYPE:
        _member_name(member.name)
        return 0
    if member.kind == tarfile.SYMTYPE:
        return _keep_link(member.name, member.target, content.links)
    return _keep_file(member.name, member.size, content, stream)


def _keep_rare(archive: tarfile.TarFile, member: tarfile.TarInfo, content: _Content, stream: _Stream) -> int:
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


def _keep_file(name: str, size: int, content: _Content, stream: _Stream) -> int:
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
