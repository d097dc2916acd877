"""``--avoid live``: what processes running here are bound to, and starts that wait for each other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.live_holders import held_live
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.start_lock import StartLock
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from ompaffinity.proc import mask_of, thread_ids
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, ROOT, needs_two_cpus
from tests.launch.test_run import wait_until

BUSY = "while True: pass"
IDLE = "import time; time.sleep(600)"


@contextlib.contextmanager
def running(code: str, cpus: list[int] | None = None, manager: OMPProcessManager | None = None) -> Iterator[int]:
    """Start this program, on these CPUs or as rank 0 of a manager, and yield its pid."""
    argv = [sys.executable, "-c", f"print('on', flush=True)\n{code}"]
    if manager is not None:
        process = manager.popen(0, argv, stdout=subprocess.PIPE)
    else:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        if cpus is not None:
            os.sched_setaffinity(process.pid, cpus)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def held_of(pid: int) -> tuple[int, ...] | None:
    return next((held.cpus for held in held_live() if held.pid == pid), None)


@needs_two_cpus
def test_a_busy_process_with_a_narrow_mask_holds_its_cpus() -> None:
    with running(BUSY, CPUS[:1]) as pid:
        assert held_of(pid) == tuple(CPUS[:1])


@needs_two_cpus
def test_a_process_holds_the_cpus_of_all_its_threads() -> None:
    pinned = (
        "import os, threading; started = threading.Event()\n"
        f"def work():\n    os.sched_setaffinity(0, {{{CPUS[0]}}}); started.set()\n    while True: pass\n"
        "threading.Thread(target=work, daemon=True).start(); started.wait()\nwhile True: pass"
    )
    with running(pinned) as pid:
        wait_until(lambda: any(mask_of(number) == {CPUS[0]} for number in thread_ids(pid)))
        assert held_of(pid) == (CPUS[0],)


@needs_two_cpus
def test_an_idle_process_with_a_narrow_mask_holds_nothing() -> None:
    with running(IDLE, CPUS[:1]) as pid:
        assert held_of(pid) is None


def test_a_busy_process_on_all_cpus_holds_nothing() -> None:
    with running(BUSY) as pid:
        assert held_of(pid) is None


@needs_two_cpus
def test_a_process_with_a_placement_holds_its_cpus_although_it_is_idle() -> None:
    manager = OMPProcessManager(bind=((CPUS[0],),), runtime="gomp")
    with running(IDLE, manager=manager) as pid:
        assert held_of(pid) == tuple(CPUS[:1])


@needs_two_cpus
def test_a_process_that_was_moved_holds_what_it_was_moved_to() -> None:
    manager = OMPProcessManager(bind=((CPUS[0],),), runtime="gomp")
    with running(IDLE, manager=manager) as pid:
        os.sched_setaffinity(pid, CPUS[1:2])
        assert held_of(pid) == tuple(CPUS[1:2])
        os.sched_setaffinity(pid, CPUS)
        assert held_of(pid) is None


@needs_two_cpus
@pytest.mark.skipif(os.getuid() != 0, reason="only root starts processes of other users")
@pytest.mark.parametrize(("user", "held"), [(0, CPUS), (12345, CPUS[:1])])
def test_a_placement_counts_beyond_the_mask_only_for_this_user(user: int, held: list[int]) -> None:
    environment = OMPProcessManager(reserve=0, runtime="gomp").environment(0)
    with subprocess.Popen(["sleep", "60"], user=user, env=environment) as process:
        try:
            os.sched_setaffinity(process.pid, CPUS[:1])
            assert held_of(process.pid) == tuple(held)
        finally:
            process.kill()


@needs_two_cpus
def test_this_process_and_what_a_launcher_started_hold_nothing() -> None:
    before = os.sched_getaffinity(0)
    with running(BUSY, CPUS[:1]) as pid:
        assert pid not in [held.pid for held in held_live(launcher=os.getpid())]
        try:
            os.sched_setaffinity(0, CPUS[:1])
            assert os.getpid() not in [held.pid for held in held_live()]
        finally:
            os.sched_setaffinity(0, before)


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ompaffinity", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@needs_two_cpus
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_plan_avoids_running_processes_and_lists_them(by_variable: bool) -> None:
    words = ("plan", "--json", *(() if by_variable else ("--avoid", "live")))
    environment = {"OMPAFFINITY_OPTIONS": "--avoid live"} if by_variable else {}
    with running(BUSY, CPUS[:1]) as pid:
        document: Any = json.loads(command(*words, **environment).stdout)
    assert CPUS[0] not in document["ranks"][0]["cpus"]
    assert pid in [held["pid"] for held in document["avoided"]]
    (group,) = [group for group in document["left_out"] if group["reason"] == "not-allowed"]
    assert f"process {pid}" in group["detail"]
    assert "keeps-off-live" in [message["code"] for message in document["warnings"]]


def test_live_is_what_runs_on_this_machine() -> None:
    done = command("plan", "--synthetic", "core:4 pu:1", "--avoid", "live")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--avoid live" in done.stderr


@needs_two_cpus
def test_a_manager_keeps_off_what_runs() -> None:
    with running(BUSY, CPUS[:1]):
        manager = OMPProcessManager(avoid=["live"], runtime="gomp")
        manager.release()
    assert CPUS[0] not in manager.plan.ranks[0].cpus


def test_of_two_servers_started_at_once_one_gets_the_cpus(tmp_path: Path) -> None:
    """Each would take all CPUs: without the lock both would plan before either runs."""
    words = [sys.executable, "-m", "ompaffinity", "run", "--avoid", "live", "--", sys.executable, "-c"]
    code = f"import time, pathlib; pathlib.Path({str(tmp_path)!r}, 'on').touch(); time.sleep(600)"
    processes = [
        subprocess.Popen([*words, code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        end = time.monotonic() + 60
        while all(process.poll() is None for process in processes):
            assert time.monotonic() < end
            time.sleep(0.1)
        (failed,) = [process for process in processes if process.poll() is not None]
        assert failed.returncode == 2
        assert failed.stderr is not None
        assert "no CPU may be used" in failed.stderr.read()
        # The lock is free once the first rank is started, which may be before its program runs.
        while not (tmp_path / "on").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.communicate()


def test_the_lock_is_given_back_when_each_rank_was_started() -> None:
    manager = OMPProcessManager(avoid=["live"], runtime="gomp", bind="auto")
    with pytest.raises(RequestError, match="more than"):
        StartLock(wait_seconds=0.2)
    with manager.configure_omp_envs(0):
        pass
    StartLock(wait_seconds=0.2).release()


def test_the_lock_is_given_back_where_there_can_be_no_plan() -> None:
    with pytest.raises(PlacementError):
        OMPProcessManager(avoid=["live"], runtime="gomp", tensor_parallel_size=60000)
    StartLock(wait_seconds=0.2).release()


def test_two_plans_around_running_processes_are_disjoint() -> None:
    """What the first one holds is what the second one leaves alone."""
    machine = load_topology(synthetic="package:2 core:4 pu:2", architecture="x86_64")
    first = make_plan(machine, PlacementRequest(cpus=(0, 1, 2, 3)))
    held = tuple(HeldCPUs("process 1 (a)", rank.affinity, pid=1) for rank in first.ranks)
    second = make_plan(machine, PlacementRequest(avoid=held))
    assert not {cpu for rank in first.ranks for cpu in rank.affinity} & {*second.ranks[0].affinity}
    assert second.avoided == held
