"""What a manager does to a worker beyond its CPUs and memory: the variables, and the start methods that it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ompaffinity.bind.start_methods import FORK, FORKSERVER
from ompaffinity.openmp.plan_document import worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ompaffinity.placement.model import Plan, RankPlacement

    Variables = tuple[dict[str, str], tuple[str, ...]]
    """The variables to set, and the names to remove."""


def openmp_variables(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    """Return the variables of the plan's OpenMP runtime; smaller numbers of threads in `environ` are kept."""
    return worker_environment(plan, placement, environ)


@dataclass(frozen=True)
class WorkerProfile:
    """What a manager sets for a worker and what it guards.

    `variables` makes them from the plan, the placement and the environment that the worker would inherit.
    `refused_starts` are the start methods (``"fork"`` after libgomp was loaded, ``"forkserver"``) that raise while a
    bound worker is started.
    """

    variables: Callable[[Plan, RankPlacement, Mapping[str, str]], Variables] = openmp_variables
    refused_starts: tuple[str, ...] = (FORK, FORKSERVER)


OPENMP_PROFILE = WorkerProfile()
