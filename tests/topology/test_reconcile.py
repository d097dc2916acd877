from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ompaffinity.errors import TopologyError
from ompaffinity.topology import lscpu as lscpu_module
from ompaffinity.topology import source as load_module
from ompaffinity.topology.archive import ArchiveTree
from ompaffinity.topology.model import UNKNOWN, Topology
from ompaffinity.topology.reconcile import completed, disagreement
from ompaffinity.topology.source import load_topology
from tests.machines import sysfs_files
from tests.strategies import topologies
from tests.topology.test_lscpu import needs_lscpu

SMT = load_topology(synthetic="package:2 core:2 pu:2", architecture="x86_64")


def regrouped(topology: Topology, level: str, groups: list[int]) -> Topology:
    values: list[Any] = [{level: group} for group in groups]
    cpus = tuple(cpu._replace(**value) for cpu, value in zip(topology.cpus, values))
    return topology._replace(source="other", cpus=cpus)


def test_equal_groups_with_different_numbers_agree() -> None:
    assert disagreement(SMT, regrouped(SMT, "physical_core", [9, 9, 4, 4, 7, 7, 0, 0])) == []


@pytest.mark.parametrize(
    ("level", "groups", "word"),
    [
        ("physical_core", [0, 1, 2, 3, 4, 5, 6, 7], "core"),
        ("physical_core", [0, 0, 0, 0, 1, 1, 1, 1], "core"),
        ("package", [0, 1, 0, 1, 0, 1, 0, 1], "package"),
        ("numa_node", [1] * 8, "NUMA node"),
    ],
)
def test_names_the_levels_that_differ(level: str, groups: list[int], word: str) -> None:
    (message,) = disagreement(SMT, regrouped(SMT, level, groups))
    assert (message.code, message.level) == ("sources-disagree", "warning")
    assert word in message.message


def test_an_unknown_level_is_no_contradiction() -> None:
    assert disagreement(SMT, regrouped(SMT, "physical_core", [UNKNOWN] * 8)) == []


def test_completes_only_levels_that_all_cpus_lack() -> None:
    lacking = regrouped(SMT, "physical_core", [UNKNOWN] * 8)
    assert completed(lacking, SMT).cpus == SMT.cpus
    half = regrouped(SMT, "physical_core", [0, 0, UNKNOWN, UNKNOWN, 1, 1, 2, 2])
    assert completed(half, SMT).cpus == half.cpus


@needs_lscpu
def test_completes_missing_cores_from_lscpu(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_topology(source="sysfs")
    blank = whole._replace(cpus=tuple(cpu._replace(physical_core=UNKNOWN) for cpu in whole.cpus))
    monkeypatch.setattr(load_module, "_settled", lambda *_: blank)
    assert [cpu.physical_core for cpu in load_topology().cpus] == [cpu.physical_core for cpu in whole.cpus]


def test_reports_an_unusable_lscpu_only_where_required(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_topology(source="sysfs")
    blank = whole._replace(cpus=tuple(cpu._replace(physical_core=UNKNOWN) for cpu in whole.cpus))
    monkeypatch.setattr(load_module, "_settled", lambda *_: blank)
    monkeypatch.setattr(lscpu_module, "SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", "/does/not/exist")
    topology = load_topology()
    assert [message.code for message in topology.messages] == ["lscpu-unusable"]
    assert topology.cpus == blank.cpus


def test_a_machine_without_sysfs_and_lscpu_has_no_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> Topology:
        raise TopologyError("no CPU is described")

    monkeypatch.setattr(load_module, "read_sysfs", nothing)
    monkeypatch.setattr(lscpu_module, "SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", "/does/not/exist")
    topology = load_topology()
    assert topology.source == "flat"
    assert {cpu.id for cpu in topology.cpus} == os.sched_getaffinity(0)
    assert {cpu.physical_core for cpu in topology.cpus} == {UNKNOWN}
    assert topology.nodes == ()
    monkeypatch.setattr(os, "sched_getaffinity", None)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert load_topology().cpus


def test_reads_again_if_a_cpu_goes_offline_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [load_topology(synthetic=text) for text in ("core:3 pu:1", "core:2 pu:1")]
    readings = iter(machines)
    monkeypatch.setattr(load_module, "read_sysfs", lambda *_, **__: next(readings))
    monkeypatch.setattr(load_module, "read_online", lambda _: [0, 1])
    assert load_topology(source="sysfs") == machines[1]._replace(live=True)


def write_tree(folder: Path, topology: Topology) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in sysfs_files(topology).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "proc" / "cpuinfo").write_text("flags : fpu lm\n")
    return folder


@needs_lscpu
@settings(max_examples=25)
@given(topology=topologies(max_cores=6))
def test_lscpu_and_sysfs_agree_on_generated_machines(
    topology: Topology, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_tree(tmp_path_factory.getbasetemp() / "drawn", topology)
    by_sysfs = load_topology(machine=str(folder), source="sysfs")
    by_lscpu = load_topology(machine=str(folder), source="lscpu")
    assert by_lscpu.messages == ()
    for level in ("id", "online", "numa_node"):
        assert [getattr(cpu, level) for cpu in by_lscpu.cpus] == [getattr(cpu, level) for cpu in by_sysfs.cpus]
    assert {cpu.physical_core for cpu in by_lscpu.cpus} == {cpu.physical_core for cpu in by_sysfs.cpus}


@needs_lscpu
def test_lscpu_reads_an_archive_through_a_private_folder(tmp_path: Path) -> None:
    tree = ArchiveTree({**sysfs_files(SMT), "etc/secret": b"x"})
    tree.write_to(str(tmp_path))
    assert not (tmp_path / "etc").exists()
    assert stat.S_ISREG((tmp_path / "sys/devices/system/cpu/online").stat().st_mode)


@pytest.mark.parametrize("names", [("sys/a", "sys/a/b"), ("sys/" + "x" * 300,), ("sys/a\0b",)])
def test_rejects_archives_that_cannot_be_unpacked(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(TopologyError, match="cannot be unpacked"):
        ArchiveTree(dict.fromkeys(names, b"x")).write_to(str(tmp_path))


@given(st.binary(max_size=40))
def test_private_folders_have_the_archived_files(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "private"
    ArchiveTree({"sys/a/b": content}).write_to(str(folder))
    assert (folder / "sys/a/b").read_bytes() == content
