from __future__ import annotations

import pytest

from ompaffinity.errors import PlacementError
from ompaffinity.placement.cpu_ranks import assign_cpu_ranks
from ompaffinity.placement.model import Assignment
from ompaffinity.placement.request import PlacementRequest
from tests.placement.machines import synthetic


def assignment(text: str, **request: object) -> Assignment:
    return assign_cpu_ranks(synthetic(text), PlacementRequest(**request), {})  # type: ignore[arg-type]


def test_assigns_listed_cpus_in_the_order_written() -> None:
    found = assignment("core:4 pu:1", tensor_parallel_size=2, bind=((3, 1), (0,)))
    assert [share.cpus for share in found.shares if share] == [(3, 1), (0,)]
    assert (found.pools, found.unusable) == ((), {2: "not-requested"})


def test_assigns_nothing_without_binding() -> None:
    assert assignment("core:4 pu:1", tensor_parallel_size=2, bind="none").shares == (None, None)


def test_idle_cores_are_those_that_no_rank_of_their_pool_has() -> None:
    found = assignment("numa:1 l3:2 core:8 pu:1", tensor_parallel_size=3, reserve=0)
    used = {core for share in found.shares if share for core in share.cores}
    assert found.idle == {core for pool in found.pools for core in pool.cores} - used
    assert len(found.idle) == 2


def test_cores_of_unused_pools_are_not_idle() -> None:
    found = assignment("numa:3 core:4 pu:1", reserve=0)
    assert len(found.pools) == 3
    assert found.idle == frozenset()


def test_splits_siblings_only_with_more_ranks_than_cores() -> None:
    assert not assignment("core:2 pu:2", tensor_parallel_size=2).split_siblings
    found = assignment("core:2 pu:2", tensor_parallel_size=3)
    assert found.split_siblings
    assert [len(core.cpus) for pool in found.pools for core in pool.cores] == [1, 1, 1, 1]


def test_cpus_of_other_plans_are_not_assigned() -> None:
    topology = synthetic("core:3 pu:1")
    held = {0: "other.json", 1: "other.json"}
    found = assign_cpu_ranks(topology, PlacementRequest(reserve=0), held)
    assert [share.cpus for share in found.shares if share] == [(2,)]
    assert found.held == held
    with pytest.raises(PlacementError, match="2 ranks were requested"):
        assign_cpu_ranks(topology, PlacementRequest(tensor_parallel_size=2), held)
