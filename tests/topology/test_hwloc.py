from __future__ import annotations

import contextlib
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.topology.hwloc import parse_hwloc
from ompaffinity.topology.model import UNKNOWN, Limits, Topology
from ompaffinity.topology.synthetic import parse_synthetic

LSTOPO = shutil.which("lstopo-no-graphics") or shutil.which("lstopo")
needs_lstopo = pytest.mark.skipif(LSTOPO is None, reason="lstopo (hwloc or hwloc-nox) is not installed")


def export(body: str, attributes: str = "", tail: str = "") -> bytes:
    head = '<?xml version="1.0"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n<topology version="2.0">'
    return f'{head}<object type="Machine" {attributes}>{body}</object>{tail}</topology>'.encode()


def pu(number: int) -> str:
    return f'<object type="PU" os_index="{number}"/>'


def core(*numbers: int) -> str:
    return f'<object type="Core">{"".join(map(pu, numbers))}</object>'


def numa(number: int, cpuset: str, memory: int) -> str:
    return f'<object type="NUMANode" os_index="{number}" cpuset="{cpuset}" local_memory="{memory}"/>'


def read(body: str, attributes: str = "", tail: str = "") -> Topology:
    return parse_hwloc(export(body, attributes, tail), "box")


def test_reads_levels_nodes_and_limits() -> None:
    body = (
        '<info name="Architecture" value="ppc64le"/>'
        '<object type="Package"><object type="L3Cache" cache_size="8388608">'
        + numa(0, "0x3", 4096)
        + core(0, 1)
        + "</object></object>"
        '<object type="Package">' + numa(8, "0x300", 0) + core(8) + core(9) + "</object>"
    )
    matrix = (
        '<distances2 type="NUMANode" nbobjs="2" kind="5" name="NUMALatency" indexing="os">'
        '<indexes length="3">0 8</indexes><u64values length="11">10 40 40 10</u64values></distances2>'
    )
    sets = 'complete_cpuset="0x703" allowed_cpuset="0x103" allowed_nodeset="0x00000001"'
    topology = read(body, sets, matrix)
    assert topology.architecture == "ppc64le"
    assert topology.l3_bytes == (8 * 2**20,)
    assert [(cpu.id, cpu.physical_core, cpu.package, cpu.l3, cpu.numa_node) for cpu in topology.cpus] == [
        (0, 0, 0, 0, 0),
        (1, 0, 0, 0, 0),
        (8, 1, 1, UNKNOWN, 8),
        (9, 2, 1, UNKNOWN, 8),
        (10, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
    ]
    assert topology.allowed_cpus == (0, 1, 8)
    assert [cpu.online for cpu in topology.cpus] == [True] * 4 + [False]
    assert [(node.id, node.total_memory, node.has_memory, node.allowed) for node in topology.nodes] == [
        (0, 4096, True, True),
        (8, 0, False, False),
    ]
    assert topology.distance(0, 8) == 40
    assert topology.limits == Limits(cpuset_cpus=(0, 1, 8), cpuset_nodes=(0,))
    assert topology.messages == ()


def test_an_export_without_nodes_and_allowed_cpus_has_no_limits() -> None:
    assert read(core(0, 1)).limits == Limits()


def test_reads_sets_of_many_words() -> None:
    body = core(0) + core(40) + numa(70, "0x00000100,0x00000001", 1)
    assert read(body).nodes[0].cpus == (0, 40)


def test_reads_books_drawers_and_clusters_from_groups() -> None:
    def group(kind: str, inside: str) -> str:
        return f'<object type="Group" subtype="{kind}">{inside}</object>'

    body = group("Drawer", group("Book", group("Cluster", core(0)) + group("Other", core(1))))
    assert [(cpu.drawer, cpu.book, cpu.cluster) for cpu in read(body).cpus] == [(0, 0, 0), (0, 0, UNKNOWN)]


def test_reads_kinds_by_core_type_or_frequency() -> None:
    def kind(cpuset: str, name: str, value: object) -> str:
        return f'<cpukind cpuset="{cpuset}"><info name="{name}" value="{value}"/></cpukind>'

    body = core(0) + core(1) + core(2)
    named = kind("0x1", "CoreType", "IntelCore") + kind("0x2", "CoreType", "IntelAtom")
    assert [cpu.kind for cpu in read(body, tail=named).cpus] == ["performance", "efficiency", "low-power"]
    fast = kind("0x3", "FrequencyMaxMHz", 4000) + kind("0x4", "FrequencyMaxMHz", 2000)
    assert [cpu.kind for cpu in read(body, tail=fast).cpus] == ["performance", "performance", "efficiency"]


def test_reads_kinds_by_the_efficiency_that_the_system_reports() -> None:
    tail = '<cpukind cpuset="0x1" forced_efficiency="0"/><cpukind cpuset="0x6" forced_efficiency="1"/>'
    cpus = read(core(0) + core(1) + core(2), tail=tail).cpus
    assert [(cpu.kind, cpu.speed) for cpu in cpus] == [("efficiency", 0.5), ("performance", 1.0), ("performance", 1.0)]


@pytest.mark.parametrize(
    "tail",
    [
        '<cpukind cpuset="0x6" forced_efficiency="1"/><cpukind cpuset="0x8" forced_efficiency="0"/>',
        '<cpukind cpuset="0x7" forced_efficiency="1"/>',
        '<cpukind cpuset="0x7"/>',
    ],
    ids=["of-some-cpus", "of-one-kind", "without-one"],
)
def test_an_efficiency_without_two_kinds_is_none(tail: str) -> None:
    assert [cpu.kind for cpu in read(core(0) + core(1) + core(2), tail=tail).cpus] == [None] * 3


@pytest.mark.parametrize(("group", "online"), [("/kubepods/a", True), ("/", False)])
def test_cpus_that_an_export_from_a_control_group_lacks_are_not_allowed(group: str, online: bool) -> None:
    body = f'<info name="LinuxCgroup" value="{group}"/>' + core(1)
    cpus = read(body, 'complete_cpuset="0x3"').cpus
    assert [(cpu.id, cpu.online, cpu.allowed) for cpu in cpus] == [(0, online, False), (1, True, True)]


@needs_lstopo
def test_reads_a_synthetic_export_of_lstopo() -> None:
    assert LSTOPO is not None
    done = subprocess.run([LSTOPO, "--of", "synthetic"], capture_output=True, text=True, timeout=60, check=True)
    assert parse_synthetic(done.stdout, "x86_64").cpus


def test_a_node_without_a_size_has_no_memory_if_others_have_sizes() -> None:
    bare = '<object type="NUMANode" os_index="1" cpuset="0x2"/>'
    nodes = read(core(0) + core(1) + numa(0, "0x1", 4096) + bare).nodes
    assert [(node.total_memory, node.has_memory) for node in nodes] == [(4096, True), (0, False)]
    unsized = read(core(0) + core(1) + bare + bare.replace('"1"', '"0"').replace("0x2", "0x1")).nodes
    assert [node.has_memory for node in unsized] == [None, None]


def test_reports_nodes_near_the_same_cpus() -> None:
    topology = read(core(0) + numa(0, "0x1", 1) + numa(1, "0x1", 1))
    assert [message.code for message in topology.messages] == ["hwloc-nodes-doubtful"]


def test_exports_from_cpuid_are_x86() -> None:
    assert read('<info name="CPUVendor" value="AuthenticAMD"/>' + core(0)).architecture == "x86_64"
    assert read(core(0)).architecture == "unknown"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<",
        b"<topology/>",
        b"<html></html>",
        b'<topology><object type="Package"/></topology>',
        export(""),
        export(core(0)).replace(b'version="2.0"', b""),
        export(core(0)).replace(b'version="2.0"', b'version="1.0"'),
        export('<object type="PU"/>'),
        export('<object type="PU" os_index="-1"/>'),
        export('<object type="PU" os_index="99999999"/>'),
        export(pu(0), 'allowed_cpuset="0xf...f"'),
        export(pu(0), 'allowed_cpuset="junk"'),
        export(pu(0) + '<object type="NUMANode" os_index="0" local_memory="x"/>'),
        export(pu(0), tail='<distances2 type="NUMANode"><indexes>0</indexes><u64values>1 2</u64values></distances2>'),
        b'<!DOCTYPE x [<!ENTITY a "b">]><topology><object type="Machine">&a;</object></topology>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><topology>&a;</topology>',
        export("<object>" * 5000 + "</object>" * 5000),
    ],
)
def test_rejects_invalid_exports(text: bytes) -> None:
    with pytest.raises(TopologyError):
        parse_hwloc(text, "box")


