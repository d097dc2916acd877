"""``lscpu`` and ``lscpu -J`` without ``-e``: counts, and the CPUs of each node."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.topology.lscpu import saved_topology
from ompaffinity.topology.model import UNKNOWN, Topology

SERVER = {
    "Architecture": "x86_64",
    "CPU(s)": "16",
    "On-line CPU(s) list": "0-15",
    "Thread(s) per core": "2",
    "Core(s) per socket": "4",
    "Socket(s)": "2",
    "L3 cache": "64 MiB (4 instances)",
    "NUMA node(s)": "2",
    "NUMA node0 CPU(s)": "0-3,8-11",
    "NUMA node1 CPU(s)": "4-7,12-15",
}


def as_text(fields: dict[str, str]) -> str:
    return "".join(f"{name}:{value:>20}\n" for name, value in fields.items())


def as_json(fields: dict[str, str]) -> str:
    return json.dumps({"lscpu": [{"field": f"{name}:", "data": value} for name, value in fields.items()]})


def as_nested_json(fields: dict[str, str]) -> str:
    rows = [{"field": f"{name}:", "data": value} for name, value in fields.items()]
    return json.dumps({"lscpu": [rows[0], {"field": "CPU:", "data": None, "children": rows[1:]}]})


def read(text: str) -> Topology:
    return saved_topology(text, "drawn", "unknown")


@pytest.mark.parametrize("write", [as_text, as_json, as_nested_json])
def test_reads_counts_and_nodes(write: object) -> None:
    assert callable(write)
    topology = read(write(SERVER))
    assert topology.architecture == "x86_64"
    assert [node.cpus for node in topology.nodes] == [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)]
    assert [cpu.package for cpu in topology.cpus] == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert [cpu.physical_core for cpu in topology.cpus] == [*range(8), *range(8)]
    assert [cpu.l3 for cpu in topology.cpus] == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    assert [message.code for message in topology.messages] == ["lscpu-summary"]


def test_cores_stay_unknown_where_the_counts_do_not_match() -> None:
    """A chip with several kinds of cores: some have two threads, some have one."""
    topology = read(as_text(SERVER | {"CPU(s)": "14", "On-line CPU(s) list": "0-13"}))
    assert {cpu.physical_core for cpu in topology.cpus} == {UNKNOWN}
    assert len(topology.allowed_cpus) == 14


def test_offline_cpus_are_listed() -> None:
    fields = SERVER | {"On-line CPU(s) list": "0-13", "Off-line CPU(s) list": "14-15"}
    assert [cpu.id for cpu in read(as_text(fields)).cpus if not cpu.online] == [14, 15]


def test_counts_alone_are_enough() -> None:
    topology = read("Architecture: riscv64\nCPU(s): 4\n")
    assert [cpu.id for cpu in topology.cpus] == [0, 1, 2, 3]
    assert topology.nodes == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"CPU(s)": "0"},
        {"CPU(s)": "99999999"},
        {"CPU(s)": "many"},
        {"CPU(s)": "4", "On-line CPU(s) list": "0-"},
        {"CPU(s)": "4", "NUMA node0 CPU(s)": "0-9999999"},
    ],
)
def test_rejects_invalid_summaries(fields: dict[str, str]) -> None:
    for text in (as_text(fields), as_json(fields)):
        with pytest.raises(TopologyError):
            read(text)


@given(st.dictionaries(st.sampled_from([*SERVER]), st.text(max_size=12) | st.integers(0, 99).map(str)))
def test_any_values_are_read_or_rejected(fields: dict[str, str]) -> None:
    try:
        topology = read(as_json(SERVER | fields))
    except TopologyError:
        return
    assert topology.cpus
