"""Checks of the CPUs: what was read, whether this process can be bound to them, and their frequency governors."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import set_mask
from ompaffinity.doctor.record import OK, PROBLEM, WARNING, Check
from ompaffinity.errors import TopologyError
from ompaffinity.ids import format_id_list
from ompaffinity.topology.lscpu import read_lscpu
from ompaffinity.topology.model import UNKNOWN
from ompaffinity.topology.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

CPU_ROOT = "sys/devices/system/cpu"
DRIVERS_THAT_SCALE = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
"""With these drivers the governor "powersave" does not fix the lowest frequency (admin-guide/pm/intel_pstate.rst)."""


def machine_checks(topology: Topology, tree: Tree) -> Iterator[Check]:
    """Yield the checks of the CPUs."""
    present = [cpu.id for cpu in topology.cpus]
    online = [cpu.id for cpu in topology.cpus if cpu.online]
    text = f"{topology.architecture}, {len(online)} of {len(present)} CPUs online, read from {topology.source}"
    yield Check("machine", OK, text)
    yield _sources(topology)
    yield _lscpu(topology)
    yield _affinity()
    yield _allowed(topology, online)
    yield _quota(topology)
    yield _isolated(topology)
    yield _smt(topology, tree)
    yield _governor(topology, tree)
    yield _idle(tree)


def _sources(topology: Topology) -> Check:
    differing = [message for message in topology.messages if message.code == "sources-disagree"]
    if differing:
        fix = "select the right one with --source sysfs or --source lscpu"
        return Check("sources", WARNING, "; ".join(message.message for message in differing), fix)
    return Check("sources", OK, "the sources do not contradict each other")


def _lscpu(topology: Topology) -> Check:
    try:
        rows = read_lscpu(topology.architecture)
    except TopologyError as error:
        return Check("lscpu", WARNING, str(error), "install util-linux; required only where sysfs is incomplete")
    in_sysfs = {cpu.id for cpu in topology.cpus if cpu.online}
    in_lscpu = {cpu.id for cpu in rows if cpu.online}
    if in_sysfs != in_lscpu:
        text = f"lscpu reports CPU {format_id_list(in_lscpu)}, sysfs CPU {format_id_list(in_sysfs)}"
        fix = "repeat the check if a CPU has just gone online or offline; a container may hide CPUs"
        return Check("lscpu", WARNING, text, fix)
    return Check("lscpu", OK, f"lscpu reports {len(in_lscpu)} CPUs")


def _affinity() -> Check:
    """Test whether threads can be bound: a new thread sets the mask that it already has."""
    reasons: list[str | None] = ["no thread can be started for the test"]

    def work() -> None:
        reasons[0] = set_mask(0, os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    with suppress(RuntimeError):
        thread.start()
        thread.join()
    if reasons[0] is not None:
        fix = "allow sched_setaffinity in the seccomp profile; until then workers run unbound"
        return Check("affinity", PROBLEM, f"threads cannot be bound to CPUs: {reasons[0]}", fix)
    return Check("affinity", OK, "threads can be bound to CPUs")


def _allowed(topology: Topology, online: list[int]) -> Check:
    allowed = topology.allowed_cpus
    if not allowed:
        return Check("allowed CPUs", PROBLEM, "no CPU is allowed for this process", "widen its mask or its cpuset")
    if len(allowed) < len(online):
        text = f"CPU {format_id_list(allowed)} of {format_id_list(online)} allowed for this process"
        fix = "plans use only these; widen the mask (taskset, batch system) or the cpuset (docker: --cpuset-cpus)"
        return Check("allowed CPUs", WARNING, text, fix)
    return Check("allowed CPUs", OK, f"all {len(online)} online CPUs")


def _quota(topology: Topology) -> Check:
    quota = topology.limits.cpu_quota
    if quota is None:
        return Check("CPU quota", OK, "none")
    if quota < len(topology.allowed_cpus):
        text = f"{quota:g} CPUs for {len(topology.allowed_cpus)} allowed CPUs: the kernel throttles more threads"
        fix = "plans use that many threads; raise cpu.max (docker: --cpus), or restrict CPUs with a cpuset instead"
        return Check("CPU quota", WARNING, text, fix)
    return Check("CPU quota", OK, f"{quota:g} CPUs, enough for {len(topology.allowed_cpus)} allowed CPUs")


def _isolated(topology: Topology) -> Check:
    isolated = [cpu.id for cpu in topology.cpus if cpu.isolated]
    if isolated:
        text = f"CPU {format_id_list(isolated)} (isolcpus): excluded from the kernel's load balancing"
        return Check("isolated CPUs", WARNING, text, "plans leave them out; name them in --cpus LIST to use them")
    return Check("isolated CPUs", OK, "none")


def _smt(topology: Topology, tree: Tree) -> Check:
    online = [cpu for cpu in topology.cpus if cpu.online]
    unknown = [cpu.id for cpu in online if cpu.physical_core == UNKNOWN]
    if unknown:
        text = f"which CPUs share a core is not reported for CPU {format_id_list(unknown)}"
        return Check("SMT", WARNING, text, "mount /sys with its CPU topology; plans count each CPU as a core")
    cores = Counter(cpu.physical_core for cpu in online)
    largest = max(cores.values(), default=1)
    control = read_text(tree, f"{CPU_ROOT}/smt/control")
    if len(set(cores.values())) > 1:
        text = f"cores have {min(cores.values())} to {largest} online threads"
        return Check("SMT", WARNING, text, "plans allow for this; set offline siblings online for equal cores")
    state = f" (control: {control})" if control else ""
    return Check("SMT", OK, f"{largest} threads per core{state}" if largest > 1 else f"one thread per core{state}")


def _governor(topology: Topology, tree: Tree) -> Check:
    slow, names = [], set()
    for cpu in topology.allowed_cpus:
        folder = f"{CPU_ROOT}/cpu{cpu}/cpufreq"
        name, driver = (read_text(tree, f"{folder}/scaling_{what}") for what in ("governor", "driver"))
        if name is not None:
            names.add(name)
        if name == "powersave" and driver not in DRIVERS_THAT_SCALE:
            slow.append(cpu)
    if slow:
        text = f"CPU {format_id_list(slow)} runs at its lowest frequency (powersave)"
        return Check("governor", WARNING, text, "cpupower frequency-set -g performance (or schedutil)")
    return Check("governor", OK, ", ".join(sorted(names)) or "none: the guest cannot set CPU frequencies")


def _idle(tree: Tree) -> Check:
    """Check whether an idle CPU exits to the hypervisor (Documentation/virt/guest-halt-polling.rst)."""
    driver = read_text(tree, f"{CPU_ROOT}/cpuidle/current_driver") or "none"
    lines = (read_text(tree, "proc/cpuinfo") or "").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    if "idle=poll" in (read_text(tree, "proc/cmdline") or "").split():
        return Check("idle CPUs", OK, "polling (idle=poll)")
    if driver == "none" and "hypervisor" in flags:
        text = "this virtual machine halts idle CPUs: each wait between ranks (gloo) includes the wake-up of a CPU"
        fix = "modprobe cpuidle_haltpoll, or boot with idle=poll; ask the host for halt polling"
        return Check("idle CPUs", WARNING, text, fix)
    return Check("idle CPUs", OK, "kernel default" if driver == "none" else f"cpuidle driver {driver}")
