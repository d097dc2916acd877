"""The user's own program under ``verify -- COMMAND``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.cli.main import main
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proof.command import verify_command
from ompaffinity.topology.source import load_topology
from tests.conftest import ROOT, needs_two_cpus, run_command
from tests.openmp.libraries import (
    GOMP,
    LIBRARIES,
    needs_gomp,
)

CPUS = sorted(os.sched_getaffinity(0))
SERVER = f"""if True:
    import sys, time
    sys.path.insert(0, {str(ROOT)!r})
    from tests.openmp.team import form_team
    print("ready soon", flush=True)
    form_team(sys.argv[1])
    sys.stdout.flush()
    time.sleep(60)
"""


def live_plan(runtime: str, **request: Any) -> Plan:
    return make_plan(load_topology(), PlacementRequest(runtime=runtime, **request))


def command(library: str, code: str = SERVER) -> list[str]:
    return [sys.executable, "-c", code, library]


@pytest.mark.parametrize(("runtime", "library"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_server_is_seen_and_ended(runtime: str, library: str, capfd: pytest.CaptureFixture[str]) -> None:
    plan = live_plan(runtime, tensor_parallel_size=min(2, len(CPUS)))
    verdict = verify_command(OMPProcessManager(plan), command(library), 30)
    assert verdict.holds, verdict
    for rank, placement in zip(verdict.ranks, plan.ranks):
        assert not rank.team_known
        assert [thread.cpus for thread in rank.threads] == list(placement.places)
        with pytest.raises(ProcessLookupError):
            os.kill(rank.pid, 0)
    assert "ready soon" in capfd.readouterr().err


@needs_gomp
@needs_two_cpus
def test_the_runtimes_own_word_is_heard() -> None:
    plan = live_plan("gomp", reserve=0)
    code = SERVER.replace("time.sleep(60)", "time.sleep(1)")
    verdict = verify_command(OMPProcessManager(plan), command(GOMP, code), 30)
    (rank,) = verdict.ranks
    assert verdict.holds
    assert rank.runtime_says == dict(enumerate(plan.ranks[0].places))
    assert rank.to_document()["runtime_says"]["0"] == format_id_list(plan.ranks[0].places[0])


@needs_gomp
@needs_two_cpus
def test_a_program_that_goes_its_own_way_is_caught() -> None:
    code = SERVER.replace("form_team(sys.argv[1])", "import ctypes; ctypes.CDLL(sys.argv[1]).omp_set_num_threads(1)")
    verdict = verify_command(OMPProcessManager(live_plan("gomp", reserve=0)), command(GOMP, code), 2)
    assert not verdict.holds
    assert "reported no threads" in " ".join(verdict.ranks[0].notes)


def test_a_program_without_openmp_does_not_hold() -> None:
    code = "import time; time.sleep(60)"
    verdict = verify_command(OMPProcessManager(live_plan("gomp", cpus=(CPUS[0],))), command("", code), 1)
    assert not verdict.holds
    assert "no OpenMP runtime is loaded in it" in verdict.ranks[0].differences[0].message


@needs_gomp
@needs_two_cpus
def test_a_team_that_is_too_large_is_caught() -> None:
    form = f"import ctypes; ctypes.CDLL(sys.argv[1]).omp_set_num_threads({2 * len(CPUS)}); form_team(sys.argv[1])"
    code = SERVER.replace("form_team(sys.argv[1])", form)
    verdict = verify_command(OMPProcessManager(live_plan("gomp", reserve=0)), command(GOMP, code), 3)
    messages = [difference.message for difference in verdict.ranks[0].differences]
    assert any(
        message.startswith(f"the team has {2 * len(CPUS)} threads by the report of its OpenMP") for message in messages
    )


def test_what_the_command_started_is_ended_with_it() -> None:
    child = "import time; time.sleep(61.25)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    before = signal.getsignal(signal.SIGTERM)
    verify_command(OMPProcessManager(live_plan("gomp")), command("", code), 1)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and runs(pid, child)]


def runs(pid: str, code: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2:3] == [code.encode()]
    except OSError:
        return False


def test_a_command_that_ends_at_once_or_cannot_start(tmp_path: Path) -> None:
    manager = OMPProcessManager(live_plan("gomp"))
    with pytest.raises(RequestError, match="cannot be started: No such file"):
        verify_command(manager, [str(tmp_path / "missing")], 5)
    with pytest.raises(RequestError, match="ended with status 1 before its threads could be seen"):
        verify_command(manager, ["false"], 5)


@needs_gomp
def test_the_command_line() -> None:
    done = run_command("verify", "--runtime", "gomp", "--json", "--", *command(GOMP))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["holds"]
    assert "ready soon" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["verify", "--"], "no command follows --"),
        (["verify", "--seconds", "0", "--", "true"], "--seconds is 0; it must be at least 1"),
        (["verify", "--seconds", "5"], "--seconds requires a command"),
        (["verify", "--library", "x", "--", "true"], "--library cannot be combined with a command"),
        (["verify", "--pid", "1", "--", "true"], "--pid checks live workers and cannot be combined with -- COMMAND"),
        (["plan", "--", "true"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1
