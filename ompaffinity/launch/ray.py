"""Ray: plan over its nodes, and start actors whose every thread is bound from birth.

Ray's workers are children of a raylet, not of the program that asks for them, so nothing is inherited. What reaches
an actor before its interpreter starts is its runtime environment: `env_vars`, and `py_executable`, which here runs
`bind_exec.py`. An actor whose start fails hangs for ever, so this never fails: what cannot be bound runs unbound and
says so in OMPAFFINITY_UNBOUND. Source: Ray's documentation (Environment Dependencies, Scheduling, Actors).
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
from contextlib import contextmanager, suppress
from operator import index

from ompaffinity.errors import BindingError, RequestError, TopologyError
from ompaffinity.launch import bind_exec
from ompaffinity.launch.run import free_port
from ompaffinity.openmp.document import worker_environment
from ompaffinity.openmp.environment import BINDING_VARIABLES, PLACEMENT_VARIABLE
from ompaffinity.openmp.granted import with_granted_memory
from ompaffinity.openmp.in_process import ProcessBinding, bind_current_process, current_binding
from ompaffinity.openmp.live import for_runtimes
from ompaffinity.openmp.runtimes import RuntimeLibrary, expected_runtimes
from ompaffinity.placement.cluster import ClusterNode, check_for_cluster, make_cluster_plan
from ompaffinity.placement.request import PlacementRequest, requested
from ompaffinity.records import Message
from ompaffinity.topology.idlist import format_id_list
from ompaffinity.topology.load import load_topology
from ompaffinity.topology.model import Topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from ompaffinity.placement.cluster import ClusterPlan
    from ompaffinity.placement.plan import Plan, RankPlacement

logger = logging.getLogger("ompaffinity")

NODE_SECONDS = 60.0
CONNECT_SECONDS = 5.0
HELPER_SECONDS = 30
BOOT_ID = "/proc/sys/kernel/random/boot_id"
OWN_INTERPRETER = (
    *("pip", "conda", "uv", "container", "image_uri", "py_executable"),
    *("nsight", "_nsight", "_rocprof_sys"),
)
"""Keys of a runtime environment that bring an interpreter, or a program before it, of their own."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_ONE_ACTOR = (*BINDING_VARIABLES, PLACEMENT_VARIABLE, "OMP_NUM_THREADS", *RANK_VARIABLES)
SAFE_START = f"""\
import os, runpy, sys
node, names = sys.argv[1], []
del sys.argv[:2]
command = sys.argv[sys.argv.index("--") + 1 :]
if any(word.startswith("--node-id=") and word != "--node-id=" + node for word in command):
    names = {OF_ONE_ACTOR!r}
else:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException as error:
        os.environ["{bind_exec.UNBOUND_VARIABLE}"] = "the helper does not run: " + str(error)
        names = {BINDING_VARIABLES!r}
for name in names:
    os.environ.pop(name, None)
os.execvp(command[0], command)
"""
"""What an actor's interpreter runs first: the helper, or where that is not to be had the actor all the same.

Tasks that an actor starts inherit its runtime environment, and may run on another node: there, nothing of it holds.
"""
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""RFC 9113, 3.4: the preface of a client and empty SETTINGS; a server, such as gRPC's, answers with SETTINGS."""
HTTP2_SETTINGS = 4


