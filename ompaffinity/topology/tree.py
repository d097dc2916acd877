"""The files of a machine under any root: a directory (``/`` for this machine) or an archive in memory.

Readers see paths without a leading slash (``sys/devices/system/cpu/online``) and never learn
which of the two they read. An archive is never unpacked onto the disk.
"""

from __future__ import annotations

import os

from ompaffinity.errors import TopologyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from types import TracebackType
    from typing import Protocol

    class Tree(Protocol):
        """What every reader needs of a machine's files."""

        def read(self, path: str) -> bytes | None:
            """Return the content of a file, None where it is absent or cannot be read."""

        def names(self, path: str) -> list[str]:
            """Return the names in a directory, ascending; none where it is absent."""

        def at(self, path: str) -> Tree:
            """Return the tree below a directory, whose files it reaches faster; valid as long as this one."""


SYSFS_PAGE = 4096
MAX_FILE_BYTES = 2**20
"""Longer files are cut here: sysfs files of 8192 CPUs stay below, and nothing behind matters in the others."""
MAX_ARCHIVE_BYTES = 512 * 2**20
MAX_ARCHIVE_MEMBERS = 1_000_000
MAX_LINKS = 40


class DirectoryTree:
    """The files below a directory. A context manager, for it holds the directory open.

    Raises:
        TopologyError: the directory cannot be opened.
    """

    def __init__(self, root: str, *, within: int | None = None) -> None:
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=within)
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
            return ArchiveTree({})
        self._below.append(below)
        return below

    def read(self, path: str) -> bytes | None:
        try:
            # Without O_NONBLOCK a FIFO in a recorded tree would wait for a writer for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._root)
        except OSError:
            return None
        try:
            content = os.read(descriptor, 4 * SYSFS_PAGE)
            # A short read ends a file, except under proc, where records are handed out one by one.
            if len(content) >= SYSFS_PAGE or path.startswith("proc/"):
                while len(content) < MAX_FILE_BYTES and (more := os.read(descriptor, MAX_FILE_BYTES)):
                    content += more
            return content
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def names(self, path: str) -> list[str]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        except OSError:
            return []
        try:
            return sorted(os.listdir(descriptor))
        except OSError:
            return []
        finally:
            os.close(descriptor)


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

    def read(self, path: str) -> bytes | None:
        return self._files.get(self._resolve(path))

    def names(self, path: str) -> list[str]:
        return sorted(self._names.get(self._resolve(path), ()))

    def at(self, path: str) -> Tree:
        return _Below(self, path)

    def write_to(self, folder: str) -> None:
        """Write the regular files of ``sys/`` and ``proc/`` below an empty private directory."""
        for path, content in self._files.items():
            if path.startswith(("sys/", "proc/")):
                target = os.path.join(folder, path)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "wb") as file:
                    file.write(content)

    def _resolve(self, path: str) -> str:
        if not self._links:
            return path
        waiting = path.split("/")[::-1]
        done: list[str] = []
        followed = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                del done[-1:]
            elif part not in ("", "."):
                done.append(part)
                target = self._links.get("/".join(done))
                if target is not None:
                    followed += 1
                    if followed > MAX_LINKS:
                        return ""
                    if target.startswith("/"):
                        done.clear()
                    else:
                        done.pop()
                    waiting += target.split("/")[::-1]
        return "/".join(done)


class _Below:
    """The part of an archive below a directory."""

    def __init__(self, tree: ArchiveTree, folder: str) -> None:
        self._tree = tree
        self._folder = folder

    def read(self, path: str) -> bytes | None:
        return self._tree.read(f"{self._folder}/{path}")

    def names(self, path: str) -> list[str]:
        return self._tree.names(f"{self._folder}/{path}")

    def at(self, path: str) -> Tree:
        return _Below(self._tree, f"{self._folder}/{path}")


def open_archive(path: str) -> ArchiveTree:
    """Read a tar file (plain, gzip, bzip2 or xz) into memory.

    Raises:
        TopologyError: it is no tar file, is damaged, names absolute paths, ``..`` or device
            files, or would unpack to more than 512 MiB.
    """
    import lzma
    import tarfile
    import zlib

    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    total = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for count, member in enumerate(archive):
                total += max(member.size, 0)
                if total > MAX_ARCHIVE_BYTES or count >= MAX_ARCHIVE_MEMBERS:
                    raise TopologyError(
                        f"{os.path.basename(path)} is too large: it unpacks to more than {MAX_ARCHIVE_BYTES >> 20} MiB"
                    )
                _keep(archive, member, files, links)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TopologyError(f"cannot read {os.path.basename(path)} as a tar file: {reason}") from None
    root = _root_of([*files, *links])
    if root is None:
        raise TopologyError(
            f"{os.path.basename(path)} holds no recorded machine: no sys/ at its root or one folder down"
        )
    return ArchiveTree(
        {name.removeprefix(root): content for name, content in files.items() if name.startswith(root)},
        {name.removeprefix(root): target for name, target in links.items() if name.startswith(root)},
    )


def _keep(archive: tarfile.TarFile, member: tarfile.TarInfo, files: dict[str, bytes], links: dict[str, str]) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts:
        raise TopologyError(f"the archive member {member.name!r} leads outside the archive; such a file is not read")
    name = "/".join(parts)
    if member.issym():
        links[name] = member.linkname
    elif member.islnk():
        links[name] = "/" + member.linkname
    elif member.isdir():
        return
    elif not member.isreg():
        raise TopologyError(f"the archive member {member.name!r} is a device or a pipe; such a file is not read")
    elif (content := archive.extractfile(member)) is not None:
        files[name] = content.read(MAX_FILE_BYTES)


def _root_of(names: list[str]) -> str | None:
    """Return the prefix before ``sys/``: empty, one folder, or None where there is no such folder."""
    tops = {name.split("/", 1)[0] for name in names}
    if "sys" in tops:
        return ""
    folders = {name.split("/", 2)[0] for name in names if name.split("/", 2)[1:2] == ["sys"]}
    if len(folders) != 1:
        folders = tops if len(tops) == 1 and any(name.split("/", 2)[1:2] == ["proc"] for name in names) else set()
    return f"{folders.pop()}/" if folders else None
