"""One rank as a child process: its process group, how it ended, and when its number becomes free."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.errors import SupervisionError
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    import subprocess

    from ompaffinity.placement.model import RankPlacement


class Ending(NamedTuple):
    """How a process ended: `code` is its exit status, or the number of the signal that killed it."""

    code: int
    by_signal: bool

    @property
    def status(self) -> int:
        """The status that a shell would show."""
        return 128 + self.code if self.by_signal else self.code

    def __str__(self) -> str:
        return f"was ended by signal {self.code}" if self.by_signal else f"ended with status {self.code}"


class RankProcess:
    """A started rank, the leader of a session and of a process group of its own.

    The number of the group is the rank's until the rank is reaped, for a zombie keeps its number. So the group is
    signalled before that only, and `reap` comes last: afterwards the number may be another process's.
    """

    def __init__(
        self, rank: int, placement: RankPlacement, environment: dict[str, str], process: subprocess.Popen[bytes]
    ) -> None:
        self.rank, self.placement, self.environment = rank, placement, environment
        self.pid = process.pid
        self.ending: Ending | None = None
        self.cpu_seconds = 0.0
        """User and system time of the process and of the children that it waited for; known after `reap`."""
        self.reaped = False
        self._process = process
        self.pidfd = _open_pidfd(self.pid)
        """Readable when the process has ended; None where the kernel has no pidfds, or refuses them."""

    def check(self) -> bool:
        """Return whether the process has ended; does not reap it.

        Raises:
            SupervisionError: another part of this process reaped it, or the kernel refuses to answer.
        """
        if self.ending is None and not self.reaped:
            try:
                found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                self._mark_reaped(-1)
                raise SupervisionError(
                    f"rank {self.rank} (process {self.pid}) was reaped by another part of this process, so its exit"
                    " status is lost; while ranks run, do not ignore SIGCHLD or wait for any child"
                ) from None
            except OSError as error:
                raise SupervisionError(f"cannot wait for rank {self.rank} (waitid): {error.strerror}") from None
            if found is not None:
                self.ending = Ending(found.si_status, by_signal=found.si_code != os.CLD_EXITED)
        return self.ending is not None

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and to all that it started in its group, unless it was reaped."""
        if not self.reaped:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def reap(self) -> None:
        """Wait for the end of the process and let its number become free; nothing signals the group after that."""
        if self.reaped:
            return
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            self._mark_reaped(-1)
            return
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self._mark_reaped(os.waitstatus_to_exitcode(status))

    def _mark_reaped(self, code: int) -> None:
        self.reaped = True
        # Or Popen would wait for a process of this number when it is collected.
        self._process.returncode = code
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        # Before Linux 5.3, refused by a seccomp filter, or out of descriptors: SIGCHLD does as well.
        return None


def reason_of(error: Exception, command: str = "") -> str:
    """Return why something cannot be started, with the file that is missing unless it is the command itself."""
    reason = str(getattr(error, "strerror", None) or error)
    file = getattr(error, "filename", None)
    return reason if file in (None, command) else f"{file}: {reason}"