@given(st.data())
def test_any_bytes_are_read_or_rejected(data: st.DataObject) -> None:
    text = bytearray(export(core(0, 1) + numa(0, "0x3", 9), 'allowed_cpuset="0x3"'))
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), max_size=4)):
        text[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TopologyError):
        assert parse_hwloc(bytes(text), "box").cpus


@needs_lstopo
@pytest.mark.parametrize(
    "text",
    [
        "core:1 pu:2",
        "package:2 numa:2 core:3 pu:2",
        "package:2 numa:1(memory=16GB) l3:2 core:4 pu:1",
        "numa:3 package:1 core:2 pu:4",
        "group:2 package:2 die:2 l3:1 l2:2 core:1 pu:2",
        "numa:72 core:1 pu:1",
        "package:2 [numa(memory=1GB)] core:2 pu:2",
        "package:1 core:4 pu:2(indexes=0,4,1,5,2,6,3,7)",
        "Package:2 [NUMANode(memory=3852689408)] L3Cache:1(size=37486592) L2Cache:2(size=1048576) Core:1 PU:2",
        "pack:2 core:2 pu:1",
    ],
)
def test_synthetic_machines_match_lstopo(text: str) -> None:
    assert LSTOPO is not None
    done = subprocess.run([LSTOPO, "-i", text, "--of", "xml"], capture_output=True, timeout=60, check=True)
    theirs, ours = parse_hwloc(done.stdout, "box"), parse_synthetic(text, "x86_64")
    for level in ("id", "physical_core", "package", "die", "l3", "numa_node"):
        assert [getattr(cpu, level) for cpu in ours.cpus] == [getattr(cpu, level) for cpu in theirs.cpus], level
    assert [(node.id, node.cpus, node.total_memory) for node in ours.nodes] == [
        (node.id, node.cpus, node.total_memory) for node in theirs.nodes
    ]
