"""GPUs of synthetic machines' files, of recorded machines, and of NVML over a stand-in driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ompaffinity
from ompaffinity.devices.agreement import settle
from ompaffinity.devices.live import read_gpus, settled
from ompaffinity.devices.nvml import read_nvml
from ompaffinity.devices.pci import Answer, computes, nearest_cpu_nodes, pci_address
from ompaffinity.devices.recorded import recorded_gpus
from ompaffinity.devices.visibility import PhysicalGPU
from ompaffinity.errors import RequestError, TopologyError
from ompaffinity.integrations.vllm import device_nodes
from ompaffinity.topology.snapshot import write_capture
from ompaffinity.topology.source import load_topology
from ompaffinity.topology.sysfs import read_sysfs
from ompaffinity.topology.tree import DirectoryTree
from tests.conftest import ROOT, needs_nvml, run_command

NODES = "sys/devices/system/node"
PCI = "sys/bus/pci/devices"
TWO_NODES = {0: "0-3", 1: "4-7"}
EXPORT = """<?xml version="1.0"?><topology version="2.0">
<object type="Machine" os_index="0" cpuset="0x3" complete_cpuset="0x3" allowed_cpuset="0x3" nodeset="0x1">
  <info name="Architecture" value="x86_64"/>
  <object type="NUMANode" os_index="0" cpuset="0x3" nodeset="0x1" local_memory="1024"/>
  <object type="Core" os_index="0" cpuset="0x1"><object type="PU" os_index="0" cpuset="0x1"/></object>
  <object type="Core" os_index="1" cpuset="0x2"><object type="PU" os_index="1" cpuset="0x2"/></object>
  <object type="Bridge">{device}</object>
</object></topology>"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def machine(root: Path, nodes: dict[int, str], distances: dict[int, str] | None = None) -> Path:
    """Write a machine of these nodes (a CPU list each) with one core per CPU."""
    cpus = [cpu for text in nodes.values() for cpu in ompaffinity.parse_id_list(text)]
    online = ompaffinity.format_id_list(cpus)
    files = {f"sys/devices/system/cpu/{name}": online for name in ("online", "present", "possible")}
    files[f"{NODES}/online"] = ompaffinity.format_id_list(nodes)
    for cpu in cpus:
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{folder}/core_cpus_list": str(cpu), f"{folder}/physical_package_id": "0"}
        files |= {f"{folder}/core_id": str(cpu), f"{folder}/thread_siblings_list": str(cpu)}
    for node, text in nodes.items():
        row = (distances or {}).get(node) or " ".join("10" if other == node else "20" for other in nodes)
        files |= {f"{NODES}/node{node}/cpulist": text, f"{NODES}/node{node}/distance": row}
    write(root, files)
    return root


def gpu(
    root: Path, address: str, node: int | None, cpus: str = "", vendor: str = "0x10de", kind: str = "0x030200"
) -> None:
    files = {"class": kind, "vendor": vendor, "device": "0x1234", "local_cpulist": cpus}
    if node is not None:
        files["numa_node"] = str(node)
    write(root, {f"{PCI}/{address}/{name}": text for name, text in files.items()})


def seen(root: Path, environ: dict[str, str] | None = None, *, query_drivers: bool = False) -> Any:
    with DirectoryTree(str(root)) as tree:
        topology = read_sysfs(tree, architecture="x86_64", machine="test")
        return read_gpus(tree, topology, environ or {}, query_drivers=query_drivers)


