"""One start at a time: a lock file of this user, held from planning around running processes until the start.

Without it two servers that start together would see none of each other's processes and plan the same CPUs. The lock
keeps apart the starts of one user; those of other users are not seen until their processes run.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from ompaffinity.errors import RequestError

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05


class StartLock:
    """The lock, taken when it is made; `release` gives it back, as does the end of the process or exec."""

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """Wait for the lock.

        Raises:
            RequestError: another start holds it for too long, or the file cannot be opened.
        """
        path = os.path.join(_folder(), f"ompaffinity-{os.getuid()}.lock")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor: int | None = os.open(path, flags, 0o600)
        except OSError as error:
            raise RequestError(
                f"--avoid live needs the lock file {path}, which cannot be opened: {error.strerror}"
            ) from None
        found = os.fstat(self._descriptor)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode):
            self.release()
            raise RequestError(f"--avoid live needs the lock file {path}, which is no file of this user; remove it")
        deadline = time.monotonic() + wait_seconds
        while not self._taken():
            if time.monotonic() > deadline:
                self.release()
                raise RequestError(
                    f"another start with --avoid live holds {path} for more than {wait_seconds:.0f} seconds; end it, or"
                    " start without --avoid live"
                )
            time.sleep(POLL_SECONDS)

    def _taken(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let the next start go on; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _folder() -> str:
    """Return the user's runtime folder (XDG Base Directory Specification), or the one for temporary files."""
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"):
        try:
            found = os.stat(folder)
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    import tempfile

    return tempfile.gettempdir()
