"""One run of a command: all ranks of a variant at once, timed, with the CPU time that others took meanwhile."""

from __future__ import annotations

import math
import os
import re
import resource
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import InterruptedBySignalError, OMPAffinityError, RequestError
from ompaffinity.launch.output import Line, LineSplitter
from ompaffinity.launch.ranks import free_port, rank_variables
from ompaffinity.launch.supervise import Supervisor
from ompaffinity.proof.foreign import cpu_times
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.launch.guard import RankGuard
    from ompaffinity.launch.signals import SignalReceiver

GRACE_SECONDS = 5
"""How long ranks may take to end after SIGTERM."""
GROUPED = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")


class CommandFailedError(OMPAffinityError):
    """The command that is measured fails, or does not print its figure."""


class TooSlowError(OMPAffinityError):
    """A run took longer than it may."""


class Run(NamedTuple):
    """What one run took: seconds from the start of the first rank to the end of the last one.

    `figure` is the sum of the ranks' figures (`metric`), or the seconds. `others` is how many CPUs were busy with
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
    signals: SignalReceiver,
    guard: RankGuard,
) -> Run:
    """Start every rank of a plan and wait for the last one; none of them is left running, whatever happens.

    Raises:
        CommandFailedError: a rank cannot be started, fails, or does not print what `metric` looks for.
        TooSlowError: it took longer than `most_seconds`.
        InterruptedBySignalError: this process got a signal that ends it; the ranks got it, too, and have ended.
        SupervisionError: the kernel refuses what is needed to supervise the ranks.
        BindingError: the kernel refuses to bind.
    """
    outputs = [RankOutput(metric) for _ in manager.plan.ranks]
    with Supervisor(signals, guard, grace_seconds=GRACE_SECONDS) as ranks:
        busy, own = _busy_seconds(), _own_seconds()
        start = time.monotonic()
        _start(manager, command, outputs, ranks)
        in_time = ranks.wait(most_seconds)
        seconds = time.monotonic() - start - ranks.suspended_seconds
        busy, own = _busy_seconds() - busy, _own_seconds() - own
        failed = ranks.failed
        ranks.kill()
        ranks.wait_for_output()
        if ranks.interrupted_by is not None:
            raise InterruptedBySignalError(ranks.interrupted_by)
        if failed is not None:
            last = outputs[failed.rank].last_line or "it printed nothing"
            raise CommandFailedError(f"rank {failed.rank} {failed.ending}: {last[:200]}")
        if not in_time:
            raise TooSlowError("it took too long")
        ranks.release()
        used = sum(rank.cpu_seconds for rank in ranks.ranks)
    return Run(
        seconds, seconds if metric is None else _figure(metric, outputs), max(0.0, (busy - own - used) / seconds)
    )


def _start(
    manager: OMPProcessManager, command: Sequence[str], outputs: Sequence[RankOutput], ranks: Supervisor
) -> None:
    world, port = len(outputs), free_port()
    for rank, output in enumerate(outputs):
        variables = rank_variables(rank, world, rank, world, port=port)
        try:
            if ranks.start(manager, rank, command, variables, output) is None:
                return
        except RequestError as error:
            raise CommandFailedError(str(error)) from None


def _busy_seconds() -> float:
    """Return the CPU seconds that this machine has spent so far on the CPUs that this process may use."""
    busy = cpu_times().busy
    return sum(busy.get(cpu, 0.0) for cpu in os.sched_getaffinity(0))


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class RankOutput:
    """Keeps two things of what a rank prints: the last hit of `metric` in a line, and the last line.

    Of a line that is longer than MAX_LINE only its beginning is searched, and a hit at the cut does not count, for the
    number may be cut, too.
    """

    def __init__(self, metric: re.Pattern[str] | None) -> None:
        self.hit: str | None = None
        self.last_line = ""
        self._metric = metric
        self._splitter = LineSplitter()
        self._is_continued = False

    def feed(self, data: bytes) -> None:
        """Take the next part of the output."""
        for line in self._splitter.feed(data):
            self._take(line, is_cut=not line.end)

    def finish(self) -> None:
        """Take the end of the output."""
        for line in self._splitter.finish():
            self._take(line, is_cut=False)

    def _take(self, line: Line, *, is_cut: bool) -> None:
        if not self._is_continued:
            text = line.text.decode("utf-8", "replace")
            self.last_line = text.strip() or self.last_line
            if self._metric is not None:
                for found in self._metric.finditer(text):
                    if not (is_cut and found.end() == len(text)):
                        self.hit = found[1] or ""
        self._is_continued = is_cut


def _figure(metric: re.Pattern[str], outputs: Sequence[RankOutput]) -> float:
    """Return the sum of the figures of the ranks that print one (of a tensor-parallel group often the first alone).

    Raises:
        CommandFailedError: none does, or it is no number.
    """
    found = []
    for rank, output in enumerate(outputs):
        if output.hit is None:
            continue
        try:
            # Commas between groups of three digits are no part of the number.
            found.append(float(output.hit.replace(",", "") if GROUPED.fullmatch(output.hit) else output.hit))
        except ValueError:
            found.append(math.nan)
        if not math.isfinite(found[-1]):
            raise CommandFailedError(
                f"--metric {metric.pattern!r} finds {output.hit[:60]!r} in the output of rank {rank}, which is no"
                " number; its group must enclose the number alone"
            )
    if not found:
        raise CommandFailedError(f"--metric {metric.pattern!r} finds nothing in the output of the command")
    return sum(found)


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
