"""A thread that starts workers for others, so that the caller's thread is never bound.

It lives as long as the process: a worker that asks to die with its parent (prctl(2),
PR_SET_PDEATHSIG) dies with the *thread* that started it.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from queue import SimpleQueue
    from typing import Any

_lock = threading.Lock()
_jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] | None = None


def call_in_starter(function: Callable[[], Any]) -> Any:
    """Call `function` in the starter thread and return or raise what it does."""
    global _jobs  # noqa: PLW0603
    # Loaded here: exec needs no such thread, and they load logging.
    from concurrent.futures import Future, wait
    from queue import SimpleQueue

    with _lock:
        if _jobs is None:
            jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
            threading.Thread(target=_serve, args=(jobs,), name="ompaffinity-starter", daemon=True).start()
            _jobs = jobs
        jobs = _jobs
    future: Future[Any] = Future()
    jobs.put((future, function))
    try:
        return future.result()
    except KeyboardInterrupt:
        # What was begun is ended first: a worker that starts unseen would never be stopped.
        wait([future])
        raise


def _serve(jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        future, function = jobs.get()
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001
            # Also SystemExit: the caller decides what it means.
            future.set_exception(error)
        del future, function


def _forget() -> None:
    """In a forked child there is no starter thread."""
    global _jobs, _lock
    _jobs, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
