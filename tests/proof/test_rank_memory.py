"""Pages of a watched rank that have moved to other nodes."""

from __future__ import annotations

import pytest

from ompaffinity.proof.rank_memory import RankMemory

MIB = 2**20


def moved(before: dict[int, int], after: dict[int, int], nodes: tuple[int, ...] = (0,)) -> str | None:
    """Return what is reported where the pages (in MiB, by node) were there before, and are here now."""
    memory = RankMemory()
    assert memory.take({node: size * MIB for node, size in before.items()}, nodes, complete=True) is None
    found = memory.take({node: size * MIB for node, size in after.items()}, nodes, complete=True)
    return None if found is None else found[0]


def test_names_what_moved_and_where_it_should_be() -> None:
    assert (
        moved({0: 1000}, {0: 700, 1: 200, 2: 100}) == "200 MiB on node 1, 100 MiB on node 2, the plan requires node 0"
    )


@pytest.mark.parametrize("after", [{0: 1000, 1: 500}, {0: 500}, {0: 950, 1: 500}])
def test_new_memory_elsewhere_and_memory_that_was_freed_have_not_moved(after: dict[int, int]) -> None:
    assert moved({0: 1000}, after) is None


@pytest.mark.parametrize(("size", "least"), [(200, 65), (640, 65), (1000, 101)])
def test_more_than_64_mib_and_a_tenth_must_have_moved(size: int, least: int) -> None:
    assert moved({0: size}, {0: size - least, 1: least}) is not None
    assert moved({0: size}, {0: size - least + 1, 1: least - 1}) is None


def test_what_was_remote_before_has_not_moved() -> None:
    assert moved({0: 500, 1: 500}, {0: 500, 1: 500}) is None


def test_a_partial_reading_is_not_compared() -> None:
    memory = RankMemory()
    assert memory.take({0: 1000 * MIB}, (0,), complete=True) is None
    assert memory.take({1: 900 * MIB}, (0,), complete=False) is None
    assert memory.split((0,)) == (0, 900 * MIB)
    assert memory.take({0: 500 * MIB, 1: 500 * MIB}, (0,), complete=True) is not None


def test_nothing_is_known_without_nodes_or_pages() -> None:
    memory = RankMemory()
    assert memory.split((0,)) is None
    assert memory.take({0: MIB}, (), complete=True) is None
    assert memory.split(()) is None
    assert memory.take(None, (0,), complete=True) is None
    assert memory.split((0,)) is None
