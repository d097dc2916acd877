from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.topology import lscpu as lscpu_module
from ompaffinity.topology.lscpu import parse_lscpu, saved_topology
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo
from ompaffinity.topology.source import load_topology
from tests.conftest import needs_program


def output(*rows: str) -> str:
    return '{\n   "cpus": [\n      {' + "},{".join(rows) + "}\n   ]\n}\n"


@pytest.mark.parametrize(
    "text",
    [
        output('"cpu": "0", "core": "0", "socket": "0", "node": "-", "online": "yes"'),
        output('"cpu": 0, "core": 0, "socket": 0, "node": -, "online": true'),
        output('"cpu": 0, "core": 0, "socket": 0, "node": "-", "online": true'),
        output('"cpu": 0, "core": 0, "socket": 0, "node": null, "online": true'),
        output('"cpu": 0, "core": 0, "socket": 0, "online": true'),
        output('"cpu": 0, "core": 0, "socket": 0, "node": -\n'),
    ],
)
def test_reads_the_same_cpus_from_every_version(text: str) -> None:
    assert parse_lscpu(text) == (LogicalCPUInfo(0, 0, UNKNOWN, 0),)


def test_reads_offline_rows_without_levels() -> None:
    cpus = parse_lscpu(
        output(
            '"cpu": 3, "core": -, "socket": -, "node": -, "online": false',
            '"cpu": 1, "core": 5, "socket": 7, "node": 2, "online": true',
        )
    )
    assert cpus == (
        LogicalCPUInfo(1, 0, 2, 0),
        LogicalCPUInfo(3, online=False, allowed=False),
    )


def test_a_cpu_marked_online_without_a_core_is_online() -> None:
    cpus = parse_lscpu(output('"cpu": 0, "core": 0, "online": true', '"cpu": 1, "core": -, "online": true'))
    assert [(cpu.physical_core, cpu.online) for cpu in cpus] == [(0, True), (UNKNOWN, True)]
    guessed = parse_lscpu(output('"cpu": 0, "core": 0', '"cpu": 1, "core": -'))
    assert [cpu.online for cpu in guessed] == [True, False]


def test_nodes_of_a_saved_output_have_online_cpus_only() -> None:
    rows = ['"cpu": 0, "core": 0, "node": 8, "online": true', '"cpu": 1, "core": -, "node": 8, "online": false']
    assert [(node.id, node.cpus) for node in saved_topology(output(*rows), "box", "x86_64").nodes] == [(8, (0,))]


def test_reads_caches_books_and_drawers() -> None:
    rows = [
        f'"cpu": {cpu}, "core": {cpu}, "socket": 0, "node": 0, "book": {cpu // 2}, "drawer": "0",'
        f' "l1d:l1i:l2:l3": "{cpu}:{cpu}:{cpu}:{cpu // 2}"'
        for cpu in range(4)
    ]
    cpus = parse_lscpu(output(*rows))
    assert [(cpu.l3, cpu.book, cpu.drawer) for cpu in cpus] == [(0, 0, 0), (0, 0, 0), (1, 1, 0), (1, 1, 0)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"cpus": [1]}',
        '{"cpus": []}',
        '{"cpus": {"cpu": 1}}',
        output('"core": 0'),
        output('"cpu": -, "core": -'),
        output('"cpu": 0, "core": 0', '"cpu": 0, "core": 1'),
        output('"cpu": 0, "core": -'),
        output('"cpu": 70000, "core": 0'),
        output('"cpu": 0, "core": 0', '"cpu": -3, "core": 0'),
        '{"cpu": "0"}\n{"cpu": "1"}',
    ],
)
def test_rejects_invalid_outputs(text: str) -> None:
    with pytest.raises(TopologyError):
        parse_lscpu(text)


