"""Checks of option values that several verbs have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def seconds_of(values: Mapping[str, Any], field: str, default: float) -> float:
    """Return the seconds that ``--FIELD`` gives.

    Raises:
        RequestError: they are less than 1.
    """
    seconds: float = values.get(field, default)
    if seconds < 1:
        raise RequestError(f"--{field} is {seconds}; it must be at least 1 second")
    return seconds


def check_some_or_all(pids: Sequence[int], values: Mapping[str, Any], remedy: str) -> None:
    """Check that either processes or ``--all`` are given.

    Raises:
        RequestError: both are given, or neither; it ends with `remedy`.
    """
    if bool(pids) == bool(values.get("all")):
        problem = "both process ids and --all are given" if pids else "no process is given"
        raise RequestError(f"{problem}; {remedy}")
