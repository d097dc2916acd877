"""``inspect``: the placement of live processes, bound by any tool."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ompaffinity.cli.checks import check_some_or_all, seconds_of
from ompaffinity.proof.inspect import WINDOW_SECONDS, inspect_all, inspect_processes
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from typing import Any


SEEN_NOTHING_STATUS = 3


def run_inspect(values: dict[str, Any]) -> int:
    """Print what the processes do; return 1 with --strict if there are findings, 3 if nothing could be seen, else 0."""
    pids = [*values.get("pids", ()), *values.get("named_pids", ())]
    check_some_or_all(pids, values, "name processes (inspect PID...), or use --all for every bound process")
    seconds = seconds_of(values, "seconds", WINDOW_SECONDS)
    topology = load_topology()
    found = inspect_all(topology, seconds) if values.get("all") else inspect_processes(topology, pids, seconds)
    if not values.get("full_command"):
        found = found.with_brief_commands()
    if values.get("json"):
        sys.stdout.write(json.dumps(found.to_document()) + "\n")
    else:
        from ompaffinity.cli.process_tables import print_inspection

        print_inspection(found)
    if values.get("strict") and found.findings:
        return 1
    return SEEN_NOTHING_STATUS if found.has_seen_nothing else 0
