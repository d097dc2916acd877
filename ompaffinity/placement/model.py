"""The records of a plan and of the decisions behind it. No rules here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ompaffinity.messages import Message


class RankPlacement(NamedTuple):
    """What one rank gets. Ids are CPU and node numbers.

    `cpus[i]` is the CPU meant for OpenMP thread i, and `places[i]` the mask that this thread gets.
    Thread 0's is wider, for later threads inherit it: all of `affinity` that the other threads
    leave. `affinity` is the mask of the process and of all its other threads. `nodes` are its
    memory nodes, also where `memory_policy` is ``"none"``; `node_ranks[i]` is the number of local ranks that
    use `nodes[i]`, this one included, and `local_world_size` that of all local ranks. `memory_budget` is in
    bytes, None where no utilization was asked for or the machine does not tell its memory. `device` is the number of
    its GPU, `devices` those of the workers that it is to start, if it is their engine.
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


class LeftOut(NamedTuple):
    """CPUs that no rank gets, one reason, and what the user can do about it."""

    cpus: tuple[int, ...]
    reason: str
    detail: str


class Plan(NamedTuple):
    """The placements of all local ranks, plus what is left over and why."""

    architecture: str
    machine: str
    runtime: str
    granularity: str
    wait_policy: str
    ranks: tuple[RankPlacement, ...]
    reserved: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    messages: tuple[Message, ...]
    live: bool = True
    """Whether it was planned for this machine as it runs, so that processes here can be bound by it."""


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


class Share(NamedTuple):
    """The cores of one rank: those with OpenMP threads and those reserved from them, in core order."""

    compute: tuple[Core, ...]
    reserved: tuple[Core, ...] = ()


class Reserve(NamedTuple):
    """How many cores should be kept back: of each rank, and in all besides."""

    per_rank: int
    total: int


class Split(NamedTuple):
    """The cores of each rank, whole and disjoint, and for each rank the idle cores of its pool."""

    shares: tuple[tuple[Core, ...], ...]
    idle: tuple[tuple[Core, ...], ...]


class GPUShares(NamedTuple):
    """The cores of each GPU rank (None: it stays unbound), and what a plan says of them.

    `unusable` are the CPUs that no rank may get, with the reason, `pools` the usable ones.
    """

    shares: list[Share | None]
    pools: list[Pool]
    unusable: dict[int, str]
    messages: list[Message]
