"""Real OpenMP teams in real worker processes: the masks that the kernel reports are the plan's places."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.placement.model import Plan, RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.conftest import ONE_OR_TWO
from tests.openmp import team
from tests.openmp.libraries import (
    GOMP,
    INTEL,
    LLVM,
    NEWER_LLVM,
    needs_gomp,
    needs_intel,
    needs_llvm,
    needs_newer_llvm,
    needs_torch,
)

CPUS = sorted(os.sched_getaffinity(0))
ROOT = Path(__file__).resolve().parents[2]

RUNTIMES = {
    "gomp": pytest.param("gomp", GOMP, marks=needs_gomp),
    "omp-gomp": pytest.param("omp", GOMP, marks=needs_gomp),
    "llvm": pytest.param("iomp", LLVM, marks=needs_llvm),
    "omp-llvm": pytest.param("omp", LLVM, marks=needs_llvm),
    "newer-llvm": pytest.param("iomp", NEWER_LLVM, marks=needs_newer_llvm),
    "omp-newer-llvm": pytest.param("omp", NEWER_LLVM, marks=needs_newer_llvm),
    "intel": pytest.param("iomp", INTEL, marks=needs_intel),
    "omp-intel": pytest.param("omp", INTEL, marks=needs_intel),
}


def plan_for(runtime: str, ranks: int, granularity: str, reserve: int | None) -> Plan:
    request = PlacementRequest(tensor_parallel_size=ranks, runtime=runtime, granularity=granularity, reserve=reserve)
    return make_plan(load_topology(), request)


def start_workers(plan: Plan, target: Any, *arguments: object, method: Any = "spawn") -> list[dict[str, Any]]:
    """Start a worker per rank through the manager and return their reports."""
    manager, context = OMPProcessManager(plan), multiprocessing.get_context(method)
    receivers, processes = [], []
    for rank in range(len(plan.ranks)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(sender, *arguments))
        with manager.configure_omp_envs(rank=rank, local_rank=rank):
            process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    reports = [receiver.recv() if receiver.poll(120) else {} for receiver in receivers]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return reports


def check(placement: RankPlacement, report: dict[str, Any]) -> None:
    assert report["inherited"] == list(placement.affinity)
    assert report["masks"] == [list(place) for place in placement.places]
    assert set(report["later"]) <= set(placement.affinity)


@pytest.mark.parametrize("granularity", ["thread", "team"])
@pytest.mark.parametrize("reserve", [0, None])
@pytest.mark.parametrize("ranks", ONE_OR_TWO)
@pytest.mark.parametrize(("runtime", "library"), RUNTIMES.values(), ids=RUNTIMES.keys())
def test_the_kernel_reports_the_places(
    runtime: str, library: str, ranks: int, reserve: int | None, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KMP_AFFINITY", "disabled")
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    plan = plan_for(runtime, ranks, granularity, reserve)
    for placement, report in zip(plan.ranks, start_workers(plan, team.send_report, library)):
        check(placement, report)


@pytest.mark.parametrize(("runtime", "library"), RUNTIMES.values(), ids=RUNTIMES.keys())
def test_the_runtime_obeys_a_brief_wait(runtime: str, library: str) -> None:
    plan = make_plan(load_topology(), PlacementRequest(runtime=runtime, wait_policy="brief"))
    with OMPProcessManager(plan).configure_omp_envs(0):
        done = subprocess.run(
            [sys.executable, team.__file__, library],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_DISPLAY_ENV": "verbose"},
        )
    assert re.search(r"GOMP_SPINCOUNT = '10000'|KMP_BLOCKTIME='1(ms)?['\n]", done.stderr), done.stderr


def run_worker(plan: Plan, code: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """Start a worker program per rank through the manager with Popen and return what each printed."""
    manager, workers = OMPProcessManager(plan), []
    code = f"import ctypes, json, sys; sys.path.insert(0, {str(ROOT)!r}); from tests.openmp import team; {code}"
    for rank in range(len(plan.ranks)):
        with manager.configure_omp_envs(rank):
            worker = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
        workers.append(worker)
    outputs = [worker.communicate(timeout=120) for worker in workers]
    # The runtimes have nothing to complain of.
    assert [errors for _, errors in outputs if "OMP:" in errors or "libgomp:" in errors] == []
    return [json.loads(output) for output, _ in outputs]


SECOND_RUNTIMES = {
    "llvm": pytest.param(LLVM, marks=needs_llvm),
    "newer-llvm": pytest.param(NEWER_LLVM, marks=needs_newer_llvm),
    "intel": pytest.param(INTEL, marks=needs_intel),
}


@needs_gomp
@pytest.mark.parametrize("granularity", ["thread", "team"])
@pytest.mark.parametrize("reserve", [0, None])
@pytest.mark.parametrize("preload", [False, True], ids=["loaded-later", "preloaded"])
@pytest.mark.parametrize("library", SECOND_RUNTIMES.values(), ids=SECOND_RUNTIMES.keys())
def test_a_libgomp_in_the_same_process_does_not_disturb_the_other_runtime(
    library: str, preload: bool, reserve: int | None, granularity: str
) -> None:
    plan = plan_for("iomp", 1, granularity, reserve)
    environment = {"LD_PRELOAD": library} if preload else {}
    code = "ctypes.CDLL('libgomp.so.1'); print(json.dumps(team.report(sys.argv[1])))"
    for placement, report in zip(plan.ranks, run_worker(plan, code, library, **environment)):
        check(placement, report)


@needs_gomp
@pytest.mark.parametrize("runtime", ["gomp", "iomp", "omp"])
@pytest.mark.parametrize("reserve", [0, None])
@pytest.mark.parametrize("library", SECOND_RUNTIMES.values(), ids=SECOND_RUNTIMES.keys())
def test_a_team_that_floats_is_right_whichever_runtime_comes_first(
    library: str, runtime: str, reserve: int | None
) -> None:
    plan = plan_for(runtime, 1, "team", reserve)
    code = "ctypes.CDLL('libgomp.so.1').omp_get_max_threads(); print(json.dumps(team.report(sys.argv[1])))"
    for placement, report in zip(plan.ranks, run_worker(plan, code, library)):
        assert report["masks"] == [list(place) for place in placement.places]


@needs_gomp
def test_a_popen_worker() -> None:
    plan = plan_for("gomp", 1, "thread", 0)
    with OMPProcessManager(plan).configure_omp_envs(0):
        worker = subprocess.Popen([sys.executable, team.__file__, GOMP], stdout=subprocess.PIPE, text=True)
    check(plan.ranks[0], json.loads(worker.communicate(timeout=60)[0]))


def run_parent(code: str) -> str:
    """Run a fresh parent process, free of OpenMP, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_gomp
