"""The kind of each core of a chip with several kinds, its class, and how fast it is.

Sources, in order of precedence: named core types (the PMUs of Intel's hybrids, /sys/devices/cpu_core, cpu_atom,
cpu_lowpower; the core types of an hwloc export); cpu_capacity (arm64, riscv:
Documentation/ABI/testing/sysfs-devices-system-cpu). Frequencies of one core type make no kinds: cores of one type have
different boost frequencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import UNKNOWN
from ompaffinity.topology.text import read_id_list, read_number

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ompaffinity.topology.tree import Tree

CPU_ROOT = "sys/devices/system/cpu"
PERFORMANCE, EFFICIENCY, LOW_POWER = "performance", "efficiency", "low-power"
FACTORS = {PERFORMANCE: 1.0, EFFICIENCY: 0.5, LOW_POWER: 0.4}
"""The speed of a named core type at a frequency, relative to a performance core at the same frequency.

An efficiency core of Intel's hybrids has half the vector units of a performance core, and no SMT; a low-power one
has a smaller share of the caches besides (Intel 64 and IA-32 Architectures Optimization Reference Manual, chapters on
the hybrid microarchitectures)."""
CLASS_GAP = 1.2
"""Capacities that differ by less are one class: equal cores of several clusters differ slightly."""


class CoreKind(NamedTuple):
    """What a core is: its kind, its class (0 is the fastest), and its speed, in the same unit on the whole machine.

    The speed is 0 where it is unknown.
    """

    kind: str | None = None
    core_class: int = UNKNOWN
    speed: float = 0.0


UNIFORM = CoreKind()


def read_kinds(tree: Tree, online: list[int]) -> dict[int, CoreKind]:
    """Return {cpu: kind} of the online CPUs; empty on machines of equal cores."""
    named: dict[int, str] = {}
    for directory, kind in (("cpu_lowpower", LOW_POWER), ("cpu_atom", EFFICIENCY), ("cpu_core", PERFORMANCE)):
        named.update(dict.fromkeys(read_id_list(tree, f"sys/devices/{directory}/cpus") or (), kind))
    hybrid = completed_kinds(named, online)
    if hybrid:
        return named_kinds(hybrid, _numbers(tree, online, "cpufreq/cpuinfo_max_freq"))
    return kinds_by_speed(_numbers(tree, online, "cpu_capacity"))


def _numbers(tree: Tree, online: list[int], name: str) -> dict[int, int]:
    """Return {cpu: number} if every online CPU has the file, else {}: partial values would create wrong classes."""
    numbers = {}
    for cpu in online:
        number = read_number(tree, f"{CPU_ROOT}/cpu{cpu}/{name}")
        if number is None or number <= 0:
            return {}
        numbers[cpu] = number
    return numbers


def completed_kinds(named: Mapping[int, str], online: Iterable[int]) -> dict[int, str]:
    """Return {cpu: kind} of a hybrid chip, with low-power for CPUs that `named` lacks; {} if it is not hybrid."""
    is_hybrid = len({named[cpu] for cpu in online if cpu in named}) > 1
    return {cpu: named.get(cpu, LOW_POWER) for cpu in online} if is_hybrid else {}


def named_kinds(named: Mapping[int, str], frequencies: Mapping[int, int]) -> dict[int, CoreKind]:
    """Return the kind of each CPU whose core type has a name; its speed is a factor times its maximal frequency.

    Without the frequencies of all CPUs it is the factor alone.
    """
    classes = [kind for kind in FACTORS if kind in set(named.values())]
    known = frequencies if named.keys() <= frequencies.keys() else dict.fromkeys(named, 1)
    return {cpu: CoreKind(kind, classes.index(kind), FACTORS[kind] * known[cpu]) for cpu, kind in named.items()}


def kinds_by_speed(speeds: Mapping[int, int]) -> dict[int, CoreKind]:
    """Return the kind of each CPU by its capacity or maximal frequency; empty if all are in one class.

    The slowest class is efficiency, all others (the middle of three too) are performance.
    """
    ceilings = _ceilings(set(speeds.values()))
    steps = sorted(set(ceilings.values()), reverse=True)
    if len(steps) < 2:
        return {}
    found = {}
    for cpu, speed in speeds.items():
        core_class = steps.index(ceilings[speed])
        kind = EFFICIENCY if core_class == len(steps) - 1 else PERFORMANCE
        found[cpu] = CoreKind(kind, core_class, float(speed))
    return found


def _ceilings(speeds: Collection[int]) -> dict[int, int]:
    """Return {speed: highest speed of its class}."""
    ceilings: dict[int, int] = {}
    top = 0
    for value in sorted(speeds, reverse=True):
        if not top or top > CLASS_GAP * value:
            top = value
        ceilings[value] = top
    return ceilings
