from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.cli.main import main
from ompaffinity.doctor import memory as doctor_memory
from ompaffinity.doctor import software
from ompaffinity.doctor.check import diagnose
from ompaffinity.doctor.machine import machine_checks
from ompaffinity.doctor.memory import memory_checks
from ompaffinity.doctor.record import Check
from ompaffinity.doctor.software import software_checks
from ompaffinity.errors import RequestError
from ompaffinity.messages import Message
from ompaffinity.topology.limits import read_limits
from ompaffinity.topology.model import Topology
from ompaffinity.topology.tree import DirectoryTree
from tests.conftest import needs_libnuma, run_command
from tests.openmp.libraries import GOMP, NEWER_LLVM, needs_gomp, needs_newer_llvm
from tests.placement.machines import synthetic

NAMES = [
    "machine", "sources", "lscpu", "affinity", "allowed CPUs", "CPU quota", "isolated CPUs", "SMT", "governor",
    "idle CPUs", "libnuma",
    "memory policy", "memory nodes", "memory limit", "NUMA balancing", "transparent huge pages", "huge pages",
    "OpenMP variables", "LD_PRELOAD", "OpenMP runtimes", "GPU libraries",
]  # fmt: skip


def tree_of(folder: Path, files: dict[str, str]) -> DirectoryTree:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return DirectoryTree(str(folder))


def checked(found: Any) -> dict[str, Check]:
    return {check.name: check for check in found}


def cpus_of(topology: Topology, folder: Path, **files: str) -> dict[str, Check]:
    with tree_of(folder, files) as tree:
        return checked(machine_checks(topology, tree))


def test_runs_every_check() -> None:
    diagnosis = diagnose(os.environ)
    assert [check.name for check in diagnosis.checks] == NAMES
    assert all(check.message for check in diagnosis.checks)
    assert all(check.fix for check in diagnosis.checks if check.level != "ok")
    assert all(check.fix is None for check in diagnosis.checks if check.level == "ok")


def test_doctor_prints_a_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "Workers can be bound as planned." in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_doctor_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ompaffinity.doctor/1"
    assert [check["name"] for check in document["checks"]] == NAMES
    assert {tuple(check) for check in document["checks"]} == {("name", "level", "message", "fix")}


def test_strict_turns_warnings_into_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_PLACES", "cores")
    assert main(["doctor"]) == 0
    assert main(["doctor", "--strict"]) == 1
    assert "OMP_PLACES=cores" in capsys.readouterr().out


def test_an_inherited_mask_is_a_warning() -> None:
    cpu = min(os.sched_getaffinity(0))
    everything = set(range(os.sysconf("SC_NPROCESSORS_ONLN")))
    bound = f"import os, sys; os.sched_setaffinity(0, [{cpu}]); from ompaffinity.cli.main import main"
    code = f"{bound}; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    expected = "warning" if len(everything) > 1 else "ok"
    assert found["allowed CPUs"]["level"] == expected


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


@needs_libnuma
def test_reports_what_is_wrong_with_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", lambda: (0, 0))
    node = "sys/devices/system/node/node0/hugepages/hugepages-1048576kB"
    files = {
        "proc/sys/kernel/numa_balancing": "1\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        f"{node}/nr_hugepages": "8\n",
        f"{node}/free_hugepages": "6\n",
        "proc/self/cgroup": "0::/here\n",
        "proc/self/mountinfo": "30 20 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/here/memory.max": "1000000\n",
        "sys/fs/cgroup/here/memory.current": "999000\n",
    }
    machine = synthetic("package:2 [numa] core:2 pu:1")
    hidden = machine.nodes[1]._replace(allowed=False)
    # A node without memory is never allowed, and is not reported.
    nodes = (machine.nodes[0], hidden, hidden._replace(id=2, cpus=(), has_memory=False))
    machine = machine._replace(nodes=nodes, limits=machine.limits._replace(memory_limit_bytes=1000000))
    with tree_of(tmp_path, files) as tree:
        found = checked(memory_checks(machine, tree))
    assert {name: check.level for name, check in found.items()} == {
        "libnuma": "ok",
        "memory policy": "ok",
        "memory nodes": "warning",
        "memory limit": "warning",
        "NUMA balancing": "warning",
        "transparent huge pages": "warning",
        "huge pages": "warning",
    }
    assert "node 0: 8 of 1024 MiB, 6 free: 6.0 GiB unavailable" in found["huge pages"].message
    assert "node 1 is not allowed" in found["memory nodes"].message


