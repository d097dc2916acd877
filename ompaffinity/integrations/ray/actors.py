"""Ray: plan over its nodes, and start actors whose every thread is bound before it starts.

Ray's workers are children of a raylet, not of the program that asks for them, so nothing is inherited. What reaches
an actor before its interpreter starts is its runtime environment: `env_vars`, and `py_executable`, which here runs
`bind_exec.py`. An actor whose start fails never returns, so this never fails: what cannot be bound runs unbound and
has the reason in OMPAFFINITY_UNBOUND. Source: Ray's documentation (Environment Dependencies, Scheduling, Actors).
"""

from __future__ import annotations

import logging
import os
from operator import index
from typing import TYPE_CHECKING

from ompaffinity.bind.environment import copy_of
from ompaffinity.bind.process import ProcessBinding, bind_current_process, current_binding
from ompaffinity.bind.saved_options import resolved
from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.integrations.ray.cluster import check_for_cluster, make_cluster_plan
from ompaffinity.integrations.ray.gpus import GPU_VARIABLE, gpu_table, placement_of_rays_gpus
from ompaffinity.integrations.ray.interpreter import bound_interpreter
from ompaffinity.integrations.ray.nodes import accepted_there, connected, read_nodes
from ompaffinity.launch import bind_exec
from ompaffinity.launch.ranks import rank_variables
from ompaffinity.messages import REFUSALS, THREADS_NOT_BOUND, Message, log_warnings
from ompaffinity.openmp.plan_document import worker_environment
from ompaffinity.placement.environment import requested
from ompaffinity.placement.request import product_of_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from typing_extensions import Unpack

    from ompaffinity.bind.options import PlanOptions
    from ompaffinity.integrations.ray.cluster import ClusterPlan
    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.topology.model import Topology

logger = logging.getLogger("ompaffinity")

NODE_SECONDS = 60.0
OWN_INTERPRETER = (
    *("pip", "conda", "uv", "container", "image_uri", "py_executable"),
    *("nsight", "_nsight", "_rocprof_sys"),
)
"""Keys of a runtime environment that bring an interpreter, or a program before it, of their own."""


def plan_cluster(
    world_size: int | None = None,
    *,
    address: str | None = None,
    machines: Mapping[str, Topology | str] | None = None,
    timeout_seconds: float = NODE_SECONDS,
    **request: Unpack[PlanOptions],
) -> ClusterPlan:
    """Read every node of a Ray cluster by a task there, and plan `world_size` ranks over them.

    `request` are the keyword arguments of `PlacementRequest`; without sizes among them the ranks are independent ones.
    `machines` names nodes (by their id) that are to be planned as another machine: a Topology, or the path of a
    record. `address` is that of the cluster; without it `ray.init` must have been called. Nodes that do not answer
    within `timeout_seconds` get no ranks, with the warning ``node-not-read``.

    Raises:
        RequestError: Ray is not installed or not to be reached, or the request makes no sense for a cluster.
        PlacementError, TopologyError: there can be no such plan on these nodes.
    """
    files = resolved(_with_sizes(world_size, request), copy_of(os.environ))
    wanted = check_for_cluster(requested(files.given, files.environ))
    with connected(address):
        nodes, messages = read_nodes(wanted, machines or {}, timeout_seconds)
        plan = make_cluster_plan(nodes, wanted)
        recorded = set(machines or {})
        hosts = tuple(
            host
            if any(node.node_id in recorded for node in host.nodes)
            else host._replace(plan=accepted_there(host.nodes[0], host.plan, timeout_seconds))
            for host in plan.hosts
        )
    accepted = {placement.rank: placement for host in hosts for placement in host.plan.ranks}
    ranks = tuple(rank._replace(placement=accepted[rank.rank]) for rank in plan.ranks)
    plan = plan._replace(ranks=ranks, hosts=hosts, messages=(*messages, *plan.messages))
    log_warnings(plan.all_messages)
    return plan


