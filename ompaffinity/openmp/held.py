"""What the plan of another server on this host holds, read from its ``plan --json``."""

from __future__ import annotations

from ompaffinity.errors import IdListError, RequestError
from ompaffinity.placement.request import HeldCpus
from ompaffinity.topology.idlist import parse_id_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from typing import Any

MAX_PLAN_BYTES = 64 * 2**20


def held_by_plans(plans: Iterable[str | os.PathLike[str] | HeldCpus]) -> tuple[HeldCpus, ...]:
    """Return the CPUs that each of these plan files holds.

    Raises:
        RequestError: a file cannot be read or is not a plan.
    """
    if isinstance(plans, (str, bytes)):
        raise RequestError(f"avoid is {plans!r}; it must be a list of plan files")
    return tuple(plan if isinstance(plan, HeldCpus) else _held_by_file(plan) for plan in plans)


def _held_by_file(path: str | os.PathLike[str]) -> HeldCpus:
    import json
    from pathlib import Path

    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_PLAN_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RequestError(f"--avoid {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > MAX_PLAN_BYTES:
        raise RequestError(f"--avoid {path} is too large for a plan")
    try:
        return HeldCpus(Path(path).name, tuple(sorted(_held(json.loads(text)))))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IdListError) as error:
        raise RequestError(
            f"--avoid {path} is not a plan as `ompaffinity plan --json` prints it ({type(error).__name__}: {error})"
        ) from None


def _held(document: dict[str, Any]) -> set[int]:
    """Return the CPUs of all ranks, with their siblings: other threads of these ranks may run there."""
    if document["schema"] != "ompaffinity.plan/1":
        raise ValueError(f"its schema is {document['schema']!r}")
    held = set(parse_id_list(document["reserved"]))
    for rank in document["ranks"]:
        held |= {int(cpu) for cpu in (*rank["cpus"], *rank["helper_cpus"])}
        held |= set(parse_id_list(rank["affinity"]))
    for group in document["left_out"]:
        if group["reason"] == "smt-sibling":
            held |= set(parse_id_list(group["cpus"]))
    return held
