"""What we read is what QEMU was started with, and what lscpu and numactl print."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from ompaffinity.ids import parse_id_list
from ompaffinity.topology.source import load_topology
from tests.guests.inside.common import run


def groups(level: str) -> list[list[int]]:
    """Return the CPUs of each group of a level, in order."""
    found = defaultdict(list)
    for cpu in load_topology().cpus:
        found[getattr(cpu, level)].append(cpu.id)
    assert -1 not in found, f"a CPU without {level}"
    return sorted(found.values())


def chunks(count: int, size: int) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(0, count, size)]


def test_cpus_are_those_of_qemu(guest: dict[str, Any]) -> None:
    topology = load_topology()
    assert topology.architecture == guest["machine"]
    assert [cpu.id for cpu in topology.cpus] == list(range(guest["cpus"]))
    assert all(cpu.online and cpu.allowed and not cpu.isolated for cpu in topology.cpus)
    assert groups("physical_core") == chunks(guest["cpus"], guest["threads"])


def test_packages_are_those_of_qemu(guest: dict[str, Any]) -> None:
    assert groups("package") == chunks(guest["cpus"], guest["cores"] * guest["threads"])


def test_nodes_are_those_of_qemu(guest: dict[str, Any]) -> None:
    topology = load_topology()
    assert [node.id for node in topology.nodes] == sorted(guest["nodes"])
    for node in topology.nodes:
        reported = guest["nodes"][node.id]
        assert list(node.cpus) == list(parse_id_list(reported["cpus"]))
        assert node.has_memory is (reported["mebibytes"] > 0)
        # The kernel keeps some for itself, most of all on the first node.
        assert reported["mebibytes"] * 2**20 * 0.6 <= node.total_memory <= reported["mebibytes"] * 2**20
        assert 0 <= node.available_memory <= node.total_memory
        assert all(topology.cpu(cpu).numa_node == node.id for cpu in node.cpus)


def test_distances_are_those_of_qemu(guest: dict[str, Any]) -> None:
    for node in load_topology().nodes:
        if guest["distances"]:
            assert node.distances == dict(enumerate(guest["distances"][node.id]))
        else:
            assert all((distance == 10) == (other == node.id) for other, distance in (node.distances or {}).items())


def test_lscpu_reports_the_same() -> None:
    topology = load_topology()
    lines = [line.split(",") for line in run("lscpu", "-p=CPU,CORE,SOCKET,NODE").splitlines() if line[0] != "#"]
    reported = {int(words[0]): words[1:] for words in lines}
    assert sorted(reported) == [cpu.id for cpu in topology.cpus if cpu.online]
    # lscpu numbers cores and packages in its own way: who is with whom is what counts.
    for place, level in ((0, "physical_core"), (1, "package"), (2, "numa_node")):
        ours, theirs = defaultdict(set), defaultdict(set)
        for number, words in reported.items():
            ours[getattr(topology.cpu(number), level)].add(number)
            theirs[words[place]].add(number)
        if set(theirs) != {""}:
            assert sorted(map(sorted, ours.values())) == sorted(map(sorted, theirs.values())), level


def test_the_readers_of_lscpu_and_sysfs_agree() -> None:
    sysfs, lscpu = load_topology(source="sysfs"), load_topology(source="lscpu")
    for one, other in zip(sysfs.cpus, lscpu.cpus, strict=True):
        assert (one.id, one.numa_node, one.online) == (other.id, other.numa_node, other.online)


def test_numactl_reports_the_same(guest: dict[str, Any]) -> None:
    reported = run("numactl", "--hardware")
    for node in load_topology().nodes:
        cpus = re.search(rf"^node {node.id} cpus:(.*)$", reported, re.MULTILINE)
        size = re.search(rf"^node {node.id} size: (\d+) MB$", reported, re.MULTILINE)
        assert cpus is not None
        assert size is not None
        assert [int(cpu) for cpu in cpus[1].split()] == list(node.cpus)
        assert abs(int(size[1]) - node.total_memory // 2**20) <= 1
