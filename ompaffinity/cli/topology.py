"""``topology``: what was read of a machine."""

from __future__ import annotations

import sys

from ompaffinity.jsontext import to_json
from ompaffinity.topology.load import load_topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_topology(values: dict[str, Any]) -> int:
    """Print the machine that `values` name."""
    as_json = values.pop("json", False)
    topology = load_topology(**values)
    if as_json:
        sys.stdout.write(to_json(topology.to_document()) + "\n")
    else:
        from ompaffinity.cli.tables import print_topology

        print_topology(topology)
    return 0
