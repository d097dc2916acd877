"""GPU workers: which GPU is whose, and real processes next to the GPUs of a stand-in driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ompaffinity
from ompaffinity.errors import RequestError
from ompaffinity.integrations.vllm import gpu_workers
from ompaffinity.integrations.vllm.gpu_workers import configure_subprocess
from ompaffinity.placement.model import Plan
from ompaffinity.placement.union import union_of
from ompaffinity.topology.model import Topology
from tests.conftest import ROOT, needs_nvml, needs_two_cpus
from tests.gpu_machine import LINES
from tests.launch.test_mask_groups import CPUS
from tests.placement.machines import synthetic

TWO = "package:2 numa:1 core:8 pu:2"


def config(**fields: Any) -> SimpleNamespace:
    usual = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "data_parallel_rank_local": None,
        "data_parallel_index": 0,
        "nnodes_within_dp": 1,
        "distributed_executor_backend": "mp",
        "data_parallel_backend": "mp",
    }
    return SimpleNamespace(**{**usual, **fields})


def planned(topology: Topology, settings: Any, local_rank: int, kind: str = "worker", dp: int | None = None) -> Plan:
    wanted = gpu_workers._wanted_gpus(settings, local_rank, dp, kind)
    return gpu_workers._plan(settings, topology, wanted)


@pytest.mark.parametrize(
    ("fields", "dp_local_rank", "gpu"),
    [
        ({}, None, 1),
        ({}, 2, 5),
        ({"data_parallel_rank_local": 1}, None, 3),
        ({"data_parallel_rank_local": 1}, 0, 1),
        ({"data_parallel_index": 3}, None, 7),
        ({"data_parallel_rank_local": 0, "data_parallel_index": 3}, None, 1),
        ({"pipeline_parallel_size": 2}, 1, 5),
        ({"distributed_executor_backend": "ray"}, 2, 1),
        ({"distributed_executor_backend": "external_launcher"}, 2, 1),
        ({"data_parallel_backend": "ray"}, 2, 1),
        ({"nnodes_within_dp": 2}, 2, 1),
    ],
)
def test_which_gpu_a_worker_has(fields: dict[str, Any], dp_local_rank: int | None, gpu: int) -> None:
    assert gpu_workers._wanted_gpus(config(**fields), 1, dp_local_rank, "worker").own == (gpu,)


def test_the_gpus_of_an_engine() -> None:
    assert gpu_workers._wanted_gpus(config(), 0, 1, "EngineCore").own == (2, 3)
    assert gpu_workers._wanted_gpus(config(nnodes_within_dp=2), 0, 1, "EngineCore").own == (0,)
    assert gpu_workers._wanted_gpus(SimpleNamespace(), 0, None, "EngineCore").own == (0,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"process_kind": "APIServer"}, "process_kind is 'APIServer'"),
        ({"local_rank": -1}, "local_rank is -1"),
        ({"local_rank": "0"}, "local_rank is '0'"),
        ({"dp_local_rank": "0"}, "dp_local_rank is '0'"),
        ({"config": config(tensor_parallel_size=0)}, "tensor_parallel_size .* is 0"),
        ({"config": config(numa_bind_nodes=[])}, "names no node"),
        ({"config": config(numa_bind_nodes=[0], tensor_parallel_size=4), "local_rank": 3}, "name 1"),
    ],
)
def test_what_makes_no_sense_is_a_value_error(call: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words), configure_subprocess(**{"config": config(), "local_rank": 0, **call}):
        pass


def test_a_gpu_that_is_not_there(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 1)
    with pytest.raises(RequestError, match="GPU 2 was requested, but this process sees 2"):
        planned(topology, config(), 0, dp=1)


def test_workers_share_a_node_exclusively(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 0, 0, 1)
    plans = [planned(topology, config(tensor_parallel_size=4), rank) for rank in range(4)]
    assert plans[0] == plans[1] == plans[2] == plans[3]
    masks = [set(rank.affinity) for rank in plans[0].ranks]
    assert sum(map(len, masks)) == len(set().union(*masks)) == 32
    assert len(masks[3]) == 16


def test_a_server_that_names_its_gpus_gets_all_of_them(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 0, 0, 0)
    (first, _) = planned(topology, config(data_parallel_size_local=1), 0).ranks
    assert len(first.affinity) == 8
    assert len(planned(topology, config(), 0).ranks) == 4


def test_reports_only_the_problems_of_its_own_gpu(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, None, 1)
    assert [message.code for message in planned(topology, config(), 0).messages if message.level == "warning"] == []
    plan = planned(topology, config(), 1)
    assert [message.code for message in plan.messages if message.level == "warning"] == ["device-node-unknown"]


def test_an_engine_gets_what_its_workers_get(gpu_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 0, 0, 1)
    plan = planned(topology, config(), 0, "EngineCore", dp=0)
    engine = union_of(topology, [rank for rank in plan.ranks if rank.gpu in (0, 1)])
    other = planned(topology, config(), 0, "EngineCore", dp=1)
    across = union_of(topology, [rank for rank in other.ranks if rank.gpu in (2, 3)])
    assert engine.gpus == (0, 1)
    assert engine.nodes == (0,)
    assert engine.memory_policy == "bind"
    assert across.nodes == (0, 1)
    assert across.memory_policy == "interleave"
    assert not set(engine.affinity) & set(across.affinity)
    # Inside of it, its mask is divided among its own workers only.
    import json

    from ompaffinity.placement.document import placement_document

    monkeypatch.setenv("OMPAFFINITY_PLACEMENT", json.dumps(placement_document(engine)))
    cpus = tuple(cpu._replace(allowed=cpu.id in engine.affinity) for cpu in topology.cpus)
    inside = planned(topology._replace(cpus=cpus), config(), 1)
    assert [rank.gpu for rank in inside.ranks] == [0, 1]
    assert sorted(cpu for rank in inside.ranks for cpu in rank.affinity) == sorted(engine.affinity)


def test_an_engine_of_which_nothing_can_be_bound(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), None, None)
    plan = planned(topology, config(), 0, "EngineCore")
    engine = union_of(topology, list(plan.ranks))
    assert not engine.bound
    assert engine.gpus == (0, 1)


def test_another_vendors_display_takes_no_cpu(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0)
    (rank,) = planned(topology, config(tensor_parallel_size=1), 0).ranks
    assert len(rank.affinity) == 16


def test_the_context_of_another_worker_is_no_place_to_start_one(gpu_machine: Any) -> None:
    gpu_machine(ompaffinity.load_topology(), 0, 0)
    with configure_subprocess(config(), 0), pytest.raises(RequestError, match="one after another"):
        configure_subprocess(config(), 1).__enter__()


def test_an_engine_whose_workers_have_no_gpu(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 1)
    with pytest.raises(RequestError, match="GPU 2-3 was requested, but this process sees 2"):
        planned(topology, config(tensor_parallel_size=4), 0, "EngineCore")


def test_lists_that_overlap_are_the_users_own(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 0)
    plan = planned(topology, config(numa_bind_cpus=["0-3", "0-3"]), 0)
    assert [rank.cpus for rank in plan.ranks] == [(0, 1, 2, 3)] * 2


# Real processes.

STARTS = """
import json, multiprocessing, os, subprocess, sys
from types import SimpleNamespace
from ompaffinity import configure_subprocess, current_placement, verify_current_process