def actor_options(
    plan: ClusterPlan,
    rank: int,
    *,
    runtime_env: Mapping[str, Any] | None = None,
    scheduling_strategy: object | None = None,
) -> dict[str, Any]:
    """Return the options of the actor of a rank: ``Worker.options(**actor_options(plan, 0)).remote()``.

    They are its node (or `scheduling_strategy`, such as a placement group's, if that leads to the same node), as many
    of Ray's CPUs as it has, and the runtime environment that binds all of its threads before they start and sets the
    rank variables of torchrun (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). `runtime_env`
    is merged with that; one with an interpreter of its own (pip, conda, uv, a container) leaves the binding to
    `bind_actor`, first thing in the actor, and so does a GPU rank: it gets one of Ray's GPUs, and which one is known
    only then.

    Raises:
        RequestError: the plan has no such rank.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    number = _rank_number(rank, len(plan.ranks))
    chosen = plan.ranks[number]
    host, node = plan.home(number)
    variables, unset = worker_environment(host.plan, chosen.placement)
    environment = dict(runtime_env or {})
    rank_environment = rank_variables(
        number,
        len(plan.ranks),
        chosen.placement.local_rank,
        chosen.placement.local_world_size,
        address=plan.home(0)[1].address,
        port=plan.home(0)[1].port,
    )
    strategy = scheduling_strategy or NodeAffinitySchedulingStrategy(chosen.node_id, soft=False)
    options = {"num_cpus": chosen.slots, "scheduling_strategy": strategy, "runtime_env": environment}
    if chosen.placement.gpu is not None:
        # Ray assigns the GPU inside of the actor only: bind_actor() finds its placement.
        rank_environment[GPU_VARIABLE] = gpu_table(host, chosen.node_id)
        environment["env_vars"] = {**rank_environment, **(environment.get("env_vars") or {})}
        return options | {"num_gpus": 1}
    environment["env_vars"] = {**rank_environment, **variables, **(environment.get("env_vars") or {})}
    jobs = ray.get_runtime_context().runtime_env if ray.is_initialized() else {}
    # What we ourselves gave the actor that asks is no interpreter of the user's.
    inherited = {} if bind_exec.UNBOUND_VARIABLE in str(jobs.get("py_executable", "")) else jobs
    own = [key for key in OWN_INTERPRETER if environment.get(key) or inherited.get(key)]
    if own and chosen.placement.bound:
        logger.warning(
            "the runtime environment of rank %d or of its job brings an interpreter of its own (%s), so it is not"
            " bound before it starts; call ompaffinity.ray.bind_actor() first in the actor",
            number,
            ", ".join(own),
        )
    elif chosen.placement.bound and node.helper:
        environment["py_executable"] = bound_interpreter(node, chosen.placement, unset)
    return options


def _rank_number(rank: object, ranks: int) -> int:
    """Return the rank as a plain number, of whatever kind of integer it is.

    Raises:
        RequestError: it is none, or the plan has no such rank.
    """
    try:
        number = -1 if isinstance(rank, bool) else index(rank)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < ranks:
        raise RequestError(f"rank {rank!r} is not one of the {ranks} ranks of the plan")
    return number


def bind_actor(placement: RankPlacement | None = None) -> ProcessBinding:
    """Bind this process with all of its threads; call it first in an actor, before torch is imported.

    It is for actors that could not be bound before they started; a bound actor stays unchanged. `placement` is by
    default the one from `actor_options`, or for a GPU rank the one of the GPU that Ray assigned. An actor with a GPU
    and without a plan gets its GPU's part of the CPUs next to it. What the kernel refuses is logged and added to the
    `messages` of the result; nothing is raised for it, because an actor that fails in its ``__init__`` is lost. A
    second call returns the binding of the first one.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement, or there is none and no GPU either.
    """
    if (earlier := current_binding()) is not None:
        return earlier
    more: tuple[Message, ...] = ()
    if placement is None:
        placement, more = placement_of_rays_gpus() or (current_placement(), ())
    if placement is None:
        raise RequestError(
            "this actor has no placement; start it with Worker.options(**actor_options(plan, rank)), or give it one"
        )
    try:
        binding = bind_current_process(placement, before_openmp=True)
    except BindingError as error:
        binding = ProcessBinding()
        refused = REFUSALS[error.code](subject="this actor", consequence="it runs unbound", reason=error)
        binding.messages.append(refused)
    binding.messages += more
    if binding.not_bound:
        reasons = "; ".join(sorted({thread.reason for thread in binding.not_bound}))
        count = len(binding.not_bound)
        binding.messages.append(THREADS_NOT_BOUND(subject="this actor", count=count, reasons=reasons))
    log_warnings(binding.messages)
    return binding


def _with_sizes(world_size: int | None, request: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(request)
    product = product_of_sizes(given)
    if world_size is None or world_size == product:
        return given
    if product != 1:
        raise RequestError(f"world_size is {world_size}, but the sizes make {product} ranks; give one of them")
    return given | {"data_parallel_size": world_size}
