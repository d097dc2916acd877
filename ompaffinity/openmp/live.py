"""The plan of the workers that are really started here: with the runtime that they will load."""

from __future__ import annotations

import os

from ompaffinity.openmp.environment import environment_messages
from ompaffinity.openmp.runtimes import IOMP, expected_runtimes, probe_runtimes
from ompaffinity.openmp.saved import held_by_plans
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import AUTO, parse_bind, requested
from ompaffinity.records import Message
from ompaffinity.topology.load import load_topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ompaffinity.openmp.runtimes import RuntimeLibrary
    from ompaffinity.placement.plan import Plan
    from ompaffinity.placement.request import PlacementRequest


def live_plan(options: Mapping[str, Any], probe: Iterable[str] = ()) -> Plan:
    """Plan for this machine and for the runtime that a worker will load; `probe` names modules to import and see.

    What is not among `options` comes from the environment.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
    """
    given = dict(options)
    if isinstance(given.get("bind"), str):
        given["bind"] = parse_bind(given["bind"])
    if "avoid" in given:
        given["avoid"] = held_by_plans(given["avoid"])
    request = requested(given, os.environ)
    if request.bind == "none":
        return make_plan(load_topology(), request)
    modules = tuple(probe)
    libraries = probe_runtimes(modules) if modules else expected_runtimes(os.environ)
    request, messages = for_runtimes(request, libraries)
    return with_messages(make_plan(load_topology(), request), [*messages, *environment_messages(os.environ)])


def for_runtimes(
    request: PlacementRequest, libraries: tuple[RuntimeLibrary, ...]
) -> tuple[PlacementRequest, list[Message]]:
    """Return the request for workers that load these runtimes, the one that they use first, and what to say of them."""
    several = len(libraries) > 1
    immune = request.runtime == IOMP
    unknown = request.runtime == AUTO and not libraries
    if request.runtime == AUTO:
        request = request._replace(runtime=libraries[0].family if libraries else "omp")
    # Who names libomp's or libiomp5's family gets their variables, which leave a libgomp beside them alone.
    if request.granularity == AUTO and (unknown or (several and not immune)):
        request = request._replace(granularity="team")
    messages = []
    consequence = (
        "a team floats within its rank's CPUs" if request.granularity == "team" else "each thread still gets a CPU"
    )
    if several:
        names = " and ".join(f"{os.path.basename(library.path)} ({library.reason})" for library in libraries)
        messages.append(
            Message(
                "two-openmp-runtimes",
                "warning",
                f"the workers load {names}: the first to start narrows what the other sees, so {consequence};"
                " load one of them only, or say runtime= for the one that counts",
            )
        )
    elif unknown:
        messages.append(
            Message(
                "runtime-unknown",
                "warning",
                f"which OpenMP runtime the workers load is not known, so {consequence};"
                " say runtime='gomp' (what torch brings), 'iomp' or 'omp', or probe=['module'] to try",
            )
        )
    return request, messages


def with_messages(plan: Plan, messages: Iterable[Message]) -> Plan:
    """Return the plan with these messages added."""
    return plan._replace(warnings=(*plan.warnings, *messages))
