"""The user's own program under ``verify -- COMMAND``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.cli.main import main
from ompaffinity.errors import CommandStartError
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proof.command import verify_command
from ompaffinity.proof.verdict import RankVerdict
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, ROOT, needs_two_cpus, run_command
from tests.openmp.libraries import (
    GOMP,
    LIBRARIES,
    needs_gomp,
)

BUSY = str(ROOT / "tests" / "openmp" / "busy_team.py")
SLEEP = "import time; time.sleep(60)"


def live_plan(runtime: str, **request: Any) -> Plan:
    return make_plan(load_topology(), PlacementRequest(runtime=runtime, **request))


def busy_team(library: str, *arguments: int) -> list[str]:
    return [sys.executable, BUSY, library, *map(str, arguments)]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def judged(plan: Plan, command: list[str], seconds: float = 10) -> RankVerdict:
    (rank,) = verify_command(OMPProcessManager(plan), command, seconds).ranks
    json.dumps(rank.to_document())
    return rank


@needs_two_cpus
@pytest.mark.parametrize(("runtime", "library"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_team_at_work_holds_and_is_ended(runtime: str, library: str, capfd: pytest.CaptureFixture[str]) -> None:
    plan = live_plan(runtime, reserve=0)
    rank = judged(plan, busy_team(library), 30)
    assert rank.verdict == "holds", rank
    assert not rank.team_known
    assert [thread.cpus for thread in rank.threads] == list(plan.ranks[0].places)
    assert rank.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(rank.pid, 0)
    assert "ready soon" in capfd.readouterr().err


@needs_gomp
@needs_two_cpus
def test_each_rank_of_one_thread_is_watched_to_the_end() -> None:
    plan = live_plan("gomp", tensor_parallel_size=2)
    verdict = verify_command(OMPProcessManager(plan), busy_team(GOMP), 4)
    assert verdict.verdict == "holds", verdict
    assert verdict.seconds > 3.5
    assert [rank.busy_threads for rank in verdict.ranks] == [1, 1]


@needs_gomp
@needs_two_cpus
@pytest.mark.parametrize("granularity", ["thread", "team"])
@pytest.mark.parametrize("threads", [1, 8])
def test_a_team_of_another_size_differs(threads: int, granularity: str) -> None:
    rank = judged(live_plan("gomp", reserve=0, granularity=granularity), busy_team(GOMP, threads), 6)
    assert rank.verdict == "differs", rank
    assert all("the program set another number of threads" in (found.cause or "") for found in rank.differences)
    # Eight threads on two CPUs wait passively, and not all of them at once.
    assert rank.busy_threads == 1 if threads == 1 else (rank.busy_threads or 0) > 2


@needs_gomp
@needs_two_cpus
def test_a_rank_of_one_thread_that_forms_a_larger_team_later_differs() -> None:
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from tests.openmp.busy_team import work\n"
    code += f"work({GOMP!r}, 1, 2.5); time.sleep(0.5); work({GOMP!r}, 4)"
    verdict = verify_command(OMPProcessManager(live_plan("gomp", tensor_parallel_size=2)), python(code), 8)
    assert [rank.verdict for rank in verdict.ranks] == ["differs", "differs"], verdict


def test_a_program_that_sleeps_is_unproven() -> None:
    rank = judged(live_plan("gomp", cpus=(CPUS[0],)), python(SLEEP), 1)
    assert (rank.verdict, rank.differences) == ("unproven", ())
    assert "no thread was busy while it was observed" in rank.notes


def test_a_program_without_openmp_is_compared_with_its_mask() -> None:
    rank = judged(live_plan("gomp", cpus=(CPUS[0],)), python("while True: pass"), 4)
    assert (rank.verdict, rank.level, rank.busy_threads) == ("holds", "mask", 1)


@needs_two_cpus
def test_a_program_that_leaves_its_mask_differs() -> None:
    code = f"import os; os.sched_setaffinity(0, {{{CPUS[-1]}}})\nwhile True: pass"
    rank = judged(live_plan("gomp", cpus=(CPUS[0],)), python(code), 2)
    assert rank.verdict == "differs"
    assert "no OpenMP" not in str(rank.differences)


@needs_gomp
@needs_two_cpus
@pytest.mark.parametrize("wrapper", [("sh", "-c", '"$@"; true', "sh"), ("env", "ADDED=1")], ids=["shell", "env"])
def test_the_worker_below_a_wrapper_is_found(wrapper: tuple[str, ...]) -> None:
    rank = judged(live_plan("gomp", reserve=0), [*wrapper, *busy_team(GOMP)], 30)
    assert rank.verdict == "holds", rank


@needs_gomp
@needs_two_cpus
def test_a_worker_without_the_environment_is_the_rank_of_its_command() -> None:
    plan = live_plan("gomp", reserve=0)
    keep = [f"PATH={os.environ['PATH']}", "GOMP_CPU_AFFINITY=0-1"]
    rank = judged(plan, ["sh", "-c", '"$@"; true', "sh", "env", "-i", *keep, *busy_team(GOMP)], 4)
    assert rank.pid is not None
    assert rank.runtimes


@needs_gomp
@needs_two_cpus
def test_the_verdict_beside_a_busy_neighbour_is_the_same() -> None:
    with subprocess.Popen(python("while True: pass")) as neighbour:
        try:
            plan = live_plan("gomp", reserve=0)
            assert [judged(plan, busy_team(GOMP), 20).verdict for _ in range(3)] == ["holds"] * 3
            assert judged(plan, busy_team(GOMP, 8), 20).verdict == "differs"
        finally:
            neighbour.kill()


def test_what_the_command_started_is_ended_with_it() -> None:
    child = "import time; time.sleep(61.25)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    before = signal.getsignal(signal.SIGTERM)
    verify_command(OMPProcessManager(live_plan("gomp")), python(code), 1)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and runs(pid, child)]


def runs(pid: str, code: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2:3] == [code.encode()]
    except OSError:
        return False


def test_a_command_that_ends_at_once_or_cannot_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manager = OMPProcessManager(live_plan("gomp"))
    with pytest.raises(CommandStartError, match="cannot be started: No such file"):
        verify_command(manager, [str(tmp_path / "missing")], 5)
    (rank,) = verify_command(manager, ["false"], 5).ranks
    assert (rank.verdict, rank.notes[-1]) == ("unproven", "its command ended with status 1")
    assert main(["verify", "--", str(tmp_path / "missing")]) == 3
    error = capfd.readouterr().err
    assert "cannot be started: No such file" in error
    assert error.count("\n") == 1


@needs_gomp
@needs_two_cpus
def test_the_command_line() -> None:
    done = run_command("verify", "--runtime", "gomp", "--reserve", "0", "--json", "--", *busy_team(GOMP))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["verdict"], document["ranks"][0]["level"]) == ("holds", "threads")
    assert "ready soon" in done.stderr
    assert run_command("verify", "--seconds", "1", "--", *python(SLEEP)).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["verify", "--"], "no command follows --"),
        (["verify", "--seconds", "0", "--", "true"], "--seconds is 0; it must be at least 1"),
        (["verify", "--seconds", "5"], "--seconds requires a command or --pid"),
        (["verify", "--library", "x", "--", "true"], "--library cannot be combined with a command"),
        (["verify", "--pid", "1", "--", "true"], "--pid checks live workers and cannot be combined with -- COMMAND"),
        (["plan", "--", "true"], "plan starts no command; leave -- out"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1
