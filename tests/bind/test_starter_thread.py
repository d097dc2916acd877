"""The thread that starts workers for others: a forked child has one of its own."""

from __future__ import annotations

import os
import threading

import pytest

from ompaffinity.bind.starter_thread import call_in_starter
from tests.bind.test_undo import status_of_fork


def starts() -> bool:
    return bool(call_in_starter(os.getpid) == os.getpid())


def test_all_calls_run_in_one_thread_that_is_not_the_callers() -> None:
    first, second = (call_in_starter(threading.get_native_id) for _ in range(2))
    assert first == second != threading.get_native_id()


def test_raises_in_the_caller_what_the_function_raises() -> None:
    def fail() -> None:
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        call_in_starter(fail)
    assert starts()


def test_a_forked_child_starts_a_thread_of_its_own() -> None:
    assert starts()
    assert status_of_fork(starts) == 0


def test_a_child_that_is_forked_while_the_thread_starts_does_not_hang() -> None:
    statuses: list[int] = []

    def fork_meanwhile() -> bool:
        # The child of this test has no starter thread yet, so the call starts one.
        start = threading.Thread.start
        with pytest.MonkeyPatch.context() as patch:

            def fork_and_start(thread: threading.Thread) -> None:
                patch.undo()
                statuses.append(status_of_fork(starts))
                start(thread)

            patch.setattr(threading.Thread, "start", fork_and_start)
            return starts() and statuses == [0]

    assert status_of_fork(fork_meanwhile) == 0
