"""Sections of code that no signal handler interrupts.

Python runs signal handlers in the main thread, between any two instructions, and a handler may raise. Blocking signals
(pthread_sigmask(3)) does not prevent it: another thread receives the signal, and Python still runs the handler in the
main thread. So the handlers themselves are replaced while a section runs, and called after it.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType

    from typing_extensions import Self

    Handler = Callable[[int, FrameType | None], object]

SIGNALS = tuple(map(int, signal.valid_signals()))


class StandIn:
    """Takes the place of the handlers written in Python while a section runs, and calls them after it.

    It is left by `__exit__`, which may be called again where a handler has interrupted it. If it is left in place even
    so, it passes its signals on.
    """

    def __init__(self) -> None:
        self.arrived: dict[int, FrameType | None] = {}
        self.section_runs = True
        self._handlers: dict[int, Handler] = {}
        self._replaced: list[int] = []

    def install(self) -> None:
        """Take the place of every handler written in Python."""
        for number in SIGNALS:
            handler = _handler_of(number)
            if handler is None:
                continue
            self._handlers[number] = handler
            self._replaced.append(number)
            try:
                signal.signal(number, self.handle)
            except ValueError:
                # This is not the main interpreter, so no handler runs here either.
                self._replaced.clear()
                return

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal, or pass it on."""
        if self.section_runs:
            self.arrived.setdefault(number, frame)
        else:
            self._handlers[number](number, frame)

    def passed_on(self, number: int) -> Handler:
        """Return the handler that a signal is passed on to."""
        return self._handlers[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.section_runs = False
        try:
            while self._replaced:
                number = self._replaced[-1]
                signal.signal(number, self._handlers[number])
                self._replaced.pop()
        finally:
            while self.arrived:
                number, frame = self.arrived.popitem()
                self._handlers[number](number, frame)


@contextmanager
def deferred_signals() -> Iterator[Collection[int]]:
    """Call Python's signal handlers after this context instead of inside it; yields the signals that have arrived.

    In other threads than the main one, where no handler runs, this does nothing. What the handlers raise is raised at
    the end; a handler that raises at the start, before all are replaced, prevents the section.
    """
    stand_in = StandIn()
    # Once the section has ended a handler may raise inside an exit: then the next one does what is left.
    with stand_in, stand_in, stand_in:
        if threading.current_thread() is threading.main_thread():
            stand_in.install()
        yield stand_in.arrived


def surely(section: Callable[[], None]) -> None:
    """Call `section` without interruption, also where a signal handler raises before it; that is raised after it."""
    begun = False
    try:
        with deferred_signals():
            begun = True
            section()
    except BaseException:
        if not begun:
            surely(section)
        raise


def _handler_of(number: int) -> Handler | None:
    """Return the handler of a signal that is written in Python and may raise, None if there is none."""
    handler = signal.getsignal(number)
    if not callable(handler):
        return None
    stand_in = getattr(handler, "__self__", None)
    if isinstance(stand_in, StandIn) and not stand_in.section_runs:
        return stand_in.passed_on(number)
    # asyncio's own handler never raises, and installing it again would undo its siginterrupt(3).
    return None if getattr(handler, "__module__", None) == "asyncio.unix_events" else handler
