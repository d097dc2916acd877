"""A recorded machine in a directory: no link of it leads outside, neither to another place nor to this machine.

A path is opened component by component, as openat2(2) with RESOLVE_IN_ROOT does: an absolute link starts at the root of
the record, and ``..`` stops there. Files whose path has no link are opened by openat2 itself where the kernel has it
(Linux 5.6), in one call for each; Python has no function for it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError
from ompaffinity.topology.tree import MAX_FILE_BYTES, READ_FLAGS, NoTree, read_content

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ompaffinity.topology.tree import Tree

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY
MAX_STEPS = 256
"""Components of a path, those of the links in it included; the kernel follows at most 40 links."""
LSCPU_FILES = ("sys/devices/system/cpu", "sys/devices/system/node", "proc/cpuinfo", "proc/sysinfo")
MAX_FILES = 1_000_000
OPENAT2 = 437
"""The number of the system call, the same on all architectures but alpha (the kernel's scripts/syscall.tbl)."""
RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x04, 0x08
"""openat2(2)."""


class DirectoryRecord:
    """The files of a recorded machine. A context manager, for it holds directories open."""

    def __init__(self, way: list[int]) -> None:
        """Take over the open directories from the root of the record to the one whose files these are."""
        self._way = way
        self._parts: list[DirectoryRecord] = []
        self._open_file = _opener_beneath()

    def __enter__(self) -> DirectoryRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directories, also those of the trees that `at` returned."""
        for part in self._parts:
            part.close()
        for descriptor in self._way:
            os.close(descriptor)
        self._way = []

    def at(self, path: str) -> Tree:
        try:
            way = self._walk(path, DIRECTORY_FLAGS)
        except OSError:
            return NoTree()
        kept = set(self._way)
        part = DirectoryRecord([os.dup(descriptor) if descriptor in kept else descriptor for descriptor in way])
        self._parts.append(part)
        return part

    def read(self, path: str, most: int = MAX_FILE_BYTES) -> bytes | None:
        descriptor = self._open_file(self._way[-1], path)
        if descriptor is not None:
            try:
                return None if descriptor == ABSENT else _regular_content(descriptor, path, most)
            finally:
                if descriptor != ABSENT:
                    os.close(descriptor)
        try:
            way = self._walk(path, READ_FLAGS)
        except OSError:
            return None
        try:
            return _regular_content(way[-1], path, most)
        finally:
            self._back(way, 0)

    def names(self, path: str) -> list[str]:
        try:
            way = self._walk(path, DIRECTORY_FLAGS)
        except OSError:
            return []
        try:
            return sorted(os.listdir(way[-1]))
        except OSError:
            return []
        finally:
            self._back(way, 0)

    def has_directory(self, path: str) -> bool:
        """Return whether there is such a directory in the record."""
        try:
            self._back(self._walk(path, DIRECTORY_FLAGS), 0)
        except OSError:
            return False
        return True

    def rooted_at(self, path: str) -> DirectoryRecord:
        """Return a record of its own whose root is a directory of this one.

        Raises:
            OSError: there is no such directory.
        """
        way = self._walk(path, DIRECTORY_FLAGS)
        try:
            return DirectoryRecord([os.dup(way[-1])])
        finally:
            self._back(way, 0)

    def write_to(self, folder: str) -> None:
        """Write the regular files that lscpu reads below an empty private directory; lscpu itself follows any link.

        Raises:
            TopologyError: they cannot be written, or are more than any machine has.
        """
        try:
            for count, path in enumerate(path for top in LSCPU_FILES for path in self._files_below(top)):
                content = self.read(path)
                if count >= MAX_FILES:
                    raise TopologyError(f"the record has more than {MAX_FILES} files that lscpu would read")
                if content is not None:
                    target = os.path.join(folder, path)
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    with open(target, "wb") as file:
                        file.write(content)
        except RecursionError:
            raise TopologyError(
                "the record cannot be copied for lscpu: its directories are nested too deeply"
            ) from None
        except OSError as error:
            raise TopologyError(f"the record cannot be copied for lscpu: {error.strerror}") from None

    def _files_below(self, top: str) -> list[str]:
        """Return the paths of the regular files in a directory and below, or `top` itself if it is one."""
        try:
            way = self._walk(top, DIRECTORY_FLAGS)
        except OSError:
            return [top]
        try:
            return [
                os.path.normpath(os.path.join(top, folder, name))
                for folder, _, names, _ in os.fwalk(".", dir_fd=way[-1], follow_symlinks=False)
                for name in names
            ]
        finally:
            self._back(way, 0)

    def _walk(self, path: str, flags: int) -> list[int]:
        """Return the open directories from the root to `path`, which is the last and is opened with `flags`.

        Raises:
            OSError: there is no such path in the record.
        """
        way = [*self._way]
        waiting = path.split("/")[::-1]
        try:
            for _ in range(MAX_STEPS):
                if not waiting:
                    return way
                part = waiting.pop()
                if part == "..":
                    self._back(way, max(1, len(way) - 1))
                elif part not in ("", "."):
                    target = _entered(way, part, DIRECTORY_FLAGS if waiting else flags)
                    if target.startswith("/"):
                        self._back(way, 1)
                    waiting += target.split("/")[::-1] if target else ()
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except OSError:
            self._back(way, 0)
            raise
        except ValueError as error:
            # A name with a NUL byte.
            self._back(way, 0)
            raise OSError(errno.ENOENT, str(error)) from None

    def _back(self, way: list[int], length: int) -> None:
        """Shorten a way, and close what it opened."""
        while len(way) > length:
            descriptor = way.pop()
            if descriptor not in self._way:
                os.close(descriptor)


ABSENT = -1


def _opener_beneath() -> Callable[[int, str], int | None]:
    """Return a function that opens the file at a path without links below a directory.

    It returns the descriptor, `ABSENT` where there is no such file, or None where only a walk can find it: the path has
    a link, or the kernel refuses openat2(2).
    """
    import ctypes

    # os.open adds O_CLOEXEC by itself, the system call does not.
    how = (ctypes.c_uint64 * 3)(READ_FLAGS | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    syscall.restype = ctypes.c_long
    size = ctypes.sizeof(how)

    def opened(directory: int, path: str) -> int | None:
        if "\0" in path:
            return ABSENT
        descriptor = int(syscall(OPENAT2, directory, os.fsencode(path), how, size))
        if descriptor >= 0:
            return descriptor
        return ABSENT if ctypes.get_errno() == errno.ENOENT else None

    return opened


def _regular_content(descriptor: int, path: str, most: int) -> bytes | None:
    """Return the content of an open regular file: no pipe or device of this machine is a record of anything."""
    try:
        return read_content(descriptor, path, most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None


def _entered(way: list[int], name: str, flags: int) -> str:
    """Open an entry of the last directory of a way; return the target of a link instead, "" for any other entry.

    Raises:
        OSError: there is no such entry, or it cannot be opened.
    """
    try:
        way.append(os.open(name, flags | os.O_NOFOLLOW, dir_fd=way[-1]))
    except OSError as error:
        # A link is refused with ELOOP, and with ENOTDIR where a directory is asked for.
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        return os.readlink(name, dir_fd=way[-1])
    return ""


def open_record(path: str) -> DirectoryRecord:
    """Open the machine in a directory: ``sys/`` is in it, or in its only such folder.

    Raises:
        TopologyError: the directory cannot be read, or holds no machine or several.
    """
    try:
        record = DirectoryRecord([os.open(path, DIRECTORY_FLAGS)])
    except OSError as error:
        raise TopologyError(f"cannot read the directory {path}: {error.strerror}") from None
    if record.has_directory("sys"):
        return record
    with record:
        found = [name for name in record.names("") if record.has_directory(f"{name}/sys")]
        if not found:
            raise TopologyError(f"{path} holds no recorded machine: no sys/ in it or one folder down")
        if len(found) > 1:
            first = os.path.join(path, found[0])
            raise TopologyError(f"{path} holds {len(found)} recorded machines; name one of them, such as {first}")
        return record.rooted_at(found[0])
