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
    assert [(node.cpus, node.total_memory) for node in machine.nodes] == [((0, 1), 2**30)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("5", 5), ("3kB", 3000), ("3MB", 3 * 10**6), ("3GB", 3 * 10**9), ("3TB", 3 * 10**12),
        ("3KiB", 3 << 10), ("3MiB", 3 << 20), ("3GiB", 3 << 30), ("3TiB", 3 << 40),
    ],
)  # fmt: skip
def test_reads_memory_sizes_in_every_unit(size: str, expected: int) -> None:
    assert synthetic(f"numa:1(memory={size}) pu:1").nodes[0].total_memory == expected


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


# What lstopo exports.


def ids_of(text: str) -> list[int]:
    """The numbers of the CPUs, depth first."""
    machine = synthetic(text)
    return [cpu.id for cpu in sorted(machine.cpus, key=lambda cpu: (cpu.package, cpu.physical_core, cpu.id))]


def test_reads_what_lstopo_exports_of_a_server_with_two_threads_per_core() -> None:
    machine = synthetic("[NUMANode(memory=1073741824)] Package:2 Core:4 PU:2(indexes=2*8:1*2)")
    assert [(node.id, node.total_memory, node.cpus) for node in machine.nodes] == [(0, 2**30, tuple(range(16)))]
    siblings = {core: [cpu.id for cpu in machine.cpus if cpu.physical_core == core] for core in (0, 7)}
    assert siblings == {0: [0, 8], 7: [7, 15]}


@pytest.mark.parametrize("indexes", ["0,4,1,5,2,6,3,7", "2*4:1*2", "2*4", "core:pu", "core", "package:core:pu"])
def test_every_form_of_indexes_numbers_the_cpus(indexes: str) -> None:
    order = "2*4:1*2" if not indexes.startswith("package") else "4*2:2*2:1*2"
    assert ids_of(f"package:2 core:2 pu:2(indexes={indexes})") == ids_of(f"package:2 core:2 pu:2(indexes={order})")


def test_a_loop_of_indexes_may_have_one_step() -> None:
    assert synthetic("core:4 pu:1(indexes=core:pu)").cpus == synthetic("core:4 pu:1").cpus


def test_nodes_have_indexes_too() -> None:
    machine = synthetic("package:2 [numa(indexes=1,0)] core:1 pu:1")
    assert [(node.id, node.cpus) for node in machine.nodes] == [(0, (1,)), (1, (0,))]
    level = synthetic("numa:2(indexes=1,0 memory=4GB) core:1 pu:1")
    assert [(node.id, node.cpus, node.total_memory) for node in level.nodes] == [
        (0, (1,), 4 * 10**9),
        (1, (0,), 4 * 10**9),
    ]


def test_of_several_nodes_at_the_same_cpus_the_first_has_them() -> None:
    machine = synthetic("package:2 [numa(memory=4GiB)] [numa(memory=1GiB)] core:2 pu:1")
    assert [(node.total_memory >> 30, node.cpus) for node in machine.nodes] == [
        (4, (0, 1)),
        (1, ()),
        (4, (2, 3)),
        (1, ()),
    ]


def test_the_nodes_of_inner_objects_have_the_cpus() -> None:
    machine = synthetic("[numa(memory=1GiB)] package:2 [numa(memory=2GiB)] core:1 pu:1")
    assert [(node.id, node.total_memory >> 30, node.cpus) for node in machine.nodes] == [
        (0, 2, (0,)),
        (1, 2, (1,)),
        (2, 1, ()),
    ]


def test_the_last_level_may_be_a_count_alone() -> None:
    assert synthetic("package:2 core:4 2").cpus == synthetic("package:2 core:4 pu:2").cpus


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("4", "pu:4"),
        ("2 4", "numa:2 pu:4"),
        ("2 3 4", "package:2 numa:3 pu:4"),
        ("2 3 4 5", "package:2 numa:3 core:4 pu:5"),
        ("2 1 1 2 1 3 2", "package:2 numa:1 l3:1 l2:2 l1:1 core:3 pu:2"),
    ],
)
def test_levels_may_all_be_counts_alone(text: str, same: str) -> None:
    assert synthetic(text).cpus == synthetic(same).cpus


@pytest.mark.parametrize(("size", "expected"), [("(size=32MiB)", 32 * 2**20), ("(size=1000)", 1000), ("", None)])
def test_reads_the_size_of_each_l3(size: str, expected: int | None) -> None:
    topology = parse_synthetic(f"package:2 l3:2{size} core:2 pu:2", "x86_64")
    assert topology.l3_bytes == (() if expected is None else (expected,) * 4)


def test_ignores_the_attributes_of_the_machine() -> None:
    assert synthetic("(memory=1GB) core:2 pu:1") == synthetic("core:2 pu:1")


def test_other_levels_and_attributes_of_an_export_are_read() -> None:
    text = "Package:1 L4Cache:1(size=134217728) L3Cache:2(size=32MB) L2dCache:1 Group0:1 Group1:2 Core:1 PU:1"
    assert [cpu.l3 for cpu in synthetic(text).cpus] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "core:2 [numa] pu:1 [numa]",
        "numa:2 package:1 [numa] pu:1",
        "package:2 4 pu:1",
        "core:2 (size=1) pu:1",
        "[numa] (memory=1GB) pu:1",
        "core:2 pu:2(indexes=0,1,2)",
        "core:2 pu:2(indexes=2*2:2*2)",
        "core:2 pu:2(indexes=0*2)",
        "core:2 pu:2(indexes=rack:pu)",
        "core:2 pu:2(indexes=core:core)",
        "core:2 pu:2(indexes=" + ":".join(["1*1"] * 5000) + ")",
        "core:2 pu:2(color=red)",
        "core:2 pu:2(indexes=0,1,2,3",
        "[core] pu:2",
        "[numa pu:2",
        " ".join(["[numa]"] * 70000) + " pu:2",
    ],
)
def test_rejects_descriptions_that_hwloc_rejects(text: str) -> None:
    with pytest.raises(TopologyError):
        synthetic(text)
