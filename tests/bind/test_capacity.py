from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.bind import capacity
from ompaffinity.bind.capacity import (
    FullNodes,
    MachineMemory,
    full_nodes,
    kv_cache_bytes,
    machine_memory,
    memory_budget,
)
from ompaffinity.errors import CapacityError, RequestError
from ompaffinity.placement.memory import share_of, with_sharing
from ompaffinity.placement.model import RankPlacement
from ompaffinity.topology import nodes
from ompaffinity.topology.model import UNKNOWN
from tests.conftest import ROOT, needs_namespaces

GIB = 2**30
TWO_ON_A_NODE = with_sharing(tuple(RankPlacement(rank, rank, bound=False, nodes=(0,)) for rank in range(2)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this machine have the memory, and this process the resident bytes, that the test names."""

    def set_machine(memory: MachineMemory, resident: int = 0) -> None:
        monkeypatch.setattr(capacity, "machine_memory", lambda: memory)
        monkeypatch.setattr(capacity, "resident_bytes", lambda: resident)

    return set_machine


def test_a_node_is_divided_among_the_ranks_that_use_it(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB, 1: 32 * GIB}, {0: 60 * GIB, 1: 30 * GIB}, None, None))
    assert memory_budget(TWO_ON_A_NODE[0], 0.5) == 16 * GIB
    alone, shared, both = with_sharing(
        (RankPlacement(0, 0, nodes=(1,)), RankPlacement(1, 1, nodes=(0,)), RankPlacement(2, 2, nodes=(0, 1)))
    )
    assert memory_budget(alone, 1) == 16 * GIB
    assert memory_budget(shared, 1) == 32 * GIB
    assert memory_budget(both, 1) == 48 * GIB


def test_a_limit_is_divided_among_all_ranks(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, 8 * GIB, 6 * GIB))
    assert memory_budget(TWO_ON_A_NODE[0], 0.5) == 2 * GIB


def test_a_rank_without_nodes_has_its_part_of_all(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB, 1: 32 * GIB}, {0: 60 * GIB, 1: 30 * GIB}, None, None))
    unbound = with_sharing((RankPlacement(0, 0, bound=False), RankPlacement(1, 1, bound=False)))
    assert memory_budget(unbound[0], 1) == 48 * GIB


def test_the_model_is_taken_off(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, None, None), resident=2 * GIB)
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 0.5) == 14 * GIB
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 0.5, model_bytes=10 * GIB) == 6 * GIB
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 0.5, explicit=3 * GIB) == 3 * GIB
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 0.5, explicit=14 * GIB) == 14 * GIB


def test_what_of_the_model_is_still_to_come_is_not_given_away(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 4 * GIB}, None, None), resident=30 * GIB)
    # 2 GiB are this rank's part of what is available; what is resident here is not available again.
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 1, model_bytes=0) == 2 * GIB
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 1, model_bytes=31 * GIB) == GIB
    machine(MachineMemory({0: 128 * GIB}, {0: 8 * GIB}, None, None), resident=30 * GIB)
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 1, model_bytes=31 * GIB) == 3 * GIB


def test_the_plans_budget_counts_unless_another_utilization_is_given(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, None, None), resident=GIB)
    planned = TWO_ON_A_NODE[0]._replace(memory_budget=5 * GIB)
    assert memory_budget(planned) == 5 * GIB
    assert kv_cache_bytes(planned) == 4 * GIB
    assert memory_budget(planned, 0.5) == 16 * GIB
    assert memory_budget(TWO_ON_A_NODE[0]) == int(0.9 * 32 * GIB)
    assert memory_budget(planned, 0.25) == 8 * GIB


def test_a_placement_without_the_number_of_ranks_per_node(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, None, None))
    assert memory_budget(RankPlacement(0, 0, nodes=(0,), local_world_size=4), 1) == 16 * GIB


def test_what_limits_decides_what_to_do(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 4 * GIB}, None, None), resident=2 * GIB)
    with pytest.raises(CapacityError) as error:
        kv_cache_bytes(TWO_ON_A_NODE[0], 0.9, explicit=3 * GIB)
    assert "of its part of what is available" in str(error.value)
    assert "stop what else uses the memory" in str(error.value)
    assert "raise the utilization" not in str(error.value)


def test_an_error_names_the_nodes_of_the_rank_or_all_of_them(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB, 1: 32 * GIB}, {0: GIB, 1: GIB}, None, None), resident=2 * GIB)
    for of_rank, named in (((1,), [False, True]), ((), [True, True])):
        with pytest.raises(CapacityError) as error:
            kv_cache_bytes(RankPlacement(0, 0, nodes=of_rank), 0.9, explicit=80 * GIB)
        assert [f"node {node} has" in str(error.value) for node in (0, 1)] == named


def test_what_others_use_is_not_available(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 8 * GIB}, None, None), resident=2 * GIB)
    # Half of what is available; what is resident here is in use already.
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 0.9) == 4 * GIB


def test_what_a_group_has_left_is_shared(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, 16 * GIB, 6 * GIB), resident=GIB)
    assert kv_cache_bytes(TWO_ON_A_NODE[0], 1) == 3 * GIB


def test_an_error_for_too_little_memory_names_the_sharers_and_a_remedy(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, 16 * GIB, 6 * GIB), resident=GIB)
    with pytest.raises(CapacityError) as error:
        kv_cache_bytes(TWO_ON_A_NODE[1], 0.5, explicit=40 * GIB)
    text = str(error.value)
    for part in (
        "rank 1 has no room for 40.00 GiB",
        "3.00 GiB are left of its budget",
        "1.00 GiB for the model",
        "node 0 has 64.00 GiB, 60.00 GiB of it available, for 2 ranks",
        "control group allows 16.00 GiB, 6.00 GiB of it left, for 2 ranks",
        "raise the utilization",
        "start fewer ranks",
        "memory.max",
    ):
        assert part in text, part
    assert "\n" not in text


def test_an_error_is_one_whole_sentence(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, 16 * GIB, 6 * GIB), resident=GIB)
    with pytest.raises(CapacityError) as error:
        kv_cache_bytes(TWO_ON_A_NODE[1], 0.5, explicit=40 * GIB)
    assert str(error.value) == (
        "rank 1 has no room for 40.00 GiB KV cache: 3.00 GiB are left of its budget beside 1.00 GiB for the model; node"
        " 0 has 64.00 GiB, 60.00 GiB of it available, for 2 ranks; the control group allows 16.00 GiB, 6.00 GiB of it"
        " left, for 2 ranks; ask for less, raise the utilization, start fewer ranks, give the ranks more nodes (--span,"
        " --memory-policy interleave) or raise the limit of the control group (memory.max)"
    )


def test_an_error_names_what_is_unknown_and_no_limit_that_is_not_set(machine: Any) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: UNKNOWN}, None, None), resident=2 * GIB)
    with pytest.raises(CapacityError) as error:
        kv_cache_bytes(TWO_ON_A_NODE[1], 0.5, model_bytes=40 * GIB)
    assert str(error.value) == (
        "rank 1 has no room for any KV cache: 0.00 GiB are left of its budget beside 40.00 GiB for the model; node 0"
        " has 64.00 GiB, an unknown size of it available, for 2 ranks; raise the utilization, start fewer ranks or give"
        " the ranks more nodes (--span, --memory-policy interleave)"
    )


@pytest.mark.parametrize("model", [16 * GIB, 40 * GIB])
def test_no_room_at_all_is_an_error(machine: Any, model: int) -> None:
    machine(MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, None, None), resident=2 * GIB)
    with pytest.raises(CapacityError, match=r"no room for any KV cache: 0.00 GiB are left"):
        kv_cache_bytes(TWO_ON_A_NODE[0], 0.5, model_bytes=model)


def test_a_machine_that_does_not_report_its_memory(machine: Any) -> None:
    machine(MachineMemory({0: UNKNOWN}, {0: UNKNOWN}, None, None))
    with pytest.raises(CapacityError, match="the memory size of this machine is unknown"):
        memory_budget(TWO_ON_A_NODE[0])


@pytest.mark.parametrize("utilization", [0, -1, 1.5, "0.9", True, float("nan")])
def test_a_utilization_is_a_part(utilization: Any) -> None:
    with pytest.raises(RequestError, match="above 0 and at most 1"):
        memory_budget(TWO_ON_A_NODE[0], utilization)
    with pytest.raises(RequestError, match="above 0 and at most 1"):
        kv_cache_bytes(TWO_ON_A_NODE[0], utilization)


@pytest.mark.parametrize("size", [-1, 1.5, "1GB", True])
def test_sizes_are_numbers_of_bytes(size: Any) -> None:
    with pytest.raises(RequestError, match="model_bytes is"):
        kv_cache_bytes(TWO_ON_A_NODE[0], model_bytes=size)
    with pytest.raises(RequestError, match="explicit is"):
        kv_cache_bytes(TWO_ON_A_NODE[0], explicit=size)


sizes = st.integers(0, 2**45)


@given(
    totals=st.dictionaries(st.integers(0, 300), sizes, min_size=1, max_size=6),
    limit=st.none() | sizes,
    utilization=st.floats(0.01, 1),
    data=st.data(),
)
def test_budgets_never_add_up_to_more_than_there_is(
    totals: dict[int, int], limit: int | None, utilization: float, data: st.DataObject
) -> None:
    nodes = st.sets(st.sampled_from(sorted(totals)), min_size=0, max_size=len(totals)).map(sorted).map(tuple)
    chosen = data.draw(st.lists(nodes, min_size=1, max_size=9))
    everything = tuple(sorted(totals))
    # A rank without nodes may use all of them.
    ranks = with_sharing(tuple(RankPlacement(rank, rank, nodes=mine or everything) for rank, mine in enumerate(chosen)))
    budgets = []
    for rank in ranks:
        share = share_of(rank, totals, limit)
        assert share is not None
        budgets.append(int(share * utilization))
    assert sum(budgets) <= sum(totals[node] for node in {node for rank in ranks for node in rank.nodes})
    if limit is not None:
        assert sum(budgets) <= limit
    for node, total in totals.items():
        users = [rank for rank in ranks if node in rank.nodes]
        assert sum(total // rank.node_ranks[rank.nodes.index(node)] for rank in users) <= total


@pytest.mark.parametrize(
    ("available", "reported"), [(255 * 2**20, True), (256 * 2**20, False), (GIB, False), (100 * GIB, False)]
)
def test_nearly_full_nodes(machine: Any, available: int, reported: bool) -> None:
    machine(MachineMemory({3: 4 * GIB}, {3: available}, None, None))
    assert (full_nodes((3,)) is not None) == reported


def test_a_small_node_is_not_nearly_full_while_it_is_half_empty(machine: Any) -> None:
    machine(MachineMemory({3: 92 * 2**20}, {3: 86 * 2**20}, None, None))
    assert full_nodes((3,)) is None
    machine(MachineMemory({3: 92 * 2**20}, {3: 45 * 2**20}, None, None))
    assert full_nodes((3,)) == FullNodes((3,), 45 * 2**20, 92 * 2**20)


def test_a_large_node_is_nearly_full_with_more_left(machine: Any) -> None:
    machine(MachineMemory({3: 1024 * GIB}, {3: 50 * GIB}, None, None))
    assert full_nodes((3,)) == FullNodes((3,), 50 * GIB, 1024 * GIB)
    machine(MachineMemory({3: 1024 * GIB}, {3: 52 * GIB}, None, None))
    assert full_nodes((3,)) is None
    machine(MachineMemory({3: 1024 * GIB}, {3: 50 * GIB}, None, None))
    assert full_nodes(()) is None
    assert full_nodes((4,)) is None


def test_this_machine() -> None:
    memory = machine_memory()
    assert memory.total
    assert all(0 < memory.available[node] <= total for node, total in memory.total.items())
    alone = RankPlacement(0, 0, bound=False)
    assert 0 < kv_cache_bytes(alone, 0.9) < memory_budget(alone, 0.9) <= sum(memory.total.values())


def test_a_machine_whose_nodes_do_not_report_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "node_memory", lambda tree, node: (UNKNOWN, UNKNOWN))
    memory = machine_memory()
    assert all(size > 0 for size in memory.total.values())
    assert memory.total


TWO_NODES = """
mount -t tmpfs none /sys/devices/system/node && mount -t tmpfs none /proc/driver || exit 77
mkdir -p /sys/devices/system/node/node0 /sys/devices/system/node/node1 /proc/driver/nvidia/gpus/0009:01:00.0
for node in 0 1; do echo "Node $node MemTotal: 8192 kB" > /sys/devices/system/node/node$node/meminfo; done
echo "Node: 1" > /proc/driver/nvidia/gpus/0009:01:00.0/numa_status
echo "Mems_allowed_list: 0-1" > /proc/driver/status && mount --bind /proc/driver/status /proc/$$/status || exit 77
exec "$0" -c "from ompaffinity.bind.capacity import machine_memory; print(machine_memory().total)"
"""


SEVERAL_NODES = """
mount -t tmpfs none /sys/devices/system/node && mount -t tmpfs none /proc/driver || exit 77
for node in 0 1 2 3; do mkdir /sys/devices/system/node/node$node; done
echo 0-3 > /sys/devices/system/node/online && echo "$1" > /sys/devices/system/node/has_memory || exit 77
echo "Mems_allowed_list: 0-1" > /proc/driver/status && mount --bind /proc/driver/status /proc/$$/status || exit 77
exec "$0" -c "
import psutil
from ompaffinity.bind.capacity import machine_memory
found = machine_memory()
whole = psutil.virtual_memory().total
print({node: round(whole / size, 3) for node, size in found.total.items()})
print(all(0 < found.available[node] <= size for node, size in found.total.items()))"
"""


@needs_namespaces
@pytest.mark.parametrize(("with_memory", "parts"), [("0-3", 4), ("0-1", 2), ("", 2)])
def test_nodes_that_do_not_report_their_memory_have_an_even_part(with_memory: str, parts: int) -> None:
    command = ["unshare", "-m", "sh", "-c", SEVERAL_NODES, sys.executable, with_memory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    if done.returncode == 77:
        pytest.skip("nothing can be mounted over /sys and /proc here")
    assert done.stdout == f"{dict.fromkeys((0, 1), float(parts))}\nTrue\n", done.stderr


@needs_namespaces
def test_gpu_memory_is_not_available_to_workers() -> None:
    command = ["unshare", "-m", "sh", "-c", TWO_NODES, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    if done.returncode == 77:
        pytest.skip("nothing can be mounted over /sys and /proc here")
    assert done.stdout == "{0: 8388608}\n", done.stderr


def test_planned_budgets_count_host_memory_that_may_be_used_and_the_limit() -> None:
    from ompaffinity.placement.plan import make_plan
    from ompaffinity.placement.request import PlacementRequest
    from tests.placement.machines import synthetic, without_nodes

    machine = synthetic("package:4 [numa(memory=64GiB)] core:2 pu:1")
    first, second, third, fourth = machine.nodes
    machine = machine._replace(
        nodes=(
            first,
            second._replace(allowed=False),
            third._replace(has_memory=False),
            fourth._replace(device_memory=True),
        )
    )

    def budget(topology: Any) -> int | None:
        return make_plan(topology, PlacementRequest(bind="none", utilization=1)).ranks[0].memory_budget

    assert budget(machine) == 64 * GIB
    assert budget(machine._replace(limits=machine.limits._replace(memory_limit_bytes=GIB))) == GIB
    assert budget(without_nodes(machine)) is None
    assert budget(without_nodes(machine)._replace(total_memory=7 * GIB)) == 7 * GIB


def test_the_plan_has_the_budget_of_each_rank() -> None:
    from tests.placement.machines import plan_for

    plan = plan_for("package:2 [numa(memory=64GiB)] core:8 pu:1", 4, utilization=0.5)
    assert [rank.memory_budget for rank in plan.ranks] == [16 * GIB] * 4
    assert {rank.node_ranks for rank in plan.ranks} == {(2,)}
    without = plan_for("package:2 [numa(memory=64GiB)] core:8 pu:1", 4)
    assert {rank.memory_budget for rank in without.ranks} == {None}