def test_reads_the_node_of_each_gpu_from_sysfs(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:9b:00.0", 1, "4-7")
    gpu(tmp_path, "0000:1a:00.0", 0, "0-3")
    found = seen(tmp_path)
    assert [(device.number, device.address, device.nodes, device.source) for device in found.gpus] == [
        (0, "0000:1a:00.0", (0,), "sysfs"),
        (1, "0000:9b:00.0", (1,), "sysfs"),
    ]
    assert found.messages == ()
    shuffled = seen(tmp_path, {"CUDA_VISIBLE_DEVICES": "1,0"})
    assert [(device.number, device.nodes) for device in shuffled.gpus] == [(0, (1,)), (1, (0,))]


def test_an_unknown_node_leaves_other_gpus_unaffected(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", -1, "0-7")
    gpu(tmp_path, "0000:9b:00.0", 1, "4-7")
    found = seen(tmp_path)
    assert [device.nodes for device in found.gpus] == [(), (1,)]
    (message,) = found.messages
    assert (message.code, message.level) == ("device-node-unknown", "warning")
    assert "GPU 0 (0000:1a:00.0)" in message.message


def test_a_machine_with_one_node_needs_no_source(tmp_path: Path) -> None:
    machine(tmp_path, {0: "0-3"})
    gpu(tmp_path, "0000:1a:00.0", -1, "0-3")
    (device,) = seen(tmp_path).gpus
    assert device.nodes == (0,)
    for nodes, expected in (("numa:1 core:2 pu:1", ((0,), "only-node")), ("numa:2 core:2 pu:1", ((), None))):
        topology = load_topology(synthetic=nodes, architecture="x86_64")
        assert settle("GPU 0", [], topology)[0] == expected
    without_nodes = load_topology(synthetic="core:2 pu:1", architecture="x86_64")._replace(nodes=())
    assert settle("GPU 0", [], without_nodes) == (((), None), [])


def test_lists_only_gpus_and_accelerators(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:01:00.0", 0, vendor="0x1a03", kind="0x030000")
    gpu(tmp_path, "0000:02:00.0", 0, vendor="0x15b3", kind="0x020000")
    gpu(tmp_path, "0000:03:00.0", 0)
    gpu(tmp_path, "0000:03:00.1", 0)
    (tmp_path / PCI / "0000:03:00.1" / "physfn").mkdir()
    gpu(tmp_path, "0000:04:00.0", 1, vendor="0x1002", kind="0x038000")
    gpu(tmp_path, "10000:00:02.0", 1, vendor="0x8086", kind="0x030000")
    # Intel QuickAssist, the display of a cloud instance, and an Ascend.
    gpu(tmp_path, "0000:6b:00.0", 0, vendor="0x8086", kind="0x0b4000")
    gpu(tmp_path, "0000:07:00.0", 0, vendor="0x1d0f", kind="0x030000")
    gpu(tmp_path, "0000:c1:00.0", 1, vendor="0x19e5", kind="0x120000")
    assert [(device.address, device.vendor) for device in seen(tmp_path).gpus] == [
        ("0000:03:00.0", "nvidia"), ("0000:04:00.0", "amd"), ("10000:00:02.0", "intel"),
        ("0000:c1:00.0", "other"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "vendor", "model", "is_gpu"),
    [
        ("0302", "10de", "2330", True),
        ("0380", "1a03", "2000", False),
        # Xeon Phi and QuickAssist, both Intel's; NEC's Vector Engine.
        ("0b40", "8086", "2250", True),
        ("0b40", "8086", "4940", False),
        ("0b40", "1bcf", "001c", True),
        ("0b40", "225a", "2250", False),
        ("1200", "19e5", "d802", True),
        ("0200", "8086", "2250", False),
    ],
)
def test_class_vendor_and_number_make_a_gpu_or_an_accelerator(
    kind: str, vendor: str, model: str, is_gpu: bool, tmp_path: Path
) -> None:
    assert computes(kind, vendor, model) == is_gpu
    # An export of hwloc has the same numbers as text.
    path = tmp_path / "machine.xml"
    device = f'<object type="PCIDev" pci_busid="0000:1a:00.0" pci_type="{kind} [{vendor}:{model}] [0000:0000] 00"/>'
    path.write_text(EXPORT.format(device=device))
    found = recorded_gpus(str(path), load_topology(machine=str(path)))
    names = {"10de": "nvidia", "8086": "intel"}
    assert [(device.address, device.vendor) for device in found.gpus] == [
        ("0000:1a:00.0", names.get(vendor, "other"))
    ] * is_gpu


def test_a_gpu_without_a_vendor_is_nvidias_where_its_driver_has_it(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    for address in ("0004:04:00.0", "0004:05:00.0"):
        gpu(tmp_path, address, 0, vendor="")
    write(tmp_path, {"proc/driver/nvidia/gpus/0004:05:00.0/numa_status": "Node: 255"})
    # The other one is a display, which does not count beside a GPU.
    assert [(device.address, device.vendor) for device in seen(tmp_path).gpus] == [("0004:05:00.0", "nvidia")]


def test_a_display_counts_only_without_other_gpus(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:07:00.0", 0, vendor="0x1234", kind="0x038000")
    assert [device.address for device in seen(tmp_path).gpus] == ["0000:07:00.0"]
    gpu(tmp_path, "0000:c1:00.0", 1, vendor="0x19e5", kind="0x120000")
    assert [device.address for device in seen(tmp_path).gpus] == ["0000:c1:00.0"]


def test_cuda_visible_devices_does_not_hide_amd_gpus_beside_nvidia(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 0)
    gpu(tmp_path, "0000:9b:00.0", 1)
    gpu(tmp_path, "0000:04:00.0", 1, vendor="0x1002", kind="0x030000")
    found = seen(tmp_path, {"CUDA_VISIBLE_DEVICES": "1"})
    assert [device.address for device in found.gpus] == ["0000:9b:00.0", "0000:04:00.0"]
    assert found.messages == ()


def test_reads_the_node_from_a_bridge_above_the_gpu(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    above = "sys/devices/pci0000:40/0000:40:00.0"
    write(tmp_path, {f"{above}/class": "0x060400", f"{above}/numa_node": "1"})
    write(tmp_path, {f"{above}/0000:41:00.0/{name}": text for name, text in (
        ("class", "0x030200"), ("vendor", "0x10de"), ("numa_node", "-1"), ("local_cpulist", "0-7"),
    )})  # fmt: skip
    (tmp_path / PCI).mkdir(parents=True)
    (tmp_path / PCI / "0000:41:00.0").symlink_to("../../../devices/pci0000:40/0000:40:00.0/0000:41:00.0")
    (device,) = seen(tmp_path).gpus
    assert (device.nodes, device.source) == ((1,), "bridge")


@pytest.mark.parametrize(
    ("bridges", "nodes"),
    [(("1", "-1", "-1", "-1"), (1,)), (("1", "0", "-1"), (0,)), (("0", "1", "-1"), (1,)), (("-1", "-1"), ())],
)
def test_the_nearest_bridge_with_a_node_counts(
    tmp_path: Path, bridges: tuple[str, ...], nodes: tuple[int, ...]
) -> None:
    """From the root port down to the GPU."""
    machine(tmp_path, TWO_NODES)
    folder = "devices/pci0000:40"
    for number, node in enumerate(bridges):
        folder += f"/0000:{40 + number}:00.0"
        write(tmp_path, {f"sys/{folder}/class": "0x060400", f"sys/{folder}/numa_node": node})
    address = "0000:80:00.0"
    for name, text in (("class", "0x030200"), ("vendor", "0x10de"), ("numa_node", "-1")):
        write(tmp_path, {f"sys/{folder}/{address}/{name}": text})
    (tmp_path / PCI).mkdir(parents=True)
    (tmp_path / PCI / address).symlink_to(f"../../../{folder}/{address}")
    (device,) = seen(tmp_path).gpus
    assert (device.nodes, device.source) == (nodes, "bridge" if nodes else None)


def test_reports_sources_that_differ(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 0, "4-7")
    found = seen(tmp_path)
    assert found.gpus[0].nodes == (0,)
    (message,) = found.messages
    assert message.code == "device-sources-disagree"
    assert "sysfs 0, local-cpus 1; the plan uses the one of sysfs" in message.message


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"access1/initiators/node1/x": "", "access0/initiators/node0/x": ""}, (1,)),
        # A generic initiator (a GPU, a network card) has no CPUs.
        ({"access0/initiators/node2/x": "", "access0/initiators/node1/x": ""}, (1,)),
        ({"distance": "80 40 10"}, (1,)),
        # All at equal distance, or unreachable: no information.
        ({"distance": "80 80 10"}, None),
        ({"distance": "255 255 10"}, None),
        ({"distance": "0 40 10"}, (1,)),
        ({"distance": ""}, None),
    ],
)
def test_finds_the_nearest_cpu_nodes_of_a_gpu_memory_node(
    tmp_path: Path, files: dict[str, str], expected: tuple[int, ...] | None
) -> None:
    machine(tmp_path, {**TWO_NODES, 2: ""}, {2: "80 80 10"})
    write(tmp_path, {f"{NODES}/node2/{name}": text for name, text in files.items()})
    with DirectoryTree(str(tmp_path)) as tree:
        topology = read_sysfs(tree, architecture="aarch64", machine="test")
        assert nearest_cpu_nodes(tree, topology, 2) == expected
        assert nearest_cpu_nodes(tree, topology, 1) == (1,)
        assert nearest_cpu_nodes(tree, topology, 77) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:1A:00.0", "0000:1a:00.0"),
        ("0000:1a:00", "0000:1a:00.0"),
        ("1a:00.0", "0000:1a:00.0"),
        ("00010000:00:02.0", "10000:00:02.0"),
        ("x", None),
        ("0000:1a:00.9", None),
        ("", None),
    ],
)
def test_normalises_pci_addresses(text: str, expected: str | None) -> None:
    assert pci_address(text) == expected


