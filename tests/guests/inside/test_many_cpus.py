"""A machine with more CPUs than a word has bits: large teams, and masks with more than 32."""

from __future__ import annotations

from typing import Any

from tests.guests.inside.common import ompaffinity


def test_a_large_team_runs_on_its_planned_cpus(guest: dict[str, Any]) -> None:
    # Threads that spin starve the others where few real CPUs emulate many.
    verdict = ompaffinity("verify", "--tp", "2", "--library", "libgomp.so.1", "--wait-policy", "passive")
    assert verdict["holds"]
    for rank in verdict["ranks"]:
        # Half of the machine's cores, but for the one that is kept for helper threads.
        assert len(rank["threads"]) == guest["packages"] * guest["cores"] // 2 - 1
