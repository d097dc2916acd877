"""One run of a command: all ranks of a variant at once, timed, with the CPU time that others took meanwhile."""

from __future__ import annotations

import math
import os
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import OMPAffinityError
from ompaffinity.launch.ranks import free_port, rank_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

    from ompaffinity.bind.manager import OMPProcessManager

MAX_OUTPUT = 64 * 2**20
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
GROUPED = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
BUSY = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq, steal (proc_stat(5)); guests are in user already."""


class CommandFailedError(OMPAffinityError):
    """The command that is measured fails, or does not say its figure."""


class TooSlowError(OMPAffinityError):
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
    manager: OMPProcessManager,
    command: Sequence[str],
    metric: re.Pattern[str] | None,
    most_seconds: float,
    watch: Callable[[object], object] = lambda _pid: None,
) -> Run:
    """Start every rank of a plan and wait for the last one; nothing of them is left running, whatever happens.

    `watch` is told the number of every rank, and minus that when it has ended: for who ends them if this process is
    killed.

    Raises:
        CommandFailedError: a rank cannot be started, fails, or does not print what `metric` looks for.
        TooSlowError: it took longer than `most_seconds`.
        BindingError: the kernel refuses to bind.
    """
    world, port = len(manager.plan.ranks), free_port()
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(world)]
        stack.callback(_end, processes, watch)
        busy, own = _busy_seconds(), _own_seconds()
        start = time.monotonic()
        for rank, output in enumerate(outputs):
            with manager.configure_omp_envs(rank):
                processes.append(_started(command, output, rank_variables(rank, world, rank, world, port=port)))
            watch(processes[-1].pid)
        used = _waited(processes, outputs, start + most_seconds)
        seconds = time.monotonic() - start
        busy, own = _busy_seconds() - busy, _own_seconds() - own
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


def _waited(processes: Sequence[subprocess.Popen[bytes]], outputs: Sequence[IO[bytes]], until: float) -> float:
    """Wait for all ranks, and return the CPU seconds that they and what they have waited for took.

    Raises:
        CommandFailedError: one of them fails: the others, which may wait for it, are not waited for.
        TooSlowError: they run for too long.
    """
    used = 0.0
    with ExitStack() as stack:
        handles: dict[int, int] = {}
        for rank, process in enumerate(processes):
            handles[os.pidfd_open(process.pid)] = rank
        for handle in handles:
            stack.callback(os.close, handle)
        while handles:
            ended, _, _ = select.select([*handles], [], [], max(0.0, until - time.monotonic()))
            if not ended:
                raise TooSlowError("it took too long")
            for handle in ended:
                rank = handles.pop(handle)
                _, status, usage = os.wait4(processes[rank].pid, 0)
                processes[rank].returncode = os.waitstatus_to_exitcode(status)
                used += usage.ru_utime + usage.ru_stime
                if processes[rank].returncode:
                    raise CommandFailedError(_failure(rank, processes[rank].returncode, _text(outputs[rank])))
    return used


def _end(processes: list[subprocess.Popen[bytes]], watch: Callable[[object], object]) -> None:
    """Kill what is left of the ranks' groups."""
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            process.wait()
        watch(-process.pid)


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
    return output.read(MAX_OUTPUT).decode("utf-8", "replace")


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
        text = hits[-1]
        try:
            # Commas between groups of three digits are no part of the number.
            found.append(float(text.replace(",", "") if GROUPED.fullmatch(text) else text))
        except ValueError:
            found.append(math.nan)
        if not math.isfinite(found[-1]):
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
