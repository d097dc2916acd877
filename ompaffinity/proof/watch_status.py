"""What a watch reports of its ranks: the records. No rules here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.proof.drift import Change


class RankStatus(NamedTuple):
    """One rank in the last interval.

    `delay_share` is the longest time that a busy thread waited for a CPU, `foreign_share` the CPU time that others took
    on the rank's CPUs, both as parts of the interval; `delay_seconds` and `foreign_seconds` are sums since the watch
    began. `local_bytes` are on the rank's memory nodes, `remote_bytes` on others, as seen `memory_age` seconds ago.
    None: unknown. `drifts`, `repairs` and `restarts` are counted since the watch began; `differences` are sentences.
    """

    rank: int
    local_rank: int
    pid: int | None
    verdict: str
    busy_threads: int | None = None
    planned_threads: int = 0
    delay_share: float | None = None
    delay_seconds: float = 0.0
    foreign_share: float | None = None
    foreign_seconds: float = 0.0
    local_bytes: int | None = None
    remote_bytes: int | None = None
    memory_age: float | None = None
    drifts: int = 0
    repairs: int = 0
    restarts: int = 0
    differences: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return the status as plain values, ready for JSON."""
        rounded = {
            name: None if value is None else round(value, 6)
            for name, value in self._asdict().items()
            if name in ("delay_share", "delay_seconds", "foreign_share", "foreign_seconds", "memory_age")
        }
        return self._asdict() | rounded | {"differences": list(self.differences)}


class WatchStatus(NamedTuple):
    """All ranks after so many seconds of watching, and what has changed in the last interval."""

    seconds: float
    ranks: tuple[RankStatus, ...]
    changes: tuple[Change, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst of the ranks: differs, unproven, holds; unproven where there is no rank."""
        found = {rank.verdict for rank in self.ranks}
        return next((verdict for verdict in (DIFFERS, UNPROVEN, HOLDS) if verdict in found), UNPROVEN)

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.watch/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.watch/1",
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "ranks": [rank.to_document() for rank in self.ranks],
            "changes": [change.to_document() for change in self.changes],
        }
