"""What tests of a watch inside a guest have in common."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ompaffinity.proof.drift import Change
    from ompaffinity.proof.watch import Watcher

SECONDS = 2.0
CHECKS = 100


def changes_until(watcher: Watcher, kind: str) -> list[Change]:
    """Check until there is a change of this kind; return all changes."""
    found: list[Change] = []
    for _ in range(CHECKS):
        time.sleep(SECONDS)
        found += watcher.check().changes
        if kind in [change.kind for change in found]:
            return found
    raise AssertionError(f"no {kind} among {[str(change) for change in found]}")
