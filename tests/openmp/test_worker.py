"""Real OpenMP teams in real worker processes: the masks that the kernel reports are the plan's places."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.openmp.manager import OMPProcessManager
from ompaffinity.placement.plan import Plan, RankPlacement, make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.load import load_topology
from tests.openmp import team

CPUS = sorted(os.sched_getaffinity(0))
GOMP = "libgomp.so.1"


def loadable(library: str) -> bool:
    """Whether the library loads, asked in a child: an OpenMP runtime must not get into this process."""
    code = f"import ctypes; ctypes.CDLL({library!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def intel_library() -> str | None:
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(Path(str(file.locate())).resolve()) for file in files if file.name == "libiomp5.so"), None)


RUNTIMES = {
    "gomp": pytest.param(
        "gomp", GOMP, marks=pytest.mark.skipif(not loadable(GOMP), reason="libgomp1 is not installed")
    ),
    "omp-gomp": pytest.param(
        "omp", GOMP, marks=pytest.mark.skipif(not loadable(GOMP), reason="libgomp1 is not installed")
    ),
    "llvm": pytest.param(
        "iomp", "libomp.so.5", marks=pytest.mark.skipif(not loadable("libomp.so.5"), reason="libomp5 is not installed")
    ),
    "omp-llvm": pytest.param(
        "omp", "libomp.so.5", marks=pytest.mark.skipif(not loadable("libomp.so.5"), reason="libomp5 is not installed")
    ),
    "intel": pytest.param(
        "iomp",
        intel_library(),
        marks=pytest.mark.skipif(intel_library() is None, reason="intel-openmp is not installed"),
    ),
}


def plan_for(runtime: str, ranks: int, granularity: str, reserve: int | None) -> Plan:
    request = PlacementRequest(tensor_parallel_size=ranks, runtime=runtime, granularity=granularity, reserve=reserve)
    return make_plan(load_topology(), request)


def start_workers(plan: Plan, target: Any, *arguments: object) -> list[dict[str, Any]]:
    """Start a worker per rank with `spawn` through the manager and return their reports."""
    manager, context = OMPProcessManager(plan), multiprocessing.get_context("spawn")
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
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("runtime", "library"), RUNTIMES.values(), ids=RUNTIMES.keys())
def test_the_kernel_reports_the_places(
    runtime: str, library: str, ranks: int, reserve: int | None, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ranks > len(CPUS):
        pytest.skip("two ranks need two CPUs")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KMP_AFFINITY", "disabled")
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    plan = plan_for(runtime, ranks, granularity, reserve)
    for placement, report in zip(plan.ranks, start_workers(plan, team.send_report, library)):
        check(placement, report)


@pytest.mark.skipif(not (loadable(GOMP) and loadable("libomp.so.5")), reason="libgomp1 or libomp5 is not installed")
def test_a_libgomp_in_the_same_process_does_not_disturb_libomp() -> None:
    code = (
        "import ctypes, json, sys; sys.path.insert(0, sys.argv[1]); ctypes.CDLL('libgomp.so.1');"
        " from tests.openmp.team import report; print(json.dumps(report('libomp.so.5')))"
    )
    root = str(Path(__file__).resolve().parents[2])
    for reserve in (0, None):
        plan = plan_for("iomp", 1, "thread", reserve)
        with OMPProcessManager(plan).configure_omp_envs(0):
            worker = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
        check(plan.ranks[0], json.loads(worker.communicate(timeout=60)[0]))


@pytest.mark.skipif(not loadable(GOMP), reason="libgomp1 is not installed")
def test_a_popen_worker() -> None:
    plan = plan_for("gomp", 1, "thread", 0)
    with OMPProcessManager(plan).configure_omp_envs(0):
        worker = subprocess.Popen([sys.executable, team.__file__, GOMP], stdout=subprocess.PIPE, text=True)
    check(plan.ranks[0], json.loads(worker.communicate(timeout=60)[0]))


@pytest.mark.skipif(not loadable(GOMP), reason="libgomp1 is not installed")
def test_a_worker_under_a_narrow_outside_mask() -> None:
    code = f"""if True:
        import os
        os.sched_setaffinity(0, {{{CPUS[-1]}}})
        from tests.openmp.test_worker import check, plan_for, start_workers, team
        if __name__ == "__main__":
            plan = plan_for("gomp", 1, "thread", None)
            assert plan.ranks[0].cpus == ({CPUS[-1]},), plan.ranks
            assert "outside-binding" in [m.code for m in plan.warnings] or {len(CPUS)} == 1
            check(plan.ranks[0], start_workers(plan, team.send_report, "libgomp.so.1")[0])
            print("bound")
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root, check=False
    )
    assert done.stdout == "bound\n", done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed; [test-runtimes] brings it"
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_torch_workers(ranks: int) -> None:
    if ranks > len(CPUS):
        pytest.skip("two ranks need two CPUs")
    plan = plan_for("gomp", ranks, "thread", None)
    for placement, report in zip(plan.ranks, start_workers(plan, team.send_torch_report)):
        assert report["threads"] == len(placement.cpus)
        assert report["masks"] == [list(place) for place in placement.places]
        assert report["later"] == list(placement.places[0]), (
            "a thread made after `import torch` may use the helper CPUs"
        )
