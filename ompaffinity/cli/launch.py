"""``exec``: start commands bound."""

from __future__ import annotations

from ompaffinity.errors import RequestError
from ompaffinity.launch.exec import exec_bound
from ompaffinity.placement.request import PlacementRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_exec(values: dict[str, Any]) -> int:
    """Become the command; returns only if it cannot be started: 127, or 1 under --strict with a warning."""
    return exec_bound(
        _command(values, "exec"),
        {name: values[name] for name in PlacementRequest._fields if name in values},
        local_rank=values.get("local_rank"),
        local_world_size=values.get("local_world_size"),
        override=bool(values.get("override")),
        strict=bool(values.get("strict")),
    )


def _command(values: dict[str, Any], verb: str) -> tuple[str, ...]:
    if "command" not in values:
        raise RequestError(f"{verb} needs a command; write ompaffinity {verb} -- python worker.py")
    command: tuple[str, ...] = values["command"]
    return command
