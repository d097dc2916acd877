"""The bytes and the members of a tar file (plain, gzip, bzip2 or xz), within limits.

tarfile reads everything but the headers of plain members, for which it takes 40 microseconds each.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any

from ompaffinity.errors import TopologyError
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_ARCHIVE_BYTES = 512 * 2**20
"""Of all members, unpacked; those that are not kept are skipped."""
MAX_HEADER_BYTES, MAX_HEADERS_BYTES = 2**16, 16 * 2**20
"""Of one extended header (a long name, pax), and of all of them: tarfile reads as many bytes as a header names."""
BLOCK = 512
PLAIN_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE)
MAGIC_BYTES = 6
BUFFER_BYTES = 2**18
ADLER_MODULUS = 65521

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class TarStream:
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
            raise too_large(self._name)
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
            raise too_large(self._name)
        if not self._start <= place <= self._start + len(self._buffer):
            self._file.seek(place)
            self._buffer, self._start = b"", self._file.tell()
            place = self._start
        self._position = place
        return place

    def tell(self) -> int:
        return self._position


class PlainMember(NamedTuple):
    """The fields of a plain member's header that a record needs."""

    name: str
    kind: bytes
    size: int
    target: str = ""


def plain_header(block: bytes) -> PlainMember | None:
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
    return PlainMember(f"{prefix}/{name}" if prefix else name, kind, size, target)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class TarHeader(tarfile.TarInfo):
    """The header of a member behind an extended one; plain ones are read faster than tarfile does."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> TarHeader:
        """Return the header in a block of 512 bytes."""
        plain = plain_header(bytes(buf))
        if plain is None:
            return super().frombuf(buf, encoding, errors)
        member = cls(plain.name)
        member.type, member.size, member.linkname = plain.kind, plain.size, plain.target
        return member


def too_large(name: str) -> TopologyError:
    """Return the error for an archive with more content than the record of any machine."""
    return TopologyError(f"{name} is too large: it unpacks to more than {MAX_ARCHIVE_BYTES >> 20} MiB")


def members_of(archive: tarfile.TarFile, stream: TarStream) -> Iterator[PlainMember | tarfile.TarInfo]:
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
            plain = plain_header(stream.block_at(archive.offset))
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
