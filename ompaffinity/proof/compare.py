"""Compare a process with its placement: what the kernel reports, thread by thread, beside what the plan requires."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError
from ompaffinity.ids import format_id_list, parse_id_list
from ompaffinity.messages import counted
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.proof.activity import ThreadActivity
from ompaffinity.proof.diagnosis import likely_cause, setting_of
from ompaffinity.proof.evidence import threads_outside
from ompaffinity.proof.timeline import Timeline
from ompaffinity.proof.verdict import (
    DIFFERS,
    HOLDS,
    MASK,
    THREADS,
    UNPROVEN,
    Difference,
    RankVerdict,
    ThreadVerdict,
    difference_in_words,
    without_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.observe import ProcessState, ThreadState

POLICY_WORDS = {
    "bind": ("bind",),
    "preferred": ("prefer", "prefer (many)"),
    "preferred-many": ("prefer (many)",),
    "interleave": ("interleave",),
    "weighted-interleave": ("weighted interleave",),
}
"""What numa_maps calls a policy (numa(7), mempolicy.c); flags follow after ``=``, nodes after ``:``."""


def verdict_of_team(
    placement: RankPlacement,
    state: ProcessState,
    team: tuple[int, ...],
    environment: Mapping[str, str] | None = None,
) -> RankVerdict:
    """Return how a process that has reported its OpenMP team compares with the placement that it should have.

    `team` are the thread ids of the team, in the order of its threads. `environment` is the planned one of the worker.
    """
    threads = tuple(_reported_threads(placement, state, team))
    differences: list[Difference] = []
    if placement.bound:
        if len(team) != len(placement.cpus):
            text = f"the team has {counted(len(team), 'thread')}, the plan requires {len(placement.cpus)}"
            differences.append(Difference("team", text))
        differences += _thread_differences(threads)
        others = [thread for thread in state.threads if thread.thread_id not in team]
        differences += threads_outside(placement, map(_without_times, others))
    return _verdict(placement, state, THREADS, threads, differences, environment, team=team, proven=True)


def verdict_of_timeline(
    timeline: Timeline, state: ProcessState, environment: Mapping[str, str] | None = None
) -> RankVerdict:
    """Return how a process that was observed for some windows compares with its placement."""
    placement, outcome = timeline.placement, timeline.outcome()
    threads: tuple[ThreadVerdict, ...] = ()
    level = THREADS if state.runtimes else MASK
    if outcome.window is not None:
        level = outcome.window.evidence.level
        seen = outcome.window.evidence.threads
        threads = tuple(_seen_threads(placement, seen, by_mask=level == MASK))
    delays = [thread.delay_seconds for thread in threads if thread.delay_seconds is not None]
    differences = list(outcome.differences)
    if placement.bound and not timeline.windows:
        # The masks are facts, also without a window.
        differences += threads_outside(placement, map(_without_times, state.threads))
    verdict = _verdict(
        placement, state, level, threads, differences, environment, timeline=timeline, proven=outcome.verdict == HOLDS
    )
    return verdict._replace(
        busy_threads=timeline.busy_threads if timeline.windows else None,
        delay_seconds=max(delays, default=None),
        notes=(*verdict.notes, *outcome.notes, *_advice(placement, state, timeline, verdict)),
    )


def _advice(placement: RankPlacement, state: ProcessState, timeline: Timeline, verdict: RankVerdict) -> Iterator[str]:
    """Yield what to set in an engine that may use more threads than planned."""
    if verdict.verdict == UNPROVEN and timeline.busy_threads > len(placement.cpus):
        for engine in state.engines:
            if engine.own_threads or engine.name == "numba":
                yield f"if these are threads of the engine: {setting_of(engine, placement)}"


def verdict_of_state(placement: RankPlacement, state: ProcessState) -> RankVerdict:
    """Return how a process compares with its placement by its masks alone: it differs, or is unproven."""
    return verdict_of_timeline(Timeline(placement), state)


def not_found(placement: RankPlacement) -> RankVerdict:
    """Return the verdict on a rank without a process: unproven."""
    threads = tuple(ThreadVerdict(number, None, place, None) for number, place in enumerate(placement.places))
    found = without_process(placement.rank)
    return found._replace(
        local_rank=placement.local_rank, threads=threads, notes=("no process of this rank was found",)
    )


def _verdict(
    placement: RankPlacement,
    state: ProcessState,
    level: str,
    threads: tuple[ThreadVerdict, ...],
    differences: list[Difference],
    environment: Mapping[str, str] | None,
    *,
    proven: bool,
    team: tuple[int, ...] | None = None,
    timeline: Timeline | None = None,
) -> RankVerdict:
    policy = main_policy(state)
    if differences:
        cause = likely_cause(placement, state, threads, differences, environment, timeline)
        differences = [found if found.cause else found._replace(cause=cause) for found in differences]
    differences += _policy_differences(placement, policy)
    notes = list(state.problems)
    if state.environment is not None and state.environment_complete and PLACEMENT_VARIABLE not in state.environment:
        notes.append("it was not started by the manager (no OMPAFFINITY_PLACEMENT in its environment)")
    return RankVerdict(
        rank=placement.rank,
        pid=state.pid,
        verdict=DIFFERS if differences else HOLDS if proven else UNPROVEN,
        level=level,
        runtimes=tuple(library.path for library in state.runtimes),
        engines=tuple(engine.name for engine in state.engines),
        team_known=team is not None,
        threads=threads,
        busy_threads=None,
        delay_seconds=None,
        policy=policy,
        bytes_by_node=None if state.memory is None else state.memory.bytes_by_node,
        differences=tuple(differences),
        notes=tuple(notes),
        local_rank=placement.local_rank,
    )


def _reported_threads(placement: RankPlacement, state: ProcessState, team: tuple[int, ...]) -> Iterator[ThreadVerdict]:
    masks = {thread.thread_id: thread.cpus for thread in state.threads}
    for number in range(max(len(placement.places), len(team))):
        place = placement.places[number] if number < len(placement.places) else ()
        thread_id = team[number] if number < len(team) else None
        yield ThreadVerdict(number, thread_id, place, masks.get(thread_id) if thread_id is not None else None)


def _seen_threads(
    placement: RankPlacement, threads: tuple[ThreadActivity | None, ...], *, by_mask: bool
) -> Iterator[ThreadVerdict]:
    for number, thread in enumerate(threads):
        place = placement.affinity if by_mask else placement.places[number]
        if thread is None:
            yield ThreadVerdict(number, None, place, None)
            continue
        delay = None if thread.delay_seconds is None else round(thread.delay_seconds, 6)
        if by_mask and set(thread.cpus) <= set(place):
            # A narrower mask is within it.
            place = thread.cpus
        yield ThreadVerdict(number, thread.thread_id, place, thread.cpus, round(thread.run_seconds, 6), delay)


def _thread_differences(threads: tuple[ThreadVerdict, ...]) -> Iterator[Difference]:
    for thread in threads:
        if thread.holds is False and thread.place and thread.cpus is not None:
            kernel, plan = format_id_list(thread.cpus), format_id_list(thread.place)
            yield Difference(f"thread {thread.thread}", f"may run on CPU {kernel}, the plan requires {plan}")


def _without_times(thread: ThreadState) -> ThreadActivity:
    return ThreadActivity(thread.thread_id, thread.name, thread.cpus, 0.0)


def main_policy(state: ProcessState) -> str | None:
    """Return the main thread's memory policy as numa_maps words it: what most mappings show; None if not known."""
    if state.memory is None or not state.memory.bytes_by_policy:
        return None
    sizes = {policy: sum(nodes.values()) for policy, nodes in state.memory.bytes_by_policy.items()}
    return max(sizes, key=lambda policy: (sizes[policy], policy))


