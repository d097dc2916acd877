"""Which kinds of cores an OpenMP team uses.

A team waits for its slowest core, so a set of cores counts as (number of cores) x (speed of the slowest). Kinds are
added from the fastest on; a slower kind must raise the best value of fewer kinds by more than 10 %.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from ompaffinity.messages import counted
from ompaffinity.placement.request import AUTO
from ompaffinity.records import NamedTuple
from ompaffinity.topology.kinds import FACTORS, PERFORMANCE
from ompaffinity.topology.model import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ompaffinity.topology.model import LogicalCPUInfo

LEAST_GAIN = 1.1


class CoreClass(NamedTuple):
    """Cores of one kind: their CPUs, the number of cores, and the speed of the slowest; the fastest kind has 1."""

    name: str
    cpus: tuple[int, ...]
    cores: int
    speed: float


class CoreChoice(NamedTuple):
    """The kinds of cores among some CPUs, from the fastest on; the first `used` of them get OpenMP threads."""

    classes: tuple[CoreClass, ...] = ()
    used: int = 0

    @property
    def left_out(self) -> tuple[int, ...]:
        """The CPUs of the kinds that are not used."""
        return tuple(cpu for one in self.classes[self.used :] for cpu in one.cpus)

    def figures(self) -> str:
        """Return the value of each set: ``"performance: 8 cores x 1.00 = 8.00; with efficiency: 20 x 0.39 = 7.80"``."""
        words: list[str] = []
        names: set[str] = set()
        for one, cores in _sets(self.classes):
            start = "with slower " if one.name in names else "with " if names else ""
            words.append(f"{start}{one.name}: {counted(cores, 'core')} x {one.speed:.2f} = {cores * one.speed:.2f}")
            names.add(one.name)
        return "; ".join(words)


def choose_cores(cpus: Iterable[LogicalCPUInfo], core_type: str) -> CoreChoice:
    """Return which of these CPUs' kinds of cores a team uses; `core_type` is auto, performance or all."""
    classes = _classes(cpus)
    if core_type == PERFORMANCE:
        used = sum(one.name == PERFORMANCE for one in classes) if _are_kinds(classes) else len(classes)
    else:
        used = _best(classes) if core_type == AUTO else len(classes)
    return CoreChoice(classes, used)


def _are_kinds(classes: Sequence[CoreClass]) -> bool:
    return any(one.name in FACTORS for one in classes)


def _classes(cpus: Iterable[LogicalCPUInfo]) -> tuple[CoreClass, ...]:
    members: dict[tuple[int, str], list[LogicalCPUInfo]] = {}
    for cpu in cpus:
        members.setdefault((cpu.core_class, cpu.kind or ""), []).append(cpu)
    known = all(cpu.speed for found in members.values() for cpu in found)
    rows = []
    for (_, kind), found in members.items():
        speed = min(cpu.speed for cpu in found) if known else FACTORS.get(kind, 1.0)
        # A core that the machine does not name is one CPU.
        cores = {(cpu.physical_core, cpu.id if cpu.physical_core == UNKNOWN else UNKNOWN) for cpu in found}
        rows.append(CoreClass(kind, tuple(cpu.id for cpu in found), len(cores), speed))
    rows.sort(key=lambda one: -one.speed)
    return tuple(one._replace(speed=one.speed / rows[0].speed) for one in rows)


def _sets(classes: Sequence[CoreClass]) -> Iterator[tuple[CoreClass, int]]:
    """Yield (slowest kind, cores of all) of the fastest kind, of the two fastest, and so on."""
    return zip(classes, accumulate(one.cores for one in classes))


def _best(classes: Sequence[CoreClass]) -> int:
    used, best = 0, 0.0
    for count, (slowest, cores) in enumerate(_sets(classes), start=1):
        value = cores * slowest.speed
        if value > LEAST_GAIN * best:
            used = count
        best = max(best, value)
    return used
