from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import ompaffinity
from ompaffinity.bind import mempolicy
from ompaffinity.ids import MAX_ID
from ompaffinity.launch import bind_exec
from ompaffinity.launch.bind_exec import InvalidArgumentsError, id_list
from ompaffinity.openmp import variables
from tests.conftest import ROOT, needs_libnuma, needs_program, needs_two_cpus

FILE = str(Path(bind_exec.__file__))
BIND_EXEC = [sys.executable, "-I", "-S", FILE]
REPORT = """
import json, os
policies = {line.split()[1] for line in open("/proc/self/numa_maps")}
print(json.dumps([sorted(os.sched_getaffinity(0)), sorted(policies), dict(os.environ)]))
"""
WORKER = ["--", sys.executable, "-c", REPORT]
CPU = min(os.sched_getaffinity(0))


def run(*words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *BIND_EXEC, *words], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )


@needs_libnuma
@pytest.mark.parametrize(
    ("mode", "word"), [("--bind", "bind"), ("--preferred", "prefer"), ("--interleave", "interleave")]
)
def test_binds_the_command_before_it_starts(mode: str, word: str) -> None:
    node = ompaffinity.get_memory_affinity()[0]
    done = run("--cpus", str(CPU), mode, str(node), "--set", "A=1=2", "--unset", "HOME", "--strict", *WORKER)
    assert (done.returncode, done.stderr) == (0, "")
    cpus, policies, variables = json.loads(done.stdout)
    assert cpus == [CPU]
    assert policies == [f"{word}:{node}"]
    assert variables["A"] == "1=2"
    assert "HOME" not in variables
    assert bind_exec.UNBOUND_VARIABLE not in variables


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cpus", "65000"], "CPUs: "),
        (["--cpus", f"{CPU},65000"], "CPUs: some CPUs"),
        (["--bind", "1000"], "memory: bind rejected"),
        (["--cpus", "3-1"], "is not an ascending range"),
        (["--cpus", "a"], "is not a list"),
        (["--cpus"], "has no value"),
        (["--set", "A"], "NAME=VALUE"),
        (["--wide"], "'--wide' is unknown"),
        (["--die-with-parent", "x"], "must be a process id"),
    ],
)
def test_a_rejected_binding_starts_the_command_unbound_with_the_reason(words: list[str], reason: str) -> None:
    done = run(*words, *WORKER)
    assert done.returncode == 0
    assert reason in json.loads(done.stdout)[2][bind_exec.UNBOUND_VARIABLE]
    assert done.stderr.startswith("ompaffinity: ")
    strict = run(*words, "--strict", *WORKER)
    is_rejected_by_the_kernel = reason.startswith(("CPUs: ", "memory: "))
    assert strict.returncode == (bind_exec.NOT_BOUND if is_rejected_by_the_kernel else bind_exec.USAGE)
    assert strict.stdout == ""


@needs_two_cpus
@needs_program("taskset")
def test_a_rejected_mask_leaves_that_of_the_process() -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    done = run("--cpus", f"{second},65000", *WORKER, prefix=("taskset", "-c", str(first)))
    assert json.loads(done.stdout)[0] == [first]


@needs_libnuma
def test_binds_the_cpus_if_the_memory_policy_is_rejected() -> None:
    prefix = (sys.executable, "-m", "tests.bind.seccomp")
    done = run("--cpus", str(CPU), "--bind", "0", *WORKER, prefix=prefix)
    cpus, policies, variables = json.loads(done.stdout)
    assert (cpus, policies) == ([CPU], ["default"])
    assert "Operation not permitted" in variables[bind_exec.UNBOUND_VARIABLE]
    assert "no policy instead" in variables[bind_exec.UNBOUND_VARIABLE]


def test_exits_with_127_if_the_command_cannot_be_started() -> None:
    done = run("--", "/no/such/command")
    assert done.returncode == 127
    assert done.stderr == "ompaffinity: /no/such/command cannot be started: No such file or directory\n"
    assert run("--", "/no/such/command", "argument").stderr == done.stderr
    assert run("--cpus", "0").returncode == bind_exec.USAGE