def plan_cluster(
    world_size: int | None = None,
    *,
    address: str | None = None,
    machines: Mapping[str, Topology | str] | None = None,
    timeout_seconds: float = NODE_SECONDS,
    **request: Any,
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
    wanted = check_for_cluster(requested(_with_sizes(world_size, request), os.environ))
    with connected(address):
        nodes, messages = _read_nodes(wanted, machines or {}, timeout_seconds)
        plan = make_cluster_plan(nodes, wanted)
        recorded = set(machines or {})
        hosts = tuple(
            host
            if any(node.node_id in recorded for node in host.nodes)
            else host._replace(plan=_granted_there(host.nodes[0], host.plan, timeout_seconds))
            for host in plan.hosts
        )
    granted = {placement.rank: placement for host in hosts for placement in host.plan.ranks}
    ranks = tuple(rank._replace(placement=granted[rank.rank]) for rank in plan.ranks)
    plan = plan._replace(ranks=ranks, hosts=hosts, warnings=(*messages, *plan.warnings))
    for message in plan.all_warnings:
        if message.level == "warning":
            logger.warning("%s: %s", message.code, message.message)
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
    of Ray's CPUs as it has, and the runtime environment that binds all of its threads from birth and tells it its
    rank as torchrun does (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). `runtime_env` is
    merged with that; one that brings an interpreter of its own (pip, conda, uv, a container) leaves the binding to
    `bind_actor`, first thing in the actor.

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
    environment["env_vars"] = {**_rank_variables(plan, number), **variables, **(environment.get("env_vars") or {})}
    jobs = ray.get_runtime_context().runtime_env if ray.is_initialized() else {}
    # What we ourselves gave the actor that asks is no interpreter of the user's.
    inherited = {} if bind_exec.UNBOUND_VARIABLE in str(jobs.get("py_executable", "")) else jobs
    own = [key for key in OWN_INTERPRETER if environment.get(key) or inherited.get(key)]
    if own and chosen.placement.bound:
        logger.warning(
            "the runtime environment of rank %d or of its job brings an interpreter of its own (%s), so it is not"
            " bound at its birth; call ompaffinity.ray.bind_actor() first thing in the actor",
            number,
            ", ".join(own),
        )
    elif chosen.placement.bound and node.helper:
        environment["py_executable"] = _bound_interpreter(node, chosen.placement, unset)
    strategy = scheduling_strategy or NodeAffinitySchedulingStrategy(chosen.node_id, soft=False)
    return {"num_cpus": chosen.slots, "scheduling_strategy": strategy, "runtime_env": environment}


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
    """Bind this process, from inside and with all of its threads; call it first thing in an actor, before torch.

    It is for actors that could not be bound at their birth; one that was is left as it is. `placement` is by default
    the one that `actor_options` told it. What the kernel refuses is logged and among the `warnings` of what is
    returned; nothing is raised for it, for an actor that fails in its ``__init__`` is lost. Where it is bound already
    by an earlier call, that one's binding is returned.

    Raises:
        RequestError: OMPAFFINITY_PLACEMENT does not hold a placement, or there is none.
    """
    from ompaffinity.openmp.current import current_placement

    placement = current_placement() if placement is None else placement
    if placement is None:
        raise RequestError(
            "this actor has no placement; start it with Worker.options(**actor_options(plan, rank)), or give it one"
        )
    if (earlier := current_binding()) is not None:
        return earlier
    try:
        binding = bind_current_process(placement, before_openmp=True)
    except BindingError as error:
        binding = ProcessBinding()
        binding.warnings.append(Message(error.code, "warning", f"this actor: {error}"))
    if binding.not_bound:
        reasons = "; ".join(sorted({thread.reason for thread in binding.not_bound}))
        text = f"this actor: {len(binding.not_bound)} of its threads are not bound ({reasons})"
        binding.warnings.append(Message("affinity-not-permitted", "warning", text))
    for message in binding.warnings:
        logger.warning("%s: %s", message.code, message.message)
    return binding


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected with a Ray cluster inside; a connection that is there already is used, and kept.

    Raises:
        RequestError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise RequestError(
            "Ray is not installed for this Python; install it with: pip install 'ompaffinity[ray]'"
        ) from None
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address is not None and not _is_this_cluster(address, there):
            raise RequestError(
                f"this program is connected with the Ray cluster at {there}, and not with the one at {address}; leave"
                " the address out, or call ray.shutdown() first"
            )
        yield
        return
    if address is None:
        raise RequestError("this program is not connected with a Ray cluster; call ray.init(address=...), or give one")
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    # Ray raises whatever its parts raise: ConnectionError, RuntimeError, gRPC's own, ...
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"no Ray cluster answers at {address}: {reason or type(error).__name__}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse an address that nobody listens at: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise RequestError(f"the Ray address is {address!r}; it must be auto, HOST:PORT or ray://HOST:PORT")
    encrypted = os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", "")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            if not encrypted:
                connection.sendall(HTTP2_HELLO)
                answer = connection.recv(9)
                if len(answer) < 4 or answer[3] != HTTP2_SETTINGS:
                    raise RequestError(f"what answers at {address} is no Ray cluster")
    except OSError as error:
        raise RequestError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None


def _is_this_cluster(address: str, connected_with: str) -> bool:
    """Return whether an address names the cluster that this program is connected with."""
    if address == "auto" or address.startswith("ray://"):
        return True
    (host, _, port), (other, _, other_port) = (text.rpartition(":") for text in (address, connected_with))
    try:
        return port == other_port and socket.gethostbyname(host) in (socket.gethostbyname(other), "127.0.0.1")
    except OSError:
        return False


def _with_sizes(world_size: int | None, request: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(request)
    product = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        size = given.get(name, 1)
        product *= size if isinstance(size, int) else 1
    if world_size is None or world_size == product:
        return given
    if product != 1:
        raise RequestError(f"world_size is {world_size}, but the sizes make {product} ranks; give one of them")
    return given | {"data_parallel_size": world_size}


def _read_nodes(
    request: PlacementRequest, machines: Mapping[str, Topology | str], timeout_seconds: float
) -> tuple[list[ClusterNode], list[Message]]:
    """Return the nodes that may run something, by address and id, and what there is to say of the others.

    Raises:
        RequestError: `machines` names a node that the cluster does not have.
        TopologyError: no node could be read.
    """
    alive = sorted(
        (node for node in _all_nodes() if node["Alive"]), key=lambda node: (node["NodeManagerAddress"], node["NodeID"])
    )
    strange = set(machines) - {node["NodeID"] for node in alive}
    if strange:
        raise RequestError(f"machines names node {min(strange)!r}, which the cluster does not have")
    working = [node for node in alive if node["Resources"].get("CPU", 0) > 0]
    read = _on_each([node["NodeID"] for node in working], read_node, (), timeout_seconds)
    nodes, messages = [], []
    for node in working:
        found = read[node["NodeID"]]
        if isinstance(found, str):
            text = f"node {node['NodeManagerAddress']} ({node['NodeID'][:8]}) gets no ranks: {found}"
            messages.append(Message("node-not-read", "warning", text))
            continue
        nodes.append(_cluster_node(node, found, request, machines.get(node["NodeID"]), messages))
    if working and not nodes:
        raise TopologyError(f"no node of the cluster could be read: {messages[0].message}")
    messages += _overlaps(nodes)
    return nodes, messages


def _all_nodes() -> list[dict[str, Any]]:
    import ray

    found: list[dict[str, Any]] = ray.nodes()
    return found


def _cluster_node(
    node: Mapping[str, Any],
    found: Mapping[str, Any],
    request: PlacementRequest,
    machine: Topology | str | None,
    messages: list[Message],
) -> ClusterNode:
    from ompaffinity.topology.snapshot import parse_capture

    if machine is None:
        topology, host = parse_capture(found["topology"]), found["host"]
        host = f"{host}:{format_id_list(topology.allowed_cpus)}"
    else:
        topology = machine if isinstance(machine, Topology) else load_topology(machine=machine)
        host = node["NodeID"]
    asked = request
    told: list[Message] = []
    if request.bind != "none":
        asked, told = for_runtimes(request, tuple(RuntimeLibrary(*library) for library in found["runtimes"]))
    if found["problem"]:
        text = f"actors cannot be bound at their birth ({found['problem']}); call bind_actor() first thing in them"
        told.append(Message("helper-unusable", "warning", text))
    name = f"{found['name']} ({node['NodeID'][:8]})"
    messages += [message._replace(message=f"{name}: {message.message}") for message in told]
    return ClusterNode(
        node_id=node["NodeID"],
        name=name,
        topology=topology,
        slots=float(node["Resources"]["CPU"]),
        host=host,
        runtime=asked.runtime,
        granularity=asked.granularity,
        address=node["NodeManagerAddress"],
        port=found["port"],
        python=found["python"],
        helper="" if found["problem"] else found["helper"],
    )


def _overlaps(nodes: Sequence[ClusterNode]) -> Iterator[Message]:
    for position, node in enumerate(nodes):
        for other in nodes[:position]:
            same_boot = node.host != other.host and node.host.partition(":")[0] == other.host.partition(":")[0]
            shared = set(node.topology.allowed_cpus) & set(other.topology.allowed_cpus)
            if same_boot and shared:
                text = (
                    f"{other.name} and {node.name} are on one machine and share CPU {format_id_list(shared)}, but not"
                    " all CPUs, so that ranks of both may get the same ones; start their raylets with the same CPUs,"
                    " or with CPUs of their own"
                )
                yield Message("nodes-overlap", "warning", text)


def _on_each(
    node_ids: Sequence[str], function: Callable[..., Any], arguments: tuple[Any, ...], timeout_seconds: float
) -> dict[str, Any]:
    """Return what `function` returns on each of the nodes; a sentence where it did not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    started = {
        node_id: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            *arguments
        )
        for node_id in node_ids
    }
    ready, _ = ray.wait([*started.values()], num_returns=len(started), timeout=timeout_seconds) if started else ([], [])
    answers: dict[str, Any] = {}
    for node_id, reference in started.items():
        if reference not in ready:
            ray.cancel(reference, force=True)
            answers[node_id] = f"it does not answer within {timeout_seconds:g} seconds"
            continue
        try:
            answers[node_id] = ray.get(reference)
        except Exception as error:  # noqa: BLE001
            # What a task raises arrives as an error of Ray's with the traceback; its last line says it.
            answers[node_id] = str(error).strip().splitlines()[-1][:300]
    return answers


def read_node() -> dict[str, Any]:
    """Return what a worker of a Ray node sees there, as plain values; it is run as a task of that node."""
    topology = _topology_of_node()
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            host = file.read().strip()
    except OSError:
        host = socket.gethostname()
    return {
        "topology": topology.to_document(),
        "host": host,
        "name": socket.gethostname(),
        "python": sys.executable,
        "helper": bind_exec.__file__,
        "problem": _helper_problem(),
        "runtimes": [tuple(library) for library in expected_runtimes(os.environ)],
        "port": free_port(),
    }


def _topology_of_node() -> Topology:
    """Return what the raylet may use: this worker is bound if who asks is, for tasks inherit runtime environments."""
    if not hasattr(os, "sched_getaffinity"):
        return load_topology()
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    try:
        return load_topology()
    finally:
        os.sched_setaffinity(0, before)


def _helper_problem() -> str | None:
    """Try the helper as an actor would be started; return why that does not work."""
    import subprocess

    ask = "import os; print(os.environ.get('OMPAFFINITY_UNBOUND', ''))"
    words = [*_helper_words(sys.executable, bind_exec.__file__, ""), "--", sys.executable, "-I", "-S", "-c", ask]
    try:
        # This interpreter and a file of ours: no shell.
        found = subprocess.run(words, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if found.returncode:
        return (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
    return found.stdout.strip() or None


def _helper_words(python: str, helper: str, node_id: str) -> list[str]:
    return [python, "-I", "-S", "-c", SAFE_START, node_id, helper]


def _bound_interpreter(node: ClusterNode, placement: RankPlacement, unset: Sequence[str]) -> str:
    """Return the command that starts the interpreter bound; Ray pastes it into a shell's, so that it is quoted."""
    words = [*_helper_words(node.python, node.helper, node.node_id), "--cpus", format_id_list(placement.affinity)]
    if placement.memory_policy != "none" and placement.nodes:
        words += [f"--{placement.memory_policy}", format_id_list(placement.nodes)]
    for name in unset:
        words += ["--unset", name]
    return shlex.join([*words, "--", node.python])


def _granted_there(node: ClusterNode, plan: Plan, timeout_seconds: float) -> Plan:
    """Return the plan with the memory policies that the kernel of that node grants."""
    if all(rank.memory_policy == "none" for rank in plan.ranks):
        return plan
    answer = _on_each([node.node_id], with_granted_memory, (plan,), timeout_seconds)[node.node_id]
    if isinstance(answer, str):
        text = f"which memory policies the kernel grants there was not found out: {answer}"
        return plan._replace(warnings=(*plan.warnings, Message("node-not-read", "warning", text)))
    granted: Plan = answer
    return granted


def _rank_variables(plan: ClusterPlan, rank: int) -> dict[str, str]:
    """Return what tells an actor who it is: the variables of torchrun, which Ray does not set."""
    placement = plan.ranks[rank].placement
    _, first = plan.home(0)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(placement.local_rank),
        "WORLD_SIZE": str(len(plan.ranks)),
        "LOCAL_WORLD_SIZE": str(placement.local_world_size),
        "MASTER_ADDR": first.address,
        "MASTER_PORT": str(first.port),
    }
