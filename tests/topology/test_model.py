from __future__ import annotations

import pytest

from ompaffinity.topology.model import UNKNOWN, MemoryNodeInfo, Topology, lscpu_number


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *((cell, UNKNOWN) for cell in ("-", "", None, True, -1, "-1", "\u0663", 1.0, 65536, "65536", "00000001")),
        *((cell, int(cell)) for cell in (0, "0", "0000001", 65535, "65535")),
    ],
)
def test_a_cell_of_lscpu_is_an_id_or_unknown(cell: object, number: int) -> None:
    assert lscpu_number(cell) == number


@pytest.mark.parametrize(
    ("rows", "equally_far"),
    [
        ([{0: 10, 1: 21, 2: 21}, {0: 21, 1: 10, 2: 21}, {0: 21, 1: 21, 2: 10}], True),
        ([{0: 10, 1: 21, 2: 21}, {0: 21, 1: 10, 2: 21}, {0: 21, 1: 31, 2: 10}], False),
        ([{0: 10, 1: 21, 2: 21}, {0: 21, 1: 10, 2: 21}, {0: 21, 2: 10}], False),
        ([{0: 10, 1: 21, 2: 21}, {0: 21, 1: 10, 2: 21}, None], False),
        ([None, None, None], True),
    ],
)
def test_nodes_are_equally_far_if_all_distances_are_known_and_equal_or_none_is_known(
    rows: list[dict[int, int] | None], equally_far: bool
) -> None:
    nodes = tuple(MemoryNodeInfo(id=node, distances=row) for node, row in enumerate(rows))
    assert Topology("x86_64", "drawn", "drawn", (), nodes).equally_far == equally_far


def test_an_unknown_distance_is_that_of_linux_without_a_slit() -> None:
    nodes = (MemoryNodeInfo(id=0, distances={0: 10, 1: 32}), MemoryNodeInfo(id=1))
    machine = Topology("x86_64", "drawn", "drawn", (), nodes)
    assert [machine.distance(*pair) for pair in ((0, 1), (1, 0), (1, 1), (7, 7), (0, 7))] == [32, 20, 10, 10, 20]


@pytest.mark.parametrize(
    ("rows", "cpus", "homes"),
    [
        ([{0: 10, 1: 10, 2: 20}, {0: 10, 1: 10, 2: 20}, {0: 20, 1: 20, 2: 10}], [(0,), (1,), (2,)], [0, 0, 2]),
        # Local in one direction only, and in none.
        ([{0: 10, 1: 10}, {0: 20, 1: 10}], [(0,), (1,)], [0, 1]),
        ([{0: 10, 1: 20}, {0: 10, 1: 10}], [(0,), (1,)], [0, 1]),
        ([{0: 10, 1: 20}, {0: 20, 1: 10}], [(0,), (1,)], [0, 1]),
        ([None, None, None], [(0, 1), (2,), (0, 1)], [0, 1, 0]),
        # Nodes without CPUs are not alike.
        ([None, None, None], [(0, 1), (), ()], [0, 1, 2]),
        # A row may have nodes that are not there.
        ([{0: 10, 7: 10}], [(0,)], [0]),
        # Node 1 is one with node 0 by its distance, and node 2 with node 1 by its CPUs.
        ([{0: 10, 1: 10, 2: 20}, {0: 10, 1: 10, 2: 20}, {0: 20, 1: 20, 2: 10}], [(0,), (1,), (1,)], [0, 0, 0]),
    ],
)
def test_nodes_are_one_that_list_the_same_cpus_or_stand_at_the_local_distance(
    rows: list[dict[int, int] | None], cpus: list[tuple[int, ...]], homes: list[int]
) -> None:
    nodes = tuple(MemoryNodeInfo(id=node, cpus=own, distances=row) for node, (own, row) in enumerate(zip(cpus, rows)))
    machine = Topology("x86_64", "drawn", "drawn", (), nodes)
    assert [machine.home_node(node.id) for node in nodes] == homes
    assert machine.home_node(99) == 99