@pytest.mark.parametrize("is_ignored", [True, False])
def test_the_command_ignores_only_the_signals_that_were_ignored_before(is_ignored: bool) -> None:
    state = f"signal.SIG_{'IGN' if is_ignored else 'DFL'}"
    prefix = (
        sys.executable,
        "-c",
        f"import os, signal, sys; signal.signal(2, {state}); os.execv(sys.argv[1], sys.argv[1:])",
    )
    done = run("--cpus", str(CPU), "--", "grep", "^SigIgn", "/proc/self/status", prefix=prefix)
    ignored = int(done.stdout.split()[1], 16)
    assert bool(ignored >> signal.SIGINT - 1 & 1) is is_ignored
    assert not ignored >> signal.SIGPIPE - 1 & 1
    assert not ignored >> signal.SIGXFSZ - 1 & 1


def test_the_statuses_are_those_of_sysexits_and_of_a_shell() -> None:
    assert run("--wide", "--strict", *WORKER).returncode == 64
    assert run("--cpus", "65000", "--strict", *WORKER).returncode == 71
    assert run("--", "/no/such/command").returncode == 127


def test_die_with_parent_kills_the_command(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    sleeper = f"import os, time; open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    command = [*BIND_EXEC, "--die-with-parent", "PID", "--", sys.executable, "-c", sleeper]
    starter = f"import os, subprocess; subprocess.run([w.replace('PID', str(os.getpid())) for w in {command!r}])"
    with subprocess.Popen([sys.executable, "-c", starter]) as parent:
        deadline = time.monotonic() + 30
        while not (number.exists() and number.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.send_signal(signal.SIGKILL)
    child = Path(f"/proc/{number.read_text()}")
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists() or "\nState:\tZ" in (child / "status").read_text()


def test_the_system_call_has_the_number_of_each_architecture() -> None:
    # arch/*/kernel/syscalls and include/uapi/asm-generic/unistd.h.
    assert bind_exec.SET_MEMPOLICY == {
        "x86_64": 238, "aarch64": 237, "riscv64": 237, "loongarch64": 237, "ppc64le": 261, "ppc64": 261, "s390x": 270,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "tried"),
    [
        ("--bind", [2, 5, 1]),
        ("--interleave", [3, 5, 1]),
        ("--weighted-interleave", [6, 3, 5, 1]),
        ("--preferred-many", [5, 1]),
        ("--preferred", [1]),
    ],
)
def test_the_memory_policies_that_are_tried(mode: str, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        def syscall(self, _number: Any, mode: Any, _mask: Any, bits: Any) -> int:
            asked.append((mode.value, bits.value))
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_arguments, **_named: Library())
    options = bind_exec.parse([mode, "3,64"])
    (reason,) = bind_exec.bind(options)
    assert reason.startswith(f"memory: {mode[2:]} rejected")
    assert reason.endswith("no policy instead")
    # One bit more than two words, and for the single preferred node, which is the first, than one.
    assert asked == [(number, 65 if number == 1 else 129) for number in tried]


def test_a_policy_that_is_taken_instead_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def syscall(self, _number: Any, mode: Any, _mask: Any, _bits: Any) -> int:
            return 0 if mode.value == bind_exec.MODES["--preferred-many"] else -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_arguments, **_named: Library())
    (reason,) = bind_exec.bind(bind_exec.parse(["--bind", "0"]))
    assert reason.startswith("memory: bind rejected (")
    assert reason.endswith("); preferred-many instead")


@pytest.mark.parametrize("text", ["100000", "123456789"])
def test_ids_have_five_digits_at_most(text: str) -> None:
    with pytest.raises(InvalidArgumentsError, match="is not a list of ids"):
        id_list(text)


def test_its_constants_equal_those_of_the_package() -> None:
    assert set(bind_exec.BINDING_VARIABLES) == set(variables.BINDING_VARIABLES)
    assert {name.removeprefix("--"): mode for name, mode in bind_exec.MODES.items()} == mempolicy.MODES
    assert tuple(name.removeprefix("--") for name in bind_exec.FALLBACKS) == mempolicy.FALLBACKS
    assert bind_exec.MAX_ID == MAX_ID


def test_reads_and_rejects_id_lists() -> None:
    assert id_list("0-2,8") == {0, 1, 2, 8}
    for text in ("", "1-", "-1", "1,,2", "٣", "0-70000", "1 2"):
        with pytest.raises(InvalidArgumentsError):
            id_list(text)


def test_requires_only_the_standard_library() -> None:
    code = f"import runpy, sys; sys.argv = ['x']; sys.exit(runpy.run_path({FILE!r})['main'](['--', 'true']))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
