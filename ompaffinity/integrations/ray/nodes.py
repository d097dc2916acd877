"""The nodes of a Ray cluster: connected with, and each one read by a task that runs there."""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ompaffinity.bind.live_plan import for_runtimes
from ompaffinity.bind.memory_fallbacks import with_granted_memory
from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import RequestError, TopologyError
from ompaffinity.ids import format_id_list
from ompaffinity.integrations.ray.cluster import ClusterNode
from ompaffinity.integrations.ray.interpreter import helper_problem
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
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""RFC 9113, 3.4: the preface of a client and empty SETTINGS; a server, such as gRPC's, answers with SETTINGS."""
HTTP2_SETTINGS = 4


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
        raise RequestError(f"no Ray cluster answers at {address}: {in_one_line(error)}") from None
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


def read_nodes(
    request: PlacementRequest, machines: Mapping[str, Topology | str], timeout_seconds: float
) -> tuple[list[ClusterNode], list[Message]]:
    """Return the nodes that may run something, by address and id, and what there is to say of the others.

    Raises:
        RequestError: `machines` names a node that the cluster does not have.
        TopologyError: no node could be read.
    """
    import ray

    alive = sorted(
        (node for node in ray.nodes() if node["Alive"]), key=lambda node: (node["NodeManagerAddress"], node["NodeID"])
    )
    unknown = set(machines) - {node["NodeID"] for node in alive}
    if unknown:
        raise RequestError(f"machines names node {min(unknown)!r}, which the cluster does not have")
    working = [node for node in alive if node["Resources"].get("CPU", 0) > 0]
    ids = [node["NodeID"] for node in working]
    read = _on_each(ids, read_node, (request.for_gpus,), timeout_seconds)
    nodes, found_messages = [], []
    for node in working:
        found = read[node["NodeID"]]
        if isinstance(found, str):
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
            found_messages.append(NODE_NOT_READ(node=name, reason=found))
            continue
        read_here, about_node = _cluster_node(node, found, request, machines.get(node["NodeID"]))
        nodes.append(read_here)
        found_messages += about_node
    if working and not nodes:
        raise TopologyError(f"no node of the cluster could be read: {found_messages[0].message}")
    found_messages += _overlaps(nodes)
    return nodes, found_messages


def _cluster_node(
    node: Mapping[str, Any],
    found: Mapping[str, Any],
    request: PlacementRequest,
    machine: Topology | str | None,
) -> tuple[ClusterNode, list[Message]]:
    """Return a node by what was read there, planned as `machine` if that is given, and what there is to say of it."""
    from ompaffinity.topology.snapshot import parse_capture

    if machine is None:
        topology, host = parse_capture(found["topology"]), found["host"]
        host = f"{host}:{format_id_list(topology.allowed_cpus)}"
    else:
        topology = machine if isinstance(machine, Topology) else load_topology(machine=machine)
        host = node["NodeID"]
    asked = request
    about_node: list[Message] = []
    if request.bind != "none":
        asked, about_node = for_runtimes(request, tuple(RuntimeLibrary(*library) for library in found["runtimes"]))
    if found["problem"]:
        about_node.append(HELPER_UNUSABLE(reason=found["problem"]))
    name = f"{found['name']} ({node['NodeID'][:8]})"
    cluster_node = ClusterNode(
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
        gpu_slots=float(node["Resources"].get("GPU", 0)),
        gpus=_homes(found["devices"], machine, topology) if request.for_gpus else (),
    )
    return cluster_node, [message._replace(message=f"{name}: {message.message}") for message in about_node]


def _homes(
    found: Iterable[Sequence[Any]], machine: Topology | str | None, topology: Topology
) -> tuple[tuple[str, GPUHome], ...]:
    """Return the GPUs of a node: those that it told of, or those of the record that it is planned as."""
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
            answers[node_id] = in_one_line(error)
    return answers


def in_one_line(error: Exception) -> str:
    """Return what a task or an actor died of: it arrives with the traceback, and the last line says it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:MAX_REASON]


def read_node(for_gpus: bool) -> dict[str, Any]:
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
        "problem": helper_problem(),
        "runtimes": [tuple(library) for library in expected_runtimes(os.environ)],
        "port": free_port(),
        "devices": _devices(topology) if for_gpus else [],
    }


def _devices(topology: Topology) -> list[tuple[str, tuple[int, ...], list[tuple[str, ...]]]]:
    """Return (PCI address, nodes, messages) of every GPU of this machine, whatever is visible to this process."""
    from ompaffinity.devices.live import live_gpus

    found = live_gpus(topology, environ={}).gpus
    return [(device.address, device.nodes, [tuple(message) for message in device.messages]) for device in found]


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


def granted_there(node: ClusterNode, plan: Plan, timeout_seconds: float) -> Plan:
    """Return the plan with the memory policies that the kernel of that node grants."""
    if all(rank.memory_policy == "none" for rank in plan.ranks):
        return plan
    answer = _on_each([node.node_id], with_granted_memory, (plan,), timeout_seconds)[node.node_id]
    if isinstance(answer, str):
        unknown = MEMORY_POLICY_UNKNOWN(reason=answer)
        return plan._replace(messages=(*plan.messages, unknown))
    granted: Plan = answer
    return granted
