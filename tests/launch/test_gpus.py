"""The GPU of a rank that a launcher started: its number, sharers, and real ranks over a stand-in driver."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind import live_plan
from ompaffinity.devices.model import GPU
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.launch import gpus
from ompaffinity.launch.exec import options_of_group
from ompaffinity.launch.gpus import Sharers, gpus_of_group, may_use, options_of_own_gpu
from ompaffinity.launch.mask_groups import MaskGroup
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from tests.conftest import CPUS, needs_nvml, needs_program, needs_two_cpus
from tests.gpu_machine import LINES
from tests.launch.test_exec import OPEN_MPI, WORKER, launch, reports
from tests.launch.test_mask_groups import place as place_of
from tests.placement.machines import synthetic

TWO = "package:2 numa:1 core:8 pu:2"

OWN = GPU(0, "0000:01:00.0", "nvidia", "GPU", "GPU-1", nodes=(0,), source="sysfs", own_node=None, answers=())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_gpu_of_several_ranks_counts_once_per_rank(number: int) -> None:
    sharers = Sharers({OWN.address: 3}, number)
    options, found, _ = options_of_own_gpu({}, synthetic("numa:1 core:6 pu:1"), OWN, sharers, alone=True)
    assert found == number
    assert options["tensor_parallel_size"] == 3
    # The GPU of this process is its GPU 0, whichever rank it is.
    assert options["gpus"].index(0) == number
    assert sorted(options["gpus"]) == [0, 1, 2]


def test_each_rank_of_a_mask_gets_the_gpu_that_is_named_for_it() -> None:
    place, group = place_of(2, 3), MaskGroup(2, (0, 2))
    assert gpus_of_group({"gpus": (5, 6, 7)}, group, place)[:2] == ({"gpus": (5, 7)}, 1)
    with pytest.raises(RequestError, match="--gpus names 2, but there are 3 local ranks; name one"):
        gpus_of_group({"gpus": (5, 6)}, group, place)


def test_a_single_rank_gets_the_first_gpu_unless_another_one_is_named() -> None:
    place, group = place_of(0, 1), MaskGroup(0, (0,))
    assert gpus_of_group({}, group, place).options == {"gpus": (0,)}
    assert gpus_of_group({"gpus": (3,)}, group, place).options == {"gpus": (3,)}
    with pytest.raises(RequestError, match="--gpus names 2, but there is one local rank; name one"):
        gpus_of_group({"gpus": (5, 6)}, group, place)


def test_nodes_may_be_used_where_one_of_their_cpus_is_allowed() -> None:
    machine = synthetic("numa:2 core:2 pu:1")
    machine = machine._replace(cpus=tuple(cpu._replace(allowed=cpu.id == 3) for cpu in machine.cpus))
    assert [may_use(machine, nodes) for nodes in ((0,), (1,), (0, 1), ())] == [False, True, True, False]


def seat_options(group: MaskGroup, size: int, **options: Any) -> tuple[Plan, Any]:
    place = place_of(group.local_rank, size)
    given, number, _ = options_of_group({"numa_bind": True, **options}, group, place)
    topology = synthetic(TWO)
    plan = make_plan(topology, live_plan.with_gpu_homes(PlacementRequest(**given), topology))
    return plan, plan.ranks[number]


def test_the_launchers_ranks_have_the_gpus_of_their_numbers(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 0, 1, 1)
    _, rank = seat_options(MaskGroup(2, (0, 1, 2, 3)), 4)
    assert (rank.gpu, rank.nodes) == (2, (1,))
    # Bound apart, or in two groups, it is still the GPU of its number.
    plan, rank = seat_options(MaskGroup(3, (2, 3)), 4)
    assert (rank.gpu, rank.nodes, len(plan.ranks)) == (3, (1,), 2)
    _, rank = seat_options(MaskGroup(3, (3,)), 4, gpus=(3, 2, 1, 0))
    assert (rank.gpu, rank.nodes) == (0, (0,))
    with pytest.raises(RequestError, match="names 2, but there are 4 local ranks"):
        seat_options(MaskGroup(3, (3,)), 4, gpus=(3, 2))


@pytest.mark.parametrize("hidden", [False, True])
def test_where_each_rank_sees_its_own_gpu_only(gpu_machine: Any, hidden: bool) -> None:
    found = []
    for gpu in range(4):
        # It is the same whether the driver hides the others, or a variable does.
        gpu_machine(synthetic(TWO), 0, 0, 0, 1, visible=(gpu,), hidden=hidden)
        _, rank = seat_options(MaskGroup(gpu, (0, 1, 2, 3)), 4)
        # To this process it is GPU 0.
        assert rank.gpu == 0
        found.append(set(rank.affinity))
    assert sum(map(len, found)) == len(set().union(*found)) == 32
    gpu_machine(synthetic(TWO), 0, 0, 0, 1, visible=(1,))
    _, alone = seat_options(MaskGroup(1, (1,)), 4)
    assert len(alone.affinity) == 16


def test_ranks_that_share_a_gpu_divide_its_part(gpu_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ranks 0 and 1 have GPU 0, rank 2 has GPU 1.
    variables = ["0", "0", "1"]
    environments = {rank: {"CUDA_VISIBLE_DEVICES": text} for rank, text in enumerate(variables)}
    monkeypatch.setattr(gpus, "environments_of_ranks", lambda place, names: environments)
    found = []
    for rank, text in enumerate(variables):
        gpu_machine(synthetic(TWO), 0, 0, visible=(int(text),))
        _, placement = seat_options(MaskGroup(rank, (0, 1, 2)), 3)
        found.append(set(placement.affinity))
    assert sum(map(len, found)) == len(set().union(*found)) == 16


def test_more_ranks_than_gpus_without_a_gpu_per_rank(gpu_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "environments_of_ranks", lambda place, names: None)
    found = []
    for rank in range(2):
        gpu_machine(synthetic(TWO), 0, visible=(0,), hidden=True)
        place = place_of(rank, 2)
        given, number, reported = options_of_group({"numa_bind": True}, MaskGroup(rank, (0, 1)), place)
        assert [message.code for message in reported] == ["gpu-sharing-unknown"]
        plan = make_plan(synthetic(TWO), PlacementRequest(**given))
        found.append(set(plan.ranks[number].affinity))
    assert not found[0] & found[1]


def test_one_gpu_and_one_node_by_hand(gpu_machine: Any) -> None:
    topology = gpu_machine(synthetic(TWO), 0, 0, visible=(1,))
    place = place_of(1, 2)
    given, number, _ = options_of_group({"numa_bind_nodes": (0,)}, MaskGroup(1, (0, 1)), place)
    plan = make_plan(topology, PlacementRequest(**given))
    assert (plan.ranks[number].gpu, plan.ranks[number].nodes) == (0, (0,))
    with pytest.raises(PlacementError, match="names node 7 for GPU 0, which does not exist here"):
        options_of_group({"numa_bind_nodes": (7,)}, MaskGroup(1, (0, 1)), place)


def gpus_for(local_rank: int, size: int, **options: Any) -> Any:
    """Return the GPUs in the plan of a rank that shares its mask with all others."""
    group = MaskGroup(local_rank, tuple(range(size)))
    return gpus_of_group(options, group, place_of(local_rank, size)).options["gpus"]


def test_cpus_or_nodes_that_are_named_for_each_gpu_belong_to_the_gpus_of_the_ranks(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 1, visible=(1,))
    assert gpus_for(1, 2, numa_bind_cpus=("0-3", "4-7")) == (0, 1)
    assert gpus_for(1, 2, numa_bind_nodes=(0, 1)) == (0, 1)
    # One node is that of this rank's own GPU, which it numbers 0; the other rank's GPU is 1 to it.
    assert gpus_for(1, 2, numa_bind_nodes=(1,)) == (1, 0)
    assert gpus_for(0, 1, numa_bind_nodes=(1,)) == (0,)


def test_a_node_that_is_named_for_the_own_gpu_must_exist(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 1, visible=(0,))
    with pytest.raises(PlacementError, match="node 7 for GPU 0"):
        gpus_for(0, 2, numa_bind_nodes=(7,))


def test_a_single_rank_has_the_node_that_is_named_for_its_gpu(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 1, visible=(1,))
    place, group = place_of(0, 1), MaskGroup(0, (0,))
    given = {"numa_bind_nodes": (1,)}
    assert gpus_of_group(given, group, place).options == given | {"gpus": (0,)}


def test_ranks_of_the_only_gpu_are_its_sharers(gpu_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = {rank: {"CUDA_VISIBLE_DEVICES": "0"} for rank in range(2)}
    monkeypatch.setattr(gpus, "environments_of_ranks", lambda place, names: environments)
    gpu_machine(synthetic(TWO), 0)
    found = [gpus_of_group({}, MaskGroup(rank, (0, 1)), place_of(rank, 2)) for rank in range(2)]
    assert [(group.number, group.options["tensor_parallel_size"], group.messages) for group in found] == [
        (0, 2, ()),
        (1, 2, ()),
    ]


def test_the_environments_of_ranks_do_not_count_where_the_driver_hides_gpus(
    gpu_machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each rank numbers its own GPU 0.
    environments = {rank: {"CUDA_VISIBLE_DEVICES": "0"} for rank in range(2)}
    monkeypatch.setattr(gpus, "environments_of_ranks", lambda place, names: environments)
    gpu_machine(synthetic(TWO), 0, 0, visible=(0,), hidden=True)
    _, placement = seat_options(MaskGroup(1, (0, 1)), 2)
    # Half of the node: the other GPU is that of the other rank.
    assert len(placement.affinity) == 8


def test_a_rank_that_sees_several_gpus_uses_its_first_one(gpu_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = {rank: {"CUDA_VISIBLE_DEVICES": text} for rank, text in enumerate(("0", "1,0"))}
    monkeypatch.setattr(gpus, "environments_of_ranks", lambda place, names: environments)
    gpu_machine(synthetic(TWO), 0, 0, visible=(0,))
    group = gpus_of_group({}, MaskGroup(0, (0, 1)), place_of(0, 2))
    assert group.options["tensor_parallel_size"] == 2


def test_ranks_that_see_all_gpus_have_those_of_their_numbers(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 1)
    assert gpus_for(1, 2) == (0, 1)


def test_gpus_that_the_driver_hides_are_taken_for_those_of_the_other_ranks(gpu_machine: Any) -> None:
    gpu_machine(synthetic(TWO), 0, 0, visible=(0,), hidden=True)
    _, _, reported = options_of_group({"numa_bind": True}, MaskGroup(0, (0, 1)), place_of(0, 2))
    assert reported == ()


EXEC = [sys.executable, "-m", "ompaffinity", "exec", "--numa-bind", *WORKER]


@needs_nvml
@needs_program("mpirun.openmpi")
@needs_two_cpus
@pytest.mark.parametrize(
    "script",
    [
        '"$@"',
        'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"',
        # The shell stays, and has no such variable.
        'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK "$@"; true',
        # Both on one GPU: each gets a half of its part, or of what is there.
        'CUDA_VISIBLE_DEVICES=0 exec "$@"',
    ],
)
def test_ranks_of_mpirun_share_no_cpu(tmp_path: Path, driver: dict[str, Path], script: str) -> None:
    (tmp_path / "plan").write_text(LINES)
    (tmp_path / "reports").mkdir()
    reported = {
        "REPORTS": str(tmp_path / "reports"),
        "LD_LIBRARY_PATH": str(driver["new"]),
        "OMPAFFINITY_NVML_PLAN": str(tmp_path / "plan"),
    }
    done = launch(*OPEN_MPI, "--bind-to", "none", "-n", "2", "sh", "-c", script, "sh", *EXEC, ranks=2, **reported)
    assert done.returncode == 0, done.stderr
    found = reports(tmp_path / "reports")
    masks = [set(report[0]) for report in found]
    placements = [json.loads(report[2]) for report in found]
    assert [placement["local_rank"] for placement in placements] == [0, 1]
    assert all(masks)
    if "=0" not in script or len(CPUS) > 3:
        assert not masks[0] & masks[1]
    alone = "CUDA_VISIBLE_DEVICES" in script
    assert [placement["device"] for placement in placements] == ([0, 0] if alone else [0, 1])
