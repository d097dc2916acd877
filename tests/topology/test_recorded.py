"""Recorded machines against their true answers.

The answer accepts any value that its own sources disagree on, and none where they have none.
"""

from __future__ import annotations

import ast
import collections
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.errors import TopologyError
from ompaffinity.ids import parse_id_list
from ompaffinity.topology.lscpu import saved_topology
from ompaffinity.topology.model import UNKNOWN, Topology
from ompaffinity.topology.snapshot import parse_capture
from ompaffinity.topology.source import load_topology
from tests.conftest import recorded_names

LEVELS = {"core": "physical_core", "package": "package", "l3": "l3", "die": "die", "book": "book", "drawer": "drawer"}


def groups(labels: dict[int, int | None]) -> set[frozenset[int]]:
    found = collections.defaultdict(set)
    for cpu, label in labels.items():
        if label is not None and label != UNKNOWN:
            found[label].add(cpu)
    return {frozenset(group) for group in found.values()}


def disagreements(expected: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [entry for entry in expected["disagreements"] if entry["field"] == field]


def is_listed_otherwise(expected: dict[str, Any], level: str, found: set[frozenset[int]]) -> bool:
    """Whether another source of the answer sees these groups, as far as the answer shows them."""
    for entry in disagreements(expected, level):
        for source, text in entry["sources"].items():
            shape = re.fullmatch(r"(\d+) groups(?:, sizes (\{.*\}))?", str(text))
            examples = {frozenset(parse_id_list(ids)) for ids in entry.get("example", {}).get(source, [])}
            if shape and int(shape[1]) == len(found) and examples <= found:
                sizes = ast.literal_eval(shape[2]) if shape[2] else None
                if sizes is None or sizes == collections.Counter(map(len, found)):
                    return True
    return False


def check_levels(topology: Topology, expected: dict[str, Any]) -> None:
    cpus = {cpu.id: cpu for cpu in topology.cpus if cpu.online}
    for level, field in LEVELS.items():
        answer = {row["cpu"]: row[level] for row in expected["cpus"] if row[level] is not None}
        if answer:
            found = groups({cpu: getattr(cpus[cpu], field) for cpu in answer})
            assert found == groups(dict(answer)) or is_listed_otherwise(expected, level, found), level


def check_nodes(topology: Topology, expected: dict[str, Any]) -> None:
    numa = expected["numa"]
    nodes = {node.id: node for node in topology.nodes}
    if numa is None:
        assert not nodes
        return
    if not disagreements(expected, "numa_node"):
        for row in expected["cpus"]:
            if row["numa_node"] is not None:
                assert topology.cpu(row["cpu"]).numa_node == row["numa_node"]
    if not disagreements(expected, "numa_nodes"):
        assert set(nodes) == {node["id"] for node in numa["nodes"]}
        for node in numa["nodes"]:
            if node["memory_bytes"] is not None:
                assert nodes[node["id"]].total_memory in (
                    node["memory_bytes"],
                    UNKNOWN if not node["memory_bytes"] else None,
                )
            if expected["allowed_mems"] is not None and node["memory_bytes"]:
                assert nodes[node["id"]].allowed == (node["id"] in parse_id_list(expected["allowed_mems"]))
    if numa["distances"]:
        ids = numa["distances"]["indexes"]
        for start, row in zip(ids, numa["distances"]["matrix"]):
            assert [(nodes[start].distances or {}).get(end) for end in ids] == row


def check(topology: Topology, expected: dict[str, Any]) -> None:
    online = set(parse_id_list(expected["online"]))
    assert {cpu.id for cpu in topology.cpus if cpu.online} == online
    if expected["allowed_cpus"] is not None:
        assert set(topology.allowed_cpus) == set(parse_id_list(expected["allowed_cpus"])) & online
    check_levels(topology, expected)
    check_nodes(topology, expected)


def load_expected(folder: Path, name: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((folder / "expected" / f"{name}.json").read_text())
    return expected


@pytest.mark.parametrize("name", recorded_names("sysfs", ".tar.gz"))
def test_reads_recorded_trees_correctly(recorded_machines: Path, name: str) -> None:
    expected = load_expected(recorded_machines, name)
    archive = str(recorded_machines / "sysfs" / f"{name}.tar.gz")
    if not expected["online"]:
        with pytest.raises(TopologyError):
            load_topology(machine=archive)
        return
    topology = load_topology(machine=archive)
    assert topology.machine == name
    check(topology, expected)
    assert parse_capture(json.loads(json.dumps(topology.to_document()))) == topology


@pytest.mark.parametrize("name", recorded_names("hwloc-xml", ".xml"))
def test_reads_recorded_hwloc_exports_correctly(recorded_machines: Path, name: str) -> None:
    expected = load_expected(recorded_machines, name)
    topology = load_topology(machine=str(recorded_machines / "hwloc-xml" / f"{name}.xml"))
    assert topology.machine == name
    assert topology.architecture in (expected["architecture"], "unknown")
    check(topology, expected)
    assert parse_capture(json.loads(json.dumps(topology.to_document()))) == topology


def test_distinguishes_gpu_memory_from_main_memory(recorded_machines: Path) -> None:
    topology = load_topology(machine=str(recorded_machines / "sysfs" / "ppc64le-power9-6v100-2p8n8c32t.tar.gz"))
    assert [node.id for node in topology.nodes if node.device_memory] == [250, 251, 252, 253, 254, 255]


def lscpu_outputs(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (version, machine, output) of every recorded output of lscpu, JSON and CSV."""
    for path in sorted((folder / "lscpu").glob("*.json")):
        yield "2.38.1", path.stem, path.read_text(errors="replace")
    for archive in sorted((folder / "lscpu-versions").glob("*.tar.gz")):
        with tarfile.open(archive) as members:
            for member in members:
                name, _, ending = member.name.rpartition("/")[2].rpartition(".")
                file = members.extractfile(member)
                if file is not None and ending in ("json", "parse"):
                    yield archive.name.removesuffix(".tar.gz"), name, file.read().decode("utf-8", "replace")


def test_recorded_lscpu_outputs_are_correct_rejected_or_reported(recorded_machines: Path) -> None:
    read = 0
    for version, name, text in lscpu_outputs(recorded_machines):
        answer = recorded_machines / "expected" / f"{name}.json"
        if not answer.exists():
            continue
        expected = json.loads(answer.read_text())
        try:
            topology = saved_topology(text, name, expected["architecture"])
        except TopologyError:
            continue
        read += 1
        doubted = any(message.code == "lscpu-cores-doubtful" for message in topology.messages)
        known = {cpu.id: cpu for cpu in topology.cpus if cpu.online}
        assert known.keys() <= set(parse_id_list(expected["online"])), (version, name)
        answers = {
            row["cpu"]: row["core"]
            for row in expected["cpus"]
            if row["core"] is not None and row["cpu"] in known and known[row["cpu"]].physical_core != UNKNOWN
        }
        found = groups({cpu: known[cpu].physical_core for cpu in answers})
        right = found == groups(dict(answers)) or is_listed_otherwise(expected, "core", found)
        assert right or doubted, (version, name)
        if not disagreements(expected, "numa_node"):
            for row in expected["cpus"]:
                if row["cpu"] in known and row["numa_node"] is not None:
                    assert known[row["cpu"]].numa_node in (row["numa_node"], UNKNOWN), (version, name)
    assert read > 500
