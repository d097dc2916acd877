"""``topology``: what was read of a machine."""

from __future__ import annotations

import sys

from ompaffinity.jsontext import to_json
from ompaffinity.topology.load import load_topology, printable

TYPE_CHECKING = False
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
        sys.stdout.write(to_json(topology.to_document() | {"devices": devices}) + "\n")
    elif capture is None:
        from ompaffinity.cli.tables import print_topology

        print_topology(topology)
    return 0


def _devices(topology: Topology, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the machine's GPUs as a capture holds them; none where a record tells nothing of any."""
    from ompaffinity.devices.devices import live_devices
    from ompaffinity.devices.recorded import NoDevicesError, recorded_devices

    if "synthetic" in values:
        return []
    try:
        found = (
            recorded_devices(values["machine"], topology) if "machine" in values else live_devices(topology, environ={})
        )
    except NoDevicesError:
        return []
    return [device.to_record(topology) for device in found.devices]