@given(st.text(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_any_text_is_read_or_rejected(text: str) -> None:
    with contextlib.suppress(TopologyError):
        assert parse_lscpu(text)


needs_lscpu = needs_program("lscpu")


@needs_lscpu
def test_lscpu_and_sysfs_agree_on_this_machine() -> None:
    by_lscpu, by_sysfs = load_topology(source="lscpu"), load_topology(source="sysfs")
    assert by_lscpu.cpus == by_sysfs.cpus
    assert by_lscpu.limits.affinity == by_sysfs.limits.affinity
    assert [node.cpus for node in by_lscpu.nodes] == [node.cpus for node in by_sysfs.nodes]


def test_reports_a_missing_lscpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lscpu_module, "SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", "/does/not/exist")
    with pytest.raises(TopologyError, match="cannot run lscpu"):
        load_topology(source="lscpu")


@pytest.mark.parametrize(
    ("script", "match"), [("echo broken >&2; exit 3", "status 3 .broken"), ("exec sleep 20", "did not finish")]
)
def test_reports_a_failing_lscpu(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, script: str, match: str
) -> None:
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "lscpu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(lscpu_module, "SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(lscpu_module, "TIMEOUT_S", 0.5)
    with pytest.raises(TopologyError, match=match):
        load_topology(source="lscpu")


@needs_lscpu
def test_lscpu_does_not_inherit_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSCPU_COLUMNS", "CPU")
    monkeypatch.setenv("LIBSMARTCOLS_JSON", "lines")
    assert load_topology(source="lscpu").cpus


def test_json_decoder_reads_rows_of_lscpu() -> None:
    rows = '{"cpu": 3, "core": "1", "node": "-"}, {"cpu": 4, "core": 1, "node": 0, "socket": 1}'
    text = f'{{"cpus": [{rows}], "other": {{"a": 1}}}}'
    decoded = json.loads(text, object_hook=LogicalCPUInfo.json_decoder)
    assert decoded["cpus"] == [LogicalCPUInfo(3, 1, -1), LogicalCPUInfo(4, 1, 0, package=1)]
    assert decoded["other"] == {"a": 1}


def test_a_row_ends_before_the_caches_that_a_cpu_does_not_have() -> None:
    text = "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\n0,0,0,0,,0,0,0,0\n1,1,0,0,,1,1,1\n2,2,0,0,,2,2\n"
    assert [cpu.l3 for cpu in parse_lscpu(text)] == [0, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("start", ["# ", "#"])
def test_the_comment_names_the_columns(start: str) -> None:
    assert [cpu.physical_core for cpu in parse_lscpu(f"{start}CPU,Core\n0,0\n1,0\n")] == [0, 0]


def test_a_row_without_its_core_is_rejected() -> None:
    with pytest.raises(TopologyError, match="cells"):
        parse_lscpu("# CPU,Core,Socket,Node\n0,0,0,0\n1\n")


def test_a_cpu_with_fewer_caches_has_no_l3() -> None:
    rows = [
        {"cpu": 0, "core": 0, "l1d:l1i:l2:l3": "0:0:0:0"},
        {"cpu": 1, "core": 1, "l1d:l1i:l2:l3": "21:21:20"},
    ]
    assert [cpu.l3 for cpu in parse_lscpu(json.dumps({"cpus": rows}))] == [0, UNKNOWN]


@pytest.mark.parametrize(
    ("frequencies", "kinds"),
    [
        (("5100.0000", "5000.0000", "3800.0000"), ["performance", "performance", "efficiency"]),
        ((5100.0, 3800.0, 2500.0), ["performance", "performance", "efficiency"]),
        (("5100.0000", "3800.0000", "-"), [None, None, None]),
        (("5100.0000", "5100.0000", "5000.0000"), [None, None, None]),
    ],
)
def test_kinds_are_read_from_the_maximal_frequencies(frequencies: tuple[object, ...], kinds: list[str | None]) -> None:
    rows = [{"cpu": cpu, "core": cpu, "maxmhz": frequency} for cpu, frequency in enumerate(frequencies)]
    assert [cpu.kind for cpu in parse_lscpu(json.dumps({"cpus": rows}))] == kinds


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        ([{"core": core} for core in (0, 0, 1, 1, 2, 3)], ["core-kinds-unknown"]),
        ([{"core": core} for core in (0, 0, 1, 1)], []),
        (
            [{"core": core, "l1d:l1i:l2:l3": f"{core}:{core}:{core}{l3}"} for core, l3 in ((0, ":0"), (1, ""))],
            ["core-kinds-unknown"],
        ),
        ([{"core": core, "l1d:l1i:l2:l3": f"{core}:{core}:{core}:0"} for core in range(2)], []),
        # Their frequencies give the kinds.
        ([{"core": core, "maxmhz": maxmhz} for core, maxmhz in ((0, 5100), (0, 5100), (1, 3800))], []),
    ],
    ids=["threads-differ", "threads-alike", "caches-differ", "caches-alike", "kinds-known"],
)
def test_unknown_kinds_are_reported_where_cores_differ(rows: list[dict[str, object]], codes: list[str]) -> None:
    cpus = [{"cpu": cpu} | row for cpu, row in enumerate(rows)]
    messages = saved_topology(json.dumps({"cpus": cpus}), "drawn", "x86_64").messages
    assert [message.code for message in messages] == codes


def test_the_lscpu_of_the_system_goes_before_that_of_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "lscpu"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    system = tmp_path / "system"
    system.write_text("#!/bin/sh\nprintf '# CPU,Core\\n0,0\\n'\n")
    system.chmod(0o755)
    monkeypatch.setattr(lscpu_module, "SYSTEM_PATHS", (str(system),))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [cpu.id for cpu in lscpu_module.read_lscpu("x86_64")] == [0]
    assert not ran.exists()
