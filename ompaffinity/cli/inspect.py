"""``inspect``: the placement of live processes, bound by any tool."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.proof.inspect import inspect_all, inspect_processes
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from typing import Any


def run_inspect(values: dict[str, Any]) -> int:
    """Print what the kernel reports about the processes; return 1 with --strict if there are findings, else 0."""
    if ("pids" in values) == bool(values.get("all")):
        problem = "both process ids and --all are given" if "pids" in values else "no process is given"
        raise RequestError(f"{problem}; name processes (inspect PID...), or use --all for every bound process")
    topology = load_topology()
    inspection = inspect_all(topology) if values.get("all") else inspect_processes(topology, values["pids"])
    if values.get("json"):
        sys.stdout.write(json.dumps(inspection.to_document()) + "\n")
    else:
        from ompaffinity.cli.tables import print_inspection

        print_inspection(inspection)
    return int(bool(values.get("strict")) and bool(inspection.findings))
