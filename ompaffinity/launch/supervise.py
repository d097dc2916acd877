"""The one supervisor of started ranks, used by ``run``, ``verify -- COMMAND`` and ``compare``.

It starts each rank as the leader of a session of its own, hands on its output, forwards signals, ends all ranks when
they are to end, and leaves no process behind. The verbs differ in policy only: what they do with the output, whether a
rank that fails ends the others, and when they want all of them to end.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import CommandStartError, NotExecutableError, SupervisionError
from ompaffinity.launch.output import Consumer, OutputReader
from ompaffinity.launch.rank_process import RankProcess, reason_of
from ompaffinity.launch.signals import ENDING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import BinaryIO

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.launch.guard import RankGuard
    from ompaffinity.launch.signals import SignalReceiver

    Target = Consumer | BinaryIO | None
    """Where an output goes: to a consumer through a pipe, into a file, or, for stderr, where stdout goes."""

POLL_SECONDS = 0.2
"""How often to look for ended ranks where neither pidfds nor SIGCHLD report them."""
REPEATED_SECONDS = 0.5
"""timeout(1) sends its signal twice at once: only a later one is a second request to end."""


class Supervisor:
    """The ranks that were started together; a context manager that kills and reaps what is left of them.

    Use: `start` each rank, `wait`, `kill` what they left running if it must not stay, `wait_for_output`, and call
    `release` where it may stay. To do something meanwhile, call `step` instead of `wait`.

    `grace_seconds` is the time between SIGTERM, or a signal that ends, and SIGKILL. With `end_together` the first rank
    that fails ends the others.
    """

    def __init__(
        self, signals: SignalReceiver, guard: RankGuard, *, grace_seconds: float, end_together: bool = True
    ) -> None:
        self.ranks: list[RankProcess] = []
        self.status: int | None = None
        """Why the ranks were ended, as an exit status; None while nothing has ended them."""
        self.interrupted_by: int | None = None
        """The first signal that ended them."""
        self.failed: RankProcess | None = None
        """The first rank that failed, where that ends the others."""
        self.suspended_seconds = 0.0
        """For how long this process and the ranks were stopped (SIGTSTP)."""
        self._signals, self._guard = signals, guard
        self._grace_seconds, self._end_together = grace_seconds, end_together
        self._kill_at: float | None = None
        self._interrupted_at = 0.0
        self._reads_output = False

    def __enter__(self) -> Supervisor:
        try:
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._signals, selectors.EVENT_READ)
            self.output = OutputReader(self._signals.wake)
        except OSError as error:
            raise SupervisionError(f"the ranks cannot be supervised: {reason_of(error)}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.release()
        self.output.close()
        self._selector.close()

    def start(
        self,
        manager: OMPProcessManager,
        rank: int,
        command: Sequence[str],
        variables: Mapping[str, str],
        stdout: Target,
        stderr: Target = None,
        *,
        before_exec: Callable[[], None] | None = None,
    ) -> RankProcess | None:
        """Start a rank of the manager's plan, bound, with these variables added to its environment.

        None, and nothing is started, where the ranks before it are ending already. `before_exec` is called in the child
        before it executes the command. Only a process of one thread may give one; this starts none then before `step`.

        Raises:
            CommandStartError: the command cannot be started; NotExecutableError where the command itself is the reason.
            BindingError: the kernel refuses to bind, and the manager is strict.
        """
        if before_exec is None:
            self._read_output()
        self._handle_events(0)
        if self.status is not None:
            return None
        targets = [_descriptor(stdout), subprocess.STDOUT if stderr is None else _descriptor(stderr)]
        with manager.configure_omp_envs(rank) as placement:
            environment = {**os.environ, **variables}
            try:
                # The user's own command, as argv: no shell.
                process = subprocess.Popen(  # noqa: S603
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=targets[0],
                    stderr=targets[1],
                    start_new_session=True,
                    env=environment,
                    preexec_fn=before_exec,  # noqa: PLW1509
                )
            except (OSError, ValueError) as error:
                raise _start_error(command[0], error) from None
            # At once, and inside the context, whose end may raise.
            self._guard.add(process.pid)
            started = RankProcess(rank, placement, environment, process)
            self._adopt(started)
            for pipe, consumer in ((process.stdout, stdout), (process.stderr, stderr)):
                if pipe is not None and isinstance(consumer, Consumer):
                    self.output.add(pipe, consumer)
        return started

    def _adopt(self, rank: RankProcess) -> None:
        self.ranks.append(rank)
        if rank.pidfd is not None:
            self._selector.register(rank.pidfd, selectors.EVENT_READ)

    @property
    def running(self) -> list[RankProcess]:
        """The ranks that have not ended yet."""
        return [rank for rank in self.ranks if rank.ending is None and not rank.reaped]

    def wait(self, seconds: float = math.inf) -> bool:
        """Handle what happens until the last rank has ended; False if that takes longer (not counting suspension)."""
        deadline = time.monotonic() - self.suspended_seconds + seconds
        while self.running:
            left = deadline + self.suspended_seconds - time.monotonic()
            if left <= 0:
                return False
            self.step(left)
        return True

    def wait_for_output(self) -> None:
        """Handle what happens until all output is delivered; call it when the last rank has ended."""
        self._read_output()
        self.output.ranks_have_ended()
        while not self.output.done:
            self.step()

    def step(self, seconds: float = math.inf) -> None:
        """Handle the next event, waiting for it as long as it takes, or so many seconds at most.

        Raises:
            SupervisionError: the kernel refuses to report whether a rank runs, or its status was lost, or there can be
                no thread that reads the output.
        """
        self._read_output()
        self._handle_events(seconds)

    def _read_output(self) -> None:
        if self._reads_output:
            return
        try:
            self.output.start()
        except RuntimeError as error:
            # The limit of processes and threads allows no thread.
            raise SupervisionError(f"the ranks cannot be supervised: {reason_of(error)}") from None
        self._reads_output = True

    def _handle_events(self, seconds: float) -> None:
        self._selector.select(self._timeout(seconds))
        for number in self._signals.take():
            self._handle_signal(number)
        if self.output.error is not None and self.status is None:
            self.end(128 + signal.SIGPIPE)
        for rank in self.running:
            if rank.check():
                self._handle_end(rank)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = None
            self.kill()

    def _timeout(self, seconds: float) -> float | None:
        running = self.running
        if running and self._kill_at is not None:
            seconds = min(seconds, self._kill_at - time.monotonic())
        if not self._signals.catches_signals and any(rank.pidfd is None for rank in running):
            seconds = min(seconds, POLL_SECONDS)
        return None if seconds == math.inf else max(0.0, seconds)

    def _handle_signal(self, number: int) -> None:
        if number == signal.SIGTSTP:
            self._suspend()
            return
        is_second = self.interrupted_by is not None and time.monotonic() - self._interrupted_at > REPEATED_SECONDS
        has_running = bool(self.running)
        self.signal_all(number)
        if number in ENDING:
            if is_second or not has_running:
                self.output.abandon()
            if self.interrupted_by is None:
                self.interrupted_by, self._interrupted_at = number, time.monotonic()
            self._begin_end(128 + number)

    def _handle_end(self, rank: RankProcess) -> None:
        if rank.pidfd is not None:
            # It stays readable.
            self._selector.unregister(rank.pidfd)
        if self._end_together and self.status is None and rank.ending is not None and rank.ending.status:
            self.failed = rank
            self.end(rank.ending.status)

    def _suspend(self) -> None:
        """Stop the ranks and this process until SIGCONT.

        SIGTSTP would not stop them: the kernel drops it in sessions without a terminal (orphaned process groups).
        """
        start = time.monotonic()
        self.signal_all(signal.SIGSTOP)
        signal.raise_signal(signal.SIGSTOP)
        self.signal_all(signal.SIGCONT)
        stopped = time.monotonic() - start
        self.suspended_seconds += stopped
        if self._kill_at is not None:
            self._kill_at += stopped

    def end(self, status: int) -> None:
        """Ask all ranks to end (SIGTERM), and kill them after the grace; `status` is why, unless there is a cause."""
        self.signal_all(signal.SIGTERM)
        self._begin_end(status)

    def _begin_end(self, status: int) -> None:
        if self.status is None:
            self.status = status
            self._kill_at = time.monotonic() + self._grace_seconds

    def kill(self) -> None:
        """Kill the ranks and what they started in their groups."""
        self.signal_all(signal.SIGKILL)

    def signal_all(self, number: int) -> None:
        """Send a signal to the groups of all ranks that are not reaped."""
        for rank in self.ranks:
            rank.signal_group(number)

    def release(self) -> None:
        """Wait for the ranks to end and reap them: what they started in their groups stays, and is no longer ours."""
        for rank in self.ranks:
            if not rank.reaped:
                self._guard.remove(rank.pid)
                rank.reap()


def _start_error(program: str, error: OSError | ValueError) -> CommandStartError:
    if getattr(error, "filename", None) != program:
        return CommandStartError(f"{program} cannot be started: {reason_of(error)}")
    reason = reason_of(error, program)
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        reason = "it is a directory" if os.path.isdir(program) else "it is not executable"
    return NotExecutableError(f"{program} cannot be started: {reason}")


def _descriptor(target: Target) -> BinaryIO | int:
    """Return what Popen makes of a target."""
    return subprocess.PIPE if target is None or isinstance(target, Consumer) else target
