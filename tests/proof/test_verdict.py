"""Verdicts on synthetic processes: what differs, in words, and the likely cause."""

from __future__ import annotations

import json

import pytest

from ompaffinity.openmp.detect import RuntimeLibrary
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.activity import Activity
from ompaffinity.proof.compare import verdict_of_state, verdict_of_team, verdict_of_timeline
from ompaffinity.proof.engines import engines_of
from ompaffinity.proof.observe import ProcessState
from ompaffinity.proof.verdict import OtherProcess, RankVerdict, Verdict, difference_in_words, without_process
from tests.proof.observations import ALONE, GNU, PLACEMENT, process, timeline, window

MAIN, SECOND, ALL = (4, 6), (5,), (4, 5, 6)
TEAM = (100, 101)


def words(verdict: RankVerdict) -> list[str]:
    json.dumps(verdict.to_document())
    return [difference_in_words(verdict.rank, difference) for difference in verdict.differences]


def test_a_team_that_the_worker_reports_holds() -> None:
    state = process(MAIN, SECOND, ALL, (6,))
    verdict = verdict_of_team(PLACEMENT, state, TEAM)
    assert (verdict.verdict, verdict.holds, verdict.team_known, verdict.level) == ("holds", True, True, "threads")


def test_masks_alone_prove_nothing() -> None:
    verdict = verdict_of_state(PLACEMENT, process(MAIN, SECOND))
    assert (verdict.verdict, verdict.holds) == ("unproven", None)
    assert verdict_of_state(PLACEMENT, process(MAIN, (7,))).verdict == "differs"


def test_names_a_thread_that_may_run_elsewhere() -> None:
    (sentence,) = words(verdict_of_team(PLACEMENT, process(MAIN, ALL), TEAM))
    assert sentence == (
        "rank 1, thread 1: may run on CPU 4-6, the plan requires 5; likely cause: the mask of this thread was changed"
        " after it was started (sched_setaffinity, taskset -p)"
    )


def test_threads_outside_of_the_mask_were_pinned_by_the_program() -> None:
    sentences = words(verdict_of_team(PLACEMENT, process(MAIN, SECOND, (4, 7)), TEAM))
    assert sentences == [
        "rank 1, thread id 102 (worker): may run on CPU 4,7, outside of the rank's 4-6; likely cause: the program"
        " pinned its own threads to CPU 4,7"
    ]


def test_names_the_engine_that_pins_its_threads() -> None:
    engines = engines_of(["/x/onnxruntime_pybind11_state.so", "/x/libopenblas.so.0"])
    assert [engine.name for engine in engines] == ["onnxruntime"]
    state = process(MAIN, (7,), runtimes=())._replace(engines=engines)
    found = timeline(PLACEMENT, *[window((MAIN, 1.0), ((7,), 1.0))] * 2, has_openmp=False, own_threads=True)
    (sentence,) = words(verdict_of_timeline(found, state))
    assert "the program pinned its own threads to CPU 7; with onnxruntime, set intra_op_num_threads=2" in sentence
    assert "no OpenMP runtime" not in sentence


@pytest.mark.parametrize(
    ("library", "own_threads"),
    [
        *((name, True) for name in ("libonnxruntime.so", "libopenvino.so", "libllama.so", "libtbb.so.12")),
        *((name, False) for name in ("omppool.so", "libtorch_cpu.so", "libctranslate2.so", "libmkl_core.so.2")),
    ],
)
def test_engines_compute_in_an_openmp_team_or_in_threads_of_their_own(library: str, own_threads: bool) -> None:
    (engine,) = engines_of([f"/x/{library}"])
    assert engine.own_threads is own_threads


def test_a_mask_of_all_threads_was_set_from_outside() -> None:
    replaced = words(verdict_of_state(PLACEMENT, process((0, 1), (0, 1))))
    assert "every thread may run on CPU 0-1: the mask was replaced from outside" in replaced[0]
    narrowed = words(verdict_of_team(PLACEMENT, process((4,), (4,)), TEAM))
    assert "a mask from outside (taskset, cpuset, a batch system) leaves the process CPU 4 and not 5-6" in narrowed[0]


def too_many(mask: tuple[int, ...], count: int) -> Activity:
    return window(*[(mask, 0.2)] * count, delay=0.7)


def test_names_no_cause_of_which_there_is_no_evidence() -> None:
    found = timeline(ALONE, *[too_many((4,), 2)] * 2, has_openmp=False)
    (sentence,) = words(verdict_of_timeline(found, process((4,), (4,), placement=ALONE, runtimes=())))
    assert sentence == "rank 1, team: 2 busy threads on CPU 4, the plan has 1"


def test_a_larger_team_was_set_by_the_program_or_by_the_engine() -> None:
    found = timeline(ALONE, *[too_many((4,), 8)] * 2)
    state = process(*[(4,)] * 8, placement=ALONE)
    (sentence,) = words(verdict_of_timeline(found, state))
    assert "8 busy threads on CPU 4, the plan has 1; likely cause: the program set another number of thr" in sentence
    numba = state._replace(engines=engines_of(["/x/omppool.so"]))
    assert "with numba, set NUMBA_NUM_THREADS=1" in words(verdict_of_timeline(found, numba))[0]
    # torch does not count CPUs itself: its team has the number that OpenMP has.
    torch = state._replace(engines=engines_of(["/x/libtorch_cpu.so"]))
    assert words(verdict_of_timeline(found, torch)) == [sentence]


