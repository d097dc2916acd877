"""Recorded machines against their true answers.

The answer accepts any value that its own sources disagree on, and says nothing where it does not know.
"""

from __future__ import annotations

import ast
import collections
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.errors import TopologyError
from ompaffinity.topology.idlist import parse_id_list
from ompaffinity.topology.load import load_topology
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, Topology
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
            assert [nodes[start].distances[end] for end in ids] == row


@pytest.mark.parametrize("name", recorded_names("sysfs", ".tar.gz"))
def test_a_recorded_machine_is_read_as_it_is(recorded_machines: Path, name: str) -> None:
    expected = json.loads((recorded_machines / "expected" / f"{name}.json").read_text())
    archive = str(recorded_machines / "sysfs" / f"{name}.tar.gz")
    if not expected["online"]:
        with pytest.raises(TopologyError):
            load_topology(machine=archive)
        return
    topology = load_topology(machine=archive)
    assert topology.machine == name
    assert [cpu.id for cpu in topology.cpus if cpu.online] == parse_id_list(expected["online"])
    assert all(isinstance(cpu, LogicalCPUInfo) for cpu in topology.cpus)
    if expected["allowed_cpus"] is not None:
        assert set(topology.allowed_cpus) == set(parse_id_list(expected["allowed_cpus"])) & set(
            parse_id_list(expected["online"])
        )
    check_levels(topology, expected)
    check_nodes(topology, expected)
