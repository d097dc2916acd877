"""``topology``: what was read of a machine."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ompaffinity.topology.source import load_topology, printable

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.topology.model import Topology


def run_topology(values: dict[str, Any]) -> int:
    """Print the machine that `values` name."""
    as_json, capture, label = (values.pop(name, None) for name in ("json", "capture", "label"))
    topology = load_topology(**values)
    devices = _devices(topology, values) if as_json or capture is not None else []
    if label is not None:
        topology = topology._replace(machine=printable(label))
    if capture not in (None, "-"):
        from ompaffinity.topology.snapshot import write_capture

        write_capture(topology, capture, devices)
        print(f"recorded in {capture}", file=sys.stderr)
    if as_json or capture == "-":
        sys.stdout.write(json.dumps(topology.to_document() | {"devices": devices}) + "\n")
    elif capture is None:
        from ompaffinity.cli.tables import print_topology

        print_topology(topology)
    return 0


def _devices(topology: Topology, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the machine's GPUs as a capture holds them; none where a record tells nothing of any."""
    from ompaffinity.devices.live import live_gpus
    from ompaffinity.devices.model import NoGPUsError
    from ompaffinity.devices.recorded import recorded_gpus

    if "synthetic" in values:
        return []
    try:
        found = recorded_gpus(values["machine"], topology) if "machine" in values else live_gpus(topology, environ={})
    except NoGPUsError:
        return []
    return [device.to_record(topology) for device in found.gpus]
