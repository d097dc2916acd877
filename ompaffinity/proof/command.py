"""Verify the user's own program: start it as each rank, observe it while it runs, and read its OpenMP runtime's report.

The kernel decides. The runtime's report is a second opinion: OMP_DISPLAY_AFFINITY makes it print a line for
each thread when a team is formed (OpenMP 5.2, 21.2.2 and 21.2.3; GNU on stderr, LLVM and Intel on stdout).
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, InterruptedBySignalError, RequestError
from ompaffinity.ids import format_id_list, parse_id_list
from ompaffinity.launch.output import Line, LineSplitter, PrefixedLines, descriptor_of
from ompaffinity.launch.signals import SignalReceiver
from ompaffinity.launch.supervise import Supervisor
from ompaffinity.launch.watcher import Watcher
from ompaffinity.proof.compare import compare_with_placement
from ompaffinity.proof.observe import observe_process
from ompaffinity.proof.verdict import Difference, RankVerdict, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.launch.rank_process import RankProcess

MARK = "ompaffinity-affinity"
DISPLAY = {"OMP_DISPLAY_AFFINITY": "TRUE", "OMP_AFFINITY_FORMAT": f"{MARK} %P %n %A"}
PAUSE_SECONDS = 0.05
SILENCE_SECONDS = 1
"""How long a runtime may report nothing while the plan holds already."""
GRACE_SECONDS = 5
"""How long the program may take to end after SIGTERM."""


def verify_command(manager: OMPProcessManager, command: Sequence[str], seconds: float) -> Verdict:
    """Start `command` as every rank, and return how the processes compare with the plan.

    They are observed until the plan holds for all of them, until they end, or for so many seconds, and then
    ended. What they print goes to standard error.

    Raises:
        RequestError: the command cannot be started, or ends before it was observed.
        InterruptedBySignalError: this process got a signal that ends it; the ranks got it, too, and have ended.
        SupervisionError: the kernel refuses what is needed to supervise the ranks.
    """
    with (
        SignalReceiver() as signals,
        Watcher() as watcher,
        Supervisor(signals, watcher, grace_seconds=GRACE_SECONDS, end_together=False) as ranks,
    ):
        runs = []
        for rank in range(len(manager.plan.ranks)):
            reports: Reports = {}
            process = ranks.start(manager, rank, command, DISPLAY, _ReportReader(reports), _ReportReader(reports))
            if process is not None:
                runs.append(_Run(process, reports))
        deadline = time.monotonic() + seconds
        while not all(run.done for run in runs) and time.monotonic() < deadline and ranks.status is None:
            ranks.step(PAUSE_SECONDS)
            for run in runs:
                run.observe()
        ranks.end(0)
        ranks.wait()
        ranks.kill()
        ranks.wait_for_output()
    if ranks.interrupted_by is not None:
        raise InterruptedBySignalError(ranks.interrupted_by)
    return Verdict(tuple(run.verdict() for run in runs), tuple(manager.messages))


Reports = dict[int, dict[int, tuple[int, ...]]]
"""{process: {OpenMP thread: the CPUs that it may run on}}, as an OpenMP runtime reports them."""


class _ReportReader:
    """Takes the runtime's reports out of an output, and writes the rest to standard error."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._splitter = LineSplitter()
        self._others = PrefixedLines(descriptor_of(sys.stderr))

    def feed(self, data: bytes) -> None:
        self._take(self._splitter.feed(data))

    def finish(self) -> None:
        self._take(self._splitter.finish())

    def _take(self, lines: list[Line]) -> None:
        others = [line for line in lines if not self._is_report(line.text)]
        try:
            self._others.write(others)
        except OSError:
            # The reader is gone; the verdict does not need it.
            self._others = PrefixedLines(None)

    def _is_report(self, line: bytes) -> bool:
        _, mark, rest = line.partition(MARK.encode())
        if not mark:
            return False
        words = rest.decode(errors="replace").split()
        try:
            pid, thread, cpus = int(words[0]), int(words[1]), tuple(parse_id_list(words[2]))
        except (ValueError, IndexError, IDListError):
            return True
        # The first team counts: nested ones number their threads anew.
        self._reports.setdefault(pid, {}).setdefault(thread, cpus)
        return True


class _Run:
    """One rank's process, the latest verdict on it, and what its runtime reported of its threads."""

    def __init__(self, process: RankProcess, reports: Reports) -> None:
        self._process, self._placement, self._reports = process, process.placement, reports
        self._latest: RankVerdict | None = None
        self._holds_since: float | None = None
        self._seen = False
        self._most_threads = 0

    @property
    def done(self) -> bool:
        """Whether there is nothing more to observe."""
        return self._process.ending is not None or self._seen

    def observe(self) -> None:
        """Observe the process once more, unless it has ended."""
        if self._process.ending is not None:
            return
        try:
            state = observe_process(self._process.pid)
        except RequestError:
            # It has ended meanwhile.
            return
        verdict = compare_with_placement(self._placement, state, None, self._process.environment)
        # The latest observation counts, unless the process is ending and loses its threads.
        if len(state.threads) >= self._most_threads:
            self._most_threads = len(state.threads)
            self._latest = verdict
        # A rank of one thread holds before it has a team: its OpenMP runtime must be loaded, and report or be silent.
        if not (verdict.holds and verdict.runtimes):
            self._holds_since = None
        elif self._holds_since is None:
            self._holds_since = time.monotonic()
        else:
            reported = len(self._reports.get(self._process.pid, ())) >= len(self._placement.places)
            self._seen = reported or time.monotonic() - self._holds_since > SILENCE_SECONDS

    def verdict(self) -> RankVerdict:
        """Return the latest verdict with the runtime's opinion.

        Raises:
            RequestError: the process ended before it could be observed.
        """
        if self._latest is None:
            raise RequestError(
                f"the command of rank {self._placement.rank} {self._process.ending} before its threads could be seen;"
                " give one that runs for a second at least"
            )
        said = self._reports.get(self._latest.pid)
        if not said:
            note = "its OpenMP runtime reported no threads (no parallel region, or a runtime older than OpenMP 5.0)"
            return self._latest._replace(notes=(*self._latest.notes, note))
        differences = [
            Difference(
                f"thread {thread}",
                f"is on CPU {format_id_list(cpus)} by the report of its OpenMP runtime, the plan requires"
                f" {format_id_list(self._placement.places[thread])}",
            )
            for thread, cpus in sorted(said.items())
            if thread < len(self._placement.places) and cpus != self._placement.places[thread]
        ]
        if len(said) != len(self._placement.places):
            differences.insert(
                0,
                Difference(
                    "team",
                    f"the team has {len(said)} threads by the report of its OpenMP runtime, the plan requires"
                    f" {len(self._placement.places)}",
                    "the program set another number of threads (omp_set_num_threads, torch.set_num_threads)",
                ),
            )
        return self._latest._replace(runtime_says=said, differences=(*self._latest.differences, *differences))
