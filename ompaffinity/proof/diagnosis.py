"""Why a worker is not bound as its plan says: the first explanation that fits what is seen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.launch.bind_exec import UNBOUND_VARIABLE
from ompaffinity.openmp.variables import BINDING_VARIABLES, TEAM_BREAKERS
from ompaffinity.placement.document import PLACEMENT_VARIABLE, parse_placement

if TYPE_CHECKING:
    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.proof.verdict import ThreadVerdict


def likely_cause(
    placement: RankPlacement,
    state: ProcessState,
    threads: tuple[ThreadVerdict, ...],
    team: tuple[int, ...] | None,
    environment: dict[str, str] | None,
) -> str | None:
    """Return the likely cause of differences between a placement and a process, None if nothing fits.

    `environment` is the planned one of the worker, where that is known.
    """
    return (
        _started_unbound(state)
        or _other_start(placement, state)
        or _other_variables(state, environment)
        or _several_runtimes(state)
        or _outside_mask(placement, state, threads)
        or _no_runtime(state)
        or _team_size(placement, team)
        or _bound_anew(threads)
    )


def _started_unbound(state: ProcessState) -> str | None:
    reason = (state.environment or {}).get(UNBOUND_VARIABLE)
    return None if reason is None else f"the process was started unbound: {reason}"


def _other_start(placement: RankPlacement, state: ProcessState) -> str | None:
    if state.environment is None:
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
    if started_as.local_rank != placement.local_rank:
        return (
            f"the process was started with the environment of rank {started_as.rank}: a fork server"
            " (multiprocessing's forkserver) gives every worker the first one's"
        )
    return None


def _other_variables(state: ProcessState, environment: dict[str, str] | None) -> str | None:
    started_with = state.environment
    if started_with is None:
        return None
    breakers = {name: started_with[name] for name in TEAM_BREAKERS if name in started_with}
    if breakers:
        name, value = next(iter(breakers.items()))
        return f"the process was started with {name}={value}, which breaks a team"
    if environment is None:
        return None
    for name in ("OMP_NUM_THREADS", *BINDING_VARIABLES):
        expected, got = environment.get(name), started_with.get(name)
        if expected != got:
            found = f"with {name}={got}" if got is not None else f"without {name}"
            return f"the process was started {found}, the plan requires {expected or 'it unset'}"
    return None


def _several_runtimes(state: ProcessState) -> str | None:
    if len(state.runtimes) < 2:
        return None
    names = " and ".join(os.path.basename(library.path) for library in state.runtimes)
    return f"two OpenMP runtimes in the process ({names}): the first to start narrows what the other sees"


def _no_runtime(state: ProcessState) -> str | None:
    return None if state.runtimes or not state.runtimes_known else "no OpenMP runtime is loaded in the process (yet)"


def _outside_mask(placement: RankPlacement, state: ProcessState, threads: tuple[ThreadVerdict, ...]) -> str | None:
    """A mask from outside shows in every thread: none may run on some of the rank's CPUs."""
    allowed = {cpu for thread in state.threads for cpu in thread.cpus}
    missing = set(placement.affinity) - allowed
    # A team that is too small, and right as far as it goes, has another cause.
    if not missing or all(thread.holds for thread in threads if thread.cpus is not None):
        return None
    outside = (
        f"a mask from outside (taskset, cpuset, a batch system) leaves the process CPU {format_id_list(allowed)}"
        f" and not {format_id_list(missing)}"
    )
    anew = _bound_anew(threads)
    return outside if anew is None else f"{anew}, or {outside}"


def _team_size(placement: RankPlacement, team: tuple[int, ...] | None) -> str | None:
    if team is None or len(team) == len(placement.cpus):
        return None
    return "the program set another number of threads (omp_set_num_threads, torch.set_num_threads)"


def _bound_anew(threads: tuple[ThreadVerdict, ...]) -> str | None:
    """One thread alone, in a team that is right otherwise."""
    changed = [thread for thread in threads if thread.cpus is not None and not thread.holds]
    if len(changed) == 1:
        return "the mask of this thread was changed after the team was formed (sched_setaffinity, taskset -p)"
    return None
