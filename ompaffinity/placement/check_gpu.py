"""What may be asked of GPU ranks: next to the GPU, automatic or by hand; validated. Each error has its own sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, PlacementError, RequestError
from ompaffinity.ids import MAX_ID, format_id_list, parse_ordered_id_list
from ompaffinity.messages import counted
from ompaffinity.placement.request import conflicting_options
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology

NODES, CPUS, GPUS = "--numa-bind-nodes (numa_bind_nodes)", "--numa-bind-cpus (numa_bind_cpus)", "--gpus (gpus)"


class _Fields(NamedTuple):
    numa_bind: bool
    numa_bind_nodes: tuple[int, ...] | None
    numa_bind_cpus: tuple[tuple[int, ...], ...] | None


class NUMABindConfig(_Fields):
    """How GPU workers are bound: not at all, next to their GPUs (`numa_bind`), or by hand.

    `numa_bind_nodes` has one NUMA node per visible GPU, `numa_bind_cpus` one CPU list per visible GPU (numbers, or text
    as in ``"0-3,8"``); the CPUs are then those of the list and the memory that of the node.

    Raises:
        RequestError: a list is empty, of another length than the other, or no list of numbers; a list is given while
            `numa_bind` is False.
    """

    __slots__ = ()

    def __new__(cls, numa_bind: bool = False, numa_bind_nodes: Any = None, numa_bind_cpus: Any = None) -> Any:
        """Return the validated record."""
        if not isinstance(numa_bind, bool):
            raise RequestError(f"numa_bind is {numa_bind!r}; it must be True or False")
        nodes, cpus = checked_maps(numa_bind_nodes, numa_bind_cpus)
        if not numa_bind and (nodes is not None or cpus is not None):
            given = "numa_bind_nodes" if nodes is not None else "numa_bind_cpus"
            raise RequestError(f"{given} is set, but numa_bind is False; set numa_bind=True, or leave {given} out")
        return _Fields.__new__(cls, numa_bind, nodes, cpus)


def checked_maps(nodes: object, cpus: object) -> tuple[tuple[int, ...] | None, tuple[tuple[int, ...], ...] | None]:
    """Return the user's nodes and CPU lists, one of each per GPU, as tuples.

    Raises:
        RequestError: they are none, or of different lengths.
    """
    checked_nodes = None if nodes is None else _nodes(nodes)
    checked_cpus = None if cpus is None else tuple(_cpus(gpu, listed) for gpu, listed in enumerate(_lists(cpus)))
    if checked_nodes is not None and checked_cpus is not None and len(checked_nodes) != len(checked_cpus):
        raise RequestError(
            f"{NODES} names {counted(len(checked_nodes), 'GPU')} and {CPUS} {len(checked_cpus)};"
            " give one of each per GPU"
        )
    return checked_nodes, checked_cpus


def check_gpu_options(request: PlacementRequest) -> PlacementRequest:
    """Return `request` if what it asks for GPU ranks makes sense, its lists as tuples.

    Raises:
        RequestError: a list that is none, that has too few entries for the GPUs, that gives a CPU twice without
            `share`; options that cannot be combined.
    """
    if not request.for_gpus:
        if request.share:
            raise RequestError("--share (share) is for GPU ranks; add --numa-bind, or leave it out")
        return request
    nodes, cpus = checked_maps(request.numa_bind_nodes, request.numa_bind_cpus)
    request = request._replace(numa_bind_nodes=nodes, numa_bind_cpus=cpus, gpus=_gpus(request))
    if request.bind != "auto":
        raise RequestError("--bind is for CPU ranks, --numa-bind and its like for GPU ranks; leave one of them out")
    if request.oversubscribe:
        raise RequestError(
            "--oversubscribe is for CPU ranks; GPU ranks share the CPUs next to their GPUs where these are too few, and"
            " with --share always; leave it out"
        )
    if request.helper_cpus != "own":
        raise RequestError(
            "--helper-cpus is for CPU ranks: the other threads of a GPU rank run on all CPUs of its cores; leave it out"
        )
    if request.distribute != "close":
        raise RequestError(
            "--distribute is for CPU ranks: the nodes of GPU ranks are those of their GPUs; leave it out"
        )
    _check_together(request)
    _check_lengths(request)
    if cpus is not None and not request.share:
        _check_apart(cpus, request.gpu_of_rank)
    return request


def _check_lengths(request: PlacementRequest) -> None:
    """Refuse lists with fewer entries than GPUs; detected GPUs do not matter beside the user's own lists."""
    nodes, cpus = request.numa_bind_nodes, request.numa_bind_cpus
    homes = None if nodes or cpus else request.gpu_homes
    for option, given in ((NODES, nodes), (CPUS, cpus), ("gpu_homes", homes)):
        if given is not None and max(request.gpu_of_rank) >= len(given):
            raise RequestError(_too_few(option, len(given), request))


def check_gpus_for_machine(topology: Topology, request: PlacementRequest) -> None:
    """Refuse nodes and CPUs that the user names for the GPUs of ranks and that this machine lacks.

    Raises:
        PlacementError: the request names some.
    """
    if request.numa_bind_nodes is not None:
        for gpu in request.gpu_of_rank:
            check_node(topology, gpu, request.numa_bind_nodes[gpu])
    unknown = {cpu for cpus in request.cpu_lists or () for cpu in cpus} - {cpu.id for cpu in topology.cpus}
    if unknown:
        raise PlacementError(f"--numa-bind-cpus names CPU {format_id_list(unknown)}, which this machine does not have")


