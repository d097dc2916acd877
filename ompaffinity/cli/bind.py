"""``bind``: bind processes that run already, once, and take that back."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.bind.plan_files import saved_document, saved_placements
from ompaffinity.bind.running import SCHEMA, boot_id, changes_from_document, take_back
from ompaffinity.cli.checks import seconds_of
from ompaffinity.cli.options import flags_of
from ompaffinity.cli.plan import planned
from ompaffinity.errors import RequestError
from ompaffinity.files import require_writable, write_whole
from ompaffinity.messages import has_warning
from ompaffinity.placement.fields import Source
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proof.adopt import Adoption, adopt_processes, refusals
from ompaffinity.proof.inspect import WINDOW_SECONDS

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.messages import Message
    from ompaffinity.placement.model import RankPlacement


def run_bind(values: dict[str, Any]) -> int:
    """Bind the processes, or take a binding back; return 1 with --strict if something is refused, else 0."""
    planning = values.keys() & {*PlacementRequest._fields, "options"}
    if "save" in values:
        require_writable("--save", values["save"])
    if "undo" in values:
        conflicting = planning | (values.keys() & {"pids", "plan", "seconds"})
        if conflicting:
            raise RequestError(
                f"--undo cannot be combined with {flags_of('bind', conflicting)}; it restores what FILE lists"
            )
        adoption = _taken_back(values["undo"])
    else:
        adoption = _bound(values, planning)
    document = bind_document(adoption)
    if "save" in values:
        try:
            write_whole(values["save"], (json.dumps(document) + "\n").encode())
        except OSError:
            # Without the record --undo could not restore it.
            take_back(adoption.binding.changes)
            raise
    if values.get("json"):
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        from ompaffinity.cli.process_tables import print_adoption

        print_adoption(adoption, undone="undo" in values)
    return int(bool(values.get("strict")) and has_warning(adoption.messages))


def _bound(values: dict[str, Any], planning: set[str]) -> Adoption:
    if not values.get("pids"):
        raise RequestError("no process is given; name the server, or the worker of each rank, with --pid PID...")
    seconds = seconds_of(values, "seconds", WINDOW_SECONDS)
    placements, messages = _placements(values, planning)
    adoption = adopt_processes(values["pids"], placements, seconds)
    return adoption._replace(messages=(*messages, *adoption.messages))


def _placements(values: dict[str, Any], planning: set[str]) -> tuple[tuple[RankPlacement, ...], tuple[Message, ...]]:
    if "plan" in values:
        if planning:
            raise RequestError(
                f"--plan cannot be combined with {flags_of('bind', planning)}; the plan in the file has its own options"
            )
        return saved_placements(values["plan"]), ()
    _, plan = planned(values)
    return plan.ranks, plan.messages


def _taken_back(path: str) -> Adoption:
    source = Source(
        f"--undo {os.fspath(path)}",
        "is not what `ompaffinity bind --json` prints",
        "pass a file that `ompaffinity bind --save` wrote",
    )
    binding = take_back(changes_from_document(saved_document(path, source), source))
    return Adoption((), binding, tuple(refusals(binding)))


def bind_document(adoption: Adoption) -> dict[str, Any]:
    """Return the ``ompaffinity.bind/1`` document: plain values, ready for JSON, and for --undo."""
    binding = adoption.binding
    return {
        "schema": SCHEMA,
        "boot_id": boot_id(),
        "ranks": [rank.to_document() for rank in adoption.ranks],
        "threads": [change.to_document() for change in binding.changes],
        "refused": [thread._asdict() for thread in binding.refused],
        "warnings": [message._asdict() for message in adoption.messages],
    }
