"""Where the GPUs of a request are: looked up only where the request does not name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.live_plan import live_plan, runtime_messages, with_gpu_homes, with_live_messages
from ompaffinity.devices.model import GPUHome
from ompaffinity.errors import TopologyError
from ompaffinity.openmp.detect import RuntimeLibrary
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology

GPUS = PlacementRequest(numa_bind=True)


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
