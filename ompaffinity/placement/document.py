"""A placement to and from JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import MAX_ID, format_id_list, parse_id_list
from ompaffinity.placement.model import RankPlacement

if TYPE_CHECKING:
    from typing import Any

PLACEMENT_VARIABLE = "OMPAFFINITY_PLACEMENT"


def placement_document(placement: RankPlacement) -> dict[str, Any]:
    """Return one rank's placement as plain values: what a worker finds in OMPAFFINITY_PLACEMENT."""
    return {
        "rank": placement.rank,
        "local_rank": placement.local_rank,
        "bound": placement.bound,
        "cpus": list(placement.cpus),
        "helper_cpus": list(placement.helper_cpus),
        "places": [format_id_list(place) for place in placement.places],
        "affinity": format_id_list(placement.affinity),
        "nodes": list(placement.nodes),
        "memory_policy": placement.memory_policy,
        "device": placement.gpu,
        "node_ranks": list(placement.node_ranks),
        "local_world_size": placement.local_world_size,
        "memory_budget_bytes": placement.memory_budget,
        "devices": list(placement.gpus),
    }


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
        gpu=None if device is None else int(device),
        node_ranks=tuple(_count(ranks) for ranks in shares),
        local_world_size=_count(document.get("local_world_size", 1)),
        memory_budget=None if (budget := document.get("memory_budget_bytes")) is None else int(budget),
        gpus=tuple(id_number(device) for device in document.get("devices", [])),
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
