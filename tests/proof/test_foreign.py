"""How much of the CPU time of some CPUs others took: the kernel's counters, and what the own threads used of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ompaffinity.proof.foreign import (
    TICKS,
    CPUTimes,
    busiest_others,
    cpu_times,
    foreign_time,
    own_seconds,
    ticks_of_others,
)
from tests.conftest import CPUS
from tests.proof.observations import process

STAT = """cpu  1000 0 0 9000 0 0 0 0 0 0
cpu0 100 10 20 900 50 3 4 5 60 7
cpu2 200 0 0 800 0 0 0 0 200 0
intr 12345 0 0
ctxt 1
"""


def test_busy_time_counts_interrupts_and_steal_and_not_waiting_or_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stat").write_text(STAT)
    monkeypatch.setattr("ompaffinity.proof.foreign.STAT_FILE", str(tmp_path / "stat"))
    times = cpu_times()
    assert times.busy == {0: (100 + 10 + 20 + 3 + 4 + 5) / TICKS, 2: 200 / TICKS}
    assert times.steal == {0: 5 / TICKS, 2: 0.0}


@pytest.mark.parametrize("content", [None, "", "cpu0 x y\ncpu1 1\n", "nothing\n"])
def test_a_file_without_times_leaves_them_unknown(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "stat").write_text(content)
    monkeypatch.setattr("ompaffinity.proof.foreign.STAT_FILE", str(tmp_path / "stat"))
    times = cpu_times()
    assert times.busy == {}
    assert foreign_time([0], times, times, {}) is None


def test_a_thread_counts_for_each_of_its_cpus_alike() -> None:
    before, after = process((4,), (4, 5), run_ns=10**9), process((4,), (4, 5), run_ns=3 * 10**9)
    assert own_seconds({100: before}, {100: after}) == pytest.approx({4: 3.0, 5: 1.0})


def test_a_process_counts_from_its_second_observation_on() -> None:
    assert own_seconds({}, {100: process((4,), run_ns=10**9)}) == {}


def test_threads_that_have_ended_count_on_the_cpus_of_their_process() -> None:
    before, after = process((4,), (4, 5)), process((4,), (4, 5))._replace(ticks=3 * TICKS)
    assert own_seconds({100: before}, {100: after}) == pytest.approx({4: 1.5, 5: 1.5})


def times(seconds: float, busy: float, steal: float = 0.0) -> CPUTimes:
    return CPUTimes(seconds, {4: busy, 5: busy}, {4: steal, 5: steal})


def test_what_the_own_threads_did_not_use_is_foreign() -> None:
    found = foreign_time([4, 5], times(0.0, 0.0), times(10.0, 8.0, 1.0), {4: 5.0, 5: 5.0})
    assert found is not None
    assert (found.seconds, found.share, found.stolen) == pytest.approx((6.0, 0.3, 2.0))


def test_the_stolen_part_is_never_more_than_what_others_took() -> None:
    found = foreign_time([4, 5], times(0.0, 0.0), times(10.0, 6.0, 4.0), {4: 5.0, 5: 5.0})
    assert found is not None
    assert (found.seconds, found.stolen) == pytest.approx((2.0, 2.0))


def test_rounding_never_makes_it_negative() -> None:
    found = foreign_time([4, 5], times(0.0, 0.0), times(10.0, 1.0), {4: 5.0})
    assert found is not None
    assert (found.seconds, found.share) == (0.0, 0.0)


def test_names_the_busiest_processes_that_may_run_there() -> None:
    before = ticks_of_others([])
    # What ran before, such as a busy neighbour of these tests, is left out.
    with (
        subprocess.Popen(["sleep", "60"]) as idle,
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy,
    ):
        try:
            time.sleep(1.0)
            named = busiest_others(before, before, CPUS)
            assert named is not None
            assert f"process {busy.pid} (" in named
            assert f"process {idle.pid} (" not in named
            assert f"process {busy.pid} " not in (busiest_others(before, [*before, busy.pid], CPUS) or "")
            assert busiest_others(before, [], [max(CPUS) + 1000]) is None
        finally:
            busy.kill()
            idle.kill()
    assert os.getpid() not in before
