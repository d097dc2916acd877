"""By the kernel's data the plan holds: every thread of a real OpenMP team, and the memory policy."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.pages import mapped_memory
from ompaffinity.ids import parse_id_list
from tests.guests.inside.common import NODES, ids, nodes_with_memory, ompaffinity, run
from tests.guests.inside.computing import started_program

ATTEMPTS = 3


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_team_runs_on_its_planned_cpus(guest: dict[str, Any], library: str, ranks: int) -> None:
    verdict = ompaffinity("verify", "--tp", str(min(ranks, guest["cpus"])), "--library", library, "--strict")
    assert verdict["holds"]
    for rank in verdict["ranks"]:
        assert rank["threads"]
        assert all(thread["holds"] for thread in rank["threads"])
        if len(nodes_with_memory()) > 1:
            assert rank["policy"].startswith(("bind:", "interleave:"))


def test_a_rank_may_span_nodes(library: str) -> None:
    verdict = ompaffinity("verify", "--tp", "1", "--span", "machine", "--library", library)
    assert verdict["holds"]


def test_siblings_may_all_work(guest: dict[str, Any], library: str) -> None:
    verdict = ompaffinity("verify", "--tp", "2", "--threads-per-core", "all", "--library", library)
    assert verdict["holds"]


def test_a_team_that_floats_stays_within_its_rank(library: str) -> None:
    verdict = ompaffinity("verify", "--tp", "2", "--granularity", "team", "--library", library)
    assert verdict["holds"]


def test_binds_a_server_that_runs_and_moves_its_pages(guest: dict[str, Any], library: str, tmp_path: Path) -> None:
    nodes = [node for node in nodes_with_memory() if node in ids(NODES / "has_cpu")]
    plan = tmp_path / "plan.json"
    place = ("--nodes", str(nodes[-1])) if len(nodes) > 1 else ()
    plan.write_text(run(sys.executable, "-m", "ompaffinity", "plan", *place, "--reserve", "0", "--json"))
    (rank,) = json.loads(plan.read_text())["ranks"]
    threads = len(rank["cpus"])
    with started_program(library, threads) as (pid, teams):
        before = mapped_memory(pid).anonymous if len(nodes) > 1 else {}
        saved: list[str] = []
        team: list[int] = []
        while not team and len(saved) < ATTEMPTS:
            # Threads that share an emulated CPU are not all busy; after the first attempt they have the rank's CPUs.
            saved.append(str(tmp_path / f"undo{len(saved)}.json"))
            bind = ("bind", "--pid", str(pid), "--plan", str(plan), "--seconds", "10", "--save", saved[-1])
            team = ompaffinity(*bind)["ranks"][0]["team"]
        # On a slow host the team may stay unknown; then its threads share the CPUs of the rank.
        assert team in ([], teams[pid])
        expected = rank["places"] if team else [rank["affinity"]] * threads
        assert [os.sched_getaffinity(number) for number in teams[pid]] == [
            set(parse_id_list(cpus)) for cpus in expected
        ]
        if len(nodes) > 1:
            # Single huge pages may stay.
            after = mapped_memory(pid).anonymous
            away = [sum(size for node, size in pages.items() if node != nodes[-1]) for pages in (before, after)]
            assert away[1] < away[0] or away[1] == 0
            assert after[nodes[-1]] > sum(after.values()) / 2
        for file in reversed(saved):
            ompaffinity("bind", "--undo", file)
        assert {frozenset(os.sched_getaffinity(number)) for number in teams[pid]} == {frozenset(range(guest["cpus"]))}
