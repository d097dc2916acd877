"""The files of this machine; those of a recorded one are in `directory_record` and `archive`.

Readers see paths without a leading slash (``sys/devices/system/cpu/online``) and read all three in the same way.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import TopologyError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol

    class Tree(Protocol):
        """What every reader needs of a machine's files."""

        def read(self, path: str, most: int = 2**20) -> bytes | None:
            """Return the content of a file (at least its first `most` bytes), None where it cannot be read."""

        def names(self, path: str) -> list[str]:
            """Return the names in a directory, ascending; none where it is absent."""

        def at(self, path: str) -> Tree:
            """Return the tree below a directory, whose files it reaches faster; valid as long as this one."""


# Without O_NONBLOCK a FIFO in a recorded tree would wait for a writer without limit.
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK
SYSFS_PAGE = 4096
MAX_FILE_BYTES = 2**20
"""Longer files are cut here: sysfs files of 8192 CPUs stay below, and nothing behind matters in the others."""


def read_content(descriptor: int, path: str, most: int) -> bytes:
    """Return the content of an open file (at least its first `most` bytes) with as few calls as its `path` allows.

    Raises:
        OSError: it cannot be read.
    """
    content = os.read(descriptor, SYSFS_PAGE)
    # A short read ends a file, except under proc, where records are handed out one by one.
    if len(content) >= SYSFS_PAGE or path.startswith("proc/"):
        while len(content) < most and (more := os.read(descriptor, MAX_FILE_BYTES)):
            content += more
    return content


class DirectoryTree:
    """The files below a directory of this machine, links followed as the kernel does: for ``/``.

    A context manager, for it holds the directory open.

    Raises:
        TopologyError: the directory cannot be opened.
    """

    def __init__(self, root: str, *, within: int | None = None) -> None:
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY, dir_fd=within)
        except OSError as error:
            raise TopologyError(f"cannot open the directory {root}: {error.strerror}") from None
        self._below: list[DirectoryTree] = []

    def __enter__(self) -> DirectoryTree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tree in self._below:
            tree.__exit__(kind, error, trace)
        os.close(self._root)

    def at(self, path: str) -> Tree:
        try:
            below = DirectoryTree(path, within=self._root)
        except TopologyError:
            return NoTree()
        self._below.append(below)
        return below

    def read(self, path: str, most: int = MAX_FILE_BYTES) -> bytes | None:
        try:
            descriptor = os.open(path, READ_FLAGS, dir_fd=self._root)
        except OSError:
            return None
        try:
            return read_content(descriptor, path, most)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def names(self, path: str) -> list[str]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        except OSError:
            return []
        try:
            return sorted(os.listdir(descriptor))
        except OSError:
            return []
        finally:
            os.close(descriptor)


class NoTree:
    """A directory that is not there."""

    def read(self, path: str, most: int = MAX_FILE_BYTES) -> bytes | None:  # noqa: ARG002
        return None

    def names(self, path: str) -> list[str]:  # noqa: ARG002
        return []

    def at(self, path: str) -> Tree:  # noqa: ARG002
        return self
