"""The rules of ``inspect`` on synthetic processes."""

from __future__ import annotations

import pytest

from ompaffinity.proof.findings import InspectedProcess, far_memory
from tests.proof.observations import process, window

MIB = 2**20
STATE = process((4,), (5,))


def test_the_waiting_time_is_that_of_the_busy_thread_that_waits_longest() -> None:
    half = window(((4,), 0.8), ((5,), 0.0), delay=0.2)
    found = InspectedProcess(STATE, None, (half, half))
    assert found.busy_threads == (100,)
    assert found.delay_seconds == pytest.approx(0.2)
    assert found.times_of(100) == pytest.approx((0.8, 0.2))
    assert found.cpu_seconds == pytest.approx(0.8)


def test_the_waiting_time_is_unknown_without_a_busy_thread() -> None:
    idle = window(((4,), 0.0), ((5,), 0.0))
    assert InspectedProcess(STATE, None, (idle, idle)).delay_seconds is None


@pytest.mark.parametrize(
    ("near", "far", "is_reported"),
    [(0, 64, True), (0, 63, False), (64, 64, False), (63, 64, True)],
)
def test_memory_is_far_where_more_than_half_of_it_is_and_enough(near: int, far: int, is_reported: bool) -> None:
    found = [*far_memory(InspectedProcess(STATE, {10: near * MIB, 20: far * MIB}))]
    assert [finding.code for finding in found] == ["memory-far"] * is_reported
