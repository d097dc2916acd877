"""Why a worker is not bound as its plan requires: the first cause that fits the facts, or none.

In order of evidence: masks, then the environment, then the engine or runtime. No cause is better than a wrong one.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.launch.bind_exec import UNBOUND_VARIABLE
from ompaffinity.openmp.variables import BINDING_VARIABLES, TEAM_BREAKERS
from ompaffinity.placement.document import PLACEMENT_VARIABLE, parse_placement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.engines import Engine
    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.proof.timeline import Timeline
    from ompaffinity.proof.verdict import Difference, ThreadVerdict

FIRST_CPU = re.compile(r"\s*\{?\s*(\d{1,9})\s*(?:\}|,|\s|$)")
"""The first CPU of OMP_PLACES or GOMP_CPU_AFFINITY where it is a place of its own."""


def likely_cause(
    placement: RankPlacement,
    state: ProcessState,
    threads: tuple[ThreadVerdict, ...],
    differences: Sequence[Difference],
    environment: Mapping[str, str] | None,
    timeline: Timeline | None = None,
) -> str | None:
    """Return the likely cause of differences between a placement and a process, None if nothing fits.

    `environment` is the planned one of the worker, where that is known.
    """
    return (
        _started_unbound(state)
        or _narrowed_runtime(placement, state)
        or _mask_from_outside(placement, state)
        or _pinned_by_engine(placement, state)
        or _other_start(placement, state)
        or _other_variables(state, environment)
        or _changed_mask(placement, state, threads, differences)
        or _several_teams(placement, state, timeline)
        or _team_size(placement, state, threads, differences, timeline)
    )


def _started_unbound(state: ProcessState) -> str | None:
    reason = (state.environment or {}).get(UNBOUND_VARIABLE)
    return None if reason is None else f"the process was started unbound: {reason}"


def _mask_from_outside(placement: RankPlacement, state: ProcessState) -> str | None:
    """A mask that was set from outside shows in every thread."""
    masks = {thread.cpus for thread in state.threads}
    allowed = {cpu for mask in masks for cpu in mask}
    missing, foreign = set(placement.affinity) - allowed, allowed - set(placement.affinity)
    # A process of one thread may have set its own mask.
    is_common = len(masks) == 1 and len(state.threads) > 1
    if foreign and is_common:
        return (
            f"every thread may run on CPU {format_id_list(allowed)}: the mask was replaced from outside after the start"
            " (cpuset, taskset), or the program set its own before it started threads"
        )
    if not missing or foreign or masks <= set(placement.places):
        return None
    if any(len(mask) == 1 and mask != placement.affinity for mask in masks) and len(masks) > 1:
        # Threads were pinned one by one: by a runtime that saw all these CPUs, or by the program.
        return None
    return (
        f"a mask from outside (taskset, cpuset, a batch system) leaves the process CPU {format_id_list(allowed)}"
        f" and not {format_id_list(missing)}"
    )


def _pinned_by_engine(placement: RankPlacement, state: ProcessState) -> str | None:
    """Some threads are outside of the rank's CPUs, others are not: the program pinned them."""
    outside = [thread for thread in state.threads if set(thread.cpus) - set(placement.affinity)]
    if not outside or len(outside) == len(state.threads):
        return None
    cpus = format_id_list({cpu for thread in outside for cpu in thread.cpus})
    setting = _engine_setting(placement, state, own_threads=True)
    return f"the program pinned its own threads to CPU {cpus}" + (f"; {setting}" if setting else "")


def _engine_setting(placement: RankPlacement, state: ProcessState, *, own_threads: bool) -> str | None:
    """Return what to set in the engine that computes here, where it is known."""
    engine = next((engine for engine in state.engines if engine.own_threads or not own_threads), None)
    return None if engine is None else setting_of(engine, placement)


def setting_of(engine: Engine, placement: RankPlacement) -> str:
    """Return what to set so that an engine uses the planned number of threads."""
    return f"with {engine.name}, set {engine.setting.format(threads=len(placement.cpus))}"


def _other_start(placement: RankPlacement, state: ProcessState) -> str | None:
    if state.environment is None or not state.environment_complete:
        return None
    text = state.environment.get(PLACEMENT_VARIABLE)
    if text is None:
        return (
            "the process was started without the plan's environment: variables that are set after the start,"
            " or after the OpenMP library was loaded, have no effect"
        )
    try:
        started_as = parse_placement(text)
    except RequestError:
        return None
    if (started_as.local_rank, started_as.cpus) == (placement.local_rank, placement.cpus):
        return None
    if state.forked:
        return f"the process was forked with the environment of rank {started_as.rank}"
    return f"the process was started with the environment of rank {started_as.rank}"


