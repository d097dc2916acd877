"""On which machine and under which load a figure was taken, and where the results are written."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ompaffinity.bind.saved_options import measured_machine
from ompaffinity.ids import format_id_list
from ompaffinity.proof.foreign import cpu_times
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
BUSY_SHARE = 0.05
"""With more of the CPU time used by other processes a result is marked as taken on a busy machine."""
BUSY_LOAD = 0.5
"""So is one with a load average above this number per CPU at its start."""
SETTLING_SECONDS = 0.2


class Conditions:
    """The conditions of a measurement that begins now."""

    def __init__(self) -> None:
        self._cpus = sorted(os.sched_getaffinity(0))
        self._machine = measured_machine(load_topology())
        self._load = os.getloadavg()
        self._times, self._own = cpu_times(), _own_seconds()

    def to_document(self) -> dict[str, Any]:
        """Return the conditions until now as plain values, ready for JSON; every child must have ended."""
        time.sleep(SETTLING_SECONDS)
        times = cpu_times()
        seconds = times.seconds - self._times.seconds
        used = sum(times.busy.get(cpu, 0.0) - self._times.busy.get(cpu, 0.0) for cpu in times.busy)
        others = max(0.0, used - (_own_seconds() - self._own)) / (seconds * max(1, len(times.busy)))
        busy = others > BUSY_SHARE or self._load[0] > BUSY_LOAD * len(self._cpus)
        return {
            "machine": self._machine.to_document(),
            "kernel": platform.release().split("-")[0],
            "python": platform.python_version(),
            "cpus": format_id_list(self._cpus),
            "load_average_before": [round(value, 2) for value in self._load],
            "load_average_after": [round(value, 2) for value in os.getloadavg()],
            "seconds": round(seconds, 1),
            "others_share": round(others, 4),
            "busy": busy,
        }

    def write(self, name: str, text: str, results: dict[str, Any]) -> None:
        """Print the figures below their conditions, and write ``benchmarks/results/NAME.md`` and ``.json``."""
        found = self.to_document()
        whole = f"{_in_words(found)}\n\n{text.strip()}\n"
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(whole)
        (RESULTS / f"{name}.json").write_text(json.dumps({"conditions": found} | results, indent=1) + "\n")
        sys.stdout.write(whole)


def _own_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended (times(2))."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def _in_words(found: dict[str, Any]) -> str:
    machine = found["machine"]
    model = machine["model"] or machine["architecture"]
    text = (
        f"{model}, {machine['cpus']} CPUs online, CPU {found['cpus']} used, Linux {found['kernel']}, Python"
        f" {found['python']}. Load average {found['load_average_before'][0]} before and"
        f" {found['load_average_after'][0]} after; other processes used {100 * found['others_share']:.1f} % of the CPU"
        " time."
    )
    return f"{text}\n\n**Taken on a busy machine.**" if found["busy"] else text
