"""The files that a process has mapped (``maps`` in proc(5)), also of one in another mount namespace.

What a process has mapped is opened as that process sees it, and only if it is the very file that is mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.proc import DELETED
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MAPS_BYTES = 16 * 2**20


class MappedFile(NamedTuple):
    """A file that a process has mapped: the first mapping, and the file as the kernel names it.

    `path` is that in the mount namespace of the process; a file that is `deleted` has none any more.
    """

    start: int
    end: int
    device: int
    inode: int
    path: str
    deleted: bool


def mapped_files(pid: int | str, containing: str = "") -> list[MappedFile]:
    """Return the files with `containing` in their names that a process has mapped, in the order of their addresses.

    Raises:
        OSError: its ``maps`` may not be read, are too long, or there is no such process.
    """
    found: dict[tuple[int, int, str], MappedFile] = {}
    for mapped in _mappings(pid, os.fsencode(containing)):
        found.setdefault((mapped.device, mapped.inode, mapped.path), mapped)
    return list(found.values())


def _mappings(pid: int | str, containing: bytes) -> Iterator[MappedFile]:
    size = 0
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            size += len(line)
            if size > MAX_MAPS_BYTES:
                raise OSError(errno.EFBIG, f"it is longer than {MAX_MAPS_BYTES >> 20} MiB")
            if containing not in line:
                continue
            fields = line.rstrip(b"\n").split(None, 5)
            # Mappings of no file have the inode 0.
            if len(fields) == 6 and fields[4] != b"0" and containing in fields[5].rpartition(b"/")[2]:
                # Another file system in the place of /proc may write other lines.
                with suppress(ValueError, OverflowError):
                    yield _mapped_file(fields)


def _mapped_file(fields: list[bytes]) -> MappedFile:
    start, _, end = fields[0].partition(b"-")
    major, _, minor = fields[3].partition(b":")
    # The kernel writes a line break in a path as an escape, and nothing else.
    path = os.fsdecode(fields[5].replace(b"\\012", b"\n"))
    return MappedFile(
        start=int(start, 16),
        end=int(end, 16),
        device=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(fields[4]),
        path=path.removesuffix(DELETED),
        deleted=path.endswith(DELETED),
    )


def open_mapped_file(pid: int | str, mapped: MappedFile) -> int:
    """Return a descriptor of the regular file that a process has mapped, which the caller closes.

    Its link in ``map_files`` leads to the very file, also where that was deleted, but needs CAP_CHECKPOINT_RESTORE (or
    CAP_SYS_ADMIN). Without it the path is opened below the root of the process, and compared with what is mapped.

    Raises:
        OSError: the file cannot be opened, is not a regular one, or another one has its path now.
    """
    try:
        return open_regular(f"/proc/{pid}/map_files/{mapped.start:x}-{mapped.end:x}")
    except OSError:
        descriptor = open_regular(f"/proc/{pid}/root{mapped.path}")
    try:
        if not _is_mapped(descriptor, mapped):
            raise FileNotFoundError(errno.ENOENT, "another file has its path now")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str) -> int:
    """Return a descriptor of a regular file, which the caller closes; a pipe or a device is not even opened.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    # Without O_NONBLOCK a pipe that took its place meanwhile would wait for a writer.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _is_mapped(descriptor: int, mapped: MappedFile) -> bool:
    """Return whether an open file is the one that is mapped.

    On overlayfs and btrfs stat(2) and ``maps`` name another device (and inode). There the file is mapped here too, for
    ``maps`` to name both in the same way.
    """
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) == (mapped.device, mapped.inode):
        return True
    if status.st_size == 0:
        return False
    import ctypes

    # Only a writable buffer has an address for ctypes; a private mapping never writes to its file.
    with mmap.mmap(descriptor, 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as page:
        buffer = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(buffer)
        here = [file for file in _mappings("self", b"") if file.start <= address < file.end]
        del buffer
    return any((file.device, file.inode) == (mapped.device, mapped.inode) for file in here)