def state():
    names = ("OMP_NUM_THREADS", "OMP_PLACES", "OMPAFFINITY_PLACEMENT")
    return [sorted(os.sched_getaffinity(0)), *(os.environ.get(name) for name in names)]

def work(queue):
    queue.put(state())

def start(method, rank, kind="worker"):
    config = SimpleNamespace(tensor_parallel_size=2)
    before = [os.sched_getaffinity(0), dict(os.environ)]
    with configure_subprocess(config, rank, process_kind=kind) as placement:
        if method == "popen":
            code = "import json; from gpu_starts import state; print(json.dumps(state()))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            answer = json.loads(done.stdout)
        else:
            context = multiprocessing.get_context(method)
            queue = context.SimpleQueue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            answer = queue.get()
            process.join()
    assert before == [os.sched_getaffinity(0), dict(os.environ)]
    return answer

if __name__ == "__main__":
    import ctypes
    ctypes.CDLL("libgomp.so.1")
    os.environ["OMP_PLACES"] = "{0}"
    print(json.dumps([start(*call) for call in json.loads(sys.argv[1])]))
"""


def started(folder: Path, driver_folder: Path, calls: list[Any], lines: str = LINES, **environ: str) -> Any:
    (folder / "gpu_starts.py").write_text(STARTS)
    (folder / "plan").write_text(lines)
    reported = {
        "LD_LIBRARY_PATH": str(driver_folder),
        "OMPAFFINITY_NVML_PLAN": str(folder / "plan"),
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "CUDA_"))}
    done = subprocess.run(
        [sys.executable, str(folder / "gpu_starts.py"), json.dumps(calls)],
        capture_output=True,
        text=True,
        check=False,
        env=kept | reported | environ,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_nvml
@needs_two_cpus
def test_workers_of_any_start_method_are_bound_before_they_start(tmp_path: Path, driver: dict[str, Path]) -> None:
    calls = [["spawn", 0], ["spawn", 1], ["fork", 0], ["fork", 1], ["popen", 0], ["popen", 1]]
    found = started(tmp_path, driver["new"], calls)
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert not set(first[0]) & set(second[0])
        assert {*first[0], *second[0]} <= set(CPUS)
        for gpu, (mask, threads, places, placement) in enumerate((first, second)):
            document = json.loads(placement)
            assert (document["device"], document["bound"]) == (gpu, True)
            assert mask == list(ompaffinity.parse_id_list(document["affinity"]))
            assert int(threads) == len(document["cpus"])
            # A list that was meant for another process does not come through.
            assert places is None


@needs_nvml
def test_a_thread_count_that_is_set_stays(tmp_path: Path, driver: dict[str, Path]) -> None:
    ((_, threads, _, placement),) = started(tmp_path, driver["new"], [["spawn", 0]], OMP_NUM_THREADS="1")
    assert threads == "1"
    assert json.loads(placement)["bound"]


@needs_nvml
def test_an_engine_is_started(tmp_path: Path, driver: dict[str, Path]) -> None:
    ((mask, threads, _, placement),) = started(tmp_path, driver["new"], [["spawn", 0, "EngineCore"]])
    assert mask == CPUS
    assert threads is None
    assert json.loads(placement)["devices"] == [0, 1]


@needs_nvml
def test_no_gpu_is_no_reason_to_fail(tmp_path: Path, driver: dict[str, Path]) -> None:
    ((mask, _, places, placement),) = started(tmp_path, driver["new"], [["popen", 0]], lines="init_error 9\n")
    assert mask == CPUS
    assert places == "{0}"
    assert not json.loads(placement)["bound"]


def test_what_is_switched_off_starts_nothing_bound(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 1)
    before = dict(os.environ)
    with configure_subprocess(SimpleNamespace(parallel_config=config(numa_bind=False)), 1) as placement:
        assert dict(os.environ) == before
    assert not placement.bound


def test_a_forkserver_is_refused(gpu_machine: Any) -> None:
    import multiprocessing

    gpu_machine(ompaffinity.load_topology(), ompaffinity.load_topology().nodes[0].id)
    context = multiprocessing.get_context("forkserver")
    with (
        configure_subprocess(config(tensor_parallel_size=1), 0) as placement,
        pytest.raises(ompaffinity.StartMethodError, match="forkserver"),
    ):
        assert placement.bound
        context.Process(target=print).start()
