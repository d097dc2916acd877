"""Verify the user's own program: start it as each rank, and observe its processes while it runs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import InterruptedBySignalError
from ompaffinity.launch.guard import RankGuard
from ompaffinity.launch.output import PrefixedLines, descriptor_of
from ompaffinity.launch.signals import SignalReceiver
from ompaffinity.launch.supervise import Supervisor
from ompaffinity.proof.compare import not_found
from ompaffinity.proof.observe import require_proc
from ompaffinity.proof.sampling import WINDOW_SECONDS, TreeObserver
from ompaffinity.proof.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.launch.output import Line

STARTING_SECONDS = 5.0
"""A difference may be of the start; one that lasts so long is not."""
GRACE_SECONDS = 5
"""How long the program may take to end after SIGTERM."""


def verify_command(manager: OMPProcessManager, command: Sequence[str], seconds: float) -> Verdict:
    """Start `command` as every rank, and return how its processes compare with the plan.

    They are observed until every rank is proven or differs, until they end, or for so many seconds, and then ended.
    What they print goes to standard error.

    Raises:
        CommandStartError: the command cannot be started.
        InterruptedBySignalError: this process got a signal that ends it; the ranks got it, too, and have ended.
        SupervisionError: the kernel refuses what is needed to supervise the ranks.
        RequestError: /proc does not show processes.
    """
    require_proc()
    with (
        SignalReceiver() as signals,
        RankGuard() as guard,
        Supervisor(signals, guard, grace_seconds=GRACE_SECONDS, end_together=False) as ranks,
    ):
        started = []
        for rank in range(len(manager.plan.ranks)):
            process = ranks.start(manager, rank, command, {}, _Output(), _Output())
            if process is not None:
                started.append(process)
        observer = TreeObserver(
            (process.pid for process in started),
            given={process.pid: process.placement for process in started},
            environments={process.pid: process.environment for process in started},
            may_end=True,
        )
        passed = _observe(ranks, observer, len(manager.plan.ranks), seconds)
        observer.observe_memory()
        ends = {process.placement.rank: str(process.ending) for process in started if process.ending is not None}
        ranks.end(0)
        ranks.wait()
        ranks.kill()
        ranks.wait_for_output()
    if ranks.interrupted_by is not None:
        raise InterruptedBySignalError(ranks.interrupted_by)
    return _verdict(manager, observer, passed, ends)


class _Output(PrefixedLines):
    """Writes what a rank prints to standard error."""

    def __init__(self) -> None:
        super().__init__(descriptor_of(sys.stderr))

    def write(self, lines: list[Line]) -> None:
        try:
            super().write(lines)
        except OSError:
            # The reader is gone; the verdict does not need it.
            self._descriptor = None


def _observe(ranks: Supervisor, observer: TreeObserver, count: int, seconds: float) -> float:
    """Observe until all ranks are settled or have ended, or the time is over; return for how many seconds."""
    start = time.monotonic()
    while True:
        observer.observe()
        passed = time.monotonic() - start
        settled = len(observer.roots) == count and (observer.proven or observer.differs_for(STARTING_SECONDS))
        if settled or not ranks.running or ranks.status is not None or passed + WINDOW_SECONDS / 2 > seconds:
            return passed
        until = time.monotonic() + min(WINDOW_SECONDS, seconds - passed)
        while ranks.running and ranks.status is None and time.monotonic() < until:
            ranks.step(max(0.0, until - time.monotonic()))


def _verdict(manager: OMPProcessManager, observer: TreeObserver, seconds: float, ends: Mapping[int, str]) -> Verdict:
    judgement = observer.judge()
    found = {rank.rank for rank in judgement.ranks}
    missing = [not_found(placement) for placement in manager.plan.ranks if placement.rank not in found]
    ranks = sorted((*judgement.ranks, *missing), key=lambda rank: rank.rank)
    with_ends = (
        rank._replace(notes=(*rank.notes, f"its command {ends[rank.rank]}")) if rank.rank in ends else rank
        for rank in ranks
    )
    return Verdict(tuple(with_ends), tuple(manager.messages), judgement.others, seconds)
