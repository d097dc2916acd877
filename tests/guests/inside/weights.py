"""Give the nodes different weights, as firmware does for nodes of different bandwidth, before the tests run."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = {0: 3, 1: 1}
"""Pages in turn of each node."""
ROOT = Path("/sys/kernel/mm/mempolicy/weighted_interleave")

if __name__ == "__main__":
    for number, weight in WEIGHTS.items():
        (ROOT / f"node{number}").write_text(str(weight))
