"""``topology``: what was read of a machine."""

from __future__ import annotations

import sys

from ompaffinity.jsontext import to_json
from ompaffinity.topology.load import load_topology, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_topology(values: dict[str, Any]) -> int:
    """Print the machine that `values` name."""
    as_json, capture, label = (values.pop(name, None) for name in ("json", "capture", "label"))
    topology = load_topology(**values)
    if label is not None:
        topology = topology._replace(machine=printable(label))
    if capture not in (None, "-"):
        from ompaffinity.topology.snapshot import write_capture

        write_capture(topology, capture)
        print(f"recorded in {capture}", file=sys.stderr)
    if as_json or capture == "-":
        sys.stdout.write(to_json(topology.to_document()) + "\n")
    elif capture is None:
        from ompaffinity.cli.tables import print_topology

        print_topology(topology)
    return 0
