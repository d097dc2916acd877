"""CPUs: what was read of them, whether this process may be bound to them, and how fast they are allowed to run."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.bind.affinity import set_mask
from ompaffinity.doctor.record import OK, PROBLEM, WARNING, Check
from ompaffinity.errors import TopologyError
from ompaffinity.ids import format_id_list
from ompaffinity.topology.lscpu import read_lscpu
from ompaffinity.topology.text import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.topology.model import Topology
    from ompaffinity.topology.tree import Tree

CPU_ROOT = "sys/devices/system/cpu"
DRIVERS_THAT_SCALE = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
"""With these, the governor "powersave" does not mean the lowest frequency (admin-guide/pm/intel_pstate.rst)."""


def machine_checks(topology: Topology, tree: Tree) -> Iterator[Check]:
    """Yield what there is to say of the CPUs."""
    present = [cpu.id for cpu in topology.cpus]
    online = [cpu.id for cpu in topology.cpus if cpu.online]
    text = f"{topology.architecture}, {len(online)} of {len(present)} CPUs on line, read from {topology.source}"
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
        fix = "say which is right: --source sysfs or --source lscpu"
        return Check("sources", WARNING, "; ".join(message.message for message in differing), fix)
    return Check("sources", OK, "nothing that was read contradicts itself")


def _lscpu(topology: Topology) -> Check:
    try:
        rows = read_lscpu(topology.architecture)
    except TopologyError as error:
        return Check("lscpu", WARNING, str(error), "install util-linux; it is needed only where sysfs is lacking")
    ours = {cpu.id for cpu in topology.cpus if cpu.online}
    theirs = {cpu.id for cpu in rows if cpu.online}
    if ours != theirs:
        text = f"lscpu knows CPU {format_id_list(theirs)}, sysfs {format_id_list(ours)}"
        return Check("lscpu", WARNING, text, "a CPU went on or off line, or a container hides some; look again")
    return Check("lscpu", OK, f"lscpu answers, with {len(theirs)} CPUs")


def _affinity() -> Check:
    """Try to bind: a thread of its own sets the mask that it has."""
    reasons: list[str | None] = ["no thread could be started to try it in"]

    def work() -> None:
        reasons[0] = set_mask(0, os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "no such call here"

    thread = threading.Thread(target=work)
    with suppress(RuntimeError):
        thread.start()
        thread.join()
    if reasons[0] is not None:
        fix = "workers run unbound here; look for a seccomp profile that forbids sched_setaffinity"
        return Check("affinity", PROBLEM, f"threads cannot be bound to CPUs: {reasons[0]}", fix)
    return Check("affinity", OK, "threads can be bound to CPUs")


def _allowed(topology: Topology, online: list[int]) -> Check:
    allowed = topology.allowed_cpus
    if not allowed:
        return Check("allowed CPUs", PROBLEM, "this process may use no CPU", "widen its mask or its cpuset")
    if len(allowed) < len(online):
        text = f"this process may use CPU {format_id_list(allowed)} of {format_id_list(online)}"
        fix = "plans stay within; a taskset, a cpuset (docker: --cpuset-cpus) or a batch system has set it"
        return Check("allowed CPUs", WARNING, text, fix)
    return Check("allowed CPUs", OK, f"all {len(online)} CPUs that are on line")


def _quota(topology: Topology) -> Check:
    quota = topology.limits.cpu_quota
    if quota is None:
        return Check("CPU quota", OK, "none")
    if quota < len(topology.allowed_cpus):
        text = f"{quota:g} CPUs' time for {len(topology.allowed_cpus)} CPUs: threads beyond it are stopped in turns"
        fix = "plans use that many threads; raise cpu.max (docker: --cpus), or give whole CPUs by a cpuset instead"
        return Check("CPU quota", WARNING, text, fix)
    return Check("CPU quota", OK, f"{quota:g} CPUs' time, enough for {len(topology.allowed_cpus)} CPUs")


def _isolated(topology: Topology) -> Check:
    isolated = [cpu.id for cpu in topology.cpus if cpu.isolated]
    if isolated:
        text = f"CPU {format_id_list(isolated)} (isolcpus): the kernel balances no load there"
        return Check("isolated CPUs", WARNING, text, "plans leave them out; --cpus LIST uses those that it names")
    return Check("isolated CPUs", OK, "none")


def _smt(topology: Topology, tree: Tree) -> Check:
    cores: dict[int, int] = {}
    for cpu in topology.cpus:
        if cpu.online:
            cores[cpu.physical_core] = cores.get(cpu.physical_core, 0) + 1
    most = max(cores.values(), default=1)
    control = read_text(tree, f"{CPU_ROOT}/smt/control")
    if len(set(cores.values())) > 1:
        text = f"cores have {min(cores.values())} to {most} threads on line"
        return Check("SMT", WARNING, text, "plans take that into account; was a sibling switched off by hand?")
    state = f" (control: {control})" if control else ""
    return Check("SMT", OK, f"{most} threads per core{state}" if most > 1 else f"one thread per core{state}")


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
        text = f"CPU {format_id_list(slow)} is held at its lowest frequency (powersave)"
        return Check("governor", WARNING, text, "cpupower frequency-set -g performance (or schedutil)")
    return Check("governor", OK, ", ".join(sorted(names)) or "frequencies are not this system's to set")


def _idle(tree: Tree) -> Check:
    """Whether a CPU that has nothing to do leaves the virtual machine (Documentation/virt/guest-halt-polling.rst)."""
    driver = read_text(tree, f"{CPU_ROOT}/cpuidle/current_driver") or "none"
    lines = (read_text(tree, "proc/cpuinfo") or "").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    if "idle=poll" in (read_text(tree, "proc/cmdline") or "").split():
        return Check("idle CPUs", OK, "wait awake (idle=poll)")
    if driver == "none" and "hypervisor" in flags:
        text = (
            "a virtual machine that stops its idle CPUs: ranks that wait for each other (gloo) wait for a CPU to wake"
        )
        fix = "modprobe cpuidle_haltpoll, or boot with idle=poll; ask the host for halt polling"
        return Check("idle CPUs", WARNING, text, fix)
    return Check("idle CPUs", OK, "left to the kernel" if driver == "none" else f"left to {driver}")
