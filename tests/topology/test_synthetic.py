from __future__ import annotations

import pytest

from ompaffinity.errors import TopologyError
from ompaffinity.topology.model import UNKNOWN, Topology
from ompaffinity.topology.synthetic import parse_synthetic


def synthetic(text: str) -> Topology:
    return parse_synthetic(text, "x86_64")


def test_numbers_levels_depth_first() -> None:
    machine = synthetic("package:2 numa:2(memory=16GB) l3:1 core:2 pu:2")
    assert len(machine.cpus) == 16
    assert [(cpu.package, cpu.numa_node, cpu.l3, cpu.physical_core) for cpu in machine.cpus[5:9]] == [
        (0, 1, 1, 2),
        (0, 1, 1, 3),
        (0, 1, 1, 3),
        (1, 2, 2, 4),
    ]
    assert [(node.id, node.cpus, node.total_memory) for node in machine.nodes][3] == (3, (12, 13, 14, 15), 16 * 10**9)


def test_a_machine_without_numa_levels_has_one_node() -> None:
    machine = synthetic("core:1 pu:2")
    assert [(cpu.physical_core, cpu.numa_node, cpu.package) for cpu in machine.cpus] == [(0, 0, UNKNOWN)] * 2
    assert [node.cpus for node in machine.nodes] == [(0, 1)]


def test_levels_without_a_field_multiply_the_cpus() -> None:
    assert len(synthetic("Group:2 L2:2 Core:1 PU:3").cpus) == 12


@pytest.mark.parametrize(
    "text",
    [
        "",
        "core:4",
        "pu:2 core:2",
        "core:2 pu:2 l2:2",
        f"numa:1(memory={'9' * 5000}) pu:2",
        "package:0 pu:1",
        "package:x pu:1",
        "package pu:1",
        "rack:2 pu:1",
        "package:2 socket:2 pu:1",
        "core:99999999 pu:1",
        "core:300 pu:300",
        "core:99999999999999999999 pu:1",
        "numa:2(memory=much) pu:1",
        "numa:2(memory=1GB pu:1",
        "numa:2(colour=red) pu:1",
        "[core] pu:1",
        "[numa:2] pu:1",
        "[numa] numa:1 pu:1",
        "pu:2(indexes=0)",
        "pu:2(indexes=0,0)",
        "pu:2(indexes=junk)",
        "pu:٣",
    ],
)
def test_rejects_invalid_descriptions(text: str) -> None:
    with pytest.raises(TopologyError):
        synthetic(text)