LLVM = GNU._replace(path="/lib/libomp.so.5", family="iomp")


@pytest.mark.parametrize(
    ("first", "main", "runtimes", "is_cause"),
    [
        (4, (4,), (GNU, LLVM), True),
        (6, (4,), (GNU, LLVM), False),
        (4, (4, 5), (GNU, LLVM), False),
        (4, (4,), (GNU,), False),
    ],
    ids=["pinned", "pinned elsewhere", "not pinned", "one runtime"],
)
def test_two_runtimes_are_the_cause_where_the_first_pinned_the_main_thread(
    first: int, main: tuple[int, ...], runtimes: tuple[RuntimeLibrary, ...], is_cause: bool
) -> None:
    state = process(main, (4,), (4,), runtimes=runtimes)
    state = state._replace(environment={**(state.environment or {}), "OMP_PLACES": f"{{{first}}},{{5}}"})
    (sentence, *_) = words(verdict_of_team(PLACEMENT, state, TEAM))
    assert ("two OpenMP runtimes in the process (libgomp.so.1 and libomp.so.5)" in sentence) is is_cause


@pytest.mark.parametrize("teams", [2, 3])
def test_several_teams_are_named_where_the_main_thread_waits(teams: int) -> None:
    threads = [(MAIN, 0.0), *[(MAIN, 0.4), (SECOND, 0.3)] * teams]
    found = timeline(PLACEMENT, *[window(*threads, delay=0.5)] * 2)
    verdict = verdict_of_timeline(found, process(*[mask for mask, _ in threads]))
    assert all(
        f"several threads of the program ({teams} busy ones) form an OpenMP team each" in text
        for text in words(verdict)
    )


def test_crowded_places_beside_one_thread_at_the_first_are_not_several_teams() -> None:
    threads = [(MAIN, 0.0), (MAIN, 0.4), (SECOND, 0.3), (SECOND, 0.3)]
    found = timeline(PLACEMENT, *[window(*threads, delay=0.5)] * 2)
    sentences = words(verdict_of_timeline(found, process(*[mask for mask, _ in threads])))
    assert sentences
    assert "form an OpenMP team each" not in str(sentences)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"OMPAFFINITY_UNBOUND": "refused"}, "the process was started unbound: refused"),
        ({"OMP_THREAD_LIMIT": "1"}, "the process was started with OMP_THREAD_LIMIT=1, which breaks a team"),
        ({"OMP_NUM_THREADS": "9"}, "the process was started with OMP_NUM_THREADS=9, the plan requires 2"),
    ],
)
def test_variables_are_the_cause_before_the_program(change: dict[str, str], cause: str) -> None:
    state = process(MAIN, SECOND, SECOND)
    state = state._replace(environment={**(state.environment or {}), **change})
    (sentence,) = words(verdict_of_team(PLACEMENT, state, (100,), {"OMP_NUM_THREADS": "2"}))
    assert cause in sentence


def test_an_overwritten_environment_is_unknown_and_no_cause() -> None:
    state = process(MAIN, placement=None)._replace(environment_complete=False)
    verdict = verdict_of_team(PLACEMENT, state, (100,))
    assert "without the plan's environment" not in str(verdict)
    assert "not started by the manager" not in str(verdict)
    known = verdict_of_team(PLACEMENT, process(MAIN, placement=None), (100,))
    assert "started without the plan's environment" in str(known.differences)
    assert "not started by the manager" in str(known.notes)


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
    verdict = verdict_of_team(placement, process(MAIN, SECOND, policy=policy), TEAM)
    assert verdict.holds == holds
    if not holds:
        (sentence,) = words(verdict)
        assert f"the memory policy is {policy}, the plan requires {placement.memory_policy} to node" in sentence
        assert "memory-policy-not-permitted" in sentence


def test_the_document_has_the_worst_verdict() -> None:
    def state_of(mask: tuple[int, ...]) -> ProcessState:
        return process(MAIN, mask)

    holds, differs = (verdict_of_team(PLACEMENT, state_of(mask), TEAM) for mask in (SECOND, (7,)))
    unproven = without_process(2)
    for ranks, worst in (
        ((holds,), "holds"),
        ((holds, unproven), "unproven"),
        ((unproven, differs, holds), "differs"),
        ((), "unproven"),
    ):
        document = Verdict(ranks, others=(OtherProcess(1, 0, "supervisor", None, "x"),)).to_document()
        assert (document["verdict"], document["holds"]) == (worst, {"holds": True, "differs": False}.get(worst))
        json.dumps(document)


def test_the_time_that_busy_threads_waited_is_reported() -> None:
    found = timeline(PLACEMENT, *[window((MAIN, 0.5), (SECOND, 0.5), delay=0.2)] * 2)
    verdict = verdict_of_timeline(found, process(MAIN, SECOND))
    assert (verdict.verdict, verdict.busy_threads) == ("holds", 2)
    assert verdict.delay_seconds == pytest.approx(0.1)
    assert verdict.threads[1].busy_seconds == pytest.approx(0.25)
