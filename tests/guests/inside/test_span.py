"""Fewer ranks than nodes, bound for real: whole nodes of one package each, and nodes with memory first."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ompaffinity.ids import parse_id_list
from tests.guests.inside.common import NODES, ids, nodes_with_memory, ompaffinity


def homes() -> dict[int, int]:
    """Return the node of each CPU."""
    return {cpu: node for node in ids(NODES / "has_cpu") for cpu in ids(NODES / f"node{node}" / "cpulist")}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_gets_whole_nodes_with_memory_and_interleaves_over_them(guest: dict[str, Any], ranks: int) -> None:
    plan = ompaffinity("plan", "--tp", str(ranks), "--reserve", "0")
    with_memory = [node for node in nodes_with_memory() if node in ids(NODES / "has_cpu")]
    used: Counter[int] = Counter()
    for rank in plan["ranks"]:
        nodes = {homes()[cpu] for cpu in rank["cpus"]}
        assert nodes == set(rank["nodes"]) <= set(with_memory)
        # All cores of these nodes, and the policy that fits their number.
        cores = {cpu // guest["threads"] for cpu in rank["cpus"]}
        assert cores == {cpu // guest["threads"] for cpu, node in homes().items() if node in nodes}
        assert rank["memory_policy"] == ("interleave" if len(nodes) > 1 else "bind")
        packages = {cpu // (guest["cores"] * guest["threads"]) for cpu in rank["cpus"]}
        assert len(packages) == 1
        used.update(nodes)
    assert max(used.values()) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_kernel_has_what_was_planned(library: str, ranks: int) -> None:
    verdict = ompaffinity("verify", "--tp", str(ranks), "--library", library)
    plan = ompaffinity("plan", "--tp", str(ranks))
    assert verdict["holds"]
    for rank, planned in zip(verdict["ranks"], plan["ranks"]):
        mode, _, nodes = rank["policy"].partition(":")
        assert (mode.partition("=")[0], list(parse_id_list(nodes))) == (planned["memory_policy"], planned["nodes"])


def test_ranks_go_to_nodes_with_memory_first() -> None:
    with_memory = [node for node in nodes_with_memory() if node in ids(NODES / "has_cpu")]
    plan = ompaffinity("plan", "--tp", str(len(with_memory)), "--reserve", "0")
    assert sorted(node for rank in plan["ranks"] for node in {homes()[cpu] for cpu in rank["cpus"]}) == with_memory
    assert sorted(node for rank in plan["ranks"] for node in rank["nodes"]) == with_memory
