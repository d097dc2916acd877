"""The GPU of a rank that a launcher started, where each rank sees its own GPU only."""

from __future__ import annotations

import pytest

from ompaffinity.devices.model import GPU
from ompaffinity.errors import RequestError
from ompaffinity.launch.gpus import Sharers, gpus_of_group, may_use, options_of_own_gpu
from ompaffinity.launch.mask_groups import MaskGroup
from ompaffinity.launch.ranks import LauncherRank
from tests.placement.machines import synthetic

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
    place, group = LauncherRank("torchrun", 2, 3, 2, 3), MaskGroup(2, (0, 2))
    assert gpus_of_group({"gpus": (5, 6, 7)}, group, place)[:2] == ({"gpus": (5, 7)}, 1)
    with pytest.raises(RequestError, match="--gpus names 2, but there are 3 local ranks; name one"):
        gpus_of_group({"gpus": (5, 6)}, group, place)


def test_a_single_rank_gets_the_first_gpu_unless_another_one_is_named() -> None:
    place, group = LauncherRank("torchrun", 0, 1, 0, 1), MaskGroup(0, (0,))
    assert gpus_of_group({}, group, place).options == {"gpus": (0,)}
    assert gpus_of_group({"gpus": (3,)}, group, place).options == {"gpus": (3,)}
    with pytest.raises(RequestError, match="--gpus names 2, but there is one local rank; name one"):
        gpus_of_group({"gpus": (5, 6)}, group, place)


def test_nodes_may_be_used_where_one_of_their_cpus_is_allowed() -> None:
    machine = synthetic("numa:2 core:2 pu:1")
    machine = machine._replace(cpus=tuple(cpu._replace(allowed=cpu.id == 3) for cpu in machine.cpus))
    assert [may_use(machine, nodes) for nodes in ((0,), (1,), (0, 1), ())] == [False, True, True, False]