def test_settles_a_gpu_without_any_source() -> None:
    topology = load_topology(synthetic="numa:2 core:2 pu:1", architecture="x86_64")
    settled, messages = settle("GPU 0", [], topology)
    assert (settled.nodes, settled.source) == ((), None)
    assert "no source reports it" in messages[0].message
    assert settle("GPU 0", [Answer("sysfs", (1,), "")], topology)[0].nodes == (1,)


def test_the_first_known_source_in_the_order_of_trust_decides() -> None:
    order = ("user", "sysfs", "nvml-memory", "nvml-cpu", "amdsmi", "own-memory", "bridge", "local-cpus")
    topology = load_topology(synthetic="numa:8 core:1 pu:1", architecture="x86_64")
    for first, source in enumerate(order):
        answers = [Answer(name, (node,) if node >= first else None, "") for node, name in enumerate(order)]
        assert settle("GPU 0", reversed(answers), topology)[0] == ((first,), source)


def test_the_answer_of_the_user_is_listed_before_the_others() -> None:
    topology = load_topology(synthetic="numa:2 core:2 pu:1", architecture="x86_64")
    answers = [Answer("sysfs", (0,), "", 0), Answer("local-cpus", (0,), "")]
    found = settled(1, PhysicalGPU("0000:1a:00.0", "nvidia", "GPU"), answers, topology, (0, 1))
    assert [answer.source for answer in found.answers] == ["user", "sysfs", "local-cpus"]
    assert (found.nodes, found.source) == ((1,), "user")
    assert settled(2, PhysicalGPU("0000:1a:00.0", "nvidia", "GPU"), answers, topology, (0, 1)).source == "sysfs"


