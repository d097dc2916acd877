"""All checks, in the order of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.doctor.machine import machine_checks
from ompaffinity.doctor.memory import memory_checks
from ompaffinity.doctor.record import PROBLEM, Check
from ompaffinity.doctor.software import software_checks
from ompaffinity.errors import OMPAffinityError
from ompaffinity.records import NamedTuple
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Diagnosis(NamedTuple):
    """The results of all checks."""

    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that prevent workers from being bound as planned."""
        return tuple(check for check in self.checks if check.level == PROBLEM)

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.doctor/1`` document: plain values, ready for JSON."""
        return {"schema": "ompaffinity.doctor/1", "checks": [check._asdict() for check in self.checks]}


def diagnose(environ: Mapping[str, str], python: str | None = None) -> Diagnosis:
    """Run all checks on this machine; `python` is the interpreter whose environment is searched for OpenMP runtimes.

    Raises:
        RequestError: `python` is not a Python interpreter.
    """
    software = tuple(software_checks(environ, python))
    try:
        topology = load_topology()
    except OMPAffinityError as error:
        unreadable = Check("machine", PROBLEM, str(error), "mount sysfs at /sys; no plan is possible without it")
        return Diagnosis((unreadable, *software))
    with DirectoryTree("/") as tree:
        return Diagnosis((*machine_checks(topology, tree), *memory_checks(topology, tree), *software))
