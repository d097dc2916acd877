"""The kind of each core of a hybrid chip: performance, efficiency, low-power.

Sources, in order of precedence: the PMUs of Intel's hybrids (/sys/devices/cpu_core, cpu_atom,
cpu_lowpower); cpu_capacity (arm64, riscv: Documentation/ABI/testing/sysfs-devices-system-cpu);
the maximal frequencies. Capacities and frequencies that differ by less than a fifth are one
class: equal cores differ slightly between clusters, and some have a higher turbo frequency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.topology.text import read_id_list, read_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.topology.tree import Tree

CPU_ROOT = "sys/devices/system/cpu"
PERFORMANCE, EFFICIENCY, LOW_POWER = "performance", "efficiency", "low-power"
CLASS_GAP = 1.2


def read_kinds(tree: Tree, online: list[int]) -> dict[int, str]:
    """Return {cpu: kind} of the online CPUs; empty on machines of equal cores."""
    named: dict[int, str] = {}
    for directory, kind in (("cpu_lowpower", LOW_POWER), ("cpu_atom", EFFICIENCY), ("cpu_core", PERFORMANCE)):
        named.update(dict.fromkeys(read_id_list(tree, f"sys/devices/{directory}/cpus") or (), kind))
    hybrid = completed_kinds(named, online)
    if hybrid:
        return hybrid
    speeds = _numbers(tree, online, "cpu_capacity") or _numbers(tree, online, "cpufreq/cpuinfo_max_freq")
    return kinds_by_speed(speeds)


def _numbers(tree: Tree, online: list[int], name: str) -> dict[int, int]:
    """Return {cpu: number} if every online CPU has the file, else {}: partial values would create wrong classes."""
    numbers = {}
    for cpu in online:
        number = read_number(tree, f"{CPU_ROOT}/cpu{cpu}/{name}")
        if number is None or number <= 0:
            return {}
        numbers[cpu] = number
    return numbers


def completed_kinds(named: dict[int, str], online: Iterable[int]) -> dict[int, str]:
    """Return {cpu: kind} of a hybrid chip, with low-power for CPUs that `named` lacks; {} if it is not hybrid."""
    is_hybrid = len({named[cpu] for cpu in online if cpu in named}) > 1
    return {cpu: named.get(cpu, LOW_POWER) for cpu in online} if is_hybrid else {}


def kinds_by_speed(speeds: dict[int, int]) -> dict[int, str]:
    """Return {cpu: kind} by capacity or maximal frequency; empty if all are in one class."""
    return _classes(_merged(speeds))


def _merged(speeds: dict[int, int]) -> dict[int, int]:
    """Round every speed up to the highest of its class, so that favoured turbo cores do not form a class."""
    ceiling: dict[int, int] = {}
    top = 0
    for value in sorted(set(speeds.values()), reverse=True):
        if not top or top > CLASS_GAP * value:
            top = value
        ceiling[value] = top
    return {cpu: ceiling[value] for cpu, value in speeds.items()}


def _classes(speed: dict[int, int]) -> dict[int, str]:
    """Name the classes of speeds: the slowest is efficiency, all others (the middle of three too) performance."""
    steps = sorted(set(speed.values()))
    if len(steps) < 2:
        return {}
    slow = {steps[0]: EFFICIENCY}
    return {cpu: slow.get(value, PERFORMANCE) for cpu, value in speed.items()}
