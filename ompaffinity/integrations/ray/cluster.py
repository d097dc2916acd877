"""The plan for several machines: how many ranks each one gets, and each one's own plan. Pure, like every plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.integrations.ray.rooms import deal_out, ranks_by_room
from ompaffinity.messages import GPU_BY_SCHEDULER, GROUPS_SPAN_NODES, NODES_SHARE_MACHINE, UNEVEN_RANKS, Message
from ompaffinity.placement.check import check_request
from ompaffinity.placement.plan import make_plan, usable_room
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ompaffinity.placement.model import Plan, RankPlacement
    from ompaffinity.placement.request import PlacementRequest
    from ompaffinity.topology.model import Topology


class ClusterNode(NamedTuple):
    """One node of a cluster's scheduler, and the machine that it is on.

    `slots` are the CPUs that the scheduler counts there (Ray's resource ``CPU``), 0 where nothing may run. Nodes of
    the same `host` share one machine and its CPUs. `runtime` is the OpenMP runtime that workers load there, as
    `PlacementRequest` names it, and `granularity` how their threads are bound. `address` is where the others
    reach it, `port` one that was free there, `python` the interpreter of its workers, and `helper` the file that
    binds them at process start, empty where it does not run. `gpu_slots` are the GPUs that the scheduler counts there,
    `gpus` all that the machine has: PCI address and home of each.
    """

    node_id: str
    name: str
    topology: Topology
    slots: float
    host: str
    runtime: str = "auto"
    granularity: str = "auto"
    address: str = ""
    port: int = 0
    python: str = ""
    helper: str = ""
    gpu_slots: float = 0
    gpus: tuple[tuple[str, GPUHome], ...] = ()


class ClusterRank(NamedTuple):
    """One rank of the cluster: its node, its placement there, and how many of the node's slots it takes.

    The scheduler chooses the GPU of a GPU rank: its placement is that of one of them.
    """

    rank: int
    node_id: str
    placement: RankPlacement
    slots: float


class HostPlan(NamedTuple):
    """The plan of one machine, with the cluster's rank numbers, and the nodes that are on it.

    `by_gpu` has, for GPU ranks, the placement that goes with each of the machine's GPUs, by PCI address.
    """

    host: str
    nodes: tuple[ClusterNode, ...]
    plan: Plan
    by_gpu: dict[str, RankPlacement]


class ClusterPlan(NamedTuple):
    """The ranks in order, the machines that have any, and the messages in addition to those of their plans."""

    ranks: tuple[ClusterRank, ...]
    hosts: tuple[HostPlan, ...]
    messages: tuple[Message, ...] = ()

    def home(self, rank: int) -> tuple[HostPlan, ClusterNode]:
        """Return the machine of a rank and its node there."""
        node_id = self.ranks[rank].node_id
        return next((host, node) for host in self.hosts for node in host.nodes if node.node_id == node_id)

    @property
    def all_messages(self) -> tuple[Message, ...]:
        """The messages of the cluster, and those of each machine's plan with its name before them."""
        of_hosts = [
            message._replace(message=f"{host.nodes[0].name}: {message.message}")
            for host in self.hosts
            for message in host.plan.messages
        ]
        return (*self.messages, *of_hosts)


def make_cluster_plan(nodes: Iterable[ClusterNode], request: PlacementRequest) -> ClusterPlan:
    """Decide how many ranks each node gets, by its usable cores, and plan each machine. Same input, same plan.

    Tensor-parallel groups (`request.group` ranks in turn) stay on one machine where one has room for them. Ranks are
    numbered through, machine by machine, in the order of the nodes.

    Raises:
        RequestError: the request makes no sense for several machines.
        PlacementError: the nodes cannot meet it.
    """
    request = check_for_cluster(request)
    hosts = _usable_hosts(nodes, request)
    rooms = _rooms(hosts, request)
    counts, whole = ranks_by_room(rooms, request.ranks, request.group, oversubscribe=request.oversubscribe)
    plans: list[HostPlan] = []
    ranks: list[ClusterRank] = []
    for members, count in zip(hosts, counts):
        if count:
            plans.append(_plan_host(request, members, count, first_rank=len(ranks)))
            ranks += _dealt(members, plans[-1].plan.ranks)
    messages = (*_cluster_messages(hosts, request, whole=whole), *_rank_messages(request, ranks, len(plans)))
    return ClusterPlan(tuple(ranks), tuple(plans), messages)


def _usable_hosts(nodes: Iterable[ClusterNode], request: PlacementRequest) -> list[list[ClusterNode]]:
    """Return the nodes that may run ranks, grouped by the machine that they are on, in the order given.

    Raises:
        PlacementError: there are none.
    """
    hosts: dict[str, list[ClusterNode]] = {}
    for node in nodes:
        if node.slots > 0 and (node.gpu_slots >= 1 or not request.for_gpus):
            hosts.setdefault(node.host, []).append(node)
    if not hosts:
        what = "GPUs" if request.for_gpus else "CPUs"
        raise PlacementError(f"no node of the cluster may run anything: each has 0 {what} for its scheduler")
    return [*hosts.values()]


def _rooms(hosts: Sequence[Sequence[ClusterNode]], request: PlacementRequest) -> list[tuple[int, int]]:
    """Return (usable cores, usable CPUs) of each machine; for GPU ranks its GPUs take the place of both.

    Raises:
        PlacementError: the cluster has fewer GPUs than GPU ranks, or the request names CPUs that a machine lacks.
    """
    if not request.for_gpus:
        return [usable_room(members[0].topology, request) for members in hosts]
    gpus = [sum(int(node.gpu_slots) for node in members) for members in hosts]
    if request.ranks > sum(gpus):
        raise PlacementError(
            f"{request.ranks} GPU ranks were requested, but the cluster has {sum(gpus)} GPUs; request at most"
            " these with --tp, --pp and --dp"
        )
    return [(count, count) for count in gpus]


def _plan_host(request: PlacementRequest, members: Sequence[ClusterNode], count: int, *, first_rank: int) -> HostPlan:
    """Return the plan of `count` ranks on one machine, numbered from `first_rank` on."""
    if request.for_gpus:
        plan, by_gpu = _plan_for_gpus(request, members, count)
    else:
        plan, by_gpu = make_plan(members[0].topology, _request_of_host(request, members[0], count)), {}
    ranks = tuple(placement._replace(rank=first_rank + placement.rank) for placement in plan.ranks)
    return HostPlan(members[0].host, tuple(members), plan._replace(ranks=ranks), by_gpu)


def check_for_cluster(request: PlacementRequest) -> PlacementRequest:
    """Return `request` if it makes sense for several machines.

    Raises:
        RequestError: it does not, or for no machine.
    """
    by_hand = {"numa_bind_nodes": "--numa-bind-nodes", "numa_bind_cpus": "--numa-bind-cpus", "gpus": "--gpus"}
    named = [option for field, option in by_hand.items() if getattr(request, field) is not None]
    if named:
        raise RequestError(f"{named[0]} is for one machine; for the GPUs of a cluster use --numa-bind")
    if isinstance(request.bind, tuple):
        raise RequestError("--bind with lists is for one machine; for a cluster it is auto or none")
    if request.avoid:
        raise RequestError("--avoid is for one machine; a cluster's plan cannot keep off another one's CPUs")
    return check_request(request)


def _cluster_messages(
    hosts: Sequence[Sequence[ClusterNode]], request: PlacementRequest, *, whole: bool
) -> Iterator[Message]:
    if not whole:
        yield GROUPS_SPAN_NODES(group=request.group)
    for members in hosts:
        if len(members) > 1:
            names = ", ".join(node.node_id[:8] for node in members)
            yield NODES_SHARE_MACHINE(nodes=names, machine=members[0].name)


def _rank_messages(request: PlacementRequest, ranks: Iterable[ClusterRank], machines: int) -> Iterator[Message]:
    if request.for_gpus:
        yield GPU_BY_SCHEDULER()
    threads = [len(rank.placement.cpus) for rank in ranks if rank.placement.bound]
    if threads and max(threads) > min(threads) + 1 and machines > 1:
        yield UNEVEN_RANKS(smallest=min(threads), largest=max(threads), cause=" because the machines differ")


def _request_of_host(request: PlacementRequest, node: ClusterNode, count: int) -> PlacementRequest:
    tensor, pipeline = request.tensor_parallel_size, request.pipeline_parallel_size
    if count % (tensor * pipeline) == 0:
        sizes = (tensor, pipeline, count // (tensor * pipeline))
    elif count % tensor == 0:
        sizes = (tensor, count // tensor, 1)
    else:
        sizes = (count, 1, 1)
    return request._replace(
        tensor_parallel_size=sizes[0],
        pipeline_parallel_size=sizes[1],
        data_parallel_size=sizes[2],
        runtime=node.runtime if request.runtime == "auto" else request.runtime,
        granularity=node.granularity if request.granularity == "auto" else request.granularity,
    )


def _plan_for_gpus(
    request: PlacementRequest, members: Sequence[ClusterNode], count: int
) -> tuple[Plan, dict[str, RankPlacement]]:
    """Return the plan of so many ranks on one machine, and the placement that goes with each of its GPUs.

    All GPUs get a part, because it is unknown which of them the ranks get. The node of a GPU that the scheduler counts
    and that was not detected is unknown.
    """
    node = members[0]
    unseen = max(0, count - len(node.gpus))
    homes = (*(home for _, home in node.gpus), *(GPUHome() for _ in range(unseen)))
    whole = make_plan(
        node.topology,
        _request_of_host(request, node, count)._replace(
            tensor_parallel_size=len(homes), pipeline_parallel_size=1, data_parallel_size=1, gpu_homes=homes
        ),
    )
    by_gpu = {address: rank for (address, _), rank in zip(node.gpus, whole.ranks)}
    ranks = tuple(rank._replace(local_world_size=count) for rank in whole.ranks[:count])
    return whole._replace(ranks=ranks), by_gpu


def _dealt(members: Sequence[ClusterNode], placements: Sequence[RankPlacement]) -> list[ClusterRank]:
    """Deal one machine's ranks out to its nodes by their slots; each gets its CPUs' worth of them, if there are.

    GPU ranks are dealt out by the nodes' GPUs.
    """
    if any(placement.gpu is not None for placement in placements):
        gpus = [int(node.gpu_slots) for node in members]
        counts = deal_out(gpus, gpus, len(placements), 1)
    else:
        counts = deal_out([node.slots for node in members], None, len(placements), 1)
    ranks: list[ClusterRank] = []
    for node, count in zip(members, counts):
        for placement in placements[len(ranks) : len(ranks) + count]:
            ranks.append(ClusterRank(placement.rank, node.node_id, placement, _slots(node, placement, count)))
    return ranks


def _slots(node: ClusterNode, placement: RankPlacement, ranks: int) -> float:
    """Return how many of the node's slots a rank takes: its CPUs, or its part; whole ones where that is one or more."""
    part = node.slots / ranks
    owned = len({*placement.cpus, *placement.helper_cpus}) or part
    if part >= 1:
        return float(int(min(part, owned)))
    # Ray counts in ten-thousandths (FixedPoint, resource_instance_set.h); rounded down, for all must fit.
    return int(part * 10000) / 10000
