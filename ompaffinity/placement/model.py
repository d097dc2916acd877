"""The records of a plan and of the decisions behind it. No rules here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ompaffinity.messages import Message
    from ompaffinity.placement.request import HeldCPUs


class RankPlacement(NamedTuple):
    """What one rank gets. Ids are CPU and node numbers.

    `cpus[i]` is the CPU meant for OpenMP thread i, and `places[i]` the mask that this thread gets.
    The mask of thread 0 is wider, because later threads inherit it: all of `affinity` that the other threads
    leave. `affinity` is the mask of the process and of all its other threads. `nodes` are its
    memory nodes, also where `memory_policy` is ``"none"``; `node_ranks[i]` is the number of local ranks that
    use `nodes[i]`, this one included, and `local_world_size` that of all local ranks. `memory_budget` is in
    bytes, None without a utilization in the request or where the memory of the machine is unknown. `gpu` is the number
    of its GPU, `gpus` those of the workers that it starts, if it is their engine.
    """

    rank: int
    local_rank: int
    bound: bool = True
    cpus: tuple[int, ...] = ()
    helper_cpus: tuple[int, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()
    affinity: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    memory_policy: str = "none"
    gpu: int | None = None
    node_ranks: tuple[int, ...] = ()
    local_world_size: int = 1
    memory_budget: int | None = None
    gpus: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """What distinguishes it from the placements of other ranks: data-parallel groups number theirs anew."""
        return self.local_rank, self.cpus


class LeftOut(NamedTuple):
    """CPUs that no rank gets, one reason, and what the user can do about it."""

    cpus: tuple[int, ...]
    reason: str
    detail: str


class Plan(NamedTuple):
    """The placements of all local ranks, the CPUs that are left out, and the messages.

    `live`: the plan is for the machine that this process runs on. It is False for a plan of a recorded or synthetic
    machine and for one that was loaded from a document: the CPUs of such a plan may be others here. `avoided` are the
    plans and processes whose cores it leaves alone.
    """

    architecture: str
    machine: str
    runtime: str
    granularity: str
    wait_policy: str
    ranks: tuple[RankPlacement, ...]
    reserved: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    messages: tuple[Message, ...]
    live: bool = False
    avoided: tuple[HeldCPUs, ...] = ()


class Core(NamedTuple):
    """The usable CPUs of one physical core, ascending, which of them get OpenMP threads, and where the core is."""

    cpus: tuple[int, ...]
    threads: tuple[int, ...]
    node: int
    drawer: int
    book: int
    package: int
    l3: int
    cluster: int


class Pool(NamedTuple):
    """Usable cores that a rank may have together, neighbours in the machine side by side.

    These are the cores of one NUMA node; with a wider span those of a package or of the machine, under
    the lowest of its nodes; and under `UNKNOWN` those of a machine without NUMA information. `levels`
    are the preferred cut lines, the strongest first: each level of which there are several groups here.
    A `whole` pool leaves no core idle but for an L3.
    """

    node: int
    cores: tuple[Core, ...]
    levels: tuple[str, ...] = ()
    whole: bool = False


class Cut(NamedTuple):
    """The cores of each rank of a pool, the idle ones, and how many ranks straddle each level."""

    shares: tuple[tuple[Core, ...], ...]
    idle: tuple[Core, ...] = ()
    levels: tuple[str, ...] = ()
    straddles: tuple[int, ...] = ()

    def straddling(self, level: str) -> int:
        """Return how many ranks straddle this level."""
        return sum(count for name, count in zip(self.levels, self.straddles) if name == level)


class Split(NamedTuple):
    """The cores of each rank, whole and disjoint, and for each rank the idle cores of its pool."""

    shares: tuple[tuple[Core, ...], ...]
    idle: tuple[tuple[Core, ...], ...]


class Reserve(NamedTuple):
    """How many cores are to be reserved: of each rank, and in addition in total."""

    per_rank: int
    total: int


class Share(NamedTuple):
    """The cores of one rank: those with OpenMP threads and those reserved from them, in core order."""

    compute: tuple[Core, ...]
    reserved: tuple[Core, ...] = ()

    @property
    def cores(self) -> tuple[Core, ...]:
        """All cores of the rank."""
        return (*self.compute, *self.reserved)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs of its OpenMP threads, in thread order."""
        return tuple(cpu for core in self.compute for cpu in core.threads)

    @property
    def helper_cpus(self) -> tuple[int, ...]:
        """The CPUs of the reserved cores, ascending."""
        return tuple(sorted(cpu for core in self.reserved for cpu in core.cpus))

    @property
    def siblings(self) -> frozenset[int]:
        """The CPUs of the compute cores that get no OpenMP thread."""
        return frozenset(cpu for core in self.compute for cpu in core.cpus).difference(self.cpus)


class Assignment(NamedTuple):
    """Which cores each rank gets, and why it gets no others: what placing and explaining start from.

    `shares[rank]` is None for a rank that stays unbound. `unusable` has the reason of each CPU that no rank may get,
    `held` the name of the plan that holds it, for the CPUs of other plans. `pools` are the cores that the ranks were
    chosen from, empty where the user lists the CPUs of each rank. `split_siblings`: there are more ranks than cores, so
    the pools hold single CPUs in place of whole cores. `messages` were found while assigning.
    """

    shares: tuple[Share | None, ...]
    unusable: Mapping[int, str]
    held: Mapping[int, str]
    pools: tuple[Pool, ...] = ()
    split_siblings: bool = False
    messages: tuple[Message, ...] = ()

    @property
    def idle(self) -> frozenset[Core]:
        """The cores that stay idle in the pools that ranks use."""
        given = {core for share in self.shares if share for core in share.cores}
        used = (pool for pool in self.pools if not given.isdisjoint(pool.cores))
        return frozenset(core for pool in used for core in pool.cores) - given
