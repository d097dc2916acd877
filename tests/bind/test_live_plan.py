"""What a plan for this machine takes from it: where GPUs are, and the OpenMP runtimes of the workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind import live_plan as live_plan_module
from ompaffinity.bind.live_plan import (
    for_runtimes,
    live_plan,
    runtime_messages,
    with_gpu_homes,
    with_live_messages,
)
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import RequestError, TopologyError
from ompaffinity.openmp.detect import RuntimeLibrary
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology

GPUS = PlacementRequest(numa_bind=True)
GNU_FILE = RuntimeLibrary("/x/libgomp.so.1", "gomp", "torch's")
INTEL_FILE = RuntimeLibrary("/x/libiomp5.so", "iomp", "preloaded")


@pytest.fixture
def record(tmp_path: Path) -> str:
    """A saved output of lscpu, which holds no devices."""
    path = tmp_path / "lscpu.json"
    path.write_text(json.dumps({"cpus": [{"cpu": cpu, "node": 0, "core": cpu, "socket": 0} for cpu in range(4)]}))
    return str(path)


@pytest.mark.parametrize("request_", [PlacementRequest(), GPUS._replace(gpu_homes=(GPUHome((0,)),))])
def test_a_request_that_needs_no_gpu_is_returned_as_it_is(request_: PlacementRequest, record: str) -> None:
    assert with_gpu_homes(request_, load_topology(machine=record), machine=record) is request_


@pytest.mark.parametrize("given", [{"numa_bind_nodes": (1,)}, {"numa_bind_cpus": ("0-3",)}])
def test_a_record_without_gpus_needs_what_the_user_names(given: dict[str, tuple[object, ...]], record: str) -> None:
    topology = load_topology(machine=record)
    request = GPUS._replace(**given)  # type: ignore[arg-type]
    assert with_gpu_homes(request, topology, machine=record) is request
    with pytest.raises(TopologyError, match="or name the NUMA node of each GPU with --numa-bind-nodes"):
        with_gpu_homes(GPUS, topology, machine=record)


def test_a_plan_for_gpus_looks_for_them(gpu_machine: Any) -> None:
    topology = load_topology()
    gpu_machine(topology, topology.nodes[0].id)
    (rank,) = live_plan({"numa_bind": True, "gpus": (0,)}).ranks
    assert (rank.gpu, rank.nodes) == (0, (topology.nodes[0].id,))


@pytest.mark.parametrize(
    ("granularity", "words"),
    [("team", "the team floats within its rank's CPUs"), ("thread", "threads of one of them crowd")],
)
def test_two_runtimes_are_reported_with_what_follows_from_them(granularity: str, words: str) -> None:
    libraries = (RuntimeLibrary("libgomp.so.1", "gomp"), RuntimeLibrary("libomp.so.5", "iomp"))
    (message,) = runtime_messages("gomp", granularity, libraries)
    assert words in message.message
    assert runtime_messages("iomp", granularity, libraries) == []


@pytest.mark.parametrize(("bind", "codes"), [("auto", ["runtime-differs"]), ("none", [])])
def test_a_ready_plan_that_binds_is_compared_with_the_runtimes_here(
    bind: str, codes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = (RuntimeLibrary("libomp.so.5", "iomp"),)
    monkeypatch.setattr("ompaffinity.bind.live_plan.expected_runtimes", lambda environ: libraries)
    plan = make_plan(load_topology(), PlacementRequest(runtime="gomp", bind=bind))._replace(messages=())
    assert [message.code for message in with_live_messages(plan).messages] == codes


@pytest.mark.parametrize(
    ("request_", "libraries", "expected", "codes"),
    [
        ({}, (), ("omp", "team"), ["runtime-unknown"]),
        ({}, (GNU_FILE,), ("gomp", "auto"), []),
        ({}, (INTEL_FILE,), ("iomp", "auto"), []),
        ({}, (INTEL_FILE, GNU_FILE), ("iomp", "auto"), []),
        ({"granularity": "thread"}, (INTEL_FILE, GNU_FILE), ("iomp", "thread"), []),
        ({}, (GNU_FILE, INTEL_FILE), ("gomp", "team"), ["two-openmp-runtimes"]),
        ({"granularity": "thread"}, (GNU_FILE, INTEL_FILE), ("gomp", "thread"), ["two-openmp-runtimes"]),
        ({}, (GNU_FILE, GNU_FILE._replace(path="/other/libgomp-a1b2.so.1")), ("gomp", "auto"), []),
        ({"granularity": "thread"}, (), ("omp", "thread"), ["runtime-unknown"]),
        ({"runtime": "gomp"}, (), ("gomp", "auto"), []),
        ({"runtime": "gomp"}, (INTEL_FILE,), ("gomp", "auto"), ["runtime-differs"]),
        ({"runtime": "iomp"}, (GNU_FILE,), ("iomp", "auto"), ["runtime-differs"]),
        ({"runtime": "iomp"}, (INTEL_FILE, GNU_FILE), ("iomp", "auto"), []),
        ({"runtime": "omp"}, (INTEL_FILE, GNU_FILE), ("omp", "team"), ["two-openmp-runtimes"]),
    ],
)
def test_runtime_and_granularity_of_live_workers(
    request_: dict[str, str],
    libraries: tuple[RuntimeLibrary, ...],
    expected: tuple[str, str],
    codes: list[str],
) -> None:
    request, messages = for_runtimes(PlacementRequest(**request_), libraries)  # type: ignore[arg-type]
    assert (request.runtime, request.granularity) == expected
    assert [message.code for message in messages] == codes
    assert all(message.level == "warning" for message in messages)


def test_the_manager_plans_for_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_plan_module, "expected_runtimes", lambda _environ: (INTEL_FILE, GNU_FILE))
    manager = OMPProcessManager()
    assert (manager.plan.runtime, manager.plan.granularity) == ("iomp", "thread")
    assert "two-openmp-runtimes" not in [message.code for message in manager.messages]
    monkeypatch.setattr(live_plan_module, "expected_runtimes", lambda _environ: (GNU_FILE, INTEL_FILE))
    (message,) = [message.message for message in OMPProcessManager().messages if message.code == "two-openmp-runtimes"]
    assert "libgomp.so.1 (torch's) and libiomp5.so (preloaded)" in message
    assert "two-openmp-runtimes" not in [message.code for message in OMPProcessManager(bind="none").messages]


def test_a_ready_plan_is_compared_with_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_plan_module, "expected_runtimes", lambda _environ: (INTEL_FILE, GNU_FILE))
    monkeypatch.setenv("KMP_AFFINITY", "disabled")
    plan = make_plan(load_topology(), PlacementRequest(reserve=0))
    manager = OMPProcessManager(plan)
    found = {message.code: message.message for message in manager.messages}
    assert "threads of one of them crowd on the first thread's CPUs" in found["two-openmp-runtimes"]
    assert "KMP_AFFINITY='disabled'" in found["environment-overridden"]
    unbound = make_plan(load_topology(), PlacementRequest(bind="none"))
    assert OMPProcessManager(unbound).plan == unbound


@pytest.mark.parametrize("probe", [5, [5], {"a": 1}])
def test_modules_to_probe_are_names(probe: Any) -> None:
    with pytest.raises(RequestError, match="it must be names of modules"):
        OMPProcessManager(probe=probe)
