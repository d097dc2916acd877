"""Watch from inside: this process and those below it, in a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.messages import LOGGER
from ompaffinity.proof.drift import COMPETITOR, DRIFTS
from ompaffinity.proof.events import Events
from ompaffinity.proof.verdict import DIFFERS
from ompaffinity.proof.watch import CHECKS_PER_MEMORY, Watcher
from ompaffinity.proof.watch_status import WatchStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.drift import Change

INTERVAL_SECONDS = 5.0
LEAST_INTERVAL = 0.25


class Watch:
    """A watch in a thread of this process: a context manager, or ended by `stop`.

    `on_change` gets every change, `on_drift` those that matter to a health check: drift, competitors, and a verdict
    that differs. Both are called in the thread of the watch; what they raise is logged.
    """

    def __init__(
        self,
        watcher: Watcher,
        interval: float,
        on_drift: Callable[[Change], object] | None = None,
        on_change: Callable[[Change], object] | None = None,
    ) -> None:
        self._watcher, self._interval = watcher, interval
        self._on_drift = _log if on_drift is None else on_drift
        self._on_change = on_change
        self._status = WatchStatus(0.0, ())
        self._stopped, self._has_failed, self._pid = False, False, os.getpid()
        self._events = Events()
        self._thread = threading.Thread(target=self._run, name="ompaffinity-watch", daemon=True)
        self._thread.start()

    @property
    def status(self) -> WatchStatus:
        """The last status: no ranks and `unproven` before the first check has ended."""
        return self._status

    @property
    def healthy(self) -> bool:
        """Whether the last check succeeded and no rank differs from its placement, for a health endpoint."""
        return self._status.verdict != DIFFERS and not self._has_failed and (self._stopped or self._thread.is_alive())

    def stop(self) -> None:
        """End the watch, and wait for its thread; again, and in a forked child, it does nothing."""
        if self._stopped or os.getpid() != self._pid:
            return
        self._stopped = True
        self._events.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._events.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _run(self) -> None:
        check: Callable[[], WatchStatus] = self._watcher.start
        while not self._stopped:
            try:
                self._report(check())
                self._events.watch_processes(pid for pid in self._watcher.pids if pid != os.getpid())
                self._events.watch_files(self._watcher.files())
                self._has_failed = False
            except Exception:  # a watch that ended silently would look like one that finds nothing
                self._has_failed = True
                logging.getLogger(LOGGER).exception("the watch could not check the workers; it tries again")
            check = self._watcher.check
            if not self._stopped:
                self._events.wait(self._interval)

    def _report(self, status: WatchStatus) -> None:
        self._status = status
        for change in status.changes:
            matters = change.verdict == DIFFERS or change.kind in (*DRIFTS, COMPETITOR)
            for function in (self._on_change, self._on_drift if matters else None):
                if function is None:
                    continue
                try:
                    function(change)
                except Exception:  # the caller's function may raise anything
                    logging.getLogger(LOGGER).exception("a function that receives changes of the watch failed")


def check_interval(interval: object) -> None:
    """Check the seconds between two checks.

    Raises:
        RequestError: it is no number, or less than 0.25 seconds.
    """
    if not isinstance(interval, (int, float)) or not interval >= LEAST_INTERVAL:
        raise RequestError(f"interval is {interval!r}; it must be at least {LEAST_INTERVAL} seconds")


def watch_current_process(
    interval: float = INTERVAL_SECONDS,
    on_drift: Callable[[Change], object] | None = None,
    *,
    plan: Sequence[RankPlacement] | None = None,
    repair: bool = False,
) -> Watch:
    """Watch this process, and all those that it starts, every `interval` seconds; return the watch.

    Call it in a worker, or in the server above the workers. `on_drift` is called for what matters to a health check
    (default: a warning under the logger ``ompaffinity``). `plan`: the placements to compare with, instead of those that
    the workers were started with. With `repair` what has drifted is bound again.

    Raises:
        RequestError: the interval is less than 0.25 seconds, or /proc is not mounted.
    """
    check_interval(interval)
    watcher = Watcher(
        [os.getpid()], plan, may_be_empty=True, repair=repair, memory_seconds=CHECKS_PER_MEMORY * interval
    )
    return Watch(watcher, interval, on_drift)


def _log(change: Change) -> None:
    logging.getLogger(LOGGER).warning("%s", change)
