"""Recorded machines: opened once, and never left through a link."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.devices.recorded import recorded_gpus
from ompaffinity.errors import TopologyError
from ompaffinity.topology.directory_record import open_record
from ompaffinity.topology.record import opened
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.tree import read_content
from tests.conftest import run_command
from tests.topology.test_lscpu import needs_lscpu
from tests.topology.test_source import SMALL, write_machine

ONLINE = "sys/devices/system/cpu/online"


NO_SUCH_CALL = 99999


@pytest.fixture(params=["openat2", "walk"])
def record(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recorded machine, and beside it a file that is none of its own; kernels before Linux 5.6 have no openat2."""
    if request.param == "walk":
        monkeypatch.setattr("ompaffinity.topology.directory_record.OPENAT2", NO_SUCH_CALL)
    (tmp_path / "secret").write_text("0-1\n")
    return write_machine(tmp_path / "box")


def replaced_by_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    "target",
    [
        "/etc/hostname",
        "{outside}/secret",
        "../../../../../secret",
        "../../../../../../../../../../../../etc/hostname",
        "/../secret",
        "/proc/self/root/etc/hostname",
        "../cpu/../../../../../secret",
    ],
)
def test_no_link_of_a_directory_leads_out_of_it(record: Path, target: str) -> None:
    replaced_by_link(record / ONLINE, target.format(outside=record.parent))
    with open_record(str(record)) as files:
        assert files.read(ONLINE) is None
        assert files.at("sys/devices/system/cpu").read("online") is None


def test_no_linked_directory_leads_out_of_a_record(record: Path, tmp_path: Path) -> None:
    for target in ("/sys", "../../../sys", "/proc/self/root/sys"):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "sys").unlink(missing_ok=True)
        (other / "sys").symlink_to(target)
        with pytest.raises(TopologyError, match="holds no recorded machine"):
            load_topology(machine=str(other))
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "box").symlink_to("/")
    (outer / "other").symlink_to("../box")
    with pytest.raises(TopologyError, match="holds no recorded machine"):
        load_topology(machine=str(outer))


@pytest.mark.parametrize(
    "target", ["/kept/online", "../../../../kept/online", "../../../../../../kept/online", "again"]
)
def test_links_within_a_directory_are_followed_from_its_root(record: Path, target: str) -> None:
    (record / "kept").mkdir()
    (record / "kept" / "online").write_bytes((record / ONLINE).read_bytes())
    (record / ONLINE).with_name("again").symlink_to("/kept/online")
    replaced_by_link(record / ONLINE, target)
    with open_record(str(record)) as files:
        assert files.read(ONLINE) == SMALL[ONLINE]
        assert files.at("sys/devices/system/cpu").read("online") == SMALL[ONLINE]
    assert load_topology(machine=str(record)).allowed_cpus == tuple(range(8))


def test_a_linked_directory_is_entered_within_the_record(record: Path) -> None:
    (record / "sys").rename(record / "kernel")
    (record / "sys").symlink_to("/kernel")
    (record / "kernel" / "up").symlink_to("..")
    with open_record(str(record)) as files:
        assert files.read(ONLINE) == SMALL[ONLINE]
        assert files.read(f"sys/up/sys/up/../kernel/up/{ONLINE}") == SMALL[ONLINE]
        cpus = files.at("sys/devices/system/cpu")
        assert cpus.names("") == files.names("kernel/devices/system/cpu")
        assert cpus.at("cpu0/topology").read(f"../../../../../../../../{ONLINE}") == SMALL[ONLINE]
        assert cpus.at("cpu99").names("") == []


def test_the_copy_for_lscpu_has_no_linked_directory(record: Path, tmp_path: Path) -> None:
    cpus = ONLINE.removesuffix("/online")
    (record / cpus / "linked").symlink_to("cpu0")
    with open_record(str(record)) as files:
        files.write_to(str(tmp_path / "copy"))
    assert (tmp_path / "copy" / cpus / "cpu0" / "topology").is_dir()
    assert not (tmp_path / "copy" / cpus / "linked").exists()


