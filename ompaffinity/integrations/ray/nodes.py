"""The nodes of a Ray cluster: connect to the cluster, and read each node with a task that runs there."""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ompaffinity.bind.live_plan import for_runtimes
from ompaffinity.bind.memory_fallbacks import with_accepted_memory
from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import RequestError, TopologyError
from ompaffinity.ids import format_id_list
from ompaffinity.integrations.ray.cluster import ClusterNode
from ompaffinity.integrations.ray.interpreter import helper_problem
from ompaffinity.interpreter import install_command
from ompaffinity.launch import bind_exec
from ompaffinity.launch.ranks import free_port
from ompaffinity.messages import HELPER_UNUSABLE, MEMORY_POLICY_UNKNOWN, NODE_NOT_READ, NODES_OVERLAP, Message
from ompaffinity.openmp.detect import RuntimeLibrary, expected_runtimes
from ompaffinity.topology.model import Topology
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from ompaffinity.placement.model import Plan
    from ompaffinity.placement.request import PlacementRequest

CONNECT_SECONDS = 5.0
MAX_REASON = 300
BOOT_ID = "/proc/sys/kernel/random/boot_id"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""RFC 9113, 3.4: the preface of a client with empty SETTINGS; an HTTP/2 server, such as gRPC's, returns SETTINGS."""
HTTP2_SETTINGS = 4


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster inside the context; an existing connection is used and kept.

    Raises:
        RequestError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        command = install_command("ompaffinity[ray]")
        raise RequestError(f"Ray is not installed for this Python; install it with: {command}") from None
    if ray.is_initialized():
        connected_to = ray.get_runtime_context().gcs_address
        if address is not None and not _is_this_cluster(address, connected_to):
            raise RequestError(
                f"this program is connected to the Ray cluster at {connected_to}, not to {address}; omit the address,"
                " or call ray.shutdown() first"
            )
        yield
        return
    if address is None:
        raise RequestError(
            "this program is not connected to a Ray cluster; call ray.init(address=...), or pass the address"
        )
    _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    # Ray documents no common base class: it raises ConnectionError, RuntimeError, exceptions of gRPC and others.
    except Exception as error:  # noqa: BLE001
        raise RequestError(f"cannot connect to a Ray cluster at {address}: {in_one_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise RequestError at once if no HTTP/2 server listens at the address: Ray retries for minutes."""
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise RequestError(f"the Ray address is {address!r}; it must be auto, HOST:PORT or ray://HOST:PORT")
    encrypted = os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", "")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            if not encrypted:
                connection.sendall(HTTP2_PREFACE)
                answer = connection.recv(9)
                if len(answer) < 4 or answer[3] != HTTP2_SETTINGS:
                    raise RequestError(f"the server at {address} is not a Ray cluster; pass the address of one")
    except OSError as error:
        raise RequestError(f"cannot connect to a Ray cluster at {address}: {error.strerror or error}") from None


def _is_this_cluster(address: str, connected_to: str) -> bool:
    """Return whether an address names the cluster to which this program is connected."""
    if address == "auto" or address.startswith("ray://"):
        return True
    (host, _, port), (other, _, other_port) = (text.rpartition(":") for text in (address, connected_to))
    try:
        return port == other_port and socket.gethostbyname(host) in (socket.gethostbyname(other), "127.0.0.1")
    except OSError:
        return False


def read_nodes(
    request: PlacementRequest, machines: Mapping[str, Topology | str], timeout_seconds: float
) -> tuple[list[ClusterNode], list[Message]]:
    """Return the nodes with CPU slots, by address and id, and the messages about them and about unreadable nodes.

    Raises:
        RequestError: `machines` names a node that is not in the cluster.
        TopologyError: no node can be read.
    """
    import ray

    alive = sorted(
        (node for node in ray.nodes() if node["Alive"]), key=lambda node: (node["NodeManagerAddress"], node["NodeID"])
    )
    unknown = set(machines) - {node["NodeID"] for node in alive}
    if unknown:
        raise RequestError(f"machines has node {min(unknown)!r}, which is not in the cluster; use ids of ray.nodes()")
    usable = [node for node in alive if node["Resources"].get("CPU", 0) > 0]
    ids = [node["NodeID"] for node in usable]
    results = _on_each(ids, read_node, (request.for_gpus,), timeout_seconds)
    nodes: list[ClusterNode] = []
    messages: list[Message] = []
    for node in usable:
        result = results[node["NodeID"]]
        if isinstance(result, str):
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            messages.append(NODE_NOT_READ(node=name, reason=result))
            continue
        cluster_node, node_messages = _cluster_node(node, result, request, machines.get(node["NodeID"]))
        nodes.append(cluster_node)
        messages += node_messages
    if usable and not nodes:
        raise TopologyError(f"no node of the cluster can be read: {messages[0].message}")
    messages += _overlaps(nodes)
    return nodes, messages


def _cluster_node(
    node: Mapping[str, Any],
    found: Mapping[str, Any],
    request: PlacementRequest,
    machine: Topology | str | None,
) -> tuple[ClusterNode, list[Message]]:
    """Return a node from the values read there, with `machine` instead of its own topology, and its messages."""
    from ompaffinity.topology.snapshot import parse_capture

    if machine is None:
        topology, host = parse_capture(found["topology"]), found["host"]
        host = f"{host}:{format_id_list(topology.allowed_cpus)}"
    else:
        topology = machine if isinstance(machine, Topology) else load_topology(machine=machine)
        host = node["NodeID"]
    resolved = request
    messages: list[Message] = []
    if request.bind != "none":
        resolved, messages = for_runtimes(request, tuple(RuntimeLibrary(*library) for library in found["runtimes"]))
    if found["problem"]:
        messages.append(HELPER_UNUSABLE(reason=found["problem"]))
    name = f"{found['name']} ({node['NodeID'][:8]})"
    cluster_node = ClusterNode(
        node_id=node["NodeID"],
        name=name,
        topology=topology,
        slots=float(node["Resources"]["CPU"]),
        host=host,
        runtime=resolved.runtime,
        granularity=resolved.granularity,
        address=node["NodeManagerAddress"],
        port=found["port"],
        python=found["python"],
        helper="" if found["problem"] else found["helper"],
        gpu_slots=float(node["Resources"].get("GPU", 0)),
        gpus=_homes(found["devices"], machine, topology) if request.for_gpus else (),
    )
    return cluster_node, [message._replace(message=f"{name}: {message.message}") for message in messages]


def _homes(
    found: Iterable[Sequence[Any]], machine: Topology | str | None, topology: Topology
) -> tuple[tuple[str, GPUHome], ...]:
    """Return the GPUs of a node: those read there, or those of the recorded machine that replaces it."""
    if isinstance(machine, str):
        from ompaffinity.devices.recorded import recorded_gpus

        recorded = recorded_gpus(machine, topology).gpus
        return tuple((device.address, GPUHome(device.nodes, device.messages)) for device in recorded)
    if machine is not None:
        return ()
    return tuple(
        (address, GPUHome(tuple(nodes), tuple(Message(*message) for message in messages)))
        for address, nodes, messages in found
    )


def _overlaps(nodes: Sequence[ClusterNode]) -> Iterator[Message]:
    for position, node in enumerate(nodes):
        for other in nodes[:position]:
            same_boot = node.host != other.host and node.host.partition(":")[0] == other.host.partition(":")[0]
            shared = set(node.topology.allowed_cpus) & set(other.topology.allowed_cpus)
            if same_boot and shared:
                yield NODES_OVERLAP(first=other.name, second=node.name, cpus=format_id_list(shared))


def _on_each(
    node_ids: Sequence[str], function: Callable[..., Any], arguments: tuple[Any, ...], timeout_seconds: float
) -> dict[str, Any]:
    """Return {node id: result of `function` on that node}; the result is a text with the reason if it failed."""
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
    results: dict[str, Any] = {}
    for node_id, reference in started.items():
        if reference not in ready:
            ray.cancel(reference, force=True)
            results[node_id] = f"no reply within {timeout_seconds:g} seconds"
            continue
        try:
            results[node_id] = ray.get(reference)
        except Exception as error:  # noqa: BLE001
            results[node_id] = in_one_line(error)
    return results


def in_one_line(error: Exception) -> str:
    """Return the last line of the exception of a task or an actor: Ray puts the traceback before it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:MAX_REASON]


def read_node(for_gpus: bool) -> dict[str, Any]:
    """Return the topology and the software of a Ray node as plain values; runs as a task on that node."""
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
        "problem": helper_problem(),
        "runtimes": [tuple(library) for library in expected_runtimes(os.environ)],
        "port": free_port(),
        "devices": _devices(topology) if for_gpus else [],
    }


def _devices(topology: Topology) -> list[tuple[str, tuple[int, ...], list[tuple[str, ...]]]]:
    """Return (PCI address, nodes, messages) of every GPU of this machine, visible or not."""
    from ompaffinity.devices.live import live_gpus

    gpus = live_gpus(topology, environ={}).gpus
    return [(gpu.address, gpu.nodes, [tuple(message) for message in gpu.messages]) for gpu in gpus]


def _topology_of_node() -> Topology:
    """Return the topology with the CPU mask of the raylet.

    This worker may be bound itself: tasks inherit the runtime environment of the actor that starts them.
    """
    if not hasattr(os, "sched_getaffinity"):
        return load_topology()
    before = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    try:
        return load_topology()
    finally:
        os.sched_setaffinity(0, before)


def accepted_there(node: ClusterNode, plan: Plan, timeout_seconds: float) -> Plan:
    """Return the plan with the memory policies that the kernel of that node accepts."""
    if all(rank.memory_policy == "none" for rank in plan.ranks):
        return plan
    result = _on_each([node.node_id], with_accepted_memory, (plan,), timeout_seconds)[node.node_id]
    if isinstance(result, str):
        unknown = MEMORY_POLICY_UNKNOWN(reason=result)
        return plan._replace(messages=(*plan.messages, unknown))
    accepted: Plan = result
    return accepted
