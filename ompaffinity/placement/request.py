"""What the user asked for, validated: what makes no sense on any machine is refused here."""

from __future__ import annotations

from ompaffinity.errors import IdListError, RequestError
from ompaffinity.records import NamedTuple
from ompaffinity.topology.idlist import format_id_list, parse_ordered_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.placement.numa_bind import DeviceHome

AUTO = "auto"
MAX_RANKS = 65536

KINDS = ("performance", "all")
DISTRIBUTIONS = ("close", "spread")
SPANS = ("node", "package", "machine")
RUNTIMES = (AUTO, "gomp", "iomp", "omp")
GRANULARITIES = (AUTO, "thread", "team")
WAIT_POLICIES = ("keep", "active", "brief", "passive")
MEMORY_POLICIES = (AUTO, "bind", "preferred", "preferred-many", "interleave", "none")


class HeldCpus(NamedTuple):
    """The CPUs that another server's plan holds, and what that plan is called in messages.

    `known` are all CPUs that it speaks of, empty where that is not known.
    """

    name: str
    cpus: tuple[int, ...]
    known: tuple[int, ...] = ()


class PlacementRequest(NamedTuple):
    """What is wanted of a plan. The defaults are those of the command line.

    The local ranks are the product of the three sizes, in the order [data, pipeline, tensor],
    tensor fastest. `bind` is ``"auto"``, ``"none"`` or one tuple of CPUs per rank, in thread order.
    `cpus` and `nodes` plan within these only. `threads_per_core` of None and `reserve` of None mean:
    by architecture; `reserve` is in cores for all ranks, `reserve_per_rank` in cores for each.
    `avoid` is what other plans hold; their cores are left alone whole. `utilization` (above 0, at most 1) is the
    part of the memory that the ranks may use; with it the plan tells each rank's budget.

    GPU ranks are asked for with any of `numa_bind` (next to the GPU), `numa_bind_nodes` (one node per GPU),
    `numa_bind_cpus` (one CPU list per GPU) and `gpus` (the GPU of each rank; default: as many as there are ranks, from
    0). GPUs are numbered as the processes see them; `device_homes` says where each one is, where the machine was asked.
    With `share` the ranks of a node share all of it.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    bind: str | tuple[tuple[int, ...], ...] = AUTO
    cpus: tuple[int, ...] | None = None
    nodes: tuple[int, ...] | None = None
    avoid: tuple[HeldCpus, ...] = ()
    threads_per_core: int | None = None
    kinds: str = "performance"
    reserve: int | None = None
    reserve_per_rank: int | None = None
    kv_transfer: bool = False
    distribute: str = "close"
    span: str = "node"
    oversubscribe: bool = False
    runtime: str = AUTO
    granularity: str = AUTO
    wait_policy: str = "keep"
    memory_policy: str = AUTO
    utilization: float | None = None
    numa_bind: bool = False
    numa_bind_nodes: tuple[int, ...] | None = None
    numa_bind_cpus: tuple[tuple[int, ...], ...] | None = None
    gpus: tuple[int, ...] | None = None
    share: bool = False
    device_homes: tuple[DeviceHome, ...] | None = None

    @property
    def for_gpus(self) -> bool:
        """Whether the ranks have GPUs, and are to be next to them."""
        return self.numa_bind or any(
            given is not None for given in (self.numa_bind_nodes, self.numa_bind_cpus, self.gpus)
        )

    @property
    def gpu_of_rank(self) -> tuple[int, ...]:
        """The number of each rank's GPU."""
        return tuple(range(self.ranks)) if self.gpus is None else self.gpus

    @property
    def ranks(self) -> int:
        """The number of local ranks."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def group(self) -> int:
        """How many ranks in turn talk to each other the most: a tensor-parallel group, else a pipeline."""
        return self.tensor_parallel_size if self.tensor_parallel_size > 1 else self.pipeline_parallel_size


SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def product_of_sizes(given: Mapping[str, Any]) -> int:
    """Return how many ranks the sizes among these arguments make; what is no number `check_request` refuses."""
    sizes = {name: given[name] for name in SIZES if isinstance(given.get(name), int)}
    return PlacementRequest(**sizes).ranks


def check_request(request: PlacementRequest) -> PlacementRequest:
    """Return `request` if it makes sense, its lists as tuples.

    Raises:
        RequestError: a size below 1, an unknown word, a negative number, a value of the wrong
            type, or lists that do not match the ranks, overlap, or stand beside options that they make void.
    """
    _check_values(request)
    if request.utilization is not None:
        check_utilization(request.utilization)
    request = request._replace(
        cpus=None if request.cpus is None else _ids("--cpus (cpus)", request.cpus),
        nodes=None if request.nodes is None else _ids("--nodes (nodes)", request.nodes),
    )
    if request.for_gpus or request.share:
        from ompaffinity.placement.numa_bind import check_gpu_options

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
    for field, (option, least, optional) in _NUMBERS.items():
        value = getattr(request, field)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(f"{option} ({field}) is {value!r}; it must be a number")
        if value < least:
            raise RequestError(f"{option} ({field}) is {value}; it must be at least {least}")
    if request.ranks > MAX_RANKS:
        raise RequestError(f"{request.ranks} ranks were asked for; at most {MAX_RANKS} can be planned")
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
    if not isinstance(request.avoid, tuple) or not all(isinstance(plan, HeldCpus) for plan in request.avoid):
        raise RequestError(f"--avoid (avoid) is {request.avoid!r}; it must be what held_by_plans returns")


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
    "kinds": ("--kinds", KINDS),
    "distribute": ("--distribute", DISTRIBUTIONS),
    "span": ("--span", SPANS),
    "runtime": ("--runtime", RUNTIMES),
    "granularity": ("--granularity", GRANULARITIES),
    "wait_policy": ("--wait-policy", WAIT_POLICIES),
    "memory_policy": ("--memory-policy", MEMORY_POLICIES),
}
_VOID_WITH_LISTS = {
    "cpus": "--cpus",
    "nodes": "--nodes",
    "threads_per_core": "--threads-per-core",
    "reserve": "--reserve",
    "reserve_per_rank": "--reserve-per-rank",
    "kv_transfer": "--kv-transfer",
    "oversubscribe": "--oversubscribe",
}
"""Options that say which CPUs a rank gets, as the lists of --bind do."""


def parse_bind(text: str) -> str | tuple[tuple[int, ...], ...]:
    """Return the value of ``--bind``: ``"auto"``, ``"none"``, or one CPU tuple per ``|``-separated list, order kept.

    Raises:
        RequestError: anything else.
    """
    if text in (AUTO, "none"):
        return text
    lists = []
    for position, part in enumerate(text.split("|")):
        try:
            lists.append(tuple(parse_ordered_id_list(part)))
        except IdListError as error:
            raise RequestError(
                f"--bind: {error} (list {position}; write auto, none, or one list per rank as in 0-3|4-7)"
            ) from None
    return tuple(lists)


ENVIRONMENT = {
    "bind": ("OMPAFFINITY_BIND", "VLLM_CPU_OMP_THREADS_BIND"),
    "reserve": ("OMPAFFINITY_RESERVED_CPUS", "VLLM_CPU_NUM_OF_RESERVED_CPU"),
    "nodes": ("CPU_VISIBLE_MEMORY_NODES",),
}
"""The variables that an option comes from where it is not given; the first one that is set counts."""


def request_from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `PlacementRequest` that `environ` names; empty variables count as not set.

    Raises:
        RequestError: a variable's value is not understood.
    """
    arguments: dict[str, Any] = {}
    for field, names in ENVIRONMENT.items():
        name = next((name for name in names if environ.get(name, "").strip()), None)
        if name is not None:
            arguments[field] = _from_variable(field, name, environ[name].strip())
    return arguments


