from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.messages import Message
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import Limits, Topology
from ompaffinity.topology.snapshot import parse_capture, write_capture
from ompaffinity.topology.source import load_topology
from tests.placement.test_plan import try_plan
from tests.strategies import requests, topologies

GOOD = load_topology(synthetic="numa:2 core:2 pu:1", architecture="x86_64").to_document()


def through_json(topology: Topology) -> Topology:
    return parse_capture(json.loads(json.dumps(topology.to_document())))


@given(topologies(), requests())
def test_a_capture_gives_the_same_machine_and_plan(topology: Topology, request: PlacementRequest) -> None:
    assert through_json(topology) == topology
    plan = try_plan(topology, request)
    again = make_plan(through_json(topology), request)
    assert json.dumps(plan_document(plan)) == json.dumps(plan_document(again))


def test_captures_limits_and_messages() -> None:
    limits = Limits((0, 1), (0, 1, 2), (0,), 1.5, 2**40, 2**30)
    messages = (Message("sources-disagree", "warning", "they do"),)
    topology = load_topology(synthetic="core:4 pu:1")._replace(limits=limits, messages=messages)
    assert through_json(topology) == topology


def test_captures_this_machine(tmp_path: Path) -> None:
    topology = load_topology()
    path = tmp_path / "machine.json"
    write_capture(topology, str(path))
    assert load_topology(machine=str(path)) == topology._replace(live=False)


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    document: Any = json.loads(json.dumps(GOOD))
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    result: dict[str, Any] = document
    return result


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "ompaffinity.topology/9"),
        (("schema",), ...),
        (("cpus",), []),
        (("cpus",), None),
        (("cpus", 0), 7),
        (("cpus", 0, "cpu"), -1),
        (("cpus", 0, "cpu"), 10**9),
        (("cpus", 0, "cpu"), True),
        (("cpus", 0, "cpu"), 1),
        (("cpus", 0, "core"), "0"),
        (("cpus", 0, "core"), True),
        (("cpus", 0, "core"), 1.5),
        (("cpus", 0, "core"), ...),
        (("cpus", 0, "online"), "yes"),
        (("cpus", 0, "online"), False),
        (("cpus", 0, "kind"), "fast"),
        (("cpus", 0, "node"), 77),
        (("nodes", 0, "cpus"), "0-99"),
        (("nodes", 0, "cpus"), "junk"),
        (("nodes", 0, "node"), 1),
        (("nodes", 0, "total_bytes"), "1"),
        (("nodes", 0, "distances"), {"x": 10}),
        (("nodes", 0, "distances"), {"0": None}),
        (("nodes", 0, "distances"), [10]),
        (("limits",), ...),
        (("limits", "cpu_quota"), -1),
        (("limits", "cpu_quota"), "2"),
        (("limits", "affinity"), [0]),
        (("limits", "memory_limit_bytes"), 1.5),
        (("machine",), "two\nlines"),
        (("machine",), 7),
        (("machine",), "m" * 2001),
        (("warnings",), [{"code": "x", "level": "loud", "message": "y"}]),
        (("warnings",), 3),
    ],
)
def test_rejects_invalid_captures(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(TopologyError):
        parse_capture(changed(path, value))


def test_a_name_may_have_2000_characters() -> None:
    assert parse_capture(changed(("machine",), "m" * 2000)).machine == "m" * 2000


def test_a_capture_from_before_cpus_could_be_hidden_has_none() -> None:
    document = json.loads(json.dumps(GOOD))
    for row in document["cpus"]:
        row.pop("hidden", None)
    assert not any(cpu.hidden for cpu in parse_capture(document).cpus)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES: list[tuple[str | int, ...]] = [
    *((key,) for key in GOOD),
    *(("cpus", 0, key) for key in GOOD["cpus"][0]),
    *(("nodes", 1, key) for key in GOOD["nodes"][0]),
    *(("limits", key) for key in GOOD["limits"]),
]


@given(st.sampled_from(PLACES), json_values)
def test_any_json_is_read_or_rejected(place: tuple[str | int, ...], value: Any) -> None:
    with contextlib.suppress(TopologyError):
        parse_capture(changed(place, value)).to_document()


@given(st.binary(max_size=300))
def test_any_file_is_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    for start in (b"", b"{", b'{"schema": ', b"<topology", b"# CPU,Core\n", b"\x1f\x8b"):
        path.write_bytes(start + content)
        with contextlib.suppress(TopologyError):
            load_topology(machine=str(path))
