"""Start the ranks of a plan here, bound from birth, and stay with them until the last one has ended.

Each rank is the leader of a session of its own, so that a signal reaches what it has started, too. When the launcher
is killed, the kernel kills its ranks (PR_SET_PDEATHSIG(2const)), and a small process that watches it the rest.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.launch import bind_exec, watcher
from ompaffinity.launch.output import RankOutput
from ompaffinity.launch.ranks import free_port, rank_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from ompaffinity.bind.manager import OMPProcessManager

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
POLL_SECONDS = 0.05
OUTPUT_SECONDS = 2.0


def run_ranks(
    manager: OMPProcessManager, command: Sequence[str], *, log_dir: str | None = None, grace_seconds: float = 10
) -> int:
    """Run `command` once per rank of the manager's plan; return 0, or the status of the first one that failed.

    When one fails the others are ended: SIGTERM, and SIGKILL after `grace_seconds`. Signals that this process gets
    are handed on, but those that it was started to ignore (nohup); one that ends gives the status 128 and its number,
    and so does SIGPIPE where nobody reads the output any more. Call it in the main thread.

    Raises:
        RequestError: `log_dir` cannot be written to, or a rank cannot be started for lack of something.
        BindingError: the kernel refuses to bind, and the manager is strict.
    """
    reason = _why_not_started(command[0])
    if reason is not None:
        print(f"ompaffinity: error: {command[0]} cannot be started: {reason}", file=sys.stderr)
        return bind_exec.NOT_STARTED
    with ExitStack() as stack:
        ranks = _Ranks(grace_seconds)
        output = stack.enter_context(RankOutput(len(manager.plan.ranks), log_dir, ranks.nobody_reads))
        stack.callback(ranks.end_all)
        stack.enter_context(ranks.signals())
        told = stack.enter_context(watched())
        _start(manager, command, ranks, output, told)
        output.start()
        status = ranks.wait()
        # What is left of the ranks' groups after a failure must not print for ever.
        ranks.kill_rest()
        output.finish(OUTPUT_SECONDS)
        return status


def _why_not_started(program: str) -> str | None:
    if shutil.which(program) is not None:
        return None
    if os.path.isdir(program):
        return "it is a directory"
    return "it is not executable" if os.path.exists(program) else "there is no such program"


@contextmanager
def watched() -> Iterator[Callable[[object], None]]:
    """Yield what tells the watching process of a group; it ends with the context."""
    reader, writer = os.pipe()
    try:
        # This interpreter and a file of ours: no shell.
        watching = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", watcher.__file__],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)

    def tell(text: object) -> None:
        # If somebody killed it, there is nobody to tell.
        with suppress(OSError):
            os.write(writer, f"{text}\n".encode())

    try:
        yield tell
    finally:
        tell("done")
        os.close(writer)
        watching.wait()


def _start(
    manager: OMPProcessManager,
    command: Sequence[str],
    ranks: _Ranks,
    output: RankOutput,
    watched: Callable[[object], None],
) -> None:
    world_size, port = len(manager.plan.ranks), free_port()
    # This interpreter and a file of ours, then the user's command, all as argv: no shell.
    words = [sys.executable, "-I", "-S", bind_exec.__file__, "--die-with-parent", str(os.getpid()), "--", *command]
    for rank in range(world_size):
        if ranks.are_ending:
            return
        try:
            stdout, stderr = output.targets(rank)
            with manager.configure_omp_envs(rank):
                process = subprocess.Popen(  # noqa: S603
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                    env={**os.environ, **rank_variables(rank, world_size, rank, world_size, port=port)},
                )
        except OSError as error:
            raise RequestError(f"rank {rank} cannot be started: {error.strerror or error}") from None
        watched(process.pid)
        output.add(rank, process)
        ranks.add(process)


class _Ranks:
    """The processes of all ranks, and how they are to end."""

    def __init__(self, grace_seconds: float) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._grace_seconds = grace_seconds
        self._kill_at: float | None = None
        self._status: int | None = None
        self._output_closed = False
        self._handed_on: list[int] = []
        self._wake_up, self._woken = socket.socketpair()

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Take a process, and let it have the signals that came while it was started."""
        self._processes.append(process)
        for number in self._handed_on:
            _signal_group(process, number)

    @property
    def are_ending(self) -> bool:
        """Whether no further one is to be started."""
        return self._status is not None

    def nobody_reads(self) -> None:
        """End the ranks as SIGPIPE would; from any thread."""
        self._output_closed = True
        with suppress(OSError):
            self._wake_up.send(b"x")

    def signals(self) -> ExitStack:
        """Hand signals on to the ranks until the stack that is returned unwinds."""
        stack = ExitStack()
        for sock in (self._wake_up, self._woken):
            sock.setblocking(False)
            stack.callback(sock.close)
        before = signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, before)
        for number in FORWARDED:
            # Who starts a program with a signal ignored (nohup) wants it to be.
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            stack.callback(signal.signal, number, signal.signal(number, self._hand_on))
        return stack

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        self._handed_on.append(number)
        self._signal_all(number)
        if number in ENDING:
            self._end(128 + number)

    def _signal_all(self, number: int) -> None:
        for process in self._processes:
            _signal_group(process, number)

    def _end(self, status: int) -> None:
        if self._status is None:
            self._status = status
            self._kill_at = time.monotonic() + self._grace_seconds

    def wait(self) -> int:
        """Stay until the last rank has ended; return the status of all."""
        while any(_status_of(process) is None for process in self._processes):
            select.select([self._woken], [], [], POLL_SECONDS)
            with suppress(BlockingIOError):
                self._woken.recv(4096)
            self._look_after()
        self._look_after()
        if self._status is None:
            self._status = 0
        return self._status

    def kill_rest(self) -> None:
        """After a failure, kill what the ranks have started; where all went well, it may stay."""
        if self._status != 0:
            self._signal_all(signal.SIGKILL)

    def _look_after(self) -> None:
        if self._output_closed and self._status is None:
            self._signal_all(signal.SIGTERM)
            self._end(128 + signal.SIGPIPE)
        for process in self._processes:
            status = _status_of(process)
            if status:
                if self._status is None:
                    self._signal_all(signal.SIGTERM)
                self._end(status)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal_all(signal.SIGKILL)

    def end_all(self) -> None:
        """Leave no rank behind, whatever was raised."""
        self.kill_rest()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal a rank and what it has started: also one that has ended, for its number is still its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _status_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return the status that a shell would show, None while it runs; it stays a zombie, and its number its own."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
