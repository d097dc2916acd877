"""The placement of a process that has what several ranks have."""

from __future__ import annotations

from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.union import union_of
from tests.placement.machines import synthetic

TOPOLOGY = synthetic("numa:2 core:4 pu:1")
FIRST = RankPlacement(3, 3, True, (1, 0), (2,), ((0, 1, 2), (0,)), (0, 1, 2), (0,), gpu=0)
SECOND = RankPlacement(4, 4, True, (5, 2), (4,), ((2, 4, 5), (2,)), (2, 4, 5), (1,), gpu=3)


def test_has_the_cpus_and_nodes_of_all_ranks() -> None:
    union = union_of(TOPOLOGY, [FIRST, SECOND])
    assert (union.rank, union.local_rank, union.bound, union.local_world_size) == (0, 0, True, 1)
    assert (union.cpus, union.helper_cpus, union.affinity) == ((1, 0, 5, 2), (4,), (0, 1, 2, 4, 5))
    assert union.places == (union.affinity,) * 4
    assert (union.nodes, union.node_ranks, union.memory_policy) == ((0, 1), (1, 1), "interleave")
    assert (union.gpu, union.gpus) == (None, (0, 3))


def test_ranks_that_are_not_bound_bring_their_gpus_only() -> None:
    unbound = RankPlacement(0, 0, bound=False, gpu=5)
    assert union_of(TOPOLOGY, [unbound, FIRST]) == union_of(TOPOLOGY, [FIRST])._replace(gpus=(5, 0))
    assert union_of(TOPOLOGY, [unbound, unbound._replace(gpu=None)]) == unbound._replace(gpu=None, gpus=(5,))