@pytest.mark.parametrize(("used", "level"), [(949, "ok"), (951, "warning"), (None, "ok")])
def test_warns_of_a_memory_limit_that_is_used_by_more_than_95_percent(
    tmp_path: Path, used: int | None, level: str
) -> None:
    files = {
        "proc/self/cgroup": "0::/here\n",
        "proc/self/mountinfo": "30 20 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/here/memory.max": f"{1000 * 2**20}\n",
    }
    if used is not None:
        files["sys/fs/cgroup/here/memory.current"] = f"{used * 2**20}\n"
    machine = synthetic("core:2 pu:1")
    with tree_of(tmp_path, files) as tree:
        machine = machine._replace(limits=read_limits(tree))
        assert checked(memory_checks(machine, tree))["memory limit"].level == level


def test_reads_huge_pages_without_nodes(tmp_path: Path) -> None:
    folder = "sys/kernel/mm/hugepages/hugepages-2048kB"
    files = {f"{folder}/nr_hugepages": "4", f"{folder}/free_hugepages": "4", "proc/self/cgroup": ""}
    small = folder.replace("2048", "64")
    files |= {f"{small}/nr_hugepages": "3", f"{small}/free_hugepages": "1"}
    with tree_of(tmp_path, files) as tree:
        found = checked(memory_checks(synthetic("core:2 pu:1"), tree))
    assert (found["huge pages"].level, found["huge pages"].message) == (
        "ok",
        "4 of 2 MiB, 4 free; 3 of 64 KiB, 1 free",
    )
    assert found["NUMA balancing"].message == "unsupported by this kernel"
    assert found["transparent huge pages"].message == "unsupported by this kernel"


@pytest.mark.parametrize(("nodes", "level"), [((0,), "warning"), ((0, 1), "problem")])
def test_missing_libnuma_is_a_problem_only_with_several_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: tuple[int, ...], level: str
) -> None:
    from ompaffinity.bind.mempolicy import AcceptedPolicy, LibnumaMissingError, MemoryPolicyError

    def missing() -> None:
        raise LibnumaMissingError("libnuma cannot be loaded")

    refused = AcceptedPolicy("none", (), MemoryPolicyError("the kernel refused"))
    monkeypatch.setattr(doctor_memory, "allowed_memory_nodes", lambda: nodes)
    monkeypatch.setattr(doctor_memory, "load_libnuma", missing)
    monkeypatch.setattr(doctor_memory, "accepted_policy", lambda policy, wanted: refused)
    with tree_of(tmp_path, {}) as tree:
        found = checked(memory_checks(synthetic("core:2 pu:1"), tree))
    assert (found["libnuma"].level, found["memory policy"].level) == (level, level)
    assert "SYS_NICE" in str(found["memory policy"].fix)


@needs_gomp
@needs_newer_llvm
def test_finds_two_runtimes_in_an_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=60)
    python = str(tmp_path / "env" / "bin" / "python")
    assert checked(software_checks({}, python))["OpenMP runtimes"].level == "ok"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "one").mkdir()
    (site / "one" / "libiomp5.so").symlink_to(NEWER_LLVM)
    assert "(iomp)" in checked(software_checks({}, python))["OpenMP runtimes"].message
    # The same file under another name is not a second runtime.
    (site / "libomp.so").symlink_to(NEWER_LLVM)
    assert checked(software_checks({}, python))["OpenMP runtimes"].level == "ok"
    from ompaffinity.openmp.library_path import find_library

    gnu = find_library(GOMP, {})
    assert gnu is not None
    (site / "libgomp-a34b3233.so.1").symlink_to(gnu)
    check = checked(software_checks({}, python))["OpenMP runtimes"]
    assert (check.level, "(gomp)" in check.message) == ("warning", True)
    preloaded = checked(software_checks({"LD_PRELOAD": f"{gnu}:{NEWER_LLVM}"}, python))["LD_PRELOAD"]
    assert preloaded.level == "warning"


@needs_newer_llvm
def test_names_the_runtimes_on_the_library_path_of_an_environment_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=60)
    python = str(tmp_path / "env" / "bin" / "python")
    (tmp_path / "libomp.so.5").symlink_to(NEWER_LLVM)
    # It has the name of a runtime, and is none.
    (tmp_path / "libiomp5.so").touch()
    environ = {"LD_LIBRARY_PATH": str(tmp_path)}
    message = checked(software_checks(environ, python))["OpenMP runtimes"].message
    assert f"{tmp_path / 'libomp.so.5'} (iomp)" in message
    assert "libiomp5" not in message
    monkeypatch.setattr(software, "system_runtimes", lambda environ: ())
    message = checked(software_checks({}, python))["OpenMP runtimes"].message
    assert message == f"none in the environment of {python}; none on the library path either"


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true", ""])
def test_rejects_python_options_that_are_no_interpreter(python: str) -> None:
    with pytest.raises(RequestError, match="--python"):
        list(software_checks({}, python))
    done = run_command("doctor", "--python", python)
    assert done.returncode == 2
    assert done.stderr.startswith("ompaffinity: error: --python")
    assert done.stderr.count("\n") == 1
