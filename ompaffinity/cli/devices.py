"""``devices``: the GPUs that this process sees, and the NUMA nodes that they are next to."""

from __future__ import annotations

import sys

from ompaffinity.devices.devices import live_devices
from ompaffinity.devices.recorded import recorded_devices
from ompaffinity.jsontext import to_json
from ompaffinity.topology.load import load_topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_devices(values: dict[str, Any]) -> int:
    """Print one row per GPU; 1 under --strict with a warning, else 0."""
    machine = values.get("machine")
    topology = load_topology(machine=machine)
    found = live_devices(topology) if machine is None else recorded_devices(machine, topology)
    if values.get("json"):
        sys.stdout.write(to_json(found.to_document(topology)) + "\n")
    else:
        from ompaffinity.cli.tables import print_devices

        print_devices(found, topology)
    return int(bool(values.get("strict")) and any(message.level == "warning" for message in found.messages))
