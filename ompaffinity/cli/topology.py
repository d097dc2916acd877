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
    options = {name: values.pop(name, None) for name in ("json", "capture", "label")}
    topology = load_topology(**values)
    if options["label"] is not None:
        topology = topology._replace(machine=" ".join(options["label"].split()))
    if options["capture"] is not None:
        from ompaffinity.topology.snapshot import write_capture

        write_capture(topology, options["capture"])
        print(f"recorded in {options['capture']}", file=sys.stderr)
    elif options["json"]:
        sys.stdout.write(to_json(topology.to_document()) + "\n")
    else:
        from ompaffinity.cli.tables import print_topology

        print_topology(topology)
    return 0