@pytest.mark.parametrize(("source", "level"), [("user", "note"), ("sysfs", "warning")])
def test_a_difference_from_the_node_that_the_user_names_is_only_a_note(source: str, level: str) -> None:
    topology = load_topology(synthetic="numa:2 core:2 pu:1", architecture="x86_64")
    _, (message,) = settle("GPU 0", [Answer(source, (0,), ""), Answer("local-cpus", (1,), "")], topology)
    assert (message.code, message.level) == ("device-sources-disagree", level)


# NVML: the real binding over a stand-in driver.

PROGRAM = """
import json, sys
from tests.devices.test_devices import seen
found = seen(sys.argv[1], json.loads(sys.argv[2]), query_drivers=True)
rows = [[d.number, d.address, list(d.nodes), d.source, d.own_node, d.name, d.uuid] for d in found.gpus]
print(json.dumps([rows, [message.code for message in found.messages], found.libraries]))
"""


def printed(program: str, root: Path, folder: Path, plan: str, *arguments: str, **variables: str) -> Any:
    """Return the JSON that a program prints in a new process with this driver."""
    (root / "plan").write_text(plan)
    driver = {"LD_LIBRARY_PATH": str(folder), "OMPAFFINITY_NVML_PLAN": str(root / "plan")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, **driver, **variables},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_nvml(root: Path, folder: Path, plan: str, environ: dict[str, str] | None = None) -> Any:
    """Return the GPUs of a new process with this driver."""
    return printed(PROGRAM, root, folder, plan, str(root), json.dumps(environ or {}))


