"""The kernel says that the plan holds: every thread of a real OpenMP team, and the memory policy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.guests.inside.common import nodes_with_memory, ompaffinity


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
