"""Real workers, right ones and deliberately broken ones: the kernel's word, and the cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.cli.main import main
from ompaffinity.errors import RequestError
from ompaffinity.openmp.plan_document import plan_document, worker_environment
from ompaffinity.placement.model import Plan, RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proof import verify as verify_module
from ompaffinity.proof.compare import verdict_of_team
from ompaffinity.proof.observe import observe_process
from ompaffinity.proof.verdict import RankVerdict
from ompaffinity.proof.verify import library_to_probe, verify_plan, verify_processes
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, ONE_OR_TWO, ROOT, needs_program, needs_two_cpus, run_command
from tests.openmp.libraries import (
    GOMP,
    INTEL,
    LIBRARIES,
    LLVM,
    needs_gomp,
    needs_intel,
    needs_llvm,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def live_plan(runtime: str = "gomp", **request: Any) -> Plan:
    return make_plan(load_topology(), PlacementRequest(runtime=runtime, **request))


@pytest.mark.parametrize("granularity", ["thread", "team"])
@pytest.mark.parametrize("ranks", ONE_OR_TWO)
@pytest.mark.parametrize(("runtime", "library"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_workers_that_are_right_pass(runtime: str, library: str, ranks: int, granularity: str) -> None:
    manager = OMPProcessManager(live_plan(runtime, tensor_parallel_size=ranks, granularity=granularity))
    verdict = verify_plan(manager, library)
    assert verdict.holds, verdict
    assert [len(rank.threads) for rank in verdict.ranks] == [len(rank.cpus) for rank in manager.plan.ranks]
    for rank, placement in zip(verdict.ranks, manager.plan.ranks):
        assert [thread.cpus for thread in rank.threads] == list(placement.places)
        assert rank.team_known
        assert sum((rank.bytes_by_node or {0: 2**40}).values()) > 8 * 2**20 * len(placement.cpus)


@needs_two_cpus
@pytest.mark.parametrize(("runtime", "library"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_runtimes_report_what_the_kernel_does(runtime: str, library: str) -> None:
    manager = OMPProcessManager(live_plan(runtime, reserve=0))
    (rank,) = verify_plan(manager, library).ranks
    assert rank.holds
    assert rank.runtime_report == dict(enumerate(manager.plan.ranks[0].places))


@needs_gomp
def test_they_pass_again_and_again_under_load() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in CPUS]
    try:
        manager = OMPProcessManager(live_plan())
        assert all(verify_plan(manager, GOMP).holds for _ in range(20))
    finally:
        for process in busy:
            process.kill()
            process.wait()


WORKER = """if True:
    import ctypes, json, os, sys
    sys.path.insert(0, {root!r})
    from ompaffinity.proof.probe import form_team
    {before}
    team, _ = form_team(sys.argv[1])
    {after}
    print(json.dumps(team), flush=True)
    sys.stdin.read()
"""


@contextmanager
def worker(
    library: str,
    plan: Plan | None = None,
    *,
    before: str = "",
    after: str = "",
    wrapper: tuple[str, ...] = (),
    **environment: str,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Start a worker with this library, as rank 0 of the plan if there is one, and yield its pid and team."""
    code = WORKER.format(root=str(ROOT), before=before or "pass", after=after or "pass")
    command = [*wrapper, sys.executable, "-c", code, library]
    with nullcontext() if plan is None else OMPProcessManager(plan).configure_omp_envs(0):
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
    with process:
        assert process.stdout is not None
        yield process.pid, tuple(json.loads(process.stdout.readline()))
        process.communicate(timeout=60)


def verdict_on(
    placement: RankPlacement, pid: int, team: tuple[int, ...], environment: dict[str, str] | None = None
) -> RankVerdict:
    state = observe_process(pid)
    verdict = verdict_of_team(placement, state, team, environment)
    json.dumps(verdict.to_document())
    return verdict


def causes(verdict: RankVerdict) -> set[str | None]:
    assert verdict.verdict == "differs"
    return {difference.cause for difference in verdict.differences}


def only_cause(verdict: RankVerdict) -> str:
    (cause,) = causes(verdict)
    assert cause is not None
    return cause


