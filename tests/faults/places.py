"""Odd places: refused system calls, tight limits, parts of the system that are missing."""

from __future__ import annotations

import atexit
import os
import platform
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

from tests.bind.seccomp import NUMBERS
from tests.faults.child import Case

if TYPE_CHECKING:
    from collections.abc import Iterator


@cache
def verbs() -> dict[str, tuple[str, ...]]:
    """Return one command of each verb; what `bind` binds is a process of its own."""
    idle = subprocess.Popen(["sleep", "3600"])
    atexit.register(idle.kill)
    return {
        "plan": ("plan",),
        "topology": ("topology",),
        "devices": ("devices",),
        "doctor": ("doctor",),
        "inspect": ("inspect", "--all", "--seconds", "1"),
        "verify": ("verify",),
        "run": ("run", "--", "true"),
        "exec": ("exec", "--", "true"),
        "compare": ("compare", "--variant", "none", "--variant", "plan", "--budget", "2", "--", "true"),
        "bind": ("bind", "--pid", str(idle.pid)),
        "watch": ("watch", "--all", "--once", "--interval", "1"),
    }


ENDS = (0, 1, 2, 3)
"""The exit statuses that the contract knows: a fault may prevent the work, but not the report."""
CALLS = (
    *("mbind", "set_mempolicy", "get_mempolicy", "move_pages"),
    *("sched_getaffinity", "sched_setaffinity"),
    *("pidfd_open", "pidfd_send_signal", "waitid"),
    *("prctl", "ppoll", "prlimit64", "memfd_create", "statx", "getrandom", "setpgid", "flock"),
)
"""System calls that sandboxes refuse, or that old kernels lack."""


def refused_calls() -> Iterator[Case]:
    """Yield every verb under every refused call: EPERM as sandboxes do, ENOSYS as old kernels."""
    if platform.machine() not in NUMBERS:
        return
    for call in CALLS:
        for code in ("EPERM", "ENOSYS"):
            prefix = (sys.executable, "-m", "tests.bind.seccomp", "--calls", call, "--error", code)
            for verb, arguments in verbs().items():
                yield Case(f"{verb} without {call} ({code})", arguments, prefix=prefix, statuses=ENDS)


def tight_limits() -> Iterator[Case]:
    """Yield every verb under small resource limits (prlimit(1))."""
    for limit in (
        *("--nofile=6", "--nofile=8", "--nofile=16", "--as=60000000", "--as=100000000", "--as=200000000"),
        *("--fsize=0", "--stack=262144", "--memlock=0", "--sigpending=0"),
    ):
        for verb, arguments in verbs().items():
            # Where not even the interpreter starts, it ends with a status of its own; without files, errors are lost.
            prints = limit != "--fsize=0"
            yield Case(f"{verb} under {limit}", arguments, {}, ("prlimit", limit), (*ENDS, 127), prints_errors=prints)


MISSING = {
    "no /proc": "mount -t tmpfs none /proc",
    "no /sys": "mount -t tmpfs none /sys",
    "no /dev": "mount -t tmpfs none /dev",
    "no /dev/null": "mount --bind /dev/full /dev/null",
    "no /tmp": "mount -t tmpfs -o ro none /tmp; mount -t tmpfs -o ro none /var/tmp",
    "no cgroups": "mount -t tmpfs none /sys/fs/cgroup",
    "no nodes": "mount -t tmpfs none /sys/devices/system/node",
    "no CPUs in sysfs": "mount -t tmpfs none /sys/devices/system/cpu",
}
"""What is mounted over, in a mount namespace of the command's own."""


def missing_parts() -> Iterator[Case]:
    """Yield every verb where a part of the system is missing. Needs root."""
    for name, mounts in MISSING.items():
        # The rest of the command line comes as the positional parameters.
        prefix = ("unshare", "--mount", "sh", "-c", f'{mounts}; exec "$@"', "sh")
        for verb, arguments in verbs().items():
            if not (name == "no /tmp" and str(os.getcwd()).startswith("/tmp")):
                yield Case(f"{verb}: {name}", arguments, prefix=prefix, statuses=ENDS)


def closed_streams() -> Iterator[Case]:
    """Yield every verb with standard streams that are closed, full, or without a reader."""
    for name, redirection in (
        ("stdin closed", "<&-"),
        ("stdout closed", ">&-"),
        ("stderr closed", "2>&-"),
        ("all closed", "<&- >&- 2>&-"),
        ("stdout full", ">/dev/full"),
        ("stdout gone", "| true"),
        ("stdout read by head", "| head -1"),
    ):
        for verb, arguments in verbs().items():
            # Without the script's own status: of a pipe it would be the reader's.
            script = f'set -o pipefail; "$@" {redirection}'
            prefix = ("bash", "-c", script, "bash")
            prints_errors = "2>&-" not in redirection
            statuses = (*ENDS, 141)
            yield Case(f"{verb}: {name}", arguments, {}, prefix, statuses, prints_errors=prints_errors)