def _policy_differences(placement: RankPlacement, policy: str | None) -> Iterator[Difference]:
    if policy is None or not placement.bound or placement.memory_policy == "none" or not placement.nodes:
        return
    word, _, nodes = policy.partition(":")
    mode = word.partition("=")[0]
    try:
        got = tuple(parse_id_list(nodes)) if nodes else ()
    except IDListError:
        got = ()
    # One of several preferred nodes is what a kernel takes that does not support several.
    as_planned = got == placement.nodes or (mode == "prefer" and set(got) <= set(placement.nodes) and bool(got))
    if mode not in POLICY_WORDS[placement.memory_policy] or not as_planned:
        yield Difference(
            "memory",
            f"the memory policy is {policy}, the plan requires {placement.memory_policy} to node"
            f" {format_id_list(placement.nodes)}",
            "the kernel rejected it at the start (look for memory-policy-not-permitted), or the program set its own",
        )


def verify_current_process(placement: RankPlacement | None = None) -> RankVerdict | None:
    """Return how this process compares with the placement that it was started with (or with `placement`).

    Call it in the thread that computes: the OpenMP runtime forms a team from there, as it does for this thread's
    parallel regions, and the team reports its threads. Unproven in a process without an OpenMP runtime and in one that
    was forked, where GNU's runtime may hang in a parallel region; `verify --pid` then proves it from outside.
    None outside of a worker.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement.
    """
    from ompaffinity.bind.worker_placement import current_placement
    from ompaffinity.proof.observe import observe_process

    expected = current_placement() if placement is None else placement
    if expected is None:
        return None
    state = observe_process(os.getpid())
    # An engine with threads of its own may have loaded a runtime that it does not use.
    unused = any(engine.own_threads for engine in state.engines)
    team = () if state.forked or unused or not state.runtimes else _own_team()
    if not team:
        return verdict_of_state(expected, state)
    return verdict_of_team(expected, observe_process(os.getpid()), team)


def _own_team() -> tuple[int, ...]:
    """Return the thread ids of the team that the runtime in use forms here, none where it cannot be loaded."""
    import ctypes

    from ompaffinity.openmp.detect import runtime_of_parallel_regions
    from ompaffinity.openmp.team import in_each_thread

    library = runtime_of_parallel_regions()
    if library is None:
        return ()
    try:
        return in_each_thread(ctypes.CDLL(library))
    except (OSError, AttributeError):
        return ()


def log_current_affinity_state(label: str) -> RankVerdict | None:
    """Log what `verify_current_process` finds, under the logger ``ompaffinity``, and return it.

    A verdict of holds or unproven is one line of the level INFO; each difference is one of the level WARNING.
    """
    import logging

    logger = logging.getLogger("ompaffinity")
    verdict = verify_current_process()
    if verdict is None:
        logger.info("%s: CPU %s, not started by ompaffinity", label, _own_cpus())
    elif verdict.verdict == HOLDS:
        logger.info("%s: rank %d holds: %s", label, verdict.rank, _in_words(verdict))
    elif verdict.verdict == UNPROVEN:
        logger.info("%s: rank %d is unproven: no OpenMP team was formed", label, verdict.rank)
    else:
        for difference in verdict.differences:
            logger.warning("%s: %s", label, difference_in_words(verdict.rank, difference))
    return verdict


def _own_cpus() -> str:
    return format_id_list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unknown"


def _in_words(verdict: RankVerdict) -> str:
    return ", ".join(f"thread {thread.thread} on CPU {format_id_list(thread.place)}" for thread in verdict.threads)