def test_workers_that_are_forked_before_openmp_is_used() -> None:
    code = """if True:
        import multiprocessing, warnings
        # Python 3.12 warns of a fork beside threads; the parent has none but the queue's.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tests.bind.test_worker import check, plan_for, start_workers, team
        plan = plan_for("gomp", 1, "thread", None)
        check(plan.ranks[0], start_workers(plan, team.send_report, "libgomp.so.1", method="fork")[0])
        print("bound")
    """
    assert run_parent(code) == "bound\n"


@needs_gomp
def test_a_worker_under_a_narrow_outside_mask() -> None:
    code = f"""if True:
        import os
        os.sched_setaffinity(0, {{{CPUS[-1]}}})
        from tests.bind.test_worker import check, plan_for, start_workers, team
        if __name__ == "__main__":
            plan = plan_for("gomp", 1, "thread", None)
            assert plan.ranks[0].cpus == ({CPUS[-1]},), plan.ranks
            assert "outside-binding" in [m.code for m in plan.messages] or {len(CPUS)} == 1
            check(plan.ranks[0], start_workers(plan, team.send_report, "libgomp.so.1")[0])
            print("bound")
    """
    assert run_parent(code) == "bound\n"


@needs_torch
@pytest.mark.parametrize("ranks", ONE_OR_TWO)
def test_torch_workers(ranks: int) -> None:
    plan = plan_for("gomp", ranks, "thread", None)
    for placement, report in zip(plan.ranks, start_workers(plan, team.send_torch_report)):
        assert report["threads"] == len(placement.cpus)
        assert report["masks"] == [list(place) for place in placement.places]
        assert report["later"] == list(placement.places[0]), (
            "a thread made after `import torch` may use the helper CPUs"
        )
        assert set(placement.helper_cpus) <= set(report["later"])


@needs_torch
@needs_intel
@pytest.mark.parametrize("granularity", ["thread", "team"])
def test_torch_with_intels_runtime_preloaded(granularity: str) -> None:
    plan = plan_for("iomp", 1, granularity, None)
    code = "print(json.dumps(team.torch_report(sys.argv[1])))"
    for placement, report in zip(plan.ranks, run_worker(plan, code, str(INTEL), LD_PRELOAD=str(INTEL))):
        assert report["threads"] == len(placement.cpus)
        assert report["masks"] == [list(place) for place in placement.places]
        assert set(placement.helper_cpus) <= set(report["later"])
