"""A small process that kills the ranks when this one is killed (SIGKILL leaves it no time to do so itself).

It cannot kill a rank that it was not given yet: one that is started in the instant in which this process is killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.errors import SupervisionError
from ompaffinity.launch import group_killer
from ompaffinity.launch.rank_process import reason_of

if TYPE_CHECKING:
    from types import TracebackType


class RankGuard:
    """The process that guards the ranks; a context manager that starts and ends it.

    With `later` it is started by `start`, and then gets the groups that were added before. An interpreter that starts
    takes a CPU from ranks that start: so this is for ranks that the kernel kills with this process.

    Raises:
        SupervisionError: on entry (with `later`: in `start`), if it cannot be started.
    """

    def __init__(self, *, later: bool = False) -> None:
        self._later = later
        self._waiting: list[str] = []
        self._writer: int | None = None

    def __enter__(self) -> RankGuard:
        if not self._later:
            self.start()
        return self

    def start(self) -> None:
        """Start the process, unless it was started already."""
        if self._writer is not None:
            return
        try:
            reader, writer = os.pipe()
        except OSError as error:
            raise _cannot_start(error) from None
        try:
            # This interpreter and a file of ours: no shell.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", group_killer.__file__],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException as error:
            os.close(writer)
            if isinstance(error, OSError):
                raise _cannot_start(error) from None
            raise
        finally:
            os.close(reader)
        self._writer = writer
        for line in self._waiting:
            self._write(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            # Every group was removed, so it has nothing left to do; it may not even have started to read.
            self._process.kill()
            self._process.wait()
            os.close(self._writer)

    def add(self, group: int) -> None:
        """Let this process group be killed if this process is."""
        self._write(str(group))

    def remove(self, group: int) -> None:
        """Forget a group, whose number is about to become free."""
        self._write(str(-group))

    def _write(self, line: str) -> None:
        if self._writer is None:
            self._waiting.append(line)
            return
        # It may have been killed; the ranks run without it.
        with suppress(BrokenPipeError):
            os.write(self._writer, f"{line}\n".encode())


def _cannot_start(error: OSError) -> SupervisionError:
    return SupervisionError(f"the process that guards the ranks cannot be started: {reason_of(error)}")