def requested(given: Mapping[str, Any], environ: Mapping[str, str]) -> PlacementRequest:
    """Return the request of what was given, completed from the environment.

    Raises:
        RequestError: a variable's value is not understood, or `given` names no such option.
    """
    strange = given.keys() - set(PlacementRequest._fields)
    if strange:
        known = ", ".join(PlacementRequest._fields)
        raise RequestError(f"{', '.join(sorted(strange))}: no such option; the options are {known}")
    arguments = request_from_environment(environ)
    if given.get("reserve_per_rank") is not None:
        arguments.pop("reserve", None)
    arguments.update(given)
    asked = PlacementRequest(**given)
    # What the environment holds for CPU ranks, and a reserve for ranks that share all, are not meant for these.
    for void, name in ((asked.for_gpus, "bind"), (asked.share, "reserve")):
        if void and name not in given:
            arguments.pop(name, None)
    if not isinstance(arguments.get("bind", AUTO), str) or asked.numa_bind_cpus is not None:
        # Lists say it all: what the environment holds for automatic planning is not meant for them.
        arguments = {name: value for name, value in arguments.items() if name in given or name not in _VOID_WITH_LISTS}
    return PlacementRequest(**arguments)


def _from_variable(field: str, name: str, text: str) -> object:
    try:
        if field == "bind":
            return parse_bind("none" if text == "nobind" else text)
        if field == "nodes":
            return tuple(parse_ordered_id_list(text))
    except (RequestError, IdListError) as error:
        raise RequestError(f"the environment variable {name} is {text!r}: {error}") from None
    if text == AUTO:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise RequestError(f"the environment variable {name} is {text!r}; it must be auto or a number of cores")
    return int(text)


def _checked_lists(request: PlacementRequest) -> tuple[tuple[int, ...], ...]:
    void = [option for field, option in _VOID_WITH_LISTS.items() if getattr(request, field) not in (None, False)]
    if void:
        raise RequestError(
            f"--bind names the CPUs of each rank, so {', '.join(void)} cannot be met beside it; leave one out"
        )
    lists = tuple(_ids("--bind (bind)", cpus) for cpus in request.bind)
    if len(lists) != request.ranks:
        raise RequestError(
            f"--bind names {len(lists)} CPU lists for {request.ranks} ranks; give one list per rank, separated by |"
        )
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
    return lists


def _ids(option: str, ids: object) -> tuple[int, ...]:
    """Return CPU or node numbers as a tuple."""
    if isinstance(ids, (list, tuple, set, frozenset, range)):
        numbers = tuple(sorted(ids)) if isinstance(ids, (set, frozenset)) else tuple(ids)
        if all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
            if len(set(numbers)) < len(numbers):
                raise RequestError(f"{option} names a number twice")
            return numbers
    raise RequestError(f"{option} is {ids!r}; it must be a list of numbers")
