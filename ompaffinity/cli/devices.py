"""``devices``: the GPUs that this process sees, and the NUMA nodes that they are next to."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ompaffinity.devices.live import live_gpus
from ompaffinity.devices.recorded import recorded_gpus
from ompaffinity.messages import has_warning
from ompaffinity.topology.record import opened
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from typing import Any


def run_devices(values: dict[str, Any]) -> int:
    """Print one row per GPU; 1 under --strict with a warning, else 0."""
    with opened(values.get("machine")) as recording:
        topology = load_topology(machine=recording)
        found = live_gpus(topology) if recording is None else recorded_gpus(recording, topology)
    if values.get("json"):
        sys.stdout.write(json.dumps(found.to_document(topology)) + "\n")
    else:
        from ompaffinity.cli.machine_tables import print_devices

        print_devices(found, topology)
    return int(bool(values.get("strict")) and has_warning(found.messages))
