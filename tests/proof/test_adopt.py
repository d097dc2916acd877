"""Process trees that run already become the ranks of a plan: which processes are ranks, and which threads a team."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proc import mask_of, processes_below, thread_ids
from ompaffinity.proof.adopt import adopt_processes
from ompaffinity.proof.verify import verify_processes
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, needs_two_cpus, run_command
from tests.guests.inside.computing import started_program
from tests.openmp.libraries import GOMP, LIBRARIES, needs_gomp

pytestmark = needs_two_cpus
TWO = f"{CPUS[0]},{CPUS[-1]}"
WINDOW = 1.0


def masks_of(pid: int) -> set[frozenset[int]]:
    return {frozenset(mask_of(number) or ()) for number in thread_ids(pid)}


@pytest.mark.parametrize(("runtime", "library"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_team_gets_a_place_for_each_thread_in_its_order(runtime: str, library: str) -> None:
    (rank,) = make_plan(load_topology(), PlacementRequest(bind=((CPUS[0], CPUS[-1]),))).ranks
    with started_program(library, 2) as (pid, teams):
        adoption = adopt_processes([pid], [rank], WINDOW)
        assert adoption.ranks[0].team == tuple(teams[pid])
        assert [mask_of(number) for number in teams[pid]] == [set(place) for place in rank.places]
        others = set(thread_ids(pid)) - set(teams[pid])
        assert {frozenset(mask_of(number) or ()) for number in others} == {frozenset(rank.affinity)}
        assert verify_processes([pid], [rank]).verdict == "holds"


@needs_gomp
def test_the_workers_of_a_server_become_the_ranks() -> None:
    ranks = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2, cpus=(CPUS[0], CPUS[-1]))).ranks
    with started_program(GOMP, 1, workers=2) as (server, teams):
        adoption = adopt_processes([server], ranks, WINDOW)
        assert sorted(rank.pid for rank in adoption.ranks) == sorted(teams)
        for rank in adoption.ranks:
            assert masks_of(rank.pid) == {frozenset(rank.placement.affinity)}
        assert masks_of(server) == {frozenset(cpu for rank in ranks for cpu in rank.affinity)}


@needs_gomp
def test_named_workers_become_ranks_in_the_order_given() -> None:
    ranks = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2, cpus=(CPUS[0], CPUS[-1]))).ranks
    with started_program(GOMP, 1) as (first, _), started_program(GOMP, 1) as (second, _):
        adoption = adopt_processes([second, first], ranks, WINDOW)
        assert [rank.pid for rank in adoption.ranks] == [second, first]
        assert masks_of(second) == {frozenset(ranks[0].affinity)}


@needs_gomp
def test_what_a_rank_has_started_gets_all_cpus_of_the_rank() -> None:
    (rank,) = make_plan(load_topology(), PlacementRequest(bind=((CPUS[0],),))).ranks
    shell = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        adopt_processes([process.pid], [rank], WINDOW)
        assert masks_of(process.pid) == masks_of(child) == {frozenset(rank.affinity)}
        assert mask_of(0) == set(CPUS)
        os.kill(child, 9)


@needs_gomp
def test_a_team_of_another_size_shares_the_cpus_of_its_rank() -> None:
    (rank,) = make_plan(load_topology(), PlacementRequest(bind=((CPUS[0], CPUS[-1]),))).ranks
    with started_program(GOMP, 1) as (pid, _):
        adoption = adopt_processes([pid], [rank], WINDOW)
        assert adoption.ranks[0].team == ()
        assert [message.code for message in adoption.messages] == ["team-unknown"]
        assert masks_of(pid) == {frozenset(rank.affinity)}


@needs_gomp
def test_rejects_another_number_of_ranks_than_the_plan_has() -> None:
    ranks = make_plan(load_topology(), PlacementRequest(tensor_parallel_size=2, cpus=(CPUS[0], CPUS[-1]))).ranks
    with started_program(GOMP, 1) as (pid, _):
        before = masks_of(pid)
        with pytest.raises(RequestError, match=rf"has 1 rank \(process {pid}\), and the plan has 2"):
            adopt_processes([pid], ranks, WINDOW)
        with pytest.raises(RequestError, match="names 2 process ids, and the plan has 1 rank;"):
            adopt_processes([pid, os.getpid()], ranks[:1], WINDOW)
        assert masks_of(pid) == before


def test_rejects_a_process_that_is_not_there_and_a_plan_that_binds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    unbound = make_plan(load_topology(), PlacementRequest(bind="none")).ranks
    with pytest.raises(RequestError, match="no process"):
        adopt_processes([process.pid], make_plan(load_topology(), PlacementRequest()).ranks, WINDOW)
    with pytest.raises(RequestError, match="--bind none"):
        adopt_processes([os.getpid()], unbound, WINDOW)


@needs_gomp
def test_the_command_binds_and_takes_back_what_it_saved(tmp_path: Path) -> None:
    undo = str(tmp_path / "undo.json")
    with started_program(GOMP, 2) as (pid, teams):
        done = run_command("bind", "--pid", str(pid), "--bind", TWO, "--save", undo)
        assert done.returncode == 0
        assert "1 thread got other CPUs." in done.stdout
        assert mask_of(teams[pid][1]) == {CPUS[-1]}
        assert len(json.loads(Path(undo).read_text())["threads"]) == 1
        back = run_command("bind", "--undo", undo)
        assert (back.returncode, back.stderr) == (0, "")
        assert masks_of(pid) == {frozenset(CPUS)}
        assert "0 threads got back" in run_command("bind", "--undo", undo).stdout


@needs_gomp
def test_the_command_follows_a_saved_plan(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(run_command("plan", "--bind", TWO, "--json").stdout)
    with started_program(GOMP, 2) as (pid, _):
        done = run_command("bind", "--pid", str(pid), "--plan", str(plan), "--json")
        (rank,) = json.loads(done.stdout)["ranks"]
        assert (rank["pid"], len(rank["team"])) == (pid, 2)
        assert run_command("verify", "--pid", str(pid), "--plan", str(plan)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no process is given; name the server"),
        (("--pid", "1", "--seconds", "0"), "--seconds is 0"),
        (("--pid", "1", "--plan", "plan.json", "--tp", "2"), "--plan cannot be combined with --tp"),
        (("--pid", "1", "--undo", "undo.json"), "--undo cannot be combined with --pid"),
        (("--pid", "1", "--save", "/nowhere/undo.json"), "--save /nowhere/undo.json cannot be written"),
        (("--undo", "/nowhere/undo.json"), "--undo /nowhere/undo.json cannot be read"),
        (("--undo", "pyproject.toml"), "is not what `ompaffinity bind --json` prints"),
    ],
)
def test_the_command_rejects_what_makes_no_sense(arguments: tuple[str, ...], words: str) -> None:
    done = run_command("bind", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@needs_gomp
def test_a_warning_fails_under_strict() -> None:
    with started_program(GOMP, 1) as (pid, _):
        arguments = ("bind", "--pid", str(pid), "--bind", TWO)
        assert [run_command(*arguments, *strict).returncode for strict in ((), ("--strict",))] == [0, 1]


def test_binds_what_a_process_starts_meanwhile() -> None:
    (rank,) = make_plan(load_topology(), PlacementRequest(bind=((CPUS[0],),))).ranks
    with subprocess.Popen(["sh", "-c", "while :; do sleep 0.05; done"]) as process:
        try:
            adopt_processes([process.pid], [rank], WINDOW)
            for _ in range(20):
                children = [*processes_below(process.pid)]
                assert all(mask_of(child) in (None, set(rank.affinity)) for child in children)
                time.sleep(0.02)
        finally:
            process.kill()


@needs_gomp
def test_an_interrupt_takes_back_what_was_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    (rank,) = make_plan(load_topology(), PlacementRequest(bind=((CPUS[0], CPUS[-1]),))).ranks

    def interrupted(*_pids: int) -> tuple[int, ...]:
        os.kill(os.getpid(), signal.SIGINT)
        return ()

    with started_program(GOMP, 2) as (pid, teams):
        monkeypatch.setattr("ompaffinity.proof.adopt.processes_below", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adopt_processes([pid], [rank], WINDOW)
        assert [mask_of(number) for number in teams[pid]] == [set(CPUS)] * 2
