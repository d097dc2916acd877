"""What a manager does to a worker beyond its CPUs and memory: the variables, and the start methods that it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.start_methods import FORK, FORKSERVER
from ompaffinity.openmp.plan_document import worker_environment
from ompaffinity.openmp.variables import BINDING_VARIABLES
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ompaffinity.placement.model import Plan, RankPlacement

    Variables = tuple[dict[str, str], tuple[str, ...]]
    """The variables to set, and the names to remove."""


def openmp_variables(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    """Return the variables of the plan's OpenMP runtime; smaller numbers of threads in `environ` are kept."""
    return worker_environment(plan, placement, environ)


def command_variables(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    """Return the variables of a command: those of a worker, without the binding ones where the mask does the same.

    A command may be a server that binds its own workers, and libgomp prefers an inherited OMP_PLACES to the
    GOMP_CPU_AFFINITY that a server sets for its worker (libgomp manual, "GOMP_CPU_AFFINITY").
    """
    variables, removed = openmp_variables(plan, placement, environ)
    if all(set(place) == set(placement.affinity) for place in placement.places):
        variables = {name: value for name, value in variables.items() if name not in BINDING_VARIABLES}
        removed = tuple({*removed, *BINDING_VARIABLES})
    return variables, removed


class WorkerProfile(NamedTuple):
    """What a manager sets for a worker and what it guards.

    `variables` makes them from the plan, the placement and the environment that the worker would inherit.
    `refused_starts` are the start methods (``"fork"`` after libgomp was loaded, ``"forkserver"``) that raise while a
    bound worker is started.
    """

    variables: Callable[[Plan, RankPlacement, Mapping[str, str]], Variables] = openmp_variables
    refused_starts: tuple[str, ...] = (FORK, FORKSERVER)


OPENMP_PROFILE = WorkerProfile()
COMMAND_PROFILE = WorkerProfile(command_variables)
