"""Watch the workers on all nodes of a Ray cluster: one watcher per node, whose findings are gathered."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from ompaffinity.integrations.ray.nodes import connected, in_one_line
from ompaffinity.proof.watch import CHECKS_PER_MEMORY, Watcher
from ompaffinity.proof.watch_self import INTERVAL_SECONDS, Watch, check_interval
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.proof.drift import Change
    from ompaffinity.proof.watch_status import WatchStatus

ANSWER_SECONDS = 60.0
KEPT_CHANGES = 10_000


class NodeStatus(NamedTuple):
    """The workers of one node: its id and address, their status, and what has changed since the last time.

    `status` is None where the node does not answer; then `problem` is the reason.
    """

    node_id: str
    address: str
    status: WatchStatus | None
    changes: tuple[Change, ...] = ()
    problem: str | None = None


class NodeWatcher:
    """The actor of one node: watches every worker there that carries a placement, below the raylet."""

    def __init__(self, interval: float, repair: bool) -> None:
        self._changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        memory_seconds = CHECKS_PER_MEMORY * interval
        watcher = Watcher([os.getppid()], may_be_empty=True, repair=repair, memory_seconds=memory_seconds)
        self._watch = Watch(watcher, interval, on_drift=lambda _change: None, on_change=self._changes.append)

    def gathered(self) -> tuple[WatchStatus, tuple[Change, ...]]:
        """Return the last status, and the changes since the last call."""
        changes = []
        while self._changes:
            changes.append(self._changes.popleft())
        return self._watch.status, tuple(changes)


class ClusterWatch:
    """The watchers of a cluster: a context manager, or ended by `stop`."""

    def __init__(self, watchers: dict[str, tuple[str, Any]]) -> None:
        self._watchers = watchers

    def gather(self, timeout_seconds: float = ANSWER_SECONDS) -> tuple[NodeStatus, ...]:
        """Return the status of each node and its changes since the last call, by address."""
        import ray

        asked = {node_id: actor.gathered.remote() for node_id, (_, actor) in self._watchers.items()}
        ready, _ = ray.wait([*asked.values()], num_returns=len(asked), timeout=timeout_seconds) if asked else ([], [])
        found = []
        for node_id, (address, _) in self._watchers.items():
            if asked[node_id] not in ready:
                problem = f"no reply within {timeout_seconds:g} seconds"
                found.append(NodeStatus(node_id, address, None, problem=problem))
                continue
            try:
                status, changes = ray.get(asked[node_id])
                found.append(NodeStatus(node_id, address, status, changes))
            except Exception as error:  # noqa: BLE001
                found.append(NodeStatus(node_id, address, None, problem=in_one_line(error)))
        return tuple(found)

    def stop(self) -> None:
        """End the watchers; what they watch runs on."""
        import ray

        for _, actor in self._watchers.values():
            ray.kill(actor)
        self._watchers = {}

    def __enter__(self) -> ClusterWatch:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def watch_cluster(interval: float = INTERVAL_SECONDS, *, repair: bool = False) -> ClusterWatch:
    """Watch every worker on every node of the cluster that this program is connected to.

    A watcher takes no CPU slot. Workers that are started later are watched as well, nodes that join later are not.
    `interval` is in seconds; with `repair` what has drifted is bound again.

    Raises:
        RequestError: Ray is not installed, this program is not connected to a cluster, or the interval is too short.
    """
    check_interval(interval)
    with connected(None):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = ray.remote(num_cpus=0)(NodeWatcher)
        nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeManagerAddress"])
        watchers = {
            node["NodeID"]: (
                str(node["NodeManagerAddress"]),
                actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                    interval, repair
                ),
            )
            for node in nodes
        }
    return ClusterWatch(watchers)