def check_node(topology: Topology, gpu: int, node: int) -> None:
    """Refuse a node that the user names for a GPU and that holds no CPU.

    Raises:
        PlacementError: it is such a node.
    """
    known = [found.id for found in topology.nodes if found.cpus]
    if node not in known:
        what = "has no online CPU" if any(found.id == node for found in topology.nodes) else "does not exist here"
        raise PlacementError(
            f"--numa-bind-nodes names node {node} for GPU {gpu}, which {what};"
            f" the nodes with CPUs are {format_id_list(known) or 'none'}"
        )


def _too_few(option: str, count: int, request: PlacementRequest) -> str:
    wanted = f"{counted(request.ranks, 'rank')} on GPU {format_id_list(request.gpu_of_rank)}"
    were = "was" if request.ranks == 1 else "were"
    if option == "gpu_homes":
        seen = f"{count or 'no'} {'GPU is' if count == 1 else 'GPUs are'} seen"
        return (
            f"{wanted} {were} requested, but {seen} here; request fewer, or name the NUMA node of each one"
            " with --numa-bind-nodes"
        )
    return f"{option} names {counted(count, 'GPU')}, but {wanted} {were} requested; give one entry per GPU"


def _check_together(request: PlacementRequest) -> None:
    reserves = {
        "reserve": "--reserve",
        "reserve_per_rank": "--reserve-per-rank",
        "kv_transfer": "--kv-transfer",
    }
    names = {"cpus": "--cpus", "nodes": "--nodes", "threads_per_core": "--threads-per-core"}
    for given, whose, options in (
        (request.numa_bind_cpus is not None, "--numa-bind-cpus names the CPUs of each rank", names | reserves),
        (request.share, "with --share ranks share all of a node", reserves),
    ):
        conflicting = conflicting_options(request, options)
        if given and conflicting:
            raise RequestError(f"{whose}, so {', '.join(conflicting)} cannot be combined with it; leave one out")


def _check_apart(cpus: tuple[tuple[int, ...], ...], used: tuple[int, ...]) -> None:
    owner: dict[int, int] = {}
    for gpu in used:
        shared = [cpu for cpu in cpus[gpu] if cpu in owner]
        if shared:
            raise RequestError(
                f"{CPUS} gives CPU {format_id_list(shared)} to GPU {owner[shared[0]]} and to GPU {gpu};"
                " give each its own, or let them share (--share)"
            )
        owner.update(dict.fromkeys(cpus[gpu], gpu))


def _gpus(request: PlacementRequest) -> tuple[int, ...] | None:
    if request.gpus is None:
        return None
    if not isinstance(request.gpus, (list, tuple)) or not all(map(_is_id, request.gpus)):
        raise RequestError(f"{GPUS} is {request.gpus!r}; it must be a list of GPU numbers, one per rank")
    if len(set(request.gpus)) < len(request.gpus):
        raise RequestError(f"{GPUS} names a GPU twice")
    if len(request.gpus) != request.ranks:
        raise RequestError(
            f"{GPUS} names {counted(len(request.gpus), 'GPU')} for {counted(request.ranks, 'rank')}; give one per"
            " rank, or as many ranks"
            " (--tp, --pp, --dp)"
        )
    return tuple(request.gpus)


def _nodes(nodes: object) -> tuple[int, ...]:
    if not isinstance(nodes, (list, tuple)):
        raise RequestError(f"{NODES} is {nodes!r}; it must be a list of node numbers, one per GPU")
    if not nodes:
        raise RequestError(f"{NODES} names no node; give one per GPU, or leave it out to find them")
    invalid = [node for node in nodes if not _is_id(node)]
    if invalid:
        raise RequestError(f"{NODES} has {invalid[0]!r} in it; it must be node numbers from 0 to {MAX_ID}")
    return tuple(nodes)


def _lists(cpus: object) -> tuple[object, ...]:
    if not isinstance(cpus, (list, tuple)):
        raise RequestError(f"{CPUS} is {cpus!r}; it must be a list of CPU lists, one per GPU")
    if not cpus:
        raise RequestError(f"{CPUS} names no CPU; give one list per GPU, or leave it out")
    return tuple(cpus)


def _cpus(gpu: int, cpus: object) -> tuple[int, ...]:
    if isinstance(cpus, str):
        try:
            cpus = tuple(parse_ordered_id_list(cpus))
        except IDListError as error:
            raise RequestError(f"{CPUS}: {error} (GPU {gpu}; write lists as in 0-3 4-7)") from None
    if not isinstance(cpus, (list, tuple)) or not all(map(_is_id, cpus)):
        raise RequestError(f"{CPUS} has {cpus!r} for GPU {gpu}; it must be CPU numbers")
    if not cpus:
        raise RequestError(f"{CPUS} gives GPU {gpu} no CPU")
    if len(set(cpus)) < len(cpus):
        raise RequestError(f"{CPUS} names a CPU twice for GPU {gpu}")
    return tuple(cpus)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID
