"""Plans that were saved with ``plan --json``: what they give their ranks, and what that leaves to others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import parse_id_list
from ompaffinity.placement.document import id_number, placement_of
from ompaffinity.placement.request import HeldCPUs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ompaffinity.placement.model import RankPlacement

MAX_PLAN_BYTES = 64 * 2**20


def held_by_plans(plans: Iterable[str | os.PathLike[str] | HeldCPUs]) -> tuple[HeldCPUs, ...]:
    """Return the CPUs that each of these plan files holds.

    Raises:
        RequestError: a file cannot be read or is not a plan.
    """
    if not isinstance(plans, (list, tuple)) or not all(
        isinstance(plan, (str, os.PathLike, HeldCPUs)) for plan in plans
    ):
        raise RequestError(f"--avoid (avoid) is {plans!r}; it must be a list of plan files")
    return tuple(plan if isinstance(plan, HeldCPUs) else _held_by_file(plan) for plan in plans)


def saved_placements(path: str | os.PathLike[str]) -> tuple[RankPlacement, ...]:
    """Return the placements of the ranks in a plan file.

    Raises:
        RequestError: the file cannot be read or is not a plan.
    """
    document = _read(path, "--plan")
    try:
        _check_schema(document)
        return tuple(placement_of(rank) for rank in _list(document["ranks"]))
    except BROKEN_DOCUMENT as error:
        raise _no_plan(path, "--plan", error) from None


def _held_by_file(path: str | os.PathLike[str]) -> HeldCPUs:
    document = _read(path, "--avoid")
    try:
        held, known = _cpus_of(document)
    except BROKEN_DOCUMENT as error:
        raise _no_plan(path, "--avoid", error) from None
    if not held:
        raise RequestError(f"--avoid {path} binds no CPU, so there is nothing to keep off; leave it out")
    return HeldCPUs(os.path.basename(path), tuple(sorted(held)), tuple(sorted(known)))


def _read(path: str | os.PathLike[str], option: str) -> Any:
    import json

    try:
        with open(path, "rb") as file:
            text = file.read(MAX_PLAN_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RequestError(f"{option} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > MAX_PLAN_BYTES:
        raise RequestError(f"{option} {path} is too large for a plan")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_plan(path, option, error) from None


BROKEN_DOCUMENT = (ValueError, KeyError, TypeError, AttributeError, OverflowError, IDListError)


def _no_plan(path: str | os.PathLike[str], option: str, error: Exception) -> RequestError:
    return RequestError(
        f"{option} {path} is not a plan as `ompaffinity plan --json` prints it ({type(error).__name__}: {error})"
    )


def _check_schema(document: dict[str, Any]) -> None:
    if document["schema"] != "ompaffinity.plan/1":
        raise ValueError(f"its schema is {document['schema']!r}")


def _cpus_of(document: dict[str, Any]) -> tuple[set[int], set[int]]:
    """Return (CPUs of the ranks with their siblings, where other threads of the ranks may run; all CPUs)."""
    _check_schema(document)
    held, known = set(parse_id_list(document["reserved"])), set()
    for rank in _list(document["ranks"]):
        held |= {id_number(cpu) for cpu in (*_list(rank["cpus"]), *_list(rank["helper_cpus"]))}
        held |= set(parse_id_list(rank["affinity"]))
    for group in _list(document["left_out"]):
        known |= set(parse_id_list(group["cpus"]))
        if group["reason"] == "smt-sibling":
            held |= set(parse_id_list(group["cpus"]))
    return held, known | held


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value
