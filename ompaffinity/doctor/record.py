"""The result of one check."""

from __future__ import annotations

from ompaffinity.records import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Check(NamedTuple):
    """The name of a check, its level (ok, warning, problem), what was found, and the fix (None: nothing to do)."""

    name: str
    level: str
    message: str
    fix: str | None = None
