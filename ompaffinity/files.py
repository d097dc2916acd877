"""Files that a user names for output: written whole or not at all, and never through a link."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ompaffinity.errors import RequestError


def require_writable(option: str, path: str) -> None:
    """Check the folder of a file that an option names, before the work whose result is written there.

    Raises:
        RequestError: it is no folder, or does not permit new files.
    """
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK):
        raise RequestError(f"{option} {path} cannot be written: {folder} is no directory that permits it")


def write_whole(path: str, content: bytes) -> None:
    """Write a file: a temporary one beside it is renamed (rename(2)), so that no reader ever sees a part.

    A link at `path` is replaced, not followed. A device or a pipe (``/dev/stdout``) is written to as it is.

    Raises:
        OSError: the file cannot be written; one that was there is unchanged.
    """
    if _is_special(path):
        with open(path, "wb") as device:
            device.write(content)
        return
    import tempfile

    folder, name = os.path.split(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name[:100]}.", dir=folder or ".")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            # mkstemp(3) makes it private; others get what the umask gives.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def open_new(path: str) -> int:
    """Open a new file for writing and return its descriptor; one that is there, or a link, is replaced.

    Raises:
        OSError: it cannot be made.
    """
    if not _is_special(path):
        with suppress(FileNotFoundError):
            os.unlink(path)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    return os.open(path, os.O_WRONLY)


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) and not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def _umask() -> int:
    """Return the umask of this process, which umask(2) returns only by changing it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
