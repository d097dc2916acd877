"""Start the ranks of a plan here, bound from birth, and stay with them until the last one has ended.

Each rank is the leader of a session of its own, so that a signal reaches what it has started, too. The kernel
kills a rank whose launcher ends, however that ends (PR_SET_PDEATHSIG(2const)).
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

from ompaffinity.launch import bind_exec
from ompaffinity.launch.output import RankOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from ompaffinity.openmp.manager import OMPProcessManager

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
NOT_STARTED = 127
POLL_SECONDS = 0.1


def run_ranks(
    manager: OMPProcessManager, command: Sequence[str], *, log_dir: str | None = None, grace_seconds: float = 10
) -> int:
    """Run `command` once per rank of the manager's plan; return 0, or the status of the first one that failed.

    When one fails the others are ended: SIGTERM, and SIGKILL after `grace_seconds`. Signals that this process gets
    are handed on; one that ends gives the status 128 and its number. Call it in the main thread.

    Raises:
        RequestError: `log_dir` cannot be written to.
        BindingError: the kernel refuses to bind, and the manager is strict.
    """
    if shutil.which(command[0]) is None:
        print(f"ompaffinity: error: {command[0]} cannot be started: there is no such program", file=sys.stderr)
        return NOT_STARTED
    with ExitStack() as stack:
        output = stack.enter_context(RankOutput(len(manager.plan.ranks), log_dir))
        ranks = _Ranks(grace_seconds)
        stack.callback(ranks.end_all)
        stack.enter_context(ranks.signals())
        _start(manager, command, ranks, output)
        return ranks.wait(output)


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Return what tells a worker who it is: the variables of torchrun."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start(manager: OMPProcessManager, command: Sequence[str], ranks: _Ranks, output: RankOutput) -> None:
    world_size, port = len(manager.plan.ranks), free_port()
    # This interpreter and a file of ours, then the user's command, all as argv: no shell.
    words = [sys.executable, "-I", "-S", bind_exec.__file__, "--die-with-parent", str(os.getpid()), "--", *command]
    for rank in range(world_size):
        with manager.configure_omp_envs(rank):
            process = subprocess.Popen(  # noqa: S603
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, **rank_variables(rank, world_size, port)},
            )
        ranks.add(process)
        output.add(rank, process)


class _Ranks:
    """The processes of all ranks, and how they are to end."""

    def __init__(self, grace_seconds: float) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._grace_seconds = grace_seconds
        self._kill_at: float | None = None
        self._status: int | None = None
        self._wake_up, self._woken = socket.socketpair()

    def add(self, process: subprocess.Popen[bytes]) -> None:
        self._processes.append(process)

    def signals(self) -> ExitStack:
        """Hand signals on to the ranks until the stack that is returned unwinds."""
        stack = ExitStack()
        for sock in (self._wake_up, self._woken):
            sock.setblocking(False)
            stack.callback(sock.close)
        before = signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, before)
        for number in FORWARDED:
            stack.callback(signal.signal, number, signal.signal(number, self._hand_on))
        return stack

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        self._signal_all(number)
        if number in ENDING:
            self._end(128 + number)

    def _signal_all(self, number: int) -> None:
        """Signal each rank and what it has started: also of one that has ended, for its number is still its own."""
        for process in self._processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

    def _end(self, status: int) -> None:
        if self._status is None:
            self._status = status
            self._kill_at = time.monotonic() + self._grace_seconds

    def wait(self, output: RankOutput) -> int:
        """Hand the output on until the last rank has ended; return the status of all."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            output.register(selector)
            while any(_status_of(process) is None for process in self._processes):
                output.pump(selector, POLL_SECONDS)
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
                self._look_after()
            self._look_after()
            # What the ranks have started may hold their output open: only what is there already is waited for.
            while output.pump(selector, 0):
                pass
        if self._status is None:
            self._status = 0
        return self._status

    def _look_after(self) -> None:
        for process in self._processes:
            status = _status_of(process)
            if status:
                if self._status is None:
                    self._signal_all(signal.SIGTERM)
                self._end(status)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal_all(signal.SIGKILL)

    def end_all(self) -> None:
        """Leave no rank behind, whatever was raised; what ranks have started stays only where all went well."""
        if self._status != 0:
            self._signal_all(signal.SIGKILL)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def _status_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return the status that a shell would show, None while it runs; it stays a zombie, and its number its own."""
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