def nodes_of(answer: Any) -> list[Any]:
    return [row[2] for row in answer[0]]


@needs_nvml
def test_reads_the_nodes_of_eight_gpus_from_nvml(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    plan = "".join(
        f"gpu bus=00000000:{16 + at:02X}:00.0 uuid=GPU-{at:08x}-1 memory={1 << at // 4:x} cpu=f{'0' * (at // 4)}\n"
        for at in range(8)
    )
    rows, codes, libraries = by_nvml(tmp_path, driver["new"], plan)
    # The PCI bus shows none of them here, as in a container.
    assert [row[2] for row in rows] == [[0]] * 4 + [[1]] * 4
    assert {row[3] for row in rows} == {"nvml-memory"}
    assert (codes, libraries["nvidia"]) == ([], "ok")
    some = by_nvml(tmp_path, driver["new"], plan, {"CUDA_VISIBLE_DEVICES": "6,1"})
    assert [row[1] for row in some[0]] == ["0000:16:00.0", "0000:11:00.0"]
    assert nodes_of(some) == [[1], [0]]


@needs_nvml
def test_gpu_memory_nodes_are_not_the_local_nodes(tmp_path: Path, driver: dict[str, Path]) -> None:
    """GB200: nodes 0 and 1 have CPUs, 2, 10, 18 and 26 are the GPUs' memory."""
    machine(tmp_path, {0: "0-71", 1: "72-143", 2: "", 10: "", 18: "", 26: ""})
    plan = (
        "gpu bus=00000008:01:00.0 own=2 memory=1 cpu=ffffffffffffffff,ff\n"
        "gpu bus=00000009:01:00.0 own=10 memory=1 cpu=ffffffffffffffff,ff\n"
        "gpu bus=00000018:01:00.0 own=18 memory=2 cpu=0,ffffffffffffff00,ffff\n"
        "gpu bus=00000019:01:00.0 own=26 memory=2 cpu=0,ffffffffffffff00,ffff\n"
    )
    answer = by_nvml(tmp_path, driver["new"], plan)
    assert nodes_of(answer) == [[0], [0], [1], [1]]
    assert [row[4] for row in answer[0]] == [2, 10, 18, 26]
    old = by_nvml(tmp_path, driver["old"], plan)
    assert nodes_of(old) == [[0], [0], [1], [1]]
    assert {row[3] for row in old[0]} == {"nvml-cpu"}


@needs_nvml
def test_uses_the_gpu_memory_node_where_no_other_source_answers(tmp_path: Path, driver: dict[str, Path]) -> None:
    distances = {2: "40 80 10 100", 18: "80 40 100 10"}
    machine(tmp_path, {0: "0-3", 1: "4-7", 2: "", 18: ""}, distances)
    answer = by_nvml(tmp_path, driver["new"], "gpu bus=0008:01:00.0 own=2\ngpu bus=0018:01:00.0 own=18\n")
    assert nodes_of(answer) == [[0], [1]]
    assert {row[3] for row in answer[0]} == {"own-memory"}


@needs_nvml
def test_accepts_any_node_number(tmp_path: Path, driver: dict[str, Path]) -> None:
    """POWER9: nodes 0 and 8 have CPUs, 252 to 255 are GPUs."""
    machine(tmp_path, {0: "0-79", 8: "80-159", 252: "", 253: "", 254: "", 255: ""})
    plan = "gpu bus=00000004:04:00.0 memory=1\ngpu bus=00000035:03:00.0 cpu=0,ffffffffffff0000,ffffffff\n"
    assert nodes_of(by_nvml(tmp_path, driver["new"], plan)) == [[0], [8]]


@needs_nvml
def test_a_mask_of_all_nodes_is_unknown(tmp_path: Path, driver: dict[str, Path]) -> None:
    """Without _PXM sysfs has -1, and NVML names every node: that is unknown, not node 0."""
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", -1, "0-7")
    gpu(tmp_path, "0000:9b:00.0", -1, "0-7")
    plan = "gpu bus=00000000:1A:00.0 memory=3 cpu=ff\ngpu bus=00000000:9B:00.0 memory=2 cpu=f0\n"
    rows, codes, _ = by_nvml(tmp_path, driver["new"], plan)
    assert [row[2:4] for row in rows] == [[[], None], [[1], "nvml-memory"]]
    assert codes == ["device-node-unknown"]


@needs_nvml
def test_offline_cpus_do_not_shift_masks(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, {0: "0-3", 1: "68-71"})
    plan = "gpu bus=00000000:1A:00.0 cpu=f,0\ngpu bus=00000000:9B:00.0 cpu=0,f0\n"
    assert nodes_of(by_nvml(tmp_path, driver["new"], plan)) == [[0], [1]]


@needs_nvml
def test_selects_gpus_by_mig_instance_and_uuid_prefix(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    plan = (
        "gpu bus=00000000:1A:00.0 uuid=GPU-aaaa0000-d72c memory=1\n"
        "gpu bus=00000000:9B:00.0 uuid=GPU-bbbb0000-d72c memory=2 mig=MIG-1111-d72c;MIG-2222-d72c\n"
    )
    for visible in ("MIG-1111-d72c", "MIG-2222-d72c", "GPU-bbbb", "MIG-GPU-bbbb0000-d72c/1/0"):
        answer = by_nvml(tmp_path, driver["new"], plan, {"CUDA_VISIBLE_DEVICES": visible})
        assert [row[1:3] for row in answer[0]] == [["0000:9b:00.0", [1]]], visible


@needs_nvml
def test_a_lost_gpu_hides_no_other(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 0, "0-3")
    plan = "gpu bus=00000000:1A:00.0 lost=1\ngpu bus=00000000:9B:00.0 memory=2\n"
    assert nodes_of(by_nvml(tmp_path, driver["new"], plan)) == [[0], [1]]


@needs_nvml
def test_a_gpu_without_an_address_hides_no_other(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    plan = "gpu bus=none\ngpu bus=00000000:9B:00.0 memory=2\n"
    assert nodes_of(by_nvml(tmp_path, driver["new"], plan)) == [[1]]


@needs_nvml
def test_a_driver_without_gpus_hides_none(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 1, "4-7")
    assert nodes_of(by_nvml(tmp_path, driver["new"], "")) == [[1]]


LIVE = """
import json
from ompaffinity.devices.live import live_gpus
from ompaffinity.topology.source import load_topology
topology = load_topology()
found = [live_gpus(topology, environ=environ).gpus for environ in (None, {}, {"CUDA_VISIBLE_DEVICES": "2,0"})]
print(json.dumps([[gpu.uuid for gpu in gpus if gpu.uuid.startswith("GPU-")] for gpus in found]))
"""


@needs_nvml
def test_the_visible_gpus_are_those_of_this_process_or_of_the_given_environment(
    tmp_path: Path, driver: dict[str, Path]
) -> None:
    plan = "".join(f"gpu bus=00000000:{at:02X}:00.0 uuid=GPU-{at}\n" for at in (160, 161, 162))
    found = printed(LIVE, tmp_path, driver["new"], plan, CUDA_VISIBLE_DEVICES="1")
    assert found == [["GPU-161"], ["GPU-160", "GPU-161", "GPU-162"], ["GPU-162", "GPU-160"]]


@needs_nvml
def test_a_container_has_only_the_gpus_of_its_driver(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 0, "0-3")
    gpu(tmp_path, "0000:9b:00.0", 1, "4-7")
    (row,) = by_nvml(tmp_path, driver["new"], "gpu bus=00000000:9B:00.0 uuid=GPU-1\n")[0]
    assert row[:3] == [0, "0000:9b:00.0", [1]]


@needs_nvml
def test_falls_back_to_sysfs_without_a_driver(tmp_path: Path, driver: dict[str, Path]) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 1, "4-7")
    rows, codes, libraries = by_nvml(tmp_path, driver["new"], "init_error 9\n")
    assert [row[2] for row in rows] == [[1]]
    assert codes == []
    assert libraries["nvidia"] == "Driver Not Loaded"


def test_falls_back_to_sysfs_without_nvidia_ml_py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 1, "4-7")
    found = seen(tmp_path, query_drivers=True)
    assert [device.nodes for device in found.gpus] == [(1,)]
    assert "not installed" in found.libraries["nvidia"]
    topology = load_topology(synthetic="numa:1 core:1 pu:1", architecture="x86_64")
    with DirectoryTree(str(tmp_path)) as tree:
        assert read_nvml(tree, topology).gpus == ()


# Recorded machines.


@pytest.mark.parametrize(
    "name",
    [
        "ppc64le-power8-4p100-conv-2p2n8c16t", "ppc64le-power9-6v100-2p8n8c32t", "x86-avakas-visu01-conv-2p2n16c16t",
        "x86-dgx2-conv-2p2n4c4t", "x86-silver4108-8ve-2p2n16c32t", "x86-x5680-2mic-2p2n12c24t",
    ],
)  # fmt: skip
def test_reads_the_gpus_of_recorded_machines(name: str, recorded_machines: Path) -> None:
    path = recorded_machines / "sysfs" / f"{name}.tar.gz"
    expected = json.loads((recorded_machines / "expected" / f"{name}.json").read_text())
    topology = load_topology(machine=str(path))
    found = {device.address: device for device in recorded_gpus(str(path), topology).gpus}
    wanted = [row for row in expected["gpus"] if row["vendor"] not in ("0x102b", "0x1a03")]
    assert sorted(found) == sorted(row["bdf"] for row in wanted)
    every = {cpu.id for cpu in topology.cpus if cpu.online}
    for row in wanted:
        device = found[row["bdf"]]
        local = set(ompaffinity.parse_id_list(row["local_cpus_online"] or ""))
        # A kernel without information lists all CPUs.
        assert set(device.near_cpus(topology)) == (set() if local == every else local)
        if row["numa_node"] not in (None, -1):
            assert device.nodes == (row["numa_node"],)
        assert device.own_node == row["memory_node"]


@pytest.mark.parametrize(
    "name",
    [
        "ppc64le-power8-4p100-2p2n8c16t", "x86-avakas-visu01-2p2n16c16t", "x86-dgx2-2p2n4c4t", "x86-qemu-cxl-1p1n4c4t",
        "x86-x3950m2-pci-16p4n96c96t",
    ],
)  # fmt: skip
def test_reads_the_gpus_of_hwloc_exports(name: str, recorded_machines: Path) -> None:
    path = recorded_machines / "hwloc-xml" / f"{name}.xml"
    expected = json.loads((recorded_machines / "expected" / f"{name}.json").read_text())
    topology = load_topology(machine=str(path))
    found = {device.address: device for device in recorded_gpus(str(path), topology).gpus}
    wanted = {row["bdf"]: row for row in expected["gpus"] if row["vendor"] not in ("0x102b", "0x1a03")}
    assert found.keys() == wanted.keys()
    for address, row in wanted.items():
        assert found[address].near_cpus(topology) == tuple(ompaffinity.parse_id_list(row["local_cpus_hwloc"]))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((), {}),
        (("address",), "somewhere"),
        (("vendor",), "acme"),
        (("name",), "a\nb"),
        (("answers",), None),
        (("answers",), ""),
        (("answers", 0, "nodes"), [65536]),
        (("answers", 0, "source"), "user"),
        (("answers", 0, "nodes"), [7]),
        (("answers", 0, "nodes"), [True]),
        (("answers", 0, "detail"), 1),
        (("answers", 0, "node"), -1),
        (("answers", 0, "node"), 1.5),
        (("answers",), [{"source": "sysfs", "nodes": [0], "detail": "", "node": 0}] * 2),
    ],
)
def test_rejects_a_capture_with_invalid_devices(tmp_path: Path, where: tuple[Any, ...], value: Any) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 0, "0-3")
    capture = tmp_path / "capture.json"
    run_command("topology", "--machine", str(tmp_path), "--capture", str(capture))
    document = json.loads(capture.read_text())
    place: Any = document
    for step in ("devices", 0, *where)[:-1]:
        place = place[step]
    place[("devices", 0, *where)[-1]] = value
    capture.write_text(json.dumps(document))
    done = run_command("devices", "--machine", str(capture))
    assert done.returncode == 2
    assert "the devices of this capture are damaged" in done.stderr


