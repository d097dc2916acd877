"""One line of the doctor's."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Check(NamedTuple):
    """What was looked at, how it is (ok, warning, problem), in words, and what to do about it (None: nothing)."""

    name: str
    level: str
    message: str
    fix: str | None = None
