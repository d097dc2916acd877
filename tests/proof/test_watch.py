"""What happens to servers that run, with real kernel objects: each drift is reported with its cause, and repaired."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proc import mask_of
from ompaffinity.proof.drift import Change
from ompaffinity.proof.rank_watch import FOREIGN_SHARE
from ompaffinity.proof.watch import Watcher
from ompaffinity.topology.source import load_topology
from tests.conftest import COMPETITORS, CPUS, needs_two_cpus
from tests.guests.inside.computing import bound_program, started_program
from tests.openmp.libraries import GOMP, needs_gomp

pytestmark = [needs_two_cpus, needs_gomp]
SECONDS = 0.6
FIRST, LAST = CPUS[0], CPUS[-1]
OTHER_USER = 65534
CPUSETS = Path("/sys/fs/cgroup/cpuset")


def server(threads: int = 2) -> AbstractContextManager[tuple[int, list[int], RankPlacement]]:
    """Start a bound worker that computes: its process id, its team, and its placement."""
    return bound_program(GOMP, (FIRST, LAST)[:threads])


def checked(watcher: Watcher, until: str | None = None, checks: int = 8) -> list[Change]:
    """Check until there is a change of this kind (None: once); return all changes but those about competitors.

    On a busy machine others use the CPUs, too.
    """
    found: list[Change] = []
    for _ in range(checks):
        time.sleep(SECONDS)
        changes = watcher.check().changes
        found += [change for change in changes if until in COMPETITORS or change.kind not in COMPETITORS]
        if until is None or any(change.kind == until for change in found):
            break
    return found


def kinds(changes: list[Change]) -> list[str]:
    return [change.kind for change in changes]


def masks(team: list[int]) -> list[set[int] | None]:
    return [mask_of(number) for number in team]


def as_planned(placement: RankPlacement) -> list[set[int]]:
    return [set(place) for place in placement.places]


def test_the_first_status_is_the_verdict() -> None:
    with server() as (pid, _, _):
        status = Watcher([pid]).start()
        (rank,) = status.ranks
        assert (status.verdict, rank.pid, rank.busy_threads, rank.planned_threads) == ("holds", pid, 2, 2)
        assert kinds([*status.changes]) == ["verdict"]


def test_nothing_is_reported_while_nothing_changes() -> None:
    with server() as (pid, _, _):
        watcher = Watcher([pid])
        watcher.start()
        assert checked(watcher) == checked(watcher) == []


def test_a_team_that_idles_still_holds() -> None:
    with server() as (pid, _, _):
        watcher = Watcher([pid])
        watcher.start()
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                time.sleep(0.05)
                status = watcher.check()
            assert status.verdict == "holds"
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_thread_that_taskset_moves_is_reported_once() -> None:
    with server() as (pid, team, _):
        watcher = Watcher([pid])
        watcher.start()
        os.sched_setaffinity(team[1], {FIRST})
        (change,) = checked(watcher)
        assert (change.kind, change.verdict, change.pid) == ("threads-rebound", "differs", pid)
        assert f"thread {team[1]} may run on CPU {FIRST}, the plan requires {LAST}" in change.message
        assert "taskset -p" in (change.cause or "")
        assert checked(watcher) == []
        assert watcher.check().ranks[0].drifts == 1


@pytest.mark.parametrize("checks", [1, 4])
def test_a_drift_that_is_taken_back_is_reported(checks: int) -> None:
    with server() as (pid, team, placement):
        watcher = Watcher([pid])
        watcher.start()
        os.sched_setaffinity(team[1], {FIRST})
        checked(watcher, "none", checks)
        os.sched_setaffinity(team[1], placement.places[1])
        changes = checked(watcher, "verdict")
        assert [(change.kind, change.verdict) for change in changes] == [("verdict", "holds")]


def test_all_threads_that_taskset_moves_are_bound_again() -> None:
    with server() as (pid, team, placement):
        watcher = Watcher([pid], repair=True)
        watcher.start()
        subprocess.run(["taskset", "-a", "-p", "-c", str(FIRST), str(pid)], check=True, stdout=subprocess.DEVNULL)
        changes = checked(watcher)
        assert kinds(changes) == ["threads-rebound", "repaired"]
        assert "taskset -a -p" in (changes[0].cause or "")
        assert masks(team) == as_planned(placement)
        assert watcher.check().verdict == "holds"


def test_a_program_that_pins_its_pool_again_is_reported_and_repaired() -> None:
    with server() as (pid, team, placement):
        watcher = Watcher([pid], repair=True)
        watcher.start()
        os.kill(pid, signal.SIGUSR1)
        changes = checked(watcher, "repaired")
        assert kinds(changes) == ["team-repinned", "repaired"]
        assert masks(team) == as_planned(placement)


def test_a_team_that_was_misplaced_before_the_watch_is_bound_by_the_plan() -> None:
    with server() as (pid, team, placement):
        os.sched_setaffinity(team[1], {FIRST})
        watcher = Watcher([pid], repair=True)
        assert kinds([*watcher.start().changes]) == ["verdict", "repaired"]
        assert masks(team) == as_planned(placement)
        assert watcher.start().verdict == "holds"


def test_repairs_stop_where_another_tool_sets_the_cpus_again_and_again() -> None:
    with server() as (pid, team, _):
        watcher = Watcher([pid], repair=True)
        watcher.start()
        found: list[str] = []
        for _ in range(6):
            os.sched_setaffinity(team[1], {FIRST})
            found += kinds(checked(watcher))
        assert found.count("repaired") == 3
        assert found.count("repair-stopped") == 1
        assert mask_of(team[1]) == {FIRST}


def test_a_worker_that_is_started_again_is_the_same_rank() -> None:
    watcher = Watcher([os.getpid()])
    with server() as (first, _, _):
        assert [rank.pid for rank in watcher.start().ranks] == [first]
    assert kinds(checked(watcher, "rank-ended")) == ["rank-ended"]
    with server() as (second, _, _):
        changes = checked(watcher, "verdict")
        assert kinds(changes) == ["rank-restarted", "verdict"]
        (rank,) = watcher.check().ranks
        assert (rank.pid, rank.verdict, rank.restarts) == (second, "holds", 1)


def test_another_process_on_the_same_cpus_is_named() -> None:
    with server() as (pid, _, _):
        watcher = Watcher([pid])
        watcher.start()
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            try:
                changes = checked(watcher, "competitor")
                assert kinds(changes) == ["competitor"]
                assert f"process {neighbour.pid} (" in (changes[0].cause or "")
                assert (watcher.check().ranks[0].foreign_share or 0) > 0.05
            finally:
                neighbour.kill()
        for _ in range(8):
            time.sleep(SECONDS)
            status = watcher.check()
            share = status.ranks[0].foreign_share or 0
            if share <= FOREIGN_SHARE:
                break
        # On a busy machine others go on.
        assert kinds([*status.changes]) == (["competitor-ended"] if share <= FOREIGN_SHARE else [])


def test_every_worker_that_carries_a_placement_is_watched() -> None:
    with server() as (pid, _, _):
        watcher = Watcher(everything=True)
        assert pid in [rank.pid for rank in watcher.start().ranks]
        with server() as (second, _, _):
            for _ in range(20):
                time.sleep(SECONDS)
                status = watcher.check()
                if {pid, second} <= {rank.pid for rank in status.ranks}:
                    break
            assert status.verdict == "differs"
            assert any("has the placement of rank 0" in text for rank in status.ranks for text in rank.differences)


def test_a_root_that_has_ended_is_none_any_more() -> None:
    with server() as (pid, _, _), subprocess.Popen(["sleep", "60"]) as other:
        watcher = Watcher([pid, other.pid])
        watcher.start()
        assert set(watcher.pids) == {pid, other.pid}
        other.kill()
        # It is not reaped yet.
        time.sleep(0.2)
        watcher.check()
        assert watcher.pids == (pid,)


def test_a_server_without_placement_needs_a_plan() -> None:
    (placement,) = make_plan(load_topology(), PlacementRequest(bind=((FIRST, LAST),))).ranks
    with started_program(GOMP, 2) as (pid, teams):
        with pytest.raises(RequestError, match=f"process {pid} and those below it carry no placement"):
            Watcher([pid]).start(1.0)
        watcher = Watcher([pid], [placement], repair=True)
        watcher.start()
        for thread, place in zip(teams[pid], placement.places):
            os.sched_setaffinity(thread, place)
        changes = checked(watcher, "verdict")
        assert (changes[-1].kind, changes[-1].verdict) == ("verdict", "holds")


def test_a_rank_of_the_plan_without_a_process_is_shown() -> None:
    placements = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2, cpus=(FIRST, LAST))).ranks
    with server(1) as (pid, _, _):
        ranks = Watcher([pid], placements).start().ranks
        assert [(rank.rank, rank.pid) for rank in ranks] == [(0, pid), (1, None)]
        assert ranks[1].differences == ("no process of this rank was found",)


def test_a_process_that_is_not_there_is_rejected() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(RequestError, match=f"no process {process.pid}"):
        Watcher([process.pid])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_the_repair_and_the_privilege_is_named() -> None:
    with server() as (pid, team, placement):
        os.sched_setaffinity(team[1], {FIRST})
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(OTHER_USER)
            try:
                Watcher([pid]).start(0.5)
            except RequestError as refusal:
                os.write(writer, f"{refusal}\n".encode())
            watcher = Watcher([pid], [placement], repair=True)
            for change in (*watcher.start().changes, *checked(watcher, "none", 5)):
                os.write(writer, f"{change}\n".encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as file:
            error, *changes = file.read().splitlines()
        os.waitpid(child, 0)
        assert "may not be read; run as their user or with CAP_SYS_PTRACE" in error
        assert [change.rpartition(" ")[2] for change in changes] == ["[verdict]", "[repair-refused]"]
        assert "CAP_SYS_NICE" in changes[1]
        assert mask_of(team[1]) == {FIRST}


@pytest.fixture
def cpuset() -> Iterator[Path]:
    """A control group (v1) that may use the CPUs of the tests."""
    folder = CPUSETS / f"ompaffinity-tests-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cpuset.mems").write_text((CPUSETS / "cpuset.mems").read_text())
        (folder / "cpuset.cpus").write_text(",".join(map(str, CPUS)))
    except OSError as error:
        pytest.skip(f"no cpuset of cgroup v1 can be made here: {error.strerror}")
    yield folder
    folder.rmdir()


def test_a_cpuset_that_changes_is_reported_and_the_plan_follows(cpuset: Path) -> None:
    with server() as (pid, team, placement):
        (cpuset / "cgroup.procs").write_text(str(pid))
        watcher = Watcher([pid], repair=True)
        watcher.start()
        assert f"{cpuset}/cpuset.cpus" in watcher.files()
        (cpuset / "cpuset.cpus").write_text(str(FIRST))
        changes = checked(watcher)
        assert [(change.kind, change.verdict) for change in changes[:2]] == [
            ("cpuset-changed", "differs"),
            ("replanned", "holds"),
        ]
        assert (changes[0].cause or "").endswith(f"to {FIRST}")
        assert masks(team) == [{FIRST}, {FIRST}]
        # The team is proven again, by its number alone; which thread is which is still known afterwards.
        assert checked(watcher, checks=5, until="none") == []
        (cpuset / "cpuset.cpus").write_text(f"{FIRST},{LAST}")
        assert "replanned" in kinds(checked(watcher, "replanned"))
        assert masks(team) == as_planned(placement)
        assert watcher.check().verdict == "holds"


def test_without_repair_nothing_is_bound(cpuset: Path) -> None:
    with server() as (pid, team, _):
        (cpuset / "cgroup.procs").write_text(str(pid))
        watcher = Watcher([pid])
        watcher.start()
        (cpuset / "cpuset.cpus").write_text(str(FIRST))
        assert kinds(checked(watcher)) == ["cpuset-changed"]
        assert watcher.check().verdict == "differs"
        (cpuset / "cpuset.cpus").write_text(f"{FIRST},{LAST}")
        checked(watcher)
        # Old kernels leave the masks as wide as the cpuset, newer ones restore those that were set before.
        assert masks(team) != [{FIRST}, {FIRST}]