@needs_gomp
@needs_two_cpus
@pytest.mark.parametrize("library", [pytest.param(LLVM, marks=needs_llvm), pytest.param(INTEL, marks=needs_intel)])
def test_a_second_runtime_is_the_cause(library: str) -> None:
    plan = live_plan("omp", reserve=0)
    # What many set by hand: one CPU for the first thread, to which libgomp pins it before the other runtime starts.
    narrow = ",".join(f"{{{cpu}}}" for cpu in CPUS)
    before = "ctypes.CDLL('libgomp.so.1').omp_get_max_threads()"
    with worker(library, plan, before=before, OMP_PLACES=narrow) as (pid, team):
        cause = only_cause(verdict_on(plan.ranks[0], pid, team))
    assert cause.startswith("two OpenMP runtimes in the process (lib")


@needs_gomp
@needs_two_cpus
def test_the_environment_of_another_rank_is_the_cause() -> None:
    plan = live_plan(tensor_parallel_size=2)
    with worker(GOMP, plan) as (pid, team):
        verdict = verdict_on(plan.ranks[1], pid, team)
    cause = only_cause(verdict)
    assert cause.startswith(("the process was started with the environment of rank 0", "every thread may run on CPU"))


@needs_gomp
@needs_two_cpus
@needs_program("taskset")
def test_taskset_around_the_worker_is_the_cause() -> None:
    # GOMP_CPU_AFFINITY would leave the mask; OMP_PLACES stays within.
    plan = live_plan("omp", reserve=0)
    with worker(GOMP, plan, wrapper=("taskset", "-c", str(CPUS[0]))) as (pid, team):
        cause = only_cause(verdict_on(plan.ranks[0], pid, team))
    assert f"a mask from outside (taskset, cpuset, a batch system) leaves the process CPU {CPUS[0]} and" in cause


@needs_gomp
@needs_two_cpus
def test_variables_that_are_set_too_late_are_the_cause() -> None:
    plan = live_plan(reserve=0)
    before = "ctypes.CDLL('libgomp.so.1'); os.environ['OMP_PLACES'] = '{0},{1}'"
    with worker(GOMP, before=before) as (pid, team):
        verdict = verdict_on(plan.ranks[0], pid, team)
    assert "started without the plan's environment: variables that are set after the start" in only_cause(verdict)
    assert any("was not started by the manager" in note for note in verdict.notes)


@needs_gomp
@needs_two_cpus
def test_a_wrong_number_of_threads_is_the_cause() -> None:
    plan = live_plan(reserve=0)
    received, _ = worker_environment(plan, plan.ranks[0])
    with worker(GOMP, plan, OMP_NUM_THREADS="1") as (pid, team):
        verdict = verdict_on(plan.ranks[0], pid, team, received)
    assert only_cause(verdict) == f"the process was started with OMP_NUM_THREADS=1, the plan requires {len(CPUS)}"
    with worker(GOMP, plan, before="ctypes.CDLL('libgomp.so.1').omp_set_num_threads(1)") as (pid, team):
        verdict = verdict_on(plan.ranks[0], pid, team, received)
    assert verdict.differences[0].message == f"the team has 1 thread, the plan requires {len(CPUS)}"
    assert "the program set another number of threads" in only_cause(verdict)
    with worker(GOMP, plan, OMP_THREAD_LIMIT="1") as (pid, team):
        assert "OMP_THREAD_LIMIT=1, which breaks a team" in only_cause(verdict_on(plan.ranks[0], pid, team))


@needs_gomp
@needs_two_cpus
def test_names_a_mask_that_was_changed_after_the_team_was_formed_as_the_cause() -> None:
    plan = live_plan(reserve=0)
    with worker(GOMP, plan) as (pid, team):
        assert verdict_on(plan.ranks[0], pid, team).holds
        os.sched_setaffinity(team[1], {CPUS[0]})
        verdict = verdict_on(plan.ranks[0], pid, team)
        (difference,) = verdict.differences
        assert difference.subject == "thread 1"
        assert difference.message == f"may run on CPU {CPUS[0]}, the plan requires {plan.ranks[0].cpus[1]}"
        assert "the mask of this thread was changed" in only_cause(verdict)


BUSY = str(ROOT / "tests" / "openmp" / "busy_team.py")
LIVE_SECONDS = 3.0


@contextmanager
def busy_worker(plan: Plan, *arguments: str, rank: int = 0, wrapper: tuple[str, ...] = ()) -> Iterator[int]:
    """Start a worker with libgomp whose team works, and yield its pid when it does."""
    command = [*wrapper, sys.executable, BUSY, GOMP, *arguments]
    with OMPProcessManager(plan).configure_omp_envs(rank):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@needs_gomp
