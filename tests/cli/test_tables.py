"""The tables of plan, topology and devices, line by line."""

from __future__ import annotations

import pytest

from ompaffinity.cli.machine_tables import print_devices, print_topology
from ompaffinity.cli.main import main
from ompaffinity.cli.plan_tables import print_cluster_plan, print_plan
from ompaffinity.devices.model import GPU, GPUList
from ompaffinity.devices.pci import Answer
from ompaffinity.integrations.ray.cluster import ClusterNode, make_cluster_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import UNKNOWN
from tests.cli.tables import cells, table
from tests.placement.machines import plan_for, synthetic

TWO = "package:2 [numa(memory=8589934592)] core:4 pu:2"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def test_the_table_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(synthetic(TWO), plan_for(TWO, 2))
    text = capsys.readouterr().out
    assert text.splitlines()[:2] == [
        "synthetic (x86_64, read from synthetic): 2 packages, 2 NUMA nodes, 8 cores, 16 CPUs (16 allowed)",
        "variables for any OpenMP runtime (standard), each thread on its own CPU",
    ]
    assert table(text, "rank") == [
        ["0", "3", "1-5:2", "6-7", "1,6-7", "bind 0"],
        ["1", "3", "9-13:2", "14-15", "9,14-15", "bind 1"],
    ]
    ((count, cpus, reason, _),) = table(text, "left out")
    assert (count, cpus, reason) == ("6", "0-4:2,8-12:2", "smt-sibling")


def test_a_plan_has_columns_of_budgets_and_gpus_where_ranks_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    headings = []
    for options in ([], ["--utilization", "0.5"], ["--numa-bind-nodes", "0", "1"]):
        assert main(["plan", "--tp", "2", "--synthetic", TWO, *options]) == 0
        text = capsys.readouterr().out
        headings.append(cells(text.splitlines()[3]))
    common = ["threads", "CPUs", "helper CPUs", "thread 0, others", "memory"]
    assert headings == [["rank", *common], ["rank", *common, "budget"], ["rank", "GPU", *common]]


def test_a_plan_without_left_out_cpus_has_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(synthetic("core:2 pu:1"), plan_for("core:2 pu:1", 2))
    text = capsys.readouterr().out
    assert "left out" not in text
    assert [row[:4] for row in table(text, "rank")] == [["0", "1", "0", "none"], ["1", "1", "1", "none"]]


def test_a_plan_for_one_rank_has_its_row_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(synthetic(TWO), plan_for(TWO, 2), 1)
    assert [row[0] for row in table(capsys.readouterr().out, "rank")] == ["1"]


def test_cpus_in_another_order_are_named_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(synthetic(TWO), plan_for(TWO, 2, bind=((3, 1, 5), (8, 9))))
    assert [row[2] for row in table(capsys.readouterr().out, "rank")] == ["3,1,5", "8-9"]


def test_the_table_of_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [ClusterNode(f"{name}-id", name, synthetic("core:2 pu:1"), 64, name) for name in ("a", "b")]
    plan = make_cluster_plan(nodes, PlacementRequest(data_parallel_size=2))
    print_cluster_plan(plan)
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "2 ranks on 2 machines of the cluster"
    assert [row[:4] for row in table(text, "rank")] == [["0", "a", "1", "0"], ["1", "b", "1", "0"]]
    assert "GPU" not in text
    print_cluster_plan(plan, 1)
    assert [row[:2] for row in table(capsys.readouterr().out, "rank")] == [["1", "b"]]


def test_the_tables_of_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    machine = synthetic("package:2 [numa(memory=8589934592)] l3:1 core:2 pu:2")
    cpus = [
        cpu._replace(
            online=cpu.id != 7,
            isolated=cpu.id == 6,
            allowed=cpu.id not in (3, 7),
            kind="performance" if cpu.id < 4 else None,
        )
        for cpu in machine.cpus
    ]
    nodes = [
        machine.nodes[0]._replace(distances={0: 10, 1: 21}, available_memory=2 << 30),
        machine.nodes[1]._replace(allowed=False, cpus=()),
    ]
    limits = machine.limits._replace(
        cpuset_nodes=(0,), cpu_quota=2.5, memory_limit_bytes=4 << 30, memory_usage_bytes=1 << 30
    )
    print_topology(machine._replace(cpus=tuple(cpus), nodes=tuple(nodes), limits=limits))
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith(": 2 packages, 2 NUMA nodes, 4 cores, 7 CPUs (6 allowed)")
    assert table(text, "package") == [["0", "0", "0", "performance", "2", "0-3"], ["1", "1", "1", "2", "4-6"]]
    assert table(text, "node") == [
        ["0", "0-3", "8.0 GiB", "2.0 GiB", "yes", "10 21"],
        ["1", "none", "8.0 GiB", "unknown", "no", "unknown"],
    ]
    assert text.splitlines()[-7:] == [
        "",
        "allowed CPUs: 0-2,4-6 of 0-7",
        "offline CPUs: 7",
        "isolated CPUs: 6",
        "allowed memory nodes: 0",
        "CPU quota: 2.5 CPUs",
        "memory limit: 4.0 GiB, 1.0 GiB in use",
    ]


def test_a_machine_that_reports_little_has_empty_cells(capsys: pytest.CaptureFixture[str]) -> None:
    machine = synthetic("core:2 pu:1")
    cpus = tuple(
        cpu._replace(package=UNKNOWN, numa_node=UNKNOWN, l3=UNKNOWN, physical_core=UNKNOWN) for cpu in machine.cpus
    )
    print_topology(machine._replace(cpus=cpus, nodes=()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "synthetic (x86_64, read from synthetic): 2 cores, 2 CPUs (2 allowed)"
    assert cells(lines[2]) == ["package", "node", "L3", "kind", "cores", "CPUs"]
    assert lines[4:] == [f"{'2':>34}   0-1", "", "allowed CPUs: 0-1 of 0-1"]


def test_a_cpu_with_an_unknown_core_is_a_core_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    machine = synthetic("package:1 core:2 pu:2")
    cpus = [cpu._replace(physical_core=UNKNOWN if cpu.id > 1 else cpu.physical_core) for cpu in machine.cpus]
    print_topology(machine._replace(cpus=tuple(cpus)))
    assert ", 3 cores, 4 CPUs (4 allowed)\n" in capsys.readouterr().out


def test_the_table_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    answers = (Answer("nvml", (0,), ""), Answer("pci", None, ""))
    known = GPU(0, "0000:01:00.0", "nvidia", "H100", "u", (0,), "nvml", None, answers, ())
    unknown = GPU(1, "0000:02:00.0", "amd", "", "v", (), None, None, (), ())
    states = {"nvidia": "ok", "amd": "not installed", "intel": "not installed"}
    print_devices(GPUList.of([known, unknown], (), states), synthetic(TWO))
    text = capsys.readouterr().out
    assert table(text, "GPU") == [
        ["0", "H100", "0000:01:00.0", "0", "0-7", "nvml", "nvml 0; pci ?"],
        ["1", "amd", "0000:02:00.0", "?", "unknown", "unknown", "none"],
    ]
    assert text.splitlines()[4:] == ["note: the driver library of amd is not available: not installed"]


def test_no_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_devices(GPUList.of([], (), {"nvidia": "not installed"}), synthetic(TWO))
    assert capsys.readouterr().out == "no GPU is visible to this process\n"
