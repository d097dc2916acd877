from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.doctor.machine import machine_checks
from ompaffinity.doctor.record import Check
from ompaffinity.messages import Message
from ompaffinity.topology import lscpu
from ompaffinity.topology.model import UNKNOWN, Topology
from tests.conftest import ROOT
from tests.doctor.checks import checked, tree_of
from tests.placement.machines import synthetic


def cpus_of(topology: Topology, folder: Path, **files: str) -> dict[str, Check]:
    with tree_of(folder, files) as tree:
        return checked(machine_checks(topology, tree))


def test_reports_what_is_wrong_with_the_cpus(tmp_path: Path) -> None:
    machine = synthetic("package:2 core:2 pu:2")
    cpus = tuple(
        cpu._replace(online=cpu.id != 7, isolated=cpu.id == 1, allowed=cpu.id in (0, 1, 2, 3)) for cpu in machine.cpus
    )
    machine = machine._replace(
        cpus=cpus,
        limits=machine.limits._replace(cpu_quota=1.5),
        messages=(Message("sources-disagree", "warning", "lscpu has 3 cores"),),
    )
    governor = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}"
    files = {governor.format(0, "governor"): "powersave\n", governor.format(0, "driver"): "acpi-cpufreq\n"}
    files |= {governor.format(2, "governor"): "powersave\n", governor.format(2, "driver"): "intel_pstate\n"}
    found = cpus_of(machine, tmp_path, **files)
    assert {name: check.level for name, check in found.items() if name != "lscpu"} == {
        "machine": "ok",
        "sources": "warning",
        "affinity": "ok",
        "allowed CPUs": "warning",
        "CPU quota": "warning",
        "isolated CPUs": "warning",
        "SMT": "warning",
        "governor": "warning",
        "idle CPUs": "ok",
    }
    assert "CPU 0 runs at its lowest frequency" in found["governor"].message
    assert "1.5 CPUs for 4 allowed CPUs" in found["CPU quota"].message
    assert "1 to 2 online threads" in found["SMT"].message
    assert "CPU 1 (isolcpus)" in found["isolated CPUs"].message


@pytest.mark.parametrize(("quota", "level"), [(3.9, "warning"), (4.0, "ok"), (None, "ok")])
def test_warns_of_a_quota_below_the_number_of_allowed_cpus(tmp_path: Path, quota: float | None, level: str) -> None:
    machine = synthetic("core:4 pu:1")
    machine = machine._replace(limits=machine.limits._replace(cpu_quota=quota))
    assert cpus_of(machine, tmp_path)["CPU quota"].level == level


@pytest.mark.parametrize(
    ("driver", "flags", "command_line", "level"),
    [
        ("none", "fpu hypervisor avx2", "quiet", "warning"),
        (None, "hypervisor", "quiet idle=pollute", "warning"),
        ("haltpoll", "fpu hypervisor", "quiet", "ok"),
        ("none", "fpu hypervisor", "quiet idle=poll", "ok"),
        ("none", "fpu avx2", "quiet", "ok"),
        ("intel_idle", "fpu", "", "ok"),
    ],
)
def test_warns_if_the_guest_halts_idle_cpus(
    tmp_path: Path, driver: str | None, flags: str, command_line: str, level: str
) -> None:
    files = {"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n", "proc/cmdline": f"{command_line}\n"}
    if driver is not None:
        files["sys/devices/system/cpu/cpuidle/current_driver"] = f"{driver}\n"
    check = cpus_of(synthetic("core:2 pu:1"), tmp_path, **files)["idle CPUs"]
    assert check.level == level
    assert level == "ok" or "haltpoll" in str(check.fix)


def test_no_allowed_cpu_is_a_problem(tmp_path: Path) -> None:
    machine = synthetic("core:2 pu:1")
    machine = machine._replace(cpus=tuple(cpu._replace(allowed=False) for cpu in machine.cpus))
    assert cpus_of(machine, tmp_path)["allowed CPUs"].level == "problem"


def test_warns_if_lscpu_reports_other_cpus(tmp_path: Path) -> None:
    found = cpus_of(synthetic("package:64 core:64 pu:1"), tmp_path)
    assert found["lscpu"].level == "warning"


GOVERNOR = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_{}"


def test_a_machine_with_nothing_to_report(tmp_path: Path) -> None:
    control = {"sys/devices/system/cpu/smt/control": "on\n"}
    found = cpus_of(synthetic("core:4 pu:2"), tmp_path, **control)
    texts = {name: check.message for name, check in found.items() if name not in ("lscpu", "affinity")}
    assert texts == {
        "machine": "x86_64, 8 of 8 CPUs online, read from synthetic",
        "sources": "the sources do not contradict each other",
        "allowed CPUs": "all 8 online CPUs",
        "CPU quota": "none",
        "isolated CPUs": "none",
        "SMT": "2 threads per core (control: on)",
        "governor": "none: the guest cannot set CPU frequencies",
        "idle CPUs": "kernel default",
    }
    assert {found[name].level for name in texts} == {"ok"}


