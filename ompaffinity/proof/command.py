"""Verify the user's own program: start it as each rank, look at it while it runs, and hear its OpenMP runtime as well.

The kernel decides. The runtime's own word is a second opinion: OMP_DISPLAY_AFFINITY makes it print a line for
each thread when a team is formed (OpenMP 5.2, 21.2.2 and 21.2.3; GNU on stderr, LLVM and Intel on stdout).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import format_id_list, parse_id_list
from ompaffinity.proof.compare import compare_with_placement
from ompaffinity.proof.observe import observe_process
from ompaffinity.proof.verdict import Difference, RankVerdict, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.placement.model import RankPlacement

MARK = "ompaffinity-affinity"
DISPLAY = {"OMP_DISPLAY_AFFINITY": "TRUE", "OMP_AFFINITY_FORMAT": f"{MARK} %P %n %A"}
PAUSE_SECONDS = 0.05
SILENCE_SECONDS = 1
"""How long a runtime may say nothing while the plan holds already."""
PATIENCE_SECONDS = 5
"""How long a program that was asked to end may take."""


def verify_command(manager: OMPProcessManager, command: Sequence[str], seconds: float) -> Verdict:
    """Start `command` as every rank, and return how the processes compare with the plan.

    They are watched until the plan holds for all of them, until they end, or for so many seconds, and then
    ended. What they print goes to standard error.

    Raises:
        RequestError: the command cannot be started.
    """
    runs: list[_Run] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Whoever ends us means the ranks as well.
    handler = signal.signal(signal.SIGTERM, _interrupt) if in_main_thread else None
    try:
        for rank in range(len(manager.plan.ranks)):
            runs.append(_Run(manager, rank, command))
        deadline = time.monotonic() + seconds
        while not all(run.done for run in runs) and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
            for run in runs:
                run.look()
    finally:
        try:
            for run in runs:
                run.signal(signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE_SECONDS
            for run in runs:
                run.end(deadline)
        finally:
            # Also where a second interrupt ends the waiting.
            for run in runs:
                run.signal(signal.SIGKILL)
            if in_main_thread:
                signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    return Verdict(tuple(run.verdict() for run in runs), tuple(manager.messages))


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


class _Run:
    """One rank's process, the latest verdict on it, and what its runtime said of its threads."""

    def __init__(self, manager: OMPProcessManager, rank: int, command: Sequence[str]) -> None:
        with manager.configure_omp_envs(rank) as placement:
            self._placement: RankPlacement = placement
            self._environment = dict(os.environ)
            try:
                # The user's own argument list, and no shell.
                self._process = subprocess.Popen(  # noqa: S603
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **DISPLAY},
                    # A group of its own, so that what it starts is ended with it.
                    start_new_session=True,
                )
            except OSError as error:
                raise RequestError(f"{command[0]} cannot be started: {error.strerror}") from None
        self._said: dict[int, dict[int, tuple[int, ...]]] = {}
        self._latest: RankVerdict | None = None
        self._holds_since: float | None = None
        self._seen = False
        self._most_threads = 0
        self._listeners = [
            threading.Thread(target=self._listen, args=(stream,), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
            if stream is not None
        ]
        for listener in self._listeners:
            listener.start()

    @property
    def done(self) -> bool:
        """Whether there is nothing more to see."""
        return self._process.poll() is not None or self._seen

    def look(self) -> None:
        """Take another look."""
        if self._process.poll() is not None:
            return
        try:
            state = observe_process(self._process.pid)
        except RequestError:
            # It has ended meanwhile.
            return
        verdict = compare_with_placement(self._placement, state, None, self._environment)
        # The latest look counts, unless the process is ending and loses its threads.
        if len(state.threads) >= self._most_threads:
            self._most_threads = len(state.threads)
            self._latest = verdict
        # A rank of one thread holds before it has a team: its OpenMP runtime must be there, and be heard or silent.
        if not (verdict.holds and verdict.runtimes):
            self._holds_since = None
        elif self._holds_since is None:
            self._holds_since = time.monotonic()
        else:
            heard = len(self._said.get(self._process.pid, ())) >= len(self._placement.places)
            self._seen = heard or time.monotonic() - self._holds_since > SILENCE_SECONDS

    def signal(self, number: int) -> None:
        """Send a signal to the process and to all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def end(self, deadline: float) -> None:
        """Wait until the process ends, kill it at the deadline, and hear the rest of what it says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self.signal(signal.SIGKILL)
        self._process.wait()
        for listener in self._listeners:
            listener.join(PATIENCE_SECONDS)

    def verdict(self) -> RankVerdict:
        """Return the latest verdict with the runtime's opinion.

        Raises:
            RequestError: the process ended before it could be looked at.
        """
        if self._latest is None:
            raise RequestError(
                f"the command of rank {self._placement.rank} ended with status {self._process.returncode} before"
                " its threads could be seen; give one that runs for a second at least"
            )
        said = self._said.get(self._latest.pid)
        if not said:
            note = "its OpenMP runtime said nothing of its threads (no parallel region, or one older than OpenMP 5.0)"
            return self._latest._replace(notes=(*self._latest.notes, note))
        differences = [
            Difference(
                f"thread {thread}",
                f"is on CPU {format_id_list(cpus)} by its OpenMP runtime's own word, the plan says"
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
                    f"the team has {len(said)} threads by its OpenMP runtime's own word, the plan says"
                    f" {len(self._placement.places)}",
                    "the program set another number of threads (omp_set_num_threads, torch.set_num_threads)",
                ),
            )
        return self._latest._replace(runtime_says=said, differences=(*self._latest.differences, *differences))

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace")
            _, _, rest = text.partition(MARK)
            if not rest:
                sys.stderr.write(text)
                continue
            words = rest.split()
            try:
                pid, thread, cpus = int(words[0]), int(words[1]), tuple(parse_id_list(words[2]))
            except (ValueError, IndexError, IDListError):
                continue
            # The first team counts: nested ones number their threads anew.
            self._said.setdefault(pid, {}).setdefault(thread, cpus)
        stream.close()