def test_a_capture_of_a_machine_with_one_node_has_the_same_gpus(tmp_path: Path) -> None:
    machine(tmp_path / "box", {0: "0-3"})
    gpu(tmp_path / "box", "0000:1a:00.0", 0, "0-3")
    topology = load_topology(machine=str(tmp_path / "box"))
    found, capture = recorded_gpus(str(tmp_path / "box"), topology), str(tmp_path / "capture.json")
    write_capture(topology, capture, [device.to_record(topology) for device in found.gpus])
    again = recorded_gpus(capture, load_topology(machine=capture))
    assert [device.nodes for device in again.gpus] == [device.nodes for device in found.gpus] == [(0,)]


# The command, and the helpers with the names of servers.


def test_devices_prints_json_and_a_table(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 1, "4-7")
    gpu(tmp_path, "0000:9b:00.0", -1, "0-7")
    done = run_command("devices", "--machine", str(tmp_path), "--json", CUDA_VISIBLE_DEVICES="7")
    document = json.loads(done.stdout)
    assert document["schema"] == "ompaffinity.devices/1"
    first, second = document["devices"]
    # A recorded machine shows all GPUs; CUDA_VISIBLE_DEVICES of this machine does not apply.
    assert (first["index"], first["address"], first["nodes"], first["near_cpus"]) == (0, "0000:1a:00.0", [1], "4-7")
    assert first["answers"][0] == {"source": "sysfs", "nodes": [1], "detail": "numa_node 1", "node": 1}
    assert (second["nodes"], second["source"]) == ([], None)
    assert [message["code"] for message in document["warnings"]] == ["device-node-unknown"]
    table = run_command("devices", "--machine", str(tmp_path), "--strict")
    assert table.returncode == 1
    assert "10de:1234" in table.stdout
    assert "unknown" in table.stdout
    capture = tmp_path / "capture.json"
    run_command("topology", "--machine", str(tmp_path), "--capture", str(capture))
    again = json.loads(run_command("devices", "--machine", str(capture), "--json").stdout)
    assert again["devices"] == document["devices"]
    lscpu = tmp_path / "lscpu.json"
    lscpu.write_text('{"cpus": [{"cpu": 0, "core": 0}]}')
    refused = run_command("devices", "--machine", str(lscpu))
    assert refused.returncode == 2
    assert "holds no devices" in refused.stderr
    assert run_command("devices").returncode == 0


