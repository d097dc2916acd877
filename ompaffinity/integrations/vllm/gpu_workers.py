"""Start GPU workers, each bound next to its GPU before it starts: no numactl, no script, any inheriting start method.

A worker's mask and memory policy are those of the thread that starts it (sched_setaffinity(2), set_mempolicy(2)). Its
OpenMP team floats within the mask, so that no variable of OpenMP needs to name a CPU.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.environment import copy_of
from ompaffinity.bind.live_plan import with_gpu_homes
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.profile import WorkerProfile
from ompaffinity.bind.saved_options import resolved
from ompaffinity.bind.scope import is_inside
from ompaffinity.bind.start_methods import FORKSERVER
from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.launch.gpus import may_use
from ompaffinity.messages import NO_GPU_SEEN
from ompaffinity.openmp.variables import BINDING_VARIABLES
from ompaffinity.placement.check_gpu import NUMABindConfig
from ompaffinity.placement.document import PLACEMENT_VARIABLE, placement_document
from ompaffinity.placement.environment import requested
from ompaffinity.placement.gpu_ranks import nodes_of_gpu
from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.placement.union import union_of
from ompaffinity.records import NamedTuple
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ompaffinity.bind.profile import Variables
    from ompaffinity.placement.model import Plan
    from ompaffinity.topology.model import Topology

WORKER, ENGINE = "worker", "EngineCore"
ALL_GPUS_BACKENDS = ("ray", "external_launcher")
"""Backends under which a local rank counts all GPUs that it sees, whatever its data-parallel rank."""


def gpu_variables(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    """Return the variables of a GPU worker, which is bound by inheritance alone: a thread count that is set stays."""
    del plan
    variables = {PLACEMENT_VARIABLE: json.dumps(placement_document(placement))}
    if placement.bound and not placement.gpus and "OMP_NUM_THREADS" not in environ:
        variables["OMP_NUM_THREADS"] = str(len(placement.cpus))
    # What names CPUs was meant for another process.
    return variables, BINDING_VARIABLES if placement.bound else ()


# A forked worker inherits its mask as a spawned one does, and no variable needs to be read again.
GPU_PROFILE = WorkerProfile(gpu_variables, refused_starts=(FORKSERVER,))


@contextmanager
def configure_subprocess(
    config: Any, local_rank: int, dp_local_rank: int | None = None, process_kind: str = WORKER
) -> Iterator[RankPlacement]:
    """Start a GPU worker inside this context, bound next to its GPU; yields its placement.

    `config` is any object (or has one as its `parallel_config`) with `tensor_parallel_size`,
    `pipeline_parallel_size`, `data_parallel_rank_local`, `data_parallel_index`, `nnodes_within_dp`,
    `distributed_executor_backend` and `data_parallel_backend`; what it lacks is taken for one rank on one machine. If
    it has `numa_bind` and that is False, nothing is bound; its `numa_bind_nodes` and `numa_bind_cpus` are those of
    `NUMABindConfig`. The GPU is that of `local_rank`, counted from the first one of its data-parallel rank where one
    server starts several of these here. `process_kind` is ``"worker"``, or ``"EngineCore"`` for the process that
    starts the workers of a data-parallel rank: it gets all that they get.

    The GPUs that this process sees (with `data_parallel_size_local`: those of the workers) share the CPUs next to
    them. What is not accepted leaves the worker unbound, with a warning in the log. At the end the environment, and the
    affinity and memory policy of the calling thread, are restored as `OMPProcessManager.configure_omp_envs` does. Start
    one worker after another: a plan made inside another one's context would be for what that one has.

    Raises:
        RequestError: another process kind, no such GPU, sizes, ranks and lists that make no sense, or the caller is
            inside of such a context.
        PlacementError: this machine does not have the nodes or CPUs of the lists.
        TopologyError: the machine cannot be read.
        StartMethodError: inside, a process is started by ``forkserver``, which inherits nothing.
    """
    if process_kind not in (WORKER, ENGINE):
        raise RequestError(f"process_kind is {process_kind!r}; it must be {WORKER!r} or {ENGINE!r}")
    config = getattr(config, "parallel_config", config)
    wanted = _wanted_gpus(config, local_rank, dp_local_rank, process_kind)
    if not getattr(config, "numa_bind", True):
        yield RankPlacement(local_rank, local_rank, bound=False)
        return
    if is_inside():
        raise RequestError(
            "configure_subprocess was called inside of another worker's context; start one after another"
        )
    topology = load_topology()
    plan = _plan(config, topology, wanted)
    ranks = [rank for rank in plan.ranks if rank.gpu in wanted.own]
    own = union_of(topology, ranks) if process_kind == ENGINE else ranks[0]
    own_plan = plan._replace(ranks=(own._replace(rank=local_rank, local_rank=0),))
    manager = OMPProcessManager(own_plan, profile=GPU_PROFILE)
    with manager.configure_omp_envs(local_rank, 0) as placement:
        yield placement


class _WantedGpus(NamedTuple):
    """The GPUs of a process, and how many the server has here, None where the configuration has no number."""

    own: tuple[int, ...]
    of_server: int | None


def _wanted_gpus(config: Any, local_rank: int, dp_local_rank: int | None, process_kind: str) -> _WantedGpus:
    """Return the number of a worker's GPU, or those of all workers of an engine.

    Raises:
        RequestError: a rank or a size is no number.
    """
    _check_rank("local_rank", local_rank)
    ranks = _size(config, "tensor_parallel_size") * _size(config, "pipeline_parallel_size")
    machines = _size(config, "nnodes_within_dp")
    first, of_server = 0, None
    backend = getattr(config, "distributed_executor_backend", None)
    over_ray = getattr(config, "data_parallel_backend", None) == "ray"
    if backend not in ALL_GPUS_BACKENDS and not over_ray and machines == 1:
        of_config = [getattr(config, name, None) for name in ("data_parallel_rank_local", "data_parallel_index")]
        rank = next((rank for rank in (dp_local_rank, *of_config) if rank is not None), 0)
        first = _check_rank("dp_local_rank", rank) * ranks
        if hasattr(config, "data_parallel_size_local"):
            of_server = _size(config, "data_parallel_size_local") * ranks
    if process_kind == ENGINE:
        return _WantedGpus(tuple(range(first, first + max(1, ranks // machines))), of_server)
    return _WantedGpus((first + local_rank,), of_server)


def _size(config: Any, name: str) -> int:
    value: object = getattr(config, name, 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"{name} of the configuration is {value!r}; it must be a whole number of at least 1")
    return value


def _check_rank(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RequestError(f"{name} is {value!r}; it must be a whole number from 0")
    return value


def _plan(config: Any, topology: Topology, wanted: _WantedGpus) -> Plan:
    """Return the plan for the GPUs of a process, and for those that they share the machine with.

    Raises:
        RequestError: there are GPUs, but not all of these.
    """
    lists = NUMABindConfig(True, getattr(config, "numa_bind_nodes", None), getattr(config, "numa_bind_cpus", None))
    # Lists that overlap are what the user wants.
    asked = lists._asdict() | {"share": lists.numa_bind_cpus is not None or bool(getattr(config, "share", False))}
    files = resolved(asked, copy_of(os.environ))
    request = with_gpu_homes(requested(files.given, files.environ), topology)
    homes = request.gpu_homes or ()
    by_hand = [len(given) for given in (lists.numa_bind_nodes, lists.numa_bind_cpus) if given is not None]
    count = by_hand[0] if by_hand else len(homes)
    if not count:
        return _no_gpu(topology, wanted)
    missing = [gpu for gpu in wanted.own if gpu >= count]
    if missing:
        raise RequestError(
            f"GPU {format_id_list(missing)} was requested, but "
            + (f"the lists of the configuration name {count}" if by_hand else f"this process sees {count}")
            + "; look at CUDA_VISIBLE_DEVICES, and at the sizes and lists of the configuration"
        )
    own = list(wanted.own)
    # The others keep their part; their own workers report what is wrong with them.
    homes = tuple(home if gpu in own else home._replace(messages=(), quiet=True) for gpu, home in enumerate(homes))
    request = request._replace(gpu_homes=homes)
    makers = {home.vendor for gpu, home in enumerate(homes) if gpu in own}
    sharers = [
        gpu
        for gpu in _sharers(own, wanted, count)
        # An integrated GPU beside the others has no worker.
        if gpu in own or (_has_room(topology, request, gpu) and (gpu >= len(homes) or homes[gpu].vendor in makers))
    ]
    return make_plan(topology, request._replace(tensor_parallel_size=len(sharers), gpus=tuple(sharers), runtime="omp"))


def _sharers(own: list[int], wanted: _WantedGpus, count: int) -> list[int]:
    """Return the GPUs whose workers share what this process may use."""
    try:
        placement = current_placement()
    except RequestError:
        placement = None
    if placement is not None and set(own) <= set(placement.gpus):
        # This is an engine that was bound to what these workers alone get.
        return [device for device in placement.gpus if device < count]
    if wanted.of_server is not None and max(own) < wanted.of_server:
        return list(range(min(wanted.of_server, count)))
    return list(range(count))


def _has_room(topology: Topology, request: PlacementRequest, gpu: int) -> bool:
    """Return whether a GPU's worker would be bound to anything at all."""
    if request.numa_bind_cpus is not None:
        return not set(topology.allowed_cpus).isdisjoint(request.numa_bind_cpus[gpu])
    return may_use(topology, nodes_of_gpu(request, gpu))


def _no_gpu(topology: Topology, wanted: _WantedGpus) -> Plan:
    plan = make_plan(topology, PlacementRequest(bind="none"))
    ranks = tuple(rank._replace(gpu=wanted.own[0]) for rank in plan.ranks)
    return plan._replace(ranks=ranks, messages=(*plan.messages, NO_GPU_SEEN()))
