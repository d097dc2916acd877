from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ompaffinity.errors import TopologyError
from ompaffinity.topology.archive import ArchiveTree
from ompaffinity.topology.cpuinfo import recorded_architecture
from ompaffinity.topology.model import Topology
from ompaffinity.topology.snapshot import write_capture
from ompaffinity.topology.source import load_topology
from tests.machines import sysfs_files
from tests.topology.test_tree import make_tar

SMALL = sysfs_files(load_topology(synthetic="package:2 core:2 pu:2", architecture="x86_64"))


def write_machine(folder: Path) -> Path:
    for name, content in SMALL.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_allows_only_cpus_of_the_affinity_mask() -> None:
    topology = load_topology()
    assert set(topology.allowed_cpus) == os.sched_getaffinity(0)
    assert topology.architecture == os.uname().machine
    assert topology.limits.affinity == topology.allowed_cpus


def test_a_narrower_mask_allows_fewer_cpus() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert load_topology().allowed_cpus == (min(before),)
    finally:
        os.sched_setaffinity(0, before)


def test_only_the_machine_of_this_process_is_live(tmp_path: Path) -> None:
    topology = load_topology()
    assert topology.live
    assert load_topology(source="sysfs").live
    capture = tmp_path / "machine.json"
    write_capture(topology, str(capture))
    records = [
        load_topology(machine=str(capture)),
        load_topology(machine=str(write_machine(tmp_path / "box"))),
        load_topology(machine=make_tar(tmp_path / "box.tar.gz", SMALL)),
        load_topology(synthetic="core:2 pu:1"),
    ]
    assert not any(record.live for record in records)


@pytest.mark.parametrize("affinity", [(1, 3), None])
def test_a_system_without_sysfs_and_lscpu_has_its_cpus(
    affinity: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> Topology:
        raise TopologyError("there is nothing to read")

    for reader in ("read_sysfs", "read_by_lscpu"):
        monkeypatch.setattr(f"ompaffinity.topology.source.{reader}", unreadable)
    monkeypatch.setattr("ompaffinity.topology.limits.live_affinity", lambda: affinity)
    monkeypatch.setattr("psutil.cpu_count", lambda: 2)
    topology = load_topology()
    assert [cpu.id for cpu in topology.cpus] == [*(affinity or range(2))]
    assert topology.limits.affinity == affinity
    for source in ("sysfs", "lscpu"):
        with pytest.raises(TopologyError, match="nothing to read"):
            load_topology(source=source)


def test_directories_and_archives_give_the_same_machine(tmp_path: Path) -> None:
    folder = write_machine(tmp_path / "outer" / "box")
    archive = make_tar(tmp_path / "box.tar.gz", {f"box/{name}": content for name, content in SMALL.items()})
    expected = load_topology(machine=archive)
    assert expected.machine == "box"
    assert load_topology(machine=str(folder)) == expected
    assert load_topology(machine=str(folder) + "/").machine == "box"
    assert load_topology(machine=str(tmp_path / "outer")).cpus == expected.cpus


def test_rejects_files_without_a_machine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hello")
    write_machine(tmp_path / "two" / "a")
    write_machine(tmp_path / "two" / "b")
    for path, match in (
        ("absent", "no file"),
        ("empty", "no recorded machine"),
        ("file", "cannot read"),
        ("two", "2 recorded machines"),
    ):
        with pytest.raises(TopologyError, match=match):
            load_topology(machine=str(tmp_path / path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"cpus": [1, 2, 3, 4]}', "more than 4 values"),
        ("<topology><a/><b/></topology>", "more than 2 elements"),
        ("<t a='=========='/>", "more than 8 attributes"),
    ],
)
def test_rejects_a_text_with_more_parts_than_a_record_has(
    content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ompaffinity.topology.record.MAX_VALUES", 4)
    monkeypatch.setattr("ompaffinity.topology.record.MAX_ELEMENTS", 2)
    path = tmp_path / "record"
    path.write_text(content)
    with pytest.raises(TopologyError, match=words):
        load_topology(machine=str(path))


def test_rejects_contradictory_machine_options(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="two machines"):
        load_topology(machine=str(tmp_path), synthetic="pu:1")
    with pytest.raises(TopologyError, match="cannot read a synthetic machine"):
        load_topology(synthetic="pu:1", source="lscpu")
    with pytest.raises(TopologyError, match="not one of"):
        load_topology(source="guess")


@pytest.mark.parametrize(
    ("cpuinfo", "architecture"),
    [
        ("processor : 0\nflags : fpu lm sse\n", "x86_64"),
        ("flags : fpu sse\n", "i686"),
        ("vendor_id       : IBM/S390\n", "s390x"),
        ("CPU implementer : 0x41\nCPU architecture: 8\n", "aarch64"),
        ("CPU implementer : 0x41\nCPU architecture: 7\n", "armv7l"),
        ("isa : rv64imafdc\n", "riscv64"),
        ("CPU Family : Loongson-64bit\n", "loongarch64"),
        ("cpu : POWER10 (architected)\n", "ppc64le"),
        ("cpu : POWER7, altivec supported\n", "ppc64"),
        ("nothing\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_detects_the_architecture_from_cpuinfo(cpuinfo: str, architecture: str) -> None:
    assert recorded_architecture(ArchiveTree({"proc/cpuinfo": cpuinfo.encode()})) == architecture


def test_reads_the_architecture_that_hwloc_recorded() -> None:
    tree = ArchiveTree({"proc/hwloc-nofile-info": b"OSName: Linux\nArchitecture: ia64\n"})
    assert recorded_architecture(tree) == "ia64"


def test_arch_names_an_unknown_architecture(tmp_path: Path) -> None:
    folder = write_machine(tmp_path / "box")
    assert load_topology(machine=str(folder)).architecture == "unknown"
    assert load_topology(machine=str(folder), architecture="aarch64").architecture == "aarch64"


@pytest.mark.skipif(sys.platform != "linux", reason="sysfs is Linux's")
def test_the_document_has_every_documented_key() -> None:
    document = load_topology().to_document()
    assert document["schema"] == "ompaffinity.topology/1"
    levels = ["core", "package", "die", "l3", "cluster", "book", "drawer", "node", "kind"]
    assert list(document["cpus"][0]) == [
        "cpu",
        *levels,
        "online",
        "allowed",
        "isolated",
        "core_class",
        "speed",
        "hidden",
    ]
    assert set(document["limits"]) == {
        "affinity", "cpuset_cpus", "cpuset_nodes", "cpu_quota", "memory_limit_bytes", "memory_usage_bytes",
        "unknown",
    }  # fmt: skip
    assert document["devices"] == []
