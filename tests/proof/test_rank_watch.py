"""When memory has moved away from a rank: what is more elsewhere must be less on its own nodes."""

from __future__ import annotations

import pytest

from ompaffinity.proof.rank_watch import RankWatch
from tests.proof.observations import PLACEMENT

GIB = 2**30


def changes(*readings: tuple[dict[int, int], bool]) -> list[str]:
    """Return the kinds of changes that readings of where the pages are lead to; each may be complete or not."""
    rank = RankWatch(PLACEMENT, PLACEMENT)
    return [
        change.kind
        for pages, complete in readings
        for change in rank.remember_memory(pages, complete=complete, repair=False)
    ]


def test_memory_that_moves_to_another_node_is_reported() -> None:
    assert changes(({1: 4 * GIB}, True), ({1: GIB, 0: 3 * GIB}, True)) == ["memory-moved"]


@pytest.mark.parametrize(
    "later",
    [
        {1: 4 * GIB, 0: 8 * GIB},
        {1: 9 * GIB, 0: GIB},
        {1: GIB},
        {1: 4 * GIB - 2**20, 0: 2**20},
        {1: 4 * GIB - GIB // 4, 0: GIB // 4},
    ],
    ids=["new memory elsewhere", "new memory everywhere", "freed", "little", "less than a tenth"],
)
def test_what_has_not_moved_is_not_reported(later: dict[int, int]) -> None:
    assert changes(({1: 4 * GIB}, True), (later, True)) == []


def test_a_part_of_the_memory_proves_nothing() -> None:
    assert changes(({1: 4 * GIB}, True), ({0: 3 * GIB}, False), ({1: 4 * GIB}, True)) == []


def test_it_is_reported_once() -> None:
    moved = ({1: GIB, 0: 3 * GIB}, True)
    assert changes(({1: 4 * GIB}, True), moved, moved) == ["memory-moved"]


def test_a_rank_without_memory_nodes_has_no_remote_memory() -> None:
    rank = RankWatch(PLACEMENT._replace(nodes=()), PLACEMENT._replace(nodes=()))
    assert list(rank.remember_memory({0: GIB}, complete=True, repair=False)) == []
    assert rank.status(0.0).remote_bytes is None
