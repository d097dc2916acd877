"""What the package reports to a user: a stable code, a level and a text."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """Something that a user should know about a machine or a plan.

    `code` is stable and meant for programs; `level` is ``"warning"`` (something that the user
    asked for or would expect is not had) or ``"note"``; `message` says what to do about it.
    """

    code: str
    level: str
    message: str
