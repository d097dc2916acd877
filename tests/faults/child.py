"""One command under measurement: how it ended, what it printed, and what it cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SECONDS, MAX_MEBIBYTES = 5.0, 256.0
"""What one command may cost, of CPU time and of memory."""
HARD_SECONDS = 60.0
"""A command that runs longer is killed, and counts as hung."""
PREFIX = "ompaffinity: error: "


@dataclass(frozen=True)
class Case:
    """One command with one fault: `arguments` of ompaffinity, run by `prefix` (a command that executes the rest).

    `statuses` are the exit statuses that are right; `prints_errors` is false where standard error leads nowhere.
    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    statuses: tuple[int, ...] = (2,)
    stdin: str = os.devnull
    prints_errors: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `status` is negative for a signal, as in `subprocess`."""

    status: int
    stdout: str
    stderr: str
    cpu_seconds: float
    mebibytes: float

    @property
    def is_traceback(self) -> bool:
        """Whether Python's own report of an exception was printed."""
        return "Traceback (most recent call last)" in self.stderr or "Exception ignored" in self.stderr


def run_case(case: Case) -> Outcome:
    """Run one case to its end; a hung one is killed."""
    command = [*case.prefix, sys.executable, "-m", "ompaffinity", *case.arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(case.stdin, "rb") as stdin:
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=out,
            stderr=err,
            cwd=ROOT,
            env={**os.environ, **case.environment},
            start_new_session=True,
        )
        timer = threading.Timer(HARD_SECONDS, os.killpg, (child.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        finally:
            timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Outcome(
            child.returncode,
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss / 1024,
        )


def problem(case: Case, outcome: Outcome) -> str | None:
    """Return what is wrong with how a case ended, None where nothing is. Time and memory are judged apart."""
    if outcome.is_traceback:
        return f"a traceback: {outcome.stderr[-400:]}"
    if outcome.status not in case.statuses:
        return f"status {outcome.status}, not {case.statuses}: {outcome.stderr[-400:]}"
    errors = [line for line in outcome.stderr.splitlines() if line.startswith(PREFIX)]
    if outcome.status == 2 and case.prints_errors and len(errors) != 1:
        return f"status 2 with {len(errors)} error lines: {outcome.stderr[-400:]}"
    if any(not line.isprintable() for line in errors):
        return f"control characters in {errors}"
    return None
