"""The signals that this process gets while ranks run, collected for the loop that supervises the ranks."""

from __future__ import annotations

import signal
import socket
import threading
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
COLLECTED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)


class SignalReceiver:
    """Collects signals instead of acting on them; a context manager that restores all handlers.

    Wait until `fileno()` is readable, then call `take()`. A signal that was ignored at the start (nohup) stays
    ignored. SIGCHLD is never ignored meanwhile, or the kernel would reap the ranks and drop their statuses. Python
    sets handlers in the main thread only: in another thread nothing is collected, and `catches_signals` is False.
    """

    def __init__(self) -> None:
        self._received: deque[int] = deque()
        self.catches_signals = False

    def __enter__(self) -> SignalReceiver:
        with ExitStack() as stack:
            self._writer, self._reader = socket.socketpair()
            for end in (self._writer, self._reader):
                stack.callback(end.close)
                end.setblocking(False)
            if threading.current_thread() is threading.main_thread():
                self._set_handlers(stack)
            self._undo = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _set_handlers(self, stack: ExitStack) -> None:
        before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, before)
        # None: the handler was not set by Python, which could not restore it.
        kept = (signal.SIG_IGN, None)
        for number in COLLECTED:
            if signal.getsignal(number) not in kept:
                stack.callback(signal.signal, number, signal.signal(number, self._collect))
        if signal.getsignal(signal.SIGCHLD) is not None:
            # Any handler makes SIGCHLD wake the loop, too, where there are no pidfds.
            stack.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, _ignore))
            self.catches_signals = True

    def _collect(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)

    def fileno(self) -> int:
        """Return the descriptor that is readable after a signal or a call of `wake`."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make `fileno()` readable; from any thread."""
        # Full: it is readable already. Closed: nothing waits for it any more.
        with suppress(OSError):
            self._writer.send(b"\0")

    def take(self) -> list[int]:
        """Return the signals since the last call, oldest first."""
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        numbers = []
        while self._received:
            numbers.append(self._received.popleft())
        return numbers


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: a handler, unlike SIG_IGN, leaves ended children to be waited for."""
