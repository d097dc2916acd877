"""All checks, in the order in which they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.doctor.machine import machine_checks
from ompaffinity.doctor.memory import memory_checks
from ompaffinity.doctor.record import PROBLEM, Check
from ompaffinity.doctor.software import software_checks
from ompaffinity.errors import OMPAffinityError
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Diagnosis(NamedTuple):
    """Every check that was made."""

    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """What keeps workers from being bound as planned."""
        return tuple(check for check in self.checks if check.level == PROBLEM)

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.doctor/1`` document: plain values, ready for JSON."""
        return {"schema": "ompaffinity.doctor/1", "checks": [check._asdict() for check in self.checks]}


def diagnose(environ: Mapping[str, str], python: str | None = None) -> Diagnosis:
    """Return what each check says here; `python` is the interpreter whose OpenMP runtimes are looked for.

    Raises:
        RequestError: `python` is no Python interpreter.
    """
    software = tuple(software_checks(environ, python))
    try:
        topology = load_topology()
    except OMPAffinityError as error:
        unread = Check("machine", PROBLEM, str(error), "without it nothing can be planned; is /sys mounted?")
        return Diagnosis((unread, *software))
    with DirectoryTree("/") as tree:
        return Diagnosis((*machine_checks(topology, tree), *memory_checks(topology, tree), *software))
