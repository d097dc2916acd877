"""Compare a process with its placement: what the kernel reports, thread by thread, beside what the plan requires."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError
from ompaffinity.ids import format_id_list, parse_id_list
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.proof.diagnosis import likely_cause
from ompaffinity.proof.verdict import Difference, RankVerdict, ThreadVerdict, difference_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.observe import ProcessState, ThreadState

POLICY_WORDS = {
    "bind": ("bind",),
    "preferred": ("prefer", "prefer (many)"),
    "preferred-many": ("prefer (many)",),
    "interleave": ("interleave",),
}
"""What numa_maps calls a policy (numa(7), mempolicy.c); flags follow after ``=``, nodes after ``:``."""


def compare_with_placement(
    placement: RankPlacement,
    state: ProcessState,
    team: tuple[int, ...] | None = None,
    environment: dict[str, str] | None = None,
) -> RankVerdict:
    """Return how a process compares with the placement that it should have.

    `team` are the thread ids of its OpenMP team, in the order of the threads; without it, the main thread
    is thread 0 and the others are identified by their masks. `environment` is the planned one of the worker.
    """
    threads = tuple(_team_by_id(placement, state, team) if team is not None else _team_by_mask(placement, state))
    differences: list[Difference] = []
    notes = list(state.problems)
    if placement.bound:
        if state.runtimes_known and not state.runtimes:
            differences.append(Difference("process", "no OpenMP runtime is loaded in it, so there is no team"))
        differences += _thread_differences(placement, state, threads, team)
        differences += _other_threads(placement, state, {thread.thread_id for thread in threads})
    policy = main_policy(state)
    differences += _policy_differences(placement, policy)
    if differences:
        cause = likely_cause(placement, state, threads, team, environment)
        differences = [found if found.cause else found._replace(cause=cause) for found in differences]
    if state.environment is not None and PLACEMENT_VARIABLE not in state.environment:
        notes.append("it was not started by the manager (no OMPAFFINITY_PLACEMENT in its environment)")
    return RankVerdict(
        rank=placement.rank,
        pid=state.pid,
        runtimes=tuple(library.path for library in state.runtimes),
        team_known=team is not None,
        threads=threads,
        policy=policy,
        bytes_by_node=None if state.memory is None else state.memory.bytes_by_node,
        differences=tuple(differences),
        notes=tuple(notes),
    )


def _team_by_id(placement: RankPlacement, state: ProcessState, team: tuple[int, ...]) -> Iterator[ThreadVerdict]:
    masks = {thread.thread_id: thread.cpus for thread in state.threads}
    for number in range(max(len(placement.places), len(team))):
        place = placement.places[number] if number < len(placement.places) else ()
        thread_id = team[number] if number < len(team) else None
        yield ThreadVerdict(number, thread_id, place, masks.get(thread_id) if thread_id is not None else None)


def _team_by_mask(placement: RankPlacement, state: ProcessState) -> Iterator[ThreadVerdict]:
    """Tell the team's threads by their masks, the main thread first, each place one thread."""
    left = sorted(state.threads, key=lambda thread: (thread.thread_id != state.pid, thread.thread_id))
    for number, place in enumerate(placement.places):
        found = left[0] if number == 0 else next((thread for thread in left if thread.cpus == place), None)
        if found is not None:
            left.remove(found)
        yield ThreadVerdict(
            number, None if found is None else found.thread_id, place, None if found is None else found.cpus
        )


def _thread_differences(
    placement: RankPlacement, state: ProcessState, threads: tuple[ThreadVerdict, ...], team: tuple[int, ...] | None
) -> Iterator[Difference]:
    if team is not None and len(team) != len(placement.cpus):
        yield Difference("team", f"the team has {len(team)} threads, the plan requires {len(placement.cpus)}")
    for place in placement.places[1:]:
        crowd = sum(thread.cpus == place for thread in state.threads)
        if len(place) == 1 and crowd > 1:
            kernel = format_id_list(place)
            yield Difference(
                "team",
                f"{crowd} threads are bound to CPU {kernel}, the plan requires one",
                "the team is larger than the plan's (another OMP_NUM_THREADS, omp_set_num_threads), or a pinned"
                " OpenMP thread started threads",
            )
    for thread in threads:
        name = f"thread {thread.thread}"
        if thread.holds or not thread.place:
            continue
        if thread.cpus is not None:
            kernel, plan = format_id_list(thread.cpus), format_id_list(thread.place)
            yield Difference(name, f"may run on CPU {kernel}, the plan requires {plan}")
        elif team is None:
            hint = "" if len(state.threads) > 1 else "; has it run a parallel region yet?"
            yield Difference(name, f"no thread of the process is bound to CPU {format_id_list(thread.place)}{hint}")


def _other_threads(placement: RankPlacement, state: ProcessState, team: set[int | None]) -> Iterator[Difference]:
    """Threads that are not OpenMP's may run anywhere within the rank's CPUs, and nowhere else."""
    for thread in state.threads:
        outside = set(thread.cpus) - set(placement.affinity)
        if thread.thread_id not in team and outside:
            kernel, plan = format_id_list(thread.cpus), format_id_list(placement.affinity)
            yield Difference(_called(thread), f"may run on CPU {kernel}, outside of the rank's {plan}")


def _called(thread: ThreadState) -> str:
    return f"thread id {thread.thread_id} ({thread.name})"


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
    # One of several preferred nodes is what a kernel takes that does not know more.
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

    The OpenMP threads are identified by their masks: call it after the first parallel region. None outside of a worker.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement.
    """
    from ompaffinity.bind.worker_placement import current_placement
    from ompaffinity.proof.observe import observe_process

    expected = current_placement() if placement is None else placement
    return None if expected is None else compare_with_placement(expected, observe_process(os.getpid()))


def log_current_affinity_state(label: str) -> RankVerdict | None:
    """Log what `verify_current_process` finds, under the logger ``ompaffinity``, and return it.

    What holds is one line of the level INFO; each difference is one of the level WARNING.
    """
    import logging

    logger = logging.getLogger("ompaffinity")
    verdict = verify_current_process()
    if verdict is None:
        logger.info("%s: CPU %s, not started by ompaffinity", label, _own_cpus())
    elif verdict.holds:
        logger.info("%s: rank %d holds: %s", label, verdict.rank, _in_words(verdict))
    else:
        for difference in verdict.differences:
            logger.warning("%s: %s", label, difference_in_words(verdict.rank, difference))
    return verdict


def _own_cpus() -> str:
    return format_id_list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unknown"


def _in_words(verdict: RankVerdict) -> str:
    return ", ".join(f"thread {thread.thread} on CPU {format_id_list(thread.place)}" for thread in verdict.threads)