def test_a_quota_that_is_enough_is_named(tmp_path: Path) -> None:
    machine = synthetic("core:4 pu:1")
    machine = machine._replace(limits=machine.limits._replace(cpu_quota=4.5))
    assert cpus_of(machine, tmp_path)["CPU quota"] == Check("CPU quota", "ok", "4.5 CPUs, enough for 4 allowed CPUs")


@pytest.mark.parametrize(
    ("text", "message"), [("core:4 pu:1", "one thread per core"), ("core:2 pu:4", "4 threads per core")]
)
def test_names_the_threads_of_each_core(text: str, message: str, tmp_path: Path) -> None:
    assert cpus_of(synthetic(text), tmp_path)["SMT"] == Check("SMT", "ok", message)


def test_warns_of_cpus_whose_core_is_unknown(tmp_path: Path) -> None:
    machine = synthetic("core:4 pu:1")
    cpus = tuple(
        cpu._replace(online=cpu.id != 3, physical_core=UNKNOWN if cpu.id > 1 else cpu.physical_core)
        for cpu in machine.cpus
    )
    check = cpus_of(machine._replace(cpus=cpus), tmp_path)["SMT"]
    assert (check.level, check.message) == ("warning", "which CPUs share a core is not reported for CPU 2")


def test_names_the_governors_of_the_allowed_cpus(tmp_path: Path) -> None:
    machine = synthetic("core:3 pu:1")
    machine = machine._replace(cpus=tuple(cpu._replace(allowed=cpu.id < 2) for cpu in machine.cpus))
    names = ("schedutil", "performance", "powersave")
    files = {GOVERNOR.format(cpu, "governor"): f"{name}\n" for cpu, name in enumerate(names)}
    assert cpus_of(machine, tmp_path, **files)["governor"] == Check("governor", "ok", "performance, schedutil")


@pytest.mark.parametrize("driver", ["intel_pstate", "amd-pstate-epp", "amd_pstate_epp"])
def test_powersave_is_fine_with_drivers_that_scale(driver: str, tmp_path: Path) -> None:
    files = {GOVERNOR.format(0, "governor"): "powersave\n", GOVERNOR.format(0, "driver"): f"{driver}\n"}
    assert cpus_of(synthetic("core:1 pu:1"), tmp_path, **files)["governor"] == Check("governor", "ok", "powersave")


@pytest.mark.parametrize(
    ("driver", "command_line", "message"),
    [
        ("haltpoll", "quiet", "cpuidle driver haltpoll"),
        ("haltpoll", "idle=poll quiet", "polling (idle=poll)"),
        ("none", "quiet", "kernel default"),
    ],
)
def test_names_what_idle_cpus_do(driver: str, command_line: str, message: str, tmp_path: Path) -> None:
    files = {"sys/devices/system/cpu/cpuidle/current_driver": driver, "proc/cmdline": command_line}
    assert cpus_of(synthetic("core:1 pu:1"), tmp_path, **files)["idle CPUs"] == Check("idle CPUs", "ok", message)


def test_every_online_cpu_allowed_is_fine_beside_offline_ones(tmp_path: Path) -> None:
    machine = synthetic("core:4 pu:1")
    cpus = tuple(cpu._replace(online=cpu.id != 2, allowed=cpu.id != 2) for cpu in machine.cpus)
    found = cpus_of(machine._replace(cpus=cpus), tmp_path)
    assert found["machine"].message == "x86_64, 3 of 4 CPUs online, read from synthetic"
    assert found["allowed CPUs"] == Check("allowed CPUs", "ok", "all 3 online CPUs")


def test_names_the_cpus_that_are_not_allowed(tmp_path: Path) -> None:
    machine = synthetic("core:4 pu:1")
    cpus = tuple(cpu._replace(allowed=cpu.id != 2) for cpu in machine.cpus)
    check = cpus_of(machine._replace(cpus=cpus), tmp_path)["allowed CPUs"]
    assert (check.level, check.message) == ("warning", "CPU 0-1,3 of 0-3 allowed for this process")


def test_lscpu_is_not_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lscpu, "SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    check = cpus_of(synthetic("core:1 pu:1"), tmp_path)["lscpu"]
    assert check.level == "warning"
    assert check.fix == "install util-linux; required only where sysfs is incomplete"


def test_a_refused_mask_is_a_problem() -> None:
    command = [sys.executable, "-m", "tests.bind.seccomp", "--calls", "sched_setaffinity"]
    command += [sys.executable, "-m", "ompaffinity", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    (check,) = (check for check in json.loads(done.stdout)["checks"] if check["name"] == "affinity")
    assert done.returncode == 1
    assert check["level"] == "problem"
    assert check["message"] == "threads cannot be bound to CPUs: Operation not permitted"