def test_server_helpers_return_the_gpu_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:1a:00.0", 1, "4-7")
    gpu(tmp_path, "0000:9b:00.0", -1, "0-7")
    monkeypatch.setattr(device_nodes, "live_gpus", lambda topology: seen(tmp_path))
    assert ompaffinity.get_all_device_numa_nodes() == [1, None]
    assert ompaffinity.get_device_numa_node(0) == 1
    assert ompaffinity.get_device_numa_node(1) is None
    for wrong in (2, -1, True, "0"):
        with pytest.raises(RequestError, match="is not one of the 2 GPUs"):
            ompaffinity.get_device_numa_node(wrong)  # type: ignore[arg-type]


def test_server_helpers_return_the_first_of_several_gpu_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(tmp_path, {**TWO_NODES, 2: "8-11"})
    gpu(tmp_path, "0000:1a:00.0", -1, "0-7")
    monkeypatch.setattr(device_nodes, "live_gpus", lambda topology: seen(tmp_path))
    assert [device.nodes for device in seen(tmp_path).gpus] == [(0, 1)]
    assert ompaffinity.get_all_device_numa_nodes() == [0]
    assert ompaffinity.get_device_numa_node(0) == 0


def test_rejects_a_missing_record() -> None:
    with pytest.raises(TopologyError):
        recorded_gpus("/no/such/record", load_topology())