def test_reads_only_regular_files_of_a_record(record: Path) -> None:
    (record / ONLINE).unlink()
    os.mkfifo(record / ONLINE)
    (record / "loop").symlink_to("loop")
    (record / "deep").symlink_to("deep/deep")
    with open_record(str(record)) as files:
        for path in (ONLINE, "sys", "loop", "deep", "absent", "a\0b", "sys/..", "", "/".join(["."] * 1000)):
            assert files.read(path) is None
        for path in ("loop", "absent", "a\0b", ONLINE):
            assert files.names(path) == []


def test_a_record_leaves_no_descriptor_open(record: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    load_topology(machine=str(record))
    load_topology(machine=str(record.parent))
    with pytest.raises(TopologyError):
        load_topology(machine=str(record / "sys"))
    assert set(os.listdir("/proc/self/fd")) == before


@needs_lscpu
def test_no_child_inherits_a_file_of_a_record(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inheritable = []

    def noted(descriptor: int, path: str, most: int) -> bytes | None:
        inheritable.append(os.get_inheritable(descriptor))
        return read_content(descriptor, path, most)

    monkeypatch.setattr("ompaffinity.topology.directory_record.read_content", noted)
    load_topology(machine=str(record))
    assert set(inheritable) == {False}


def test_lscpu_reads_a_record_without_what_its_links_lead_to(record: Path) -> None:
    (record / "proc" / "cpuinfo").write_text("flags : fpu lm\n")
    expected = load_topology(machine=str(record), source="lscpu")
    assert len(expected.cpus) == 8
    replaced_by_link(record / ONLINE, f"{record.parent}/secret")
    found = load_topology(machine=str(record), source="lscpu")
    assert [cpu.id for cpu in found.cpus if cpu.online] != [0, 1]


COUNTED = """
import sys
from ompaffinity.cli.main import main
path, *arguments = sys.argv[1:]
opens = []
sys.addaudithook(lambda event, values: opens.append(1) if event == "open" and values[0] == path else None)
status = main([*arguments, "--machine", path])
print(f"status {status}, opened {len(opens)} times", file=sys.stderr)
"""
EXPORT = (
    '<topology version="2.0"><object type="Machine" os_index="0" cpuset="0x3" complete_cpuset="0x3">'
    '<object type="Core" cpuset="0x1"><object type="PU" os_index="0" cpuset="0x1"/></object>'
    '<object type="Core" cpuset="0x2"><object type="PU" os_index="1" cpuset="0x2"/></object></object></topology>'
)


@pytest.mark.parametrize("form", ["directory", "archive", "compressed archive", "capture", "export"])
@pytest.mark.parametrize("verb", [["topology", "--json"], ["devices"], ["plan", "--numa-bind-cpus", "0"]])
def test_a_record_is_opened_once(record: Path, form: str, verb: list[str]) -> None:
    path = {"directory": record, "capture": record.parent / "c.json", "export": record.parent / "e.xml"}.get(form)
    if path is None:
        path = record.parent / ("a.tar.gz" if "compressed" in form else "a.tar")
        subprocess.run(["tar", "-C", str(record), "-caf", str(path), "sys"], check=True)
    elif form == "capture":
        assert run_command("topology", "--machine", str(record), "--capture", str(path)).returncode == 0
    elif form == "export":
        path.write_text(EXPORT)
    command = [sys.executable, "-c", COUNTED, str(path), *verb]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "status 0, opened 1 times"


def test_an_open_record_gives_topology_and_gpus(record: Path) -> None:
    with opened(str(record)) as recording:
        topology = load_topology(machine=recording)
        assert recorded_gpus(recording, topology) == recorded_gpus(str(record), topology)  # type: ignore[arg-type]
    assert topology == load_topology(machine=str(record))
    with opened(None) as nothing:
        assert nothing is None


def test_refuses_a_fifo_as_a_record_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TopologyError, match="neither a file nor a directory"):
        load_topology(machine=str(tmp_path / "fifo"))
