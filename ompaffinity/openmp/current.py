"""Inside a worker: what it was given."""

from __future__ import annotations

import os

from ompaffinity.errors import RequestError
from ompaffinity.openmp.environment import PLACEMENT_VARIABLE
from ompaffinity.placement.plan import RankPlacement
from ompaffinity.topology.idlist import MAX_ID, parse_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def current_placement() -> RankPlacement | None:
    """Return the placement that this process was started with (OMPAFFINITY_PLACEMENT), None outside a worker.

    Raises:
        RequestError: the variable does not hold a placement.
    """
    text = os.environ.get(PLACEMENT_VARIABLE)
    return None if text is None else parse_placement(text)


def get_device_total_memory(device_id: int = 0) -> int:  # noqa: ARG001
    """Return this worker's part of the memory that its nodes have, in bytes (a server's name for it).

    `device_id` is there for servers that give one; a CPU worker has one device.

    Raises:
        CapacityError: this machine does not tell how much memory it has.
    """
    from ompaffinity.memory.capacity import memory_budget

    return memory_budget(_current_or_alone(), utilization=1.0)


def determine_available_memory(utilization: float | None = None, explicit: int | None = None) -> int:
    """Return the bytes for this worker's KV cache after its model was loaded (a server's name for `kv_cache_bytes`).

    Raises:
        RequestError, CapacityError: as `kv_cache_bytes`.
    """
    from ompaffinity.memory.capacity import kv_cache_bytes

    return kv_cache_bytes(_current_or_alone(), utilization, explicit=explicit)


def _current_or_alone() -> RankPlacement:
    """Return this process's placement; outside of a worker that of one rank on all that there is."""
    return current_placement() or RankPlacement(0, 0, bound=False)


def parse_placement(text: str) -> RankPlacement:
    """Return the placement in the JSON text of OMPAFFINITY_PLACEMENT.

    Raises:
        RequestError: it is not such a text.
    """
    import json

    try:
        document = json.loads(text)
        return placement_of(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise RequestError(
            f"{PLACEMENT_VARIABLE} does not hold a placement ({type(error).__name__}: {error})"
        ) from None


def placement_of(document: dict[str, Any]) -> RankPlacement:
    """Return the placement that a JSON object of a rank holds.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no such object.
    """
    device = document["device"]
    # Plans of the first release did not say.
    shares = document.get("node_ranks", [1] * len(document["nodes"]))
    if len(shares) != len(document["nodes"]):
        raise ValueError("node_ranks and nodes differ in length")
    return RankPlacement(
        rank=int(document["rank"]),
        local_rank=int(document["local_rank"]),
        bound=bool(document["bound"]),
        cpus=tuple(id_number(cpu) for cpu in document["cpus"]),
        helper_cpus=tuple(id_number(cpu) for cpu in document["helper_cpus"]),
        places=tuple(tuple(parse_id_list(place)) for place in document["places"]),
        affinity=tuple(parse_id_list(document["affinity"])),
        nodes=tuple(id_number(node) for node in document["nodes"]),
        memory_policy=str(document["memory_policy"]),
        device=None if device is None else int(device),
        node_ranks=tuple(_count(ranks) for ranks in shares),
        local_world_size=_count(document.get("local_world_size", 1)),
        memory_budget=None if (budget := document.get("memory_budget_bytes")) is None else int(budget),
        devices=tuple(id_number(device) for device in document.get("devices", [])),
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a number of ranks")
    return value


def id_number(value: object) -> int:
    """Return a CPU or node number of a JSON document.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise ValueError(f"{value!r} is not a CPU or node number")
    return value
