"""Verdicts on processes that are not there: what differs, in words."""

from __future__ import annotations

import json

import pytest

from ompaffinity.bind.pages import MappedMemory
from ompaffinity.openmp.detect import RuntimeLibrary
from ompaffinity.placement.document import placement_document
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.compare import compare_with_placement
from ompaffinity.proof.observe import ProcessState, ThreadState
from ompaffinity.proof.verdict import RankVerdict, difference_in_words

PLACEMENT = RankPlacement(
    1, 1, cpus=(4, 5), helper_cpus=(6,), places=((4, 6), (5,)), affinity=(4, 5, 6), nodes=(1,), memory_policy="bind"
)
GNU = RuntimeLibrary("/lib/libgomp.so.1", "gomp", "loaded")


def process(*masks: tuple[int, ...], policy: str = "bind:1", heard: RankPlacement | None = PLACEMENT) -> ProcessState:
    threads = [ThreadState(100 + number, "worker", "S", cpus, cpus[0]) for number, cpus in enumerate(masks)]
    environment = {} if heard is None else {"OMPAFFINITY_PLACEMENT": json.dumps(placement_document(heard))}
    return ProcessState(
        100, "worker", tuple(threads), environment, heard, (GNU,), MappedMemory({policy: {1: 4096}}, {}), ()
    )


def words(verdict: RankVerdict) -> list[str]:
    json.dumps(verdict.to_document())
    return [difference_in_words(verdict.rank, difference) for difference in verdict.differences]


def test_a_worker_that_is_right() -> None:
    state = process((4, 6), (5,), (4, 5, 6), (6,))
    assert compare_with_placement(PLACEMENT, state).holds
    assert compare_with_placement(PLACEMENT, state, (100, 101)).holds


def test_a_thread_that_may_run_elsewhere() -> None:
    (sentence,) = words(compare_with_placement(PLACEMENT, process((4, 6), (4, 5, 6)), (100, 101)))
    assert sentence == (
        "rank 1, thread 1: may run on CPU 4-6, the plan requires 5; likely cause: the mask of this thread was changed"
        " after the team was formed (sched_setaffinity, taskset -p)"
    )


def test_helper_threads_stay_within_the_rank() -> None:
    sentences = words(compare_with_placement(PLACEMENT, process((4, 6), (5,), (4, 7)), (100, 101)))
    assert sentences == ["rank 1, thread id 102 (worker): may run on CPU 4,7, outside of the rank's 4-6"]


def test_too_many_threads_of_a_live_worker() -> None:
    (sentence,) = words(compare_with_placement(PLACEMENT, process((4, 6), (5,), (5,))))
    assert sentence.startswith("rank 1, team: 2 threads are bound to CPU 5, the plan requires one; likely cause: ")


def test_a_process_without_a_runtime() -> None:
    alone = PLACEMENT._replace(cpus=(4,), places=((4, 6),), affinity=(4, 6))
    state = process((4, 6), heard=alone)._replace(runtimes=())
    (sentence,) = words(compare_with_placement(alone, state))
    assert sentence.startswith("rank 1, process: no OpenMP runtime is loaded in it")
    assert compare_with_placement(alone, state._replace(runtimes_known=False)).holds


def test_a_missing_thread_of_a_live_worker() -> None:
    sentences = words(compare_with_placement(PLACEMENT, process((4, 6), (4, 5, 6))))
    assert sentences == ["rank 1, thread 1: no thread of the process is bound to CPU 5"]


@pytest.mark.parametrize(
    ("placement", "policy", "holds"),
    [
        (PLACEMENT, "bind:1", True),
        (PLACEMENT, "bind=static:1", True),
        (PLACEMENT, "bind:0", False),
        (PLACEMENT, "default", False),
        (PLACEMENT._replace(memory_policy="preferred"), "prefer:1", True),
        (PLACEMENT._replace(memory_policy="preferred", nodes=(0, 1)), "prefer (many):0-1", True),
        (PLACEMENT._replace(memory_policy="interleave", nodes=(0, 1)), "interleave:0-1", True),
        (PLACEMENT._replace(memory_policy="interleave", nodes=(0, 1)), "interleave:0", False),
        (PLACEMENT._replace(memory_policy="none"), "default", True),
    ],
)
def test_memory_policies(placement: RankPlacement, policy: str, holds: bool) -> None:
    verdict = compare_with_placement(placement, process((4, 6), (5,), policy=policy), (100, 101))
    assert verdict.holds == holds
    if not holds:
        (sentence,) = words(verdict)
        assert f"the memory policy is {policy}, the plan requires {placement.memory_policy} to node" in sentence
        assert "memory-policy-not-permitted" in sentence


def test_an_unbound_rank_has_nothing_to_hold() -> None:
    unbound = RankPlacement(0, 0, bound=False)
    assert compare_with_placement(unbound, process((0, 1), policy="default", heard=unbound)).holds
