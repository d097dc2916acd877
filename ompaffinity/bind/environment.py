"""The environment of this process, which other threads may change at any moment: read it, change it, restore it."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ompaffinity.bind.undo import Undo


def copy_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment; a variable that another thread removes meanwhile is not in it."""
    found = {name: environ.get(name) for name in list(environ)}
    return {name: value for name, value in found.items() if value is not None}


def change_environment(variables: Mapping[str, str], removed: Iterable[str], undo: Undo) -> None:
    """Set and remove variables of this process until `undo` runs; what has another value by then stays."""
    for name, value in {**dict.fromkeys(removed), **variables}.items():
        before = os.environ.get(name)
        if before != value:
            undo.add(partial(_restore_variable, name, before, value))
            _set_variable(name, value)


def _restore_variable(name: str, before: str | None, taken: str | None) -> None:
    if os.environ.get(name) == taken:
        _set_variable(name, before)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
