"""The plan for workers that are started on this machine: their OpenMP runtime and their GPUs are detected."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.bind.environment import copy_of
from ompaffinity.bind.plan_files import held_by_plans
from ompaffinity.bind.saved_options import resolved
from ompaffinity.errors import RequestError, TopologyError
from ompaffinity.messages import RUNTIME_DIFFERS, RUNTIME_UNKNOWN, TWO_OPENMP_RUNTIMES, Message
from ompaffinity.openmp.detect import GOMP, IOMP, expected_runtimes, probe_runtimes
from ompaffinity.openmp.variables import environment_messages
from ompaffinity.placement.check_gpu import checked_maps
from ompaffinity.placement.environment import requested
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import AUTO, parse_bind
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ompaffinity.devices.model import GPUHome, GPUList
    from ompaffinity.openmp.detect import RuntimeLibrary
    from ompaffinity.placement.model import Plan
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.record import RecordedMachine


def live_plan(options: Mapping[str, Any], probe: str | Iterable[str] = ()) -> Plan:
    """Plan for this machine and for the runtime that a worker will load; `probe` names modules to import and see.

    What is not among `options` comes from the environment.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
    """
    files = resolved(options, copy_of(os.environ))
    given, environ = files.given, files.environ
    if isinstance(given.get("bind"), str):
        given["bind"] = parse_bind(given["bind"])
    request = requested(given, environ)
    request = request._replace(avoid=held_by_plans(request.avoid))
    if request.bind == "none":
        topology = load_topology()
        return with_messages(make_plan(topology, request), files.messages(topology))
    modules = _module_names(probe)
    libraries = probe_runtimes(modules) if modules else expected_runtimes(environ)
    request, messages = for_runtimes(request, libraries)
    topology = load_topology()
    if request.for_gpus:
        request = with_gpu_homes(request, topology)
    plan = make_plan(topology, request)
    return with_messages(plan, [*files.messages(topology), *messages, *environment_messages(environ, plan)])


def for_runtimes(
    request: PlacementRequest, libraries: tuple[RuntimeLibrary, ...]
) -> tuple[PlacementRequest, list[Message]]:
    """Return the request for workers that load these runtimes, the one that they use first, and the messages."""
    is_unknown = request.runtime == AUTO and not libraries
    is_floating = request.for_gpus and request.granularity == AUTO
    if request.runtime == AUTO:
        request = request._replace(runtime=libraries[0].family if libraries else "omp")
    if is_floating:
        # A GPU rank's team floats anyway, within a mask that every runtime keeps to.
        return request, []
    # KMP_AFFINITY binds the threads of libomp and libiomp5, and leaves a libgomp beside them alone.
    is_narrowed = _families(libraries) > 1 and request.runtime != IOMP
    if request.granularity == AUTO and (is_unknown or is_narrowed):
        request = request._replace(granularity="team")
    return request, runtime_messages(request.runtime, request.granularity, libraries, unknown=is_unknown)


def _families(libraries: tuple[RuntimeLibrary, ...]) -> int:
    """Return the number of families: several copies of libgomp read the same variables."""
    return len({library.family for library in libraries})


def _module_names(probe: str | Iterable[str]) -> tuple[str, ...]:
    names = [probe] if isinstance(probe, str) else probe
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"probe is {probe!r}; it must be names of modules")
    return tuple(names)


def runtime_messages(
    runtime: str, granularity: str, libraries: tuple[RuntimeLibrary, ...], *, unknown: bool = False
) -> list[Message]:
    """Return the messages about workers that get the variables of `runtime` and load these libraries."""
    names = " and ".join(f"{os.path.basename(library.path)} ({library.reason})" for library in libraries)
    if unknown:
        consequence = (
            "each thread still gets a CPU" if granularity == "thread" else "a team floats within its rank's CPUs"
        )
        return [RUNTIME_UNKNOWN(consequence=consequence)]
    if libraries and runtime in (GOMP, IOMP) and all(library.family != runtime for library in libraries):
        return [RUNTIME_DIFFERS(libraries=names, runtime=runtime)]
    if _families(libraries) > 1 and runtime != IOMP:
        if granularity == "team":
            consequence = "the team floats within its rank's CPUs"
        else:
            consequence = "threads of one of them crowd on the first thread's CPUs; --granularity team avoids that"
        return [TWO_OPENMP_RUNTIMES(libraries=names, consequence=consequence)]
    return []


def with_live_messages(plan: Plan) -> Plan:
    """Return a ready plan with the messages about the runtimes and the environment here."""
    if not any(placement.bound for placement in plan.ranks):
        return plan
    environ = copy_of(os.environ)
    messages = runtime_messages(plan.runtime, plan.granularity, expected_runtimes(environ))
    return with_messages(plan, [*messages, *environment_messages(environ, plan)])


def with_messages(plan: Plan, messages: Iterable[Message]) -> Plan:
    """Return the plan with these messages added, each one once."""
    return plan._replace(messages=tuple(dict.fromkeys((*plan.messages, *messages))))


def with_gpu_homes(
    request: PlacementRequest,
    topology: Topology,
    *,
    machine: str | RecordedMachine | None = None,
    synthetic: bool = False,
) -> PlacementRequest:
    """Return a request for GPU ranks with the homes of the GPUs: of this machine, or of the record `machine`.

    Other requests, and those that bring the homes, are returned as they are. A synthetic machine has no GPU.

    Raises:
        RequestError: the user's nodes are no list of nodes.
        TopologyError: the record cannot be read, or neither it nor the request names GPUs.
    """
    if not request.for_gpus or request.gpu_homes is not None:
        return request
    nodes, cpus = checked_maps(request.numa_bind_nodes, request.numa_bind_cpus)
    if synthetic:
        return request
    # Most plans have no GPU, and the readers of GPUs take a part of every start.
    if machine is None:
        from ompaffinity.devices.live import live_gpus

        return request._replace(gpu_homes=homes(live_gpus(topology, user_nodes=nodes)))
    from ompaffinity.devices.model import NoGPUsError
    from ompaffinity.devices.recorded import recorded_gpus

    try:
        return request._replace(gpu_homes=homes(recorded_gpus(machine, topology, user_nodes=nodes)))
    except NoGPUsError as error:
        if nodes is not None or cpus is not None:
            return request
        raise TopologyError(f"{error}; or name the NUMA node of each GPU with --numa-bind-nodes") from None


def homes(found: GPUList) -> tuple[GPUHome, ...]:
    """Return where each GPU of a list is; messages about the whole list are repeated for each."""
    from ompaffinity.devices.model import GPUHome

    of_devices = {message for device in found.gpus for message in device.messages}
    of_all = tuple(message for message in found.messages if message not in of_devices)
    return tuple(GPUHome(device.nodes, (*of_all, *device.messages), vendor=device.vendor) for device in found.gpus)
