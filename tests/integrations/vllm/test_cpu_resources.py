from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest

import ompaffinity
from ompaffinity.bind import capacity
from ompaffinity.bind.capacity import MachineMemory
from ompaffinity.errors import IDListError, TopologyError
from ompaffinity.integrations.vllm import cpu_resources
from ompaffinity.placement.document import placement_document
from ompaffinity.placement.memory import with_sharing
from ompaffinity.placement.model import RankPlacement
from ompaffinity.topology.model import Limits

GIB = 2**30
HAS_NODES = Path("/sys/devices/system/node").is_dir()


def test_the_allowed_cpus_are_those_of_the_mask() -> None:
    assert {cpu.id for cpu in ompaffinity.get_allowed_cpu_list()} == os.sched_getaffinity(0)


def test_memory_affinity_of_this_process_and_of_another() -> None:
    assert (
        ompaffinity.get_memory_affinity()
        == ompaffinity.get_memory_affinity(os.getpid())
        == ompaffinity.get_memory_affinity(os.getppid())
    )
    with pytest.raises(TopologyError, match="no process"):
        ompaffinity.get_memory_affinity(2**22 + 1)


def test_memory_of_a_node_lies_within_the_machine() -> None:
    nodes = ompaffinity.get_memory_affinity() or [0]
    info = ompaffinity.get_memory_node_info(nodes[0])
    assert (
        0 < info.available_memory <= info.total_memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2
    )


@pytest.mark.skipif(not HAS_NODES, reason="this machine has no NUMA directory")
def test_a_node_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TopologyError, match="no memory node 9999"):
        ompaffinity.get_memory_node_info(9999)


@pytest.mark.parametrize("nodes_are_shown", [True, False])
@pytest.mark.parametrize(
    ("limit", "left", "total", "available"),
    [(1000, 400, 1000, 400), (1000, 0, 1000, 0), (10**6, 400, 5000, 400), (None, None, 5000, 3000)],
)
def test_a_control_group_clamps_the_memory(
    monkeypatch: pytest.MonkeyPatch,
    nodes_are_shown: bool,
    limit: int | None,
    left: int | None,
    total: int,
    available: int,
) -> None:
    import psutil

    monkeypatch.setattr(cpu_resources, "read_limits", lambda tree: Limits(memory_limit_bytes=limit))
    monkeypatch.setattr(cpu_resources, "memory_left", lambda tree: left)
    monkeypatch.setattr(cpu_resources, "node_memory", lambda tree, node: (5000, 3000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=5000, available=3000))
    if not nodes_are_shown:
        monkeypatch.setattr(cpu_resources, "NODE_ROOT", "does/not/exist")
    elif not HAS_NODES:
        pytest.skip("this machine has no NUMA directory")
    info = ompaffinity.get_memory_node_info(0)
    assert (info.total_memory, info.available_memory) == (total, available)


@pytest.mark.parametrize(
    ("variable", "assigned", "visible"),
    [
        (None, None, [0, 2, 5]),
        ("5,0", None, [5, 0]),
        ("0-3", None, [0, 2]),
        ("", None, [0, 2, 5]),
        (" ", None, [0, 2, 5]),
        ("5", [2, 1, 0], [2, 0]),
        (None, [], []),
    ],
)
def test_visible_nodes(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, assigned: list[int] | None, visible: list[int]
) -> None:
    monkeypatch.setattr(cpu_resources, "get_memory_affinity", lambda: [0, 2, 5])
    if variable is not None:
        monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", variable)
    assert ompaffinity.get_visible_memory_node(assigned) == visible


def test_a_variable_that_is_no_list_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", "all")
    with pytest.raises(IDListError):
        ompaffinity.get_visible_memory_node()


def test_macos_has_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ompaffinity.get_visible_memory_node() == [0]


@pytest.mark.parametrize(
    ("nodes", "reported", "total", "available"),
    [
        ([0, 1], (-1, -1), 2500, 1500),
        ([], (-1, -1), 5000, 3001),
        # A node without memory.
        ([0, 1], (0, 0), 0, 0),
        ([0, 1], (7, 5), 7, 5),
    ],
)
def test_a_node_that_reports_no_memory_has_an_even_part_of_the_machine(
    nodes: list[int],
    reported: tuple[int, int],
    total: int,
    available: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil

    monkeypatch.setattr(cpu_resources, "numbered", lambda names, prefix: nodes)
    monkeypatch.setattr(cpu_resources, "node_memory", lambda tree, node: reported)
    monkeypatch.setattr(cpu_resources, "read_limits", lambda tree: Limits())
    monkeypatch.setattr(cpu_resources, "memory_left", lambda tree: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=5000, available=3001))
    assert ompaffinity.get_memory_node_info(0)[:2] == (total, available)


def test_a_worker_has_its_part_of_the_memory_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "machine_memory", lambda: MachineMemory({0: 64 * GIB}, {0: 60 * GIB}, None, None))
    monkeypatch.setattr(capacity, "resident_bytes", lambda: 2 * GIB)
    two = with_sharing(tuple(RankPlacement(rank, rank, bound=False, nodes=(0,)) for rank in range(2)))
    monkeypatch.setenv("OMPAFFINITY_PLACEMENT", json.dumps(placement_document(two[1])))
    assert ompaffinity.get_device_total_memory() == 32 * GIB
    assert ompaffinity.determine_available_memory(0.5) == 14 * GIB
    assert ompaffinity.determine_available_memory(0.5, explicit=GIB) == GIB
    monkeypatch.delenv("OMPAFFINITY_PLACEMENT")
    assert ompaffinity.get_device_total_memory() == 64 * GIB
