"""``topology``: what was read of a machine."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.topology.record import opened, printable
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.record import RecordedMachine


def run_topology(values: dict[str, Any]) -> int:
    """Print the machine that `values` name."""
    as_json, capture, label, svg, as_map = (
        values.pop(name, None) for name in ("json", "capture", "label", "svg", "map")
    )
    if as_map and (as_json or capture is not None):
        raise RequestError("--map goes with the table, and not with --json or --capture; leave one of them out")
    with opened(values.pop("machine", None)) as recording:
        topology = load_topology(machine=recording, **values)
        wanted = "synthetic" not in values and (as_json or capture is not None)
        devices = _devices(topology, recording) if wanted else []
    if label is not None:
        topology = topology._replace(machine=printable(label))
    if svg is not None:
        from ompaffinity.cli.picture import write_picture

        write_picture(topology, None, svg)
    if capture not in (None, "-"):
        from ompaffinity.topology.snapshot import write_capture

        write_capture(topology, capture, devices)
        print(f"recorded in {capture}", file=sys.stderr)
    if as_json or capture == "-":
        sys.stdout.write(json.dumps(topology.to_document() | {"devices": devices}) + "\n")
    elif capture is None:
        from ompaffinity.cli.machine_tables import print_topology

        if as_map:
            from ompaffinity.cli.terminal_map import print_map

            print_map(topology, None)
        print_topology(topology)
    return 0


def _devices(topology: Topology, recording: RecordedMachine | None) -> list[dict[str, Any]]:
    """Return the machine's GPUs as a capture holds them; none if a record has no GPUs."""
    from ompaffinity.devices.live import live_gpus
    from ompaffinity.devices.model import NoGPUsError
    from ompaffinity.devices.recorded import recorded_gpus

    try:
        found = live_gpus(topology, environ={}) if recording is None else recorded_gpus(recording, topology)
    except NoGPUsError:
        return []
    return [device.to_record(topology) for device in found.gpus]
