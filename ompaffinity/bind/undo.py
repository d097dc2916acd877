"""The one way to take back what was changed of a process.

Every change registers a step with what was there before, what was set, and whose it is. A step restores only
what is still ours: in this process (a forked child has none of the parent's threads), in the same thread (its number
may have gone to another one), and only where the value that was set is still there.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from ompaffinity.bind.deferred_signals import deferred_signals, surely
from ompaffinity.errors import BindingError
from ompaffinity.messages import LOGGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    Step = Callable[[], str | None]

T = TypeVar("T")


class Undo:
    """The steps that take back what was changed, in the order of the changes; as a context it runs them at its end.

    `failures` are the reasons why something could not be restored.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._process = os.getpid()
        self._steps: list[Step] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._steps:
            self.run()

    def add(self, step: Step) -> None:
        """Register a step; it returns why something could not be restored, None where all is well, and never raises."""
        self._steps.append(step)

    def run(self) -> None:
        """Run the steps, the last one first; log what could not be restored.

        Each step runs once, whatever signal handlers raise meanwhile. In a forked child nothing is done.
        """
        surely(self._run)

    def _run(self) -> None:
        if self._process != os.getpid():
            self._steps.clear()
        while self._steps:
            failure = self._steps.pop()()
            if failure is not None:
                self.failures.append(failure)
                # Loading it takes a part of every start, and few restore with a failure.
                import logging

                logging.getLogger(LOGGER).warning("%s: %s", BindingError.code, failure)


@contextmanager
def undone_at_end(
    take: Callable[[Undo], T], *, wait: Callable[[Undo], None] | None = None, strict: bool = False
) -> Iterator[T]:
    """Call `take` and yield what it returns; what it has changed is taken back when the context ends.

    Signal handlers interrupt neither. `wait` is called before, and may be interrupted.

    Raises:
        BindingError: something could not be restored, nothing was raised inside, and `strict`.
    """
    undo = Undo()
    # A signal handler may raise on the way into an exit, before its steps run: then the next one runs them.
    with undo, undo, undo:
        if wait is not None:
            wait(undo)
        with deferred_signals():
            taken = take(undo)
        yield taken
    if undo.failures and strict:
        raise BindingError("; ".join(undo.failures))
