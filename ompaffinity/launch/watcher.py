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


class Watcher:
    """The watching process; a context manager that ends it.

    Raises:
        SupervisionError: on entry, if it cannot be started.
    """

    def __enter__(self) -> Watcher:
        try:
            reader, self._writer = os.pipe()
        except OSError as error:
            raise SupervisionError(f"the watcher of the ranks cannot be started: {error.strerror}") from None
        try:
            # This interpreter and a file of ours: no shell.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", group_killer.__file__],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException as error:
            os.close(self._writer)
            if isinstance(error, OSError):
                raise SupervisionError(f"the watcher of the ranks cannot be started: {reason_of(error)}") from None
            raise
        finally:
            os.close(reader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("done")
        os.close(self._writer)
        self._process.wait()

    def add(self, group: int) -> None:
        """Let this process group be killed if this process is."""
        self._write(str(group))

    def remove(self, group: int) -> None:
        """Forget a group, whose number is about to become free."""
        self._write(str(-group))

    def _write(self, line: str) -> None:
        # It may have been killed; the ranks run without it.
        with suppress(BrokenPipeError):
            os.write(self._writer, f"{line}\n".encode())
