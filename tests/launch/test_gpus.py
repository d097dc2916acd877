"""The GPU of a rank that a launcher started, where each rank sees its own GPU only."""

from __future__ import annotations

import pytest

from ompaffinity.devices.model import GPU
from ompaffinity.launch.gpus import Sharers, options_of_own_gpu
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
