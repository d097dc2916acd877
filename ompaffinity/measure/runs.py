"""One run of a command: all ranks of a variant at once, timed, with the CPU time that others took meanwhile."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress

from ompaffinity.errors import OmpAffinityError
from ompaffinity.launch.ranks import free_port, rank_variables
from ompaffinity.launch.run import watched
from ompaffinity.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from ompaffinity.measure.variants import VariantManager

MOST_OUTPUT = 64 * 2**20
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
BUSY = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal (proc_stat(5)); guests are in user already."""


class CommandFailedError(OmpAffinityError):
    """The command that is measured fails, or does not say its figure."""


class TooSlowError(OmpAffinityError):
    """A run took longer than it may."""


class Run(NamedTuple):
    """What one run took: seconds from the start of the first rank to the end of the last one.

    `figure` is the sum of what the ranks say (`metric`), or the seconds. `others` is how many CPUs were busy with
    something else meanwhile, on average, of those that this process may use.
    """

    seconds: float
    figure: float
    others: float


def measure_run(
    manager: VariantManager, command: Sequence[str], metric: re.Pattern[str] | None, most_seconds: float
) -> Run:
    """Start every rank of a plan and wait for the last one; nothing of them is left running, whatever happens.

    Raises:
        CommandFailedError: a rank cannot be started, fails, or does not print what `metric` looks for.
        TooSlowError: it took longer than `most_seconds`.
        BindingError: the kernel refuses to bind.
    """
    world, port = len(manager.plan.ranks), free_port()
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(world)]
        told = stack.enter_context(watched())
        stack.callback(_end, processes)
        busy, own = _busy_seconds(), _own_seconds()
        start = time.monotonic()
        for rank, output in enumerate(outputs):
            with manager.configure_omp_envs(rank):
                processes.append(_started(command, output, rank_variables(rank, world, rank, world, port=port)))
            told(processes[-1].pid)
        used = sum(_waited(process, start + most_seconds) for process in processes)
        seconds = time.monotonic() - start
        busy, own = _busy_seconds() - busy, _own_seconds() - own
        for rank, (process, output) in enumerate(zip(processes, outputs)):
            if process.returncode:
                raise CommandFailedError(_failure(rank, process.returncode, _text(output)))
        figure = seconds if metric is None else sum(_figures(metric, outputs))
    return Run(seconds, figure, max(0.0, (busy - own - used) / seconds))


def _started(command: Sequence[str], output: IO[bytes], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        # The user's own command, as argv: no shell.
        return subprocess.Popen(  # noqa: S603
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **variables},
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandFailedError(f"{command[0]} cannot be started: {reason}") from None


def _waited(process: subprocess.Popen[bytes], until: float) -> float:
    """Wait for a rank, and return the CPU seconds that it and what it has waited for took.

    Raises:
        TooSlowError: it runs for too long.
    """
    handle = os.pidfd_open(process.pid)
    try:
        left = max(0.0, until - time.monotonic())
        if not select.select([handle], [], [], left)[0]:
            raise TooSlowError("it took too long")
    finally:
        os.close(handle)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill what is left of the ranks' groups."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.wait()


def _busy_seconds() -> float:
    """Return the CPU seconds that this machine has spent so far on the CPUs that this process may use."""
    names = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
    ticks = 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            name, *fields = line.split()
            if name in names:
                ticks += sum(int(fields[place]) for place in BUSY if place < len(fields))
    return ticks / TICKS


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _text(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read(MOST_OUTPUT).decode("utf-8", "replace")


def _failure(rank: int, status: int, text: str) -> str:
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
    how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
    return f"rank {rank} {how}: {last[:200]}"


def _figures(metric: re.Pattern[str], outputs: Sequence[IO[bytes]]) -> list[float]:
    """Return the last figure that each rank says, of those that say one (a tensor-parallel group's first rank, say).

    Raises:
        CommandFailedError: none does, or it is no number.
    """
    found = []
    for rank, output in enumerate(outputs):
        hits = metric.findall(_text(output))
        if not hits:
            continue
        try:
            found.append(float(hits[-1].replace(",", "")))
        except ValueError:
            raise CommandFailedError(
                f"--metric {metric.pattern!r} finds {hits[-1][:60]!r} in the output of rank {rank}, which is no number;"
                " its group must enclose the number alone"
            ) from None
    if not found:
        raise CommandFailedError(f"--metric {metric.pattern!r} finds nothing in the output of the command")
    return found


def metric_of(text: str) -> re.Pattern[str]:
    """Return the pattern of ``--metric``: with one group, which encloses the number.

    Raises:
        CommandFailedError: it is no such pattern.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise CommandFailedError(f"--metric {text!r} is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise CommandFailedError(
            f"--metric {text!r} has {pattern.groups} groups; it needs one, around the number: 'tokens/s: ([0-9.]+)'"
        )
    return pattern