def _other_variables(state: ProcessState, environment: Mapping[str, str] | None) -> str | None:
    started_with = state.environment
    if started_with is None:
        return None
    breakers = {name: started_with[name] for name in TEAM_BREAKERS if name in started_with}
    if breakers:
        name, value = next(iter(breakers.items()))
        return f"the process was started with {name}={value}, which breaks a team"
    if environment is None or not state.environment_complete:
        return None
    for name in ("OMP_NUM_THREADS", *BINDING_VARIABLES):
        expected, got = environment.get(name), started_with.get(name)
        if expected != got:
            found = f"with {name}={got}" if got is not None else f"without {name}"
            return f"the process was started {found}, the plan requires {expected or 'it unset'}"
    return None


def _changed_mask(
    placement: RankPlacement,
    state: ProcessState,
    threads: tuple[ThreadVerdict, ...],
    differences: Sequence[Difference],
) -> str | None:
    """One thread alone, in a team that is right otherwise."""
    changed = [thread for thread in threads if thread.holds is False]
    if len(changed) != 1 or len(differences) != 1 or len(threads) != len(placement.cpus):
        return None
    if len(threads) == 1 and len(state.threads) == 1:
        return None
    return "the mask of this thread was changed after it was started (sched_setaffinity, taskset -p)"


def _narrowed_runtime(placement: RankPlacement, state: ProcessState) -> str | None:
    """GNU's runtime pins the main thread when it is loaded: LLVM's and Intel's then see this CPU only."""
    families = {library.family for library in state.runtimes}
    main = next((thread.cpus for thread in state.threads if thread.thread_id == state.pid), ())
    if len(families) < 2 or len(placement.affinity) < 2 or len(main) != 1:
        return None
    variables = state.environment or {}
    first = FIRST_CPU.match(variables.get("OMP_PLACES") or variables.get("GOMP_CPU_AFFINITY") or "")
    if first is None or int(first[1]) != main[0]:
        return None
    names = " and ".join(os.path.basename(library.path) for library in state.runtimes)
    return f"two OpenMP runtimes in the process ({names}): the first to start narrows what the other sees"


def _several_teams(placement: RankPlacement, state: ProcessState, timeline: Timeline | None) -> str | None:
    """Several busy threads at each place, while the main thread waits for those that it has started."""
    window = None if timeline is None else timeline.outcome().window
    if window is None or not state.runtimes:
        return None
    busy = window.activity.busy
    host_threads = [thread for thread in busy if thread.cpus == placement.places[0]]
    others = {place: sum(thread.cpus == place for thread in busy) for place in set(placement.places[1:])}
    main_is_idle = all(thread.thread_id != state.pid for thread in busy)
    if len(set(placement.places)) < 2 or len(host_threads) < 2 or min(others.values(), default=0) < 2:
        return None
    if not main_is_idle:
        return None
    return (
        f"several threads of the program ({len(host_threads)} busy ones) form an OpenMP team each, and the teams share"
        " the places; use one thread that computes (one handler or worker thread), or --granularity team"
    )


def _team_size(
    placement: RankPlacement,
    state: ProcessState,
    threads: tuple[ThreadVerdict, ...],
    differences: Sequence[Difference],
    timeline: Timeline | None,
) -> str | None:
    """The number of threads alone is wrong."""
    subjects = {difference.subject for difference in differences}
    if not subjects <= {"team", "threads"} or any(thread.holds is False for thread in threads):
        return None
    own_threads = not state.runtimes or any(engine.own_threads for engine in state.engines)
    setting = _engine_setting(placement, state, own_threads=own_threads and bool(state.runtimes))
    if own_threads:
        return None if setting is None else f"the engine sets its own number of threads; {setting}"
    counts_cpus = any(engine.name == "numba" for engine in state.engines)
    if setting is not None and counts_cpus:
        return f"the engine sets its own number of threads; {setting}"
    busy = 0 if timeline is None else timeline.busy_threads
    if timeline is not None and busy > len(placement.cpus) and not _main_is_busy(state, timeline):
        return (
            "several threads of the program compute at the same time, or the program set another number of threads"
            " (omp_set_num_threads, torch.set_num_threads)"
        )
    return "the program set another number of threads (omp_set_num_threads, torch.set_num_threads)"


def _main_is_busy(state: ProcessState, timeline: Timeline) -> bool:
    return any(thread.thread_id == state.pid for window in timeline.windows for thread in window.activity.busy)