@needs_two_cpus
def test_live_workers_are_compared_with_what_they_were_started_with(tmp_path: Path) -> None:
    plan = live_plan(reserve=0)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_document(plan)))
    with busy_worker(plan) as pid:
        assert verify_processes([pid], seconds=LIVE_SECONDS).holds
        assert verify_processes([pid], plan.ranks, seconds=LIVE_SECONDS).holds
        done = run_command("verify", "--pid", str(pid), "--plan", str(file), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        document = json.loads(done.stdout)
        assert (document["schema"], document["verdict"]) == ("ompaffinity.verify/1", "holds")
        assert [thread["holds"] for thread in document["ranks"][0]["threads"]] == [True] * len(CPUS)
        assert not document["ranks"][0]["team_known"]


@needs_gomp
@needs_two_cpus
def test_a_server_is_enough_to_find_its_workers() -> None:
    plan = live_plan(reserve=0)
    with busy_worker(plan, wrapper=("sh", "-c", '"$@"; true', "sh")) as shell:
        verdict = verify_processes([shell], seconds=LIVE_SECONDS)
        (rank,) = verdict.ranks
        assert (verdict.holds, rank.pid == shell) == (True, False)
        assert [(other.pid, other.kind) for other in verdict.others] == [(shell, "supervisor")]


@needs_gomp
@needs_two_cpus
def test_a_rank_of_the_plan_without_a_process_is_unproven() -> None:
    plan = live_plan(tensor_parallel_size=2)
    with busy_worker(plan, rank=1) as pid:
        verdict = verify_processes([pid], plan.ranks, seconds=LIVE_SECONDS)
    assert [(rank.rank, rank.pid, rank.verdict) for rank in verdict.ranks] == [
        (1, pid, "holds"),
        (0, None, "unproven"),
    ]


@needs_gomp
@needs_two_cpus
def test_a_worker_without_the_placement_is_the_rank_on_whose_cpus_it_runs() -> None:
    plan = live_plan(tensor_parallel_size=2)
    os.sched_setaffinity(0, plan.ranks[1].affinity)
    try:
        worker_process = subprocess.Popen([sys.executable, BUSY, GOMP, "1"], stdout=subprocess.PIPE)
    finally:
        os.sched_setaffinity(0, CPUS)
    with worker_process as process:
        assert process.stdout is not None
        process.stdout.readline()
        verdict = verify_processes([process.pid], plan.ranks, seconds=LIVE_SECONDS)
        process.kill()
    assert [(rank.rank, rank.verdict) for rank in verdict.ranks if rank.pid] == [(1, "holds")]


@needs_gomp
@needs_two_cpus
def test_a_moved_thread_of_a_live_worker_differs() -> None:
    plan = live_plan(reserve=0)
    with busy_worker(plan) as pid:
        moved = next(thread for thread in observe_process(pid).threads if thread.cpus == plan.ranks[0].places[1])
        os.sched_setaffinity(moved.thread_id, {CPUS[0]})
        (rank,) = verify_processes([pid], seconds=LIVE_SECONDS).ranks
    assert rank.verdict == "differs"
    assert rank.differences[0].subject == "thread 1"


@needs_gomp
@needs_two_cpus
@pytest.mark.parametrize("threads", ["1", "8"])
def test_a_live_rank_of_one_thread_with_a_larger_team_differs(threads: str) -> None:
    plan = live_plan(tensor_parallel_size=2)
    with busy_worker(plan, threads) as pid:
        (rank,) = verify_processes([pid], seconds=LIVE_SECONDS).ranks
    assert rank.verdict == ("holds" if threads == "1" else "differs"), rank


def test_a_live_process_that_sleeps_is_unproven() -> None:
    plan = live_plan(cpus=(CPUS[0],))
    with OMPProcessManager(plan).configure_omp_envs(0):
        process = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    with process:
        # Its environment shows once the program runs.
        assert process.stdout is not None
        process.stdout.readline()
        done = run_command("verify", "--pid", str(process.pid), "--seconds", "1")
        process.communicate()
    assert done.returncode == 3
    assert "unproven" in done.stdout


@needs_gomp
@pytest.mark.parametrize("load", [True, False])
def test_workers_that_a_server_forked_share_its_placement(load: bool) -> None:
    """The GNU runtime is loaded before the fork, as with gunicorn --preload, or in the workers."""
    code = (
        "import ctypes, os, sys, time\n"
        f"load = lambda: ctypes.CDLL({GOMP!r})\n"
        + ("load()\n" if load else "")
        + "children = []\n"
        + "for _ in range(2):\n    pid = os.fork()\n    if not pid:\n        break\n    children.append(pid)\n"
        + "if pid:\n    time.sleep(0.5); print(*children, flush=True); time.sleep(60)\n"
        + "load()\nwhile True: pass"
    )
    with OMPProcessManager(live_plan(cpus=(CPUS[0],))).configure_omp_envs(0):
        server = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    with server:
        assert server.stdout is not None
        workers = [int(word) for word in server.stdout.readline().split()]
        verdict = verify_processes([server.pid], seconds=2.0)
        os.killpg(server.pid, signal.SIGKILL)
    assert [rank.pid for rank in verdict.ranks] == workers
    for rank in verdict.ranks:
        shared = next(found for found in rank.differences if found.subject == "process")
        assert "both were forked by process" in (shared.cause or "")
        assert ("--preload" in (shared.cause or "")) == load
        assert "fork server" not in (shared.cause or "")


@pytest.mark.parametrize("publishes", [False, True])
def test_an_overwritten_environment_is_reported_as_unknown(publishes: bool) -> None:
    # The environment of a process is memory of its own, which a program may overwrite (setproctitle).
    code = (
        "import ctypes, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from ompaffinity.bind.worker_placement import publish_placement\n"
        f"if {publishes}: publish_placement()\n"
        "fields = open('/proc/self/stat').read().rpartition(')')[2].split()\n"
        "start, end = int(fields[47]), int(fields[48])\n"
        "ctypes.memset(start, 0, end - start)\n"
        "print(flush=True); input()"
    )
    plan = live_plan(cpus=(CPUS[0],))
    with OMPProcessManager(plan).configure_omp_envs(0):
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        if not publishes:
            with pytest.raises(RequestError, match="or the program has overwritten it"):
                verify_processes([process.pid], seconds=0)
        state = observe_process(process.pid)
        process.communicate()
    assert not state.environment_complete
    assert state.placement == (plan.ranks[0] if publishes else None)
    assert any("the program has overwritten a part of its environment" in problem for problem in state.problems)


@needs_gomp
@needs_two_cpus
def test_an_export_and_its_verification_agree(tmp_path: Path) -> None:
    plan = live_plan(reserve=0)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_document(plan)))
    cpus = ",".join(map(str, plan.ranks[0].cpus))
    # What vLLM does with the list: each OpenMP thread on one CPU of it.
    environment = {**os.environ, "GOMP_CPU_AFFINITY": cpus, "OMP_NUM_THREADS": str(len(plan.ranks[0].cpus))}
    with subprocess.Popen([sys.executable, BUSY, GOMP], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        arguments = ("verify", "--pid", str(process.pid), "--plan", str(file))
        done = run_command(*arguments, "--as", "vllm", "--json")
        process.kill()
    assert json.loads(done.stdout)["verdict"] == "holds", done.stdout


@needs_gomp
def test_a_worker_judges_itself() -> None:
    plan = live_plan(reserve=0)
    after = (
        "import logging, ompaffinity; logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s');"
        " verdict = ompaffinity.log_current_affinity_state('start-up');"
        " assert verdict.holds and verdict.rank == 0, verdict; raise SystemExit"
    )
    code = WORKER.format(root=str(ROOT), before="pass", after=after)
    with OMPProcessManager(plan).configure_omp_envs(0):
        process = subprocess.Popen([sys.executable, "-c", code, GOMP], stdout=subprocess.PIPE, text=True)
    output = process.communicate(timeout=60)[0]
    assert output.startswith("start-up: rank 0 holds: thread 0 on CPU "), output
    assert process.returncode == 0


def test_outside_of_a_worker_there_is_nothing_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    import ompaffinity

    monkeypatch.delenv("OMPAFFINITY_PLACEMENT", raising=False)
    assert ompaffinity.verify_current_process() is None
    assert ompaffinity.log_current_affinity_state("here") is None


@needs_gomp
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--library", GOMP]) == 0
    output = capsys.readouterr().out
    assert "The plan holds: 1 rank, every thread on its planned CPUs." in " ".join(output.split())
    assert main(["verify", "--library", GOMP, "--json", "--strict"]) == 0
    assert json.loads(capsys.readouterr().out)["holds"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--library", "libc.so.6"], "--library libc.so.6 is no OpenMP runtime"),
        (["--library", "/missing.so"], "--library /missing.so cannot be found"),
        (["--pid", "x"], "--pid has 'x'; it must be a list of process ids"),
        (["--pid", "0"], "--pid has '0'; it must be a list of process ids"),
        (["--pid", "999999999"], "there is no process 999999999"),
        (["--pid", "1", "--tp", "2"], "--pid checks live workers and cannot be combined with --tp"),
        (["--plan", "x"], "--plan requires --pid"),
        (["--as", "vllm"], "--as requires --pid"),
        (["--pid", "1", "--as", "vllm"], "--as requires --plan"),
        (["--pid", "1", "--seconds", "0"], "--seconds is 0; it must be at least 1"),
        (["--pid", "1", "--plan", "/missing"], "--plan /missing cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ompaffinity: error: ")
    assert match in captured.err
    assert captured.err.count("\n") == 1


def test_a_probe_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    start = verify_module._start_probe

    def stuck(*arguments: Any) -> Any:
        placement, environment, probe = start(*arguments)
        os.kill(probe.pid, signal.SIGSTOP)
        started.append(probe)
        return placement, environment, probe

    monkeypatch.setattr(verify_module, "_start_probe", stuck)
    monkeypatch.setattr(verify_module, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(verify_module, "END_SECONDS", 0.2)
    with pytest.raises(RequestError, match="formed no team: no answer within"):
        verify_plan(OMPProcessManager(live_plan(bind=((CPUS[0],),))), GOMP)
    assert [probe.returncode for probe in started] == [-signal.SIGKILL]


def test_a_process_that_is_not_ours_needs_a_plan() -> None:
    with pytest.raises(RequestError, match=r"was not started by ompaffinity .*; give its plan with --plan FILE"):
        verify_processes([os.getpid()], seconds=0)


def test_which_library_is_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ompaffinity.openmp.detect import RuntimeLibrary

    preloaded = RuntimeLibrary("/x/libiomp5.so", "iomp", "preloaded")
    monkeypatch.setattr(verify_module, "expected_runtimes", lambda _environ: (preloaded,))
    assert library_to_probe("auto", {}) == ("iomp", "/x/libiomp5.so")
    monkeypatch.setattr(verify_module, "expected_runtimes", lambda _environ: ())
    monkeypatch.setattr(verify_module, "system_runtimes", lambda *_arguments: ())
    with pytest.raises(RequestError, match="no OpenMP runtime for --runtime gomp is installed here"):
        library_to_probe("gomp", {})
    broken = tmp_path / "libgomp.so.1"
    broken.write_bytes(b"")
    with pytest.raises(RequestError, match="cannot be used as an OpenMP runtime"):
        verify_plan(OMPProcessManager(live_plan()), str(broken))


@needs_gomp
@needs_two_cpus
def test_two_workers_with_the_placement_of_one_rank_differ() -> None:
    plan = live_plan(tensor_parallel_size=2)
    with worker(GOMP, plan) as (first, _), worker(GOMP, plan) as (second, _):
        verdict = verify_processes([first, second, second], plan.ranks, seconds=1)
    found = [rank for rank in verdict.ranks if rank.pid]
    assert [rank.pid for rank in found] == [first, second]
    for rank in found:
        assert "has the placement of rank 0, and so has process" in rank.differences[0].message
        # Both were started by this process: neither inherited from the other.
        assert rank.differences[0].cause is None


def test_ranks_that_were_bound_apart_are_no_shared_placement() -> None:
    """A launcher bound them apart, so that exec planned each as the only one: both are local rank 0."""
    sleeper = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    with ExitStack() as stack:
        processes = []
        for cpu in CPUS[:2]:
            with OMPProcessManager(live_plan(bind=((cpu,),))).configure_omp_envs(0):
                process = stack.enter_context(subprocess.Popen(sleeper, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            processes.append(process.pid)
        verdict = verify_processes(processes, seconds=1)
    assert [rank.differences for rank in verdict.ranks] == [()] * len(CPUS[:2])


@needs_intel
def test_what_a_runtime_displays_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_DISPLAY_AFFINITY", "TRUE")
    assert verify_plan(OMPProcessManager(live_plan("iomp")), str(INTEL)).holds
