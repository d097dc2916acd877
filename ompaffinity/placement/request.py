"""What a user asks of a plan, from arguments, option texts and environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.devices.model import GPUHome

AUTO = "auto"
LIVE = "live"
"""The value of ``--avoid`` that stands for the processes running here."""


MAX_RANKS = 65536


CORE_TYPES = (AUTO, "performance", "all")


DISTRIBUTIONS = ("close", "spread")


SPANS = (AUTO, "node", "package", "machine")
OWN = "own"
HELPER_CPUS = (OWN, "node")


RUNTIMES = (AUTO, "gomp", "iomp", "omp")


GRANULARITIES = (AUTO, "thread", "team")


WAIT_POLICIES = ("keep", "active", "brief", "passive")


MEMORY_POLICIES = (AUTO, "bind", "preferred", "preferred-many", "interleave", "weighted-interleave", "none")


class HeldCPUs(NamedTuple):
    """The CPUs that another server's plan holds, or a process that runs here, and what these are called in messages.

    `known` are all CPUs in that plan, empty where this is unknown; `pid` is the process, None for a plan.
    """

    name: str
    cpus: tuple[int, ...]
    known: tuple[int, ...] = ()
    pid: int | None = None


class PlacementRequest(NamedTuple):
    """What is wanted of a plan. The defaults are those of the command line.

    The local ranks are the product of the three sizes, in the order [data, pipeline, tensor],
    tensor fastest. `bind` is ``"auto"``, ``"none"`` or one tuple of CPUs per rank, in thread order.
    `cpus` and `nodes` plan within these only. `threads_per_core` of None and `reserve` of None mean:
    by architecture; `reserve` is in cores for all ranks, `reserve_per_rank` in cores for each.
    `avoid` is what other plans hold; their cores are left alone whole. `utilization` (above 0, at most 1) is the
    part of the memory that the ranks may use; with it the plan has a memory budget for each rank.

    GPU ranks are asked for with any of `numa_bind` (next to the GPU), `numa_bind_nodes` (one node per GPU),
    `numa_bind_cpus` (one CPU list per GPU) and `gpus` (the GPU of each rank; default: as many as there are ranks, from
    0). GPUs are numbered as the processes see them; `gpu_homes` has the nodes of each, None if they were not looked up.
    With `share` the ranks of a node share all of it.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    bind: str | tuple[tuple[int, ...], ...] = AUTO
    cpus: tuple[int, ...] | None = None
    nodes: tuple[int, ...] | None = None
    avoid: tuple[HeldCPUs, ...] = ()
    threads_per_core: int | None = None
    core_type: str = AUTO
    reserve: int | None = None
    reserve_per_rank: int | None = None
    kv_transfer: bool = False
    distribute: str = "close"
    span: str = AUTO
    helper_cpus: str = OWN
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
    gpu_homes: tuple[GPUHome, ...] | None = None

    @property
    def for_gpus(self) -> bool:
        """Whether the ranks have GPUs, and are to be next to them."""
        return self.numa_bind or any(
            given is not None for given in (self.numa_bind_nodes, self.numa_bind_cpus, self.gpus)
        )

    @property
    def cpu_lists(self) -> tuple[tuple[int, ...], ...] | None:
        """The CPUs of each rank where the user lists them (`bind`, `numa_bind_cpus`), None where the plan chooses."""
        if self.numa_bind_cpus is not None:
            return tuple(self.numa_bind_cpus[gpu] for gpu in self.gpu_of_rank)
        return None if isinstance(self.bind, str) else self.bind

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
    """Return how many ranks the sizes among these arguments make; `check_request` refuses one that is no number."""
    sizes = {name: given[name] for name in SIZES if isinstance(given.get(name), int)}
    return PlacementRequest(**sizes).ranks


CONFLICTS_WITH_LISTS = {
    "cpus": "--cpus",
    "nodes": "--nodes",
    "threads_per_core": "--threads-per-core",
    "reserve": "--reserve",
    "reserve_per_rank": "--reserve-per-rank",
    "kv_transfer": "--kv-transfer",
    "oversubscribe": "--oversubscribe",
}
"""Options that select the CPUs of a rank, as the lists of --bind do."""


def conflicting_options(request: PlacementRequest, options: Mapping[str, str]) -> list[str]:
    """Return the names of those of {field: option} that the request sets."""
    return [option for field, option in options.items() if getattr(request, field) not in (None, False)]


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
        except IDListError as error:
            raise RequestError(
                f"--bind: {error} (list {position}; write auto, none, or one list per rank as in 0-3|4-7)"
            ) from None
    return tuple(lists)
