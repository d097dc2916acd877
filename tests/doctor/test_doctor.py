from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ompaffinity.cli.main import main
from ompaffinity.doctor.check import diagnose

NAMES = [
    "machine", "sources", "lscpu", "affinity", "allowed CPUs", "CPU quota", "isolated CPUs", "SMT", "governor",
    "idle CPUs", "libnuma",
    "memory policy", "memory nodes", "memory limit", "NUMA balancing", "transparent huge pages", "huge pages",
    "OpenMP variables", "LD_PRELOAD", "OpenMP runtimes", "GPU libraries",
]  # fmt: skip


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
