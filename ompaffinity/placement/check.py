"""Validation of a request: first for any machine, then for the machine that it is planned on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.placement.check_gpu import check_gpu_options, check_gpus_for_machine
from ompaffinity.placement.request import (
    AUTO,
    CONFLICTS_WITH_LISTS,
    CORE_TYPES,
    DISTRIBUTIONS,
    GRANULARITIES,
    HELPER_CPUS,
    MAX_RANKS,
    MEMORY_POLICIES,
    RUNTIMES,
    SPANS,
    WAIT_POLICIES,
    HeldCPUs,
    PlacementRequest,
    conflicting_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ompaffinity.topology.model import Topology


def check_request(request: PlacementRequest) -> PlacementRequest:
    """Return `request` if it makes sense, its lists as tuples.

    Raises:
        RequestError: a size below 1, an unknown word, a negative number, a value of the wrong
            type, or lists that do not match the ranks, overlap, or conflict with other options.
    """
    _check_values(request)
    if request.utilization is not None:
        check_utilization(request.utilization)
    request = request._replace(
        cpus=None if request.cpus is None else _ids("--cpus (cpus)", request.cpus),
        nodes=None if request.nodes is None else _ids("--nodes (nodes)", request.nodes),
    )
    request = check_gpu_options(request)
    if isinstance(request.bind, str):
        if request.bind not in (AUTO, "none"):
            raise RequestError(
                f"--bind (bind) is {request.bind!r}; it must be auto, none, or one CPU list per rank as in 0-3|4-7"
            )
        return request
    if not isinstance(request.bind, (list, tuple)):
        raise RequestError(f"--bind (bind) is {request.bind!r}; it must be auto, none, or one list of CPUs per rank")
    return request._replace(bind=_checked_lists(request))


def _check_values(request: PlacementRequest) -> None:
    _check_numbers(request)
    if request.ranks > MAX_RANKS:
        raise RequestError(f"{request.ranks} ranks were requested; at most {MAX_RANKS} can be planned")
    if request.reserve is not None and request.reserve_per_rank is not None:
        raise RequestError(
            "--reserve counts cores in all and --reserve-per-rank counts them per rank; give one of them"
        )
    for field, (option, known) in _WORDS.items():
        word = getattr(request, field)
        if word not in known:
            raise RequestError(f"{option} ({field}) is {word!r}; it must be one of {', '.join(known)}")
    for flag, option in _FLAGS.items():
        if not isinstance(getattr(request, flag), bool):
            raise RequestError(f"{option} ({flag}) is {getattr(request, flag)!r}; it must be True or False")
    if not isinstance(request.avoid, tuple) or not all(isinstance(plan, HeldCPUs) for plan in request.avoid):
        raise RequestError(f"--avoid (avoid) is {request.avoid!r}; it must be what held_by_plans returns")


def _check_numbers(request: PlacementRequest) -> None:
    for field, (option, least, optional) in _NUMBERS.items():
        value = getattr(request, field)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(f"{option} ({field}) is {value!r}; it must be a whole number")
        if value < least:
            raise RequestError(f"{option} ({field}) is {value}; it must be at least {least}")


def check_utilization(utilization: object) -> float:
    """Return the part of the memory that ranks may use.

    Raises:
        RequestError: it is not a number above 0 and at most 1.
    """
    if isinstance(utilization, bool) or not isinstance(utilization, (int, float)) or not 0 < utilization <= 1:
        raise RequestError(
            f"--utilization (utilization) is {utilization!r}; it must be above 0 and at most 1, as in 0.9"
        )
    return float(utilization)


_NUMBERS = {
    "tensor_parallel_size": ("--tp", 1, False),
    "pipeline_parallel_size": ("--pp", 1, False),
    "data_parallel_size": ("--dp", 1, False),
    "threads_per_core": ("--threads-per-core", 1, True),
    "reserve": ("--reserve", 0, True),
    "reserve_per_rank": ("--reserve-per-rank", 0, True),
}


_FLAGS = {
    "kv_transfer": "--kv-transfer",
    "oversubscribe": "--oversubscribe",
    "numa_bind": "--numa-bind",
    "share": "--share",
}


_WORDS = {
    "core_type": ("--core-type", CORE_TYPES),
    "distribute": ("--distribute", DISTRIBUTIONS),
    "span": ("--span", SPANS),
    "helper_cpus": ("--helper-cpus", HELPER_CPUS),
    "runtime": ("--runtime", RUNTIMES),
    "granularity": ("--granularity", GRANULARITIES),
    "wait_policy": ("--wait-policy", WAIT_POLICIES),
    "memory_policy": ("--memory-policy", MEMORY_POLICIES),
}


def _checked_lists(request: PlacementRequest) -> tuple[tuple[int, ...], ...]:
    conflicting = conflicting_options(request, CONFLICTS_WITH_LISTS)
    if conflicting:
        raise RequestError(
            f"--bind names the CPUs of each rank, so {', '.join(conflicting)} cannot be combined with it; leave one out"
        )
    lists = tuple(_ids("--bind (bind)", cpus) for cpus in request.bind)
    if len(lists) != request.ranks:
        raise RequestError(
            f"--bind names {len(lists)} CPU lists for {request.ranks} ranks; give one list per rank, separated by |"
        )
    _check_disjoint(lists)
    return lists


def _check_disjoint(lists: Sequence[Sequence[int]]) -> None:
    owner: dict[int, int] = {}
    for rank, cpus in enumerate(lists):
        if not cpus:
            raise RequestError(f"--bind gives rank {rank} no CPU")
        shared = [cpu for cpu in cpus if cpu in owner]
        if shared:
            raise RequestError(
                f"--bind gives CPU {format_id_list(shared)} to rank {owner[shared[0]]} and to rank {rank}"
            )
        owner.update(dict.fromkeys(cpus, rank))


def _ids(option: str, ids: object) -> tuple[int, ...]:
    """Return CPU or node numbers as a tuple."""
    if isinstance(ids, (list, tuple, set, frozenset, range)):
        numbers = tuple(sorted(ids)) if isinstance(ids, (set, frozenset)) else tuple(ids)
        if all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
            if len(set(numbers)) < len(numbers):
                raise RequestError(f"{option} names a number twice")
            return numbers
    raise RequestError(f"{option} is {ids!r}; it must be a list of numbers")


def check_for_machine(topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> None:
    """Refuse a request that names CPUs or nodes that this machine lacks or that are not available.

    `held` are the CPUs of other plans.

    Raises:
        PlacementError: it names some.
    """
    _check_avoided(topology, request)
    if isinstance(request.bind, tuple):
        check_available("--bind", topology, held, [cpu for cpus in request.bind for cpu in cpus])
    elif request.bind == AUTO:
        check_named(topology, request, held)
    if request.for_gpus:
        check_gpus_for_machine(topology, request)


def check_named(topology: Topology, request: PlacementRequest, held: Mapping[int, str]) -> None:
    """Refuse nodes and CPUs to plan within that this machine lacks or that are not available.

    Raises:
        PlacementError: the request names some.
    """
    if request.nodes is not None:
        unknown = set(request.nodes) - {node.id for node in topology.nodes}
        if unknown:
            known = format_id_list(node.id for node in topology.nodes) or "none"
            raise PlacementError(
                f"--nodes (or CPU_VISIBLE_MEMORY_NODES) names node {format_id_list(unknown)},"
                f" which this machine does not have; its nodes are {known}"
            )
    if request.cpus is not None:
        check_available("--cpus", topology, held, request.cpus)


def _check_avoided(topology: Topology, request: PlacementRequest) -> None:
    """Refuse a plan to avoid that was made for another machine."""
    present = {cpu.id for cpu in topology.cpus}
    for plan in request.avoid:
        unknown = (set(plan.cpus) | set(plan.known)) - present
        if unknown:
            raise PlacementError(
                f"--avoid {plan.name} holds CPU {format_id_list(unknown)}, which this machine does not have;"
                " is it a plan for another machine?"
            )
        missing = present - set(plan.known)
        if plan.known and missing:
            raise PlacementError(
                f"--avoid {plan.name} does not list CPU {format_id_list(missing)};"
                " it must be the whole plan (no --rank) for this machine"
            )


def check_available(option: str, topology: Topology, held: Mapping[int, str], cpus: Sequence[int]) -> None:
    """Refuse CPUs that another plan holds, or that this process may not use.

    Raises:
        PlacementError: there are such CPUs.
    """
    taken = [cpu for cpu in cpus if cpu in held]
    if taken:
        raise PlacementError(
            f"{option} names CPU {format_id_list(taken)}, whose core the plan {held[taken[0]]} holds (--avoid)"
        )
    allowed = topology.allowed_cpus
    not_allowed = set(cpus) - set(allowed)
    if not_allowed:
        raise PlacementError(
            f"{option} names CPU {format_id_list(not_allowed)}, which this process may not use;"
            f" it may use {format_id_list(allowed) or 'none'}"
        )
