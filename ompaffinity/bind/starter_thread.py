"""A thread that starts workers for others, so that the caller's thread is never bound.

It lives as long as the process: a worker that asks to die with its parent (prctl(2),
PR_SET_PDEATHSIG) dies with the *thread* that started it.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Job:
    """A call, and later what it returned or raised; concurrent.futures would load logging, for several milliseconds."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001
            # Also SystemExit: the caller decides what it means.
            self.error = error
        self.done.set()


_lock = threading.Lock()
_jobs: SimpleQueue[_Job] | None = None


def call_in_starter(function: Callable[[], Any]) -> Any:
    """Call `function` in the starter thread and return or raise what it does."""
    global _jobs  # noqa: PLW0603
    with _lock:
        if _jobs is None:
            jobs: SimpleQueue[_Job] = SimpleQueue()
            threading.Thread(target=_serve, args=(jobs,), name="ompaffinity-starter", daemon=True).start()
            _jobs = jobs
        jobs = _jobs
    job = _Job(function)
    jobs.put(job)
    try:
        job.done.wait()
    except KeyboardInterrupt:
        # What was begun is ended first: a worker that starts unseen would never be stopped.
        job.done.wait()
        raise
    if job.error is not None:
        raise job.error
    return job.result


def _serve(jobs: SimpleQueue[_Job]) -> None:
    while True:
        jobs.get().run()


def _forget() -> None:
    """In a forked child there is no starter thread."""
    global _jobs, _lock
    _jobs, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
