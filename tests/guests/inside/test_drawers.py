"""s390x: big endian, books and drawers, and a kernel without NUMA."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest

import ompaffinity as package
from ompaffinity.bind.mempolicy import take_policy
from ompaffinity.topology.source import load_topology
from tests.guests.inside.common import in_child, ompaffinity, run
from tests.guests.inside.drawers import SIZES
from tests.guests.inside.test_detection import chunks, groups


def test_levels_are_as_they_were_made(guest: dict[str, Any]) -> None:
    topology = load_topology()
    assert topology.architecture == "s390x"
    assert topology.nodes == ()
    levels = {"physical_core": "core", "package": "physical_package", "book": "book", "drawer": "drawer"}
    for level, made in levels.items():
        assert groups(level) == chunks(guest["cpus"], SIZES[made])


def test_lscpu_reports_the_same() -> None:
    topology = load_topology()
    for column, level in (("BOOK", "book"), ("DRAWER", "drawer"), ("SOCKET", "package"), ("CORE", "physical_core")):
        ours, theirs = defaultdict(set), defaultdict(set)
        for line in run("lscpu", f"-p=CPU,{column}").splitlines():
            if not line.startswith("#"):
                cpu, group = line.split(",")
                ours[getattr(topology.cpu(int(cpu)), level)].add(int(cpu))
                theirs[group].add(int(cpu))
        assert sorted(map(sorted, ours.values())) == sorted(map(sorted, theirs.values())), column


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_are_cut_along_drawers_and_books(guest: dict[str, Any], ranks: int) -> None:
    plan = ompaffinity("plan", "--tp", str(ranks), "--reserve", "0")
    topology = load_topology()
    size = guest["cpus"] // ranks
    for rank in plan["ranks"]:
        assert len(rank["cpus"]) == size
        level = {8: None, 4: "drawer", 2: "book", 1: "package"}[size]
        if level is not None:
            assert len({getattr(topology.cpu(cpu), level) for cpu in rank["cpus"]}) == 1
        assert (rank["memory_policy"], rank["nodes"]) == ("none", [])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_team_runs_on_its_planned_cpus(library: str, ranks: int) -> None:
    assert ompaffinity("verify", "--tp", str(ranks), "--library", library, "--strict")["holds"]


def test_a_kernel_without_numa_has_no_policy_to_set() -> None:
    assert not package.can_set_mempolicy()

    def work() -> list[str]:
        accepted = take_policy("bind", [0])
        return [accepted.policy, str(accepted.refusal)]

    policy, reason = in_child(work)
    assert policy == "none"
    assert "without NUMA" in reason


def test_memory_is_the_whole_machines(guest: dict[str, Any]) -> None:
    plan = json.loads(run("python3", "-m", "ompaffinity", "plan", "--tp", "2", "--json"))
    assert {rank["local_world_size"] for rank in plan["ranks"]} == {2}
    total = in_child(package.get_device_total_memory)
    assert 0.6 * guest["mebibytes"] * 2**20 <= total <= guest["mebibytes"] * 2**20
