"""A worker, or the server above it, watches itself: in a thread that ends with the context."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import pytest

from ompaffinity import watch_current_process
from ompaffinity.errors import RequestError
from ompaffinity.proof.drift import Change
from ompaffinity.proof.watch import Watcher
from ompaffinity.proof.watch_self import Watch
from ompaffinity.proof.watch_status import WatchStatus
from tests.conftest import needs_two_cpus
from tests.openmp.libraries import needs_gomp
from tests.proof.test_watch import FIRST, as_planned, masks, server

pytestmark = [needs_two_cpus, needs_gomp]


def waited_for(is_so: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def test_a_server_learns_that_a_worker_has_drifted() -> None:
    found: list[Change] = []
    with server() as (pid, team, placement), watch_current_process(0.5, found.append, repair=True) as watch:
        assert waited_for(lambda: watch.status.verdict == "holds")
        assert watch.healthy
        os.sched_setaffinity(team[1], {FIRST})
        assert waited_for(lambda: bool(found))
        assert (found[0].kind, found[0].pid) == ("threads-rebound", pid)
        assert waited_for(lambda: masks(team) == as_planned(placement))
    assert not [thread for thread in threading.enumerate() if thread.name == "ompaffinity-watch"]


def test_a_drift_is_logged_and_makes_the_process_unhealthy(caplog: pytest.LogCaptureFixture) -> None:
    with server() as (_, team, _), watch_current_process(0.5) as watch, caplog.at_level(logging.WARNING, "ompaffinity"):
        assert waited_for(lambda: watch.status.verdict == "holds")
        os.sched_setaffinity(team[1], {FIRST})
        assert waited_for(lambda: not watch.healthy)
        assert waited_for(lambda: "[threads-rebound]" in caplog.text)


def test_a_function_that_raises_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_change: Change) -> None:
        raise ValueError("of the caller")

    with server() as (_, team, placement), watch_current_process(0.5, fail) as watch:
        assert waited_for(lambda: watch.status.verdict == "holds")
        os.sched_setaffinity(team[1], {FIRST})
        assert waited_for(lambda: "of the caller" in caplog.text)
        os.sched_setaffinity(team[1], placement.places[1])
        assert waited_for(lambda: watch.healthy)


class FailingWatcher(Watcher):
    """A watcher whose checks fail until it may succeed."""

    may_succeed = False

    def start(self, seconds: float = 0.0) -> WatchStatus:
        return self.check()

    def check(self) -> WatchStatus:
        if not self.may_succeed:
            raise OSError("the check fails")
        return super().check()


def test_a_check_that_fails_is_unhealthy_until_one_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    watcher = FailingWatcher([os.getpid()], may_be_empty=True)
    with Watch(watcher, 0.25) as watch:
        assert waited_for(lambda: not watch.healthy)
        assert waited_for(lambda: "it tries again" in caplog.text)
        watcher.may_succeed = True
        assert waited_for(lambda: watch.healthy)


def test_stopping_twice_and_in_a_forked_child_does_nothing() -> None:
    watch = watch_current_process(60.0)
    child = os.fork()
    if child == 0:
        watch.stop()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    watch.stop()
    watch.stop()


@pytest.mark.parametrize("interval", [0, -1, float("nan"), "5"])
def test_rejects_an_interval_that_is_too_short(interval: float) -> None:
    with pytest.raises(RequestError, match=r"interval is .*; it must be at least 0.25 seconds"):
        watch_current_process(interval)
