"""Export formats, each read by its own tool where it is installed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.cli.exports import EXPORTS, export, hwloc_mask, own_cpus
from ompaffinity.cli.main import main
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list, parse_id_list
from ompaffinity.openmp.plan_document import worker_environment
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from tests.conftest import CPUS, needs_libnuma, needs_program, needs_two_cpus, run_command
from tests.launch.test_exec import WRITE_MASK, launch, masks_by_rank
from tests.placement.machines import plan_for, synthetic
from tests.strategies import requests, topologies

TWO = "package:2 numa:1 core:4 pu:2"
SHOW = "import os; print(sorted(os.sched_getaffinity(0)))"


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def gpu_plan(*nodes: int, **request: Any) -> Plan:
    asked = PlacementRequest(tensor_parallel_size=len(nodes), numa_bind_nodes=nodes, **request)
    return make_plan(synthetic(TWO), asked)


@given(topologies(), requests())
def test_own_cpus_are_disjoint_and_within_the_affinity(topology: Any, request: PlacementRequest) -> None:
    try:
        plan = make_plan(topology, request)
    except Exception:  # noqa: BLE001
        return
    owned = [set(own_cpus(plan, placement)) for placement in plan.ranks]
    assert sum(map(len, owned)) == len(set().union(*owned))
    for placement, cpus in zip(plan.ranks, owned, strict=True):
        assert {*placement.cpus, *placement.helper_cpus} <= cpus <= set(placement.affinity)


def test_exports_one_line_per_rank() -> None:
    plan = plan_for(TWO, 2)
    assert lines_of(export(plan, "numactl")) == [
        "numactl --physcpubind=1,3,5-7 --membind=0",
        "numactl --physcpubind=9,11,13-15 --membind=1",
    ]
    # A single rank is for "$(...)", so it has no comment before it.
    assert export(plan, "taskset", 1) == "taskset --cpu-list 9,11,13-15\n"
    assert export(plan, "slurm") == "--cpu-bind=mask_cpu:0xEA,0xEA00 --mem-bind=map_mem:0,1\n"
    assert lines_of(export(plan, "rankfile")) == [
        "rank 0=localhost slot=1,3,5-7",
        "rank 1=localhost slot=9,11,13-15",
    ]
    assert lines_of(export(plan, "docker"))[0].startswith(
        "--cpuset-cpus=1,3,5-7 --cpuset-mems=0 --env=OMP_NUM_THREADS=3"
    )
    assert "cpunodebind" not in "".join(export(plan, form) for form in EXPORTS)


@pytest.mark.parametrize(("form", "is_file"), [("env", True), ("systemd", True), ("docker", False), ("numactl", False)])
def test_a_file_of_one_rank_names_it(form: str, is_file: bool) -> None:
    assert export(plan_for(TWO, 2), form, 1).startswith("# rank 1\n") is is_file
    assert export(plan_for(TWO, 2), form).startswith("# rank 0\n")


def test_formats_with_variables_export_the_whole_affinity() -> None:
    plan = plan_for("core:2 pu:1", 2, helper_cpus="node")
    assert plan.ranks[1].affinity == (0, 1)
    assert lines_of(export(plan, "docker"))[1].startswith("--cpuset-cpus=0-1 ")
    assert "CPUAffinity=0-1" in export(plan, "systemd", 1)
    assert export(plan, "taskset", 1) == "taskset --cpu-list 1\n"


ALL_CPUS = "1,3,5,7,9,11,13-15"


@pytest.mark.parametrize(
    ("policy", "numactl", "slurm", "docker", "systemd"),
    [
        ("none", "", "", "", []),
        ("bind", " --membind=0-1", " --mem-bind=mask_mem:0x3", " --cpuset-mems=0-1", ["bind", "0-1"]),
        ("interleave", " --interleave=0-1", "", " --cpuset-mems=0-1", ["interleave", "0-1"]),
        ("weighted-interleave", " --interleave=0-1", "", " --cpuset-mems=0-1", ["interleave", "0-1"]),
        ("preferred", " --preferred=0", "", "", ["preferred", "0"]),
    ],
)
def test_exports_each_memory_policy(policy: str, numactl: str, slurm: str, docker: str, systemd: list[str]) -> None:
    plan = plan_for(TWO, 1, span="machine", memory_policy=policy)
    assert export(plan, "numactl") == f"numactl --physcpubind={ALL_CPUS}{numactl}\n"
    assert export(plan, "slurm") == f"--cpu-bind=mask_cpu:0xEAAA{slurm}\n"
    assert export(plan, "docker").startswith(f"--cpuset-cpus={ALL_CPUS}{docker} --env=")
    policies = [line.partition("=") for line in export(plan, "systemd").splitlines() if line.startswith("NUMA")]
    assert [name for name, _, _ in policies] == ["NUMAPolicy", "NUMAMask"][: len(systemd)]
    assert [value for _, _, value in policies] == systemd
    nodes = ["export CPU_VISIBLE_MEMORY_NODES=0,1"] if policy != "none" else []
    assert export(plan, "vllm").splitlines()[1:] == nodes


def test_several_preferred_nodes_are_for_numactl_only() -> None:
    plan = plan_for(TWO, 1, span="machine", memory_policy="preferred-many")
    assert export(plan, "numactl").endswith(" --preferred-many=0-1\n")
    with pytest.raises(RequestError, match="--memory-policy preferred"):
        export(plan, "systemd")


@pytest.mark.parametrize(("form", "has_note"), [("numactl", True), ("systemd", True), ("taskset", False)])
def test_reports_a_format_without_weights(form: str, has_note: bool, capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--synthetic", "package:1 numa:2 core:2 pu:1", "--memory-policy", "weighted-interleave"]
    assert main(["plan", *machine, "--format", form]) == 0
    assert ("[weights-not-exported]" in capsys.readouterr().err) is has_note


def test_exports_the_formats_of_servers() -> None:
    plan = plan_for(TWO, 2, bind=((3, 1, 5), (8, 9)))
    assert export(plan, "vllm").splitlines() == [
        "export VLLM_CPU_OMP_THREADS_BIND='3,1,5|8-9'",
        "export CPU_VISIBLE_MEMORY_NODES=0,1",
    ]
    assert export(plan, "sglang") == "export SGLANG_CPU_OMP_THREADS_BIND='3,1,5|8-9'\n"
    gpus = gpu_plan(0, 0, 1)
    assert export(gpus, "vllm") == "--numa-bind --numa-bind-nodes 0 0 1 --numa-bind-cpus 0-3 4-7 8-15\n"
    assert export(gpus, "sglang") == "--numa-node 0 0 1\n"
    # The exported list gives the same plan again.
    again = make_plan(synthetic(TWO), PlacementRequest(bind=((3, 1, 5), (8, 9)), tensor_parallel_size=2))
    assert again.ranks == plan.ranks


def test_rejects_plans_that_a_format_cannot_express() -> None:
    unbound = plan_for(TWO, 2, bind="none")
    for form in ("slurm", "rankfile", "vllm", "sglang"):
        with pytest.raises(RequestError, match="is not bound"):
            export(unbound, form)
    assert export(unbound, "numactl") == "# rank 0, not bound\n# rank 1, not bound\n"
    with pytest.raises(RequestError, match="GPU 0 has no rank"):
        export(gpu_plan(0, 1)._replace(ranks=gpu_plan(0, 1).ranks[1:]), "vllm")
    three = gpu_plan(0, 0, 1)
    with pytest.raises(RequestError, match="GPU 1 has no rank"):
        export(three._replace(ranks=(three.ranks[0], three.ranks[2])), "vllm")
    with pytest.raises(RequestError, match="one memory node per GPU"):
        export(gpu_plan(0, span="machine"), "sglang")


# The tools themselves.


@pytest.mark.parametrize(
    "form",
    [
        # numactl is linked with libnuma.
        pytest.param("numactl", marks=[needs_program("numactl"), needs_libnuma]),
        pytest.param("taskset", marks=needs_program("taskset")),
    ],
)
def test_numactl_and_taskset_bind_as_planned(form: str) -> None:
    done = run_command("plan", "--cpus", str(CPUS[-1]), "--reserve", "0", "--format", form)
    (line,) = lines_of(done.stdout)
    started = launch(*shlex.split(line), sys.executable, "-c", SHOW)
    assert started.stdout.strip() == str([CPUS[-1]]), started.stderr


@needs_program("hwloc-calc")
@given(st.sets(st.integers(0, 200), min_size=1))
def test_hwloc_reads_the_exported_mask(cpus: set[int]) -> None:
    command = [
        "hwloc-calc",
        "-i",
        "package:2 core:104 pu:1",
        "--physical-output",
        "--intersect",
        "PU",
        hwloc_mask(cpus),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ",".join(map(str, sorted(cpus)))


def unescaped(line: str) -> str:
    """Return what systemd reads in a quoted line: escapes first, then specifiers (systemd.exec(5), systemd.unit(5))."""
    return re.sub(r"\\(.)", r"\1", line.removeprefix('Environment="').removesuffix('"')).replace("%%", "%")


def test_systemd_reads_quotes_backslashes_and_percent_signs_as_they_are() -> None:
    # No policy of today has such characters; the placement, as JSON, has quotes.
    plan = plan_for(TWO, 2)._replace(wait_policy='50% "A\\B"')
    lines = [line for line in export(plan, "systemd", 0).splitlines() if line.startswith("Environment=")]
    environment, _ = worker_environment(plan, plan.ranks[0])
    assert environment["OMP_WAIT_POLICY"] == '50% "A\\B"'
    assert [unescaped(line) for line in lines] == [f"{name}={value}" for name, value in environment.items()]
    assert 'Environment="OMP_WAIT_POLICY=50%% \\"A\\\\B\\""' in lines


@needs_program("systemd-analyze")
def test_systemd_reads_the_exported_unit(tmp_path: Path) -> None:
    unit = tmp_path / "rank.service"
    text = export(plan_for(TWO, 2, memory_policy="bind"), "systemd", 0)
    unit.write_text(f"{text}ExecStart=/bin/true\n")

    def complaints() -> str:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
        )
        return "\n".join(line for line in done.stderr.splitlines() if "rank.service" in line)

    assert complaints() == ""
    # It would be in the output.
    unit.write_text(unit.read_text().replace("CPUAffinity=", "CPUAffinity=x"))
    assert "CPU affinity" in complaints()


@needs_program("mpirun.openmpi")
@needs_two_cpus
def test_open_mpi_binds_by_the_rankfile(tmp_path: Path) -> None:
    done = run_command("plan", "--tp", "2", "--reserve", "0", "--format", "rankfile")
    (tmp_path / "ranks").write_text(done.stdout)
    planned = [set(parse_id_list(line.partition("slot=")[2])) for line in lines_of(done.stdout)]
    folder = tmp_path / "masks"
    folder.mkdir()
    words = [
        "mpirun.openmpi",
        "--allow-run-as-root",
        "--mca",
        "rmaps_rank_file_physical",
        "1",
        "--rankfile",
        str(tmp_path / "ranks"),
        "-n",
        "2",
    ]
    started = launch(*words, sys.executable, "-c", WRITE_MASK, str(folder), "OMPI_COMM_WORLD_RANK")
    assert started.returncode == 0, started.stderr
    assert masks_by_rank(folder) == dict(enumerate(planned))
    assert not planned[0] & planned[1]


def test_a_shell_reads_the_exported_environment() -> None:
    text = export(plan_for(TWO, 1), "env")
    program = f"{text}\n{shlex.quote(sys.executable)} -c 'import os; print(os.environ[\"OMP_PLACES\"])'"
    done = subprocess.run(
        ["sh"], input=program, capture_output=True, text=True, check=True, env={**os.environ, "KMP_AFFINITY": "x"}
    )
    assert done.stdout.strip() == "{1,14,15},{3},{5},{7},{9},{11},{13}" or done.stdout.startswith("{")


def test_plan_prints_every_format() -> None:
    for form in EXPORTS:
        done = run_command("plan", "--synthetic", TWO, "--tp", "2", "--format", form)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
        assert format_id_list([1]) in done.stdout


@pytest.mark.parametrize("runtime", ["gomp", "iomp", "omp"])
def test_the_shell_splits_a_docker_line_into_its_options(runtime: str) -> None:
    """As in: docker run $(ompaffinity plan --rank 0 --format docker) IMAGE."""
    plan = plan_for(TWO, 2, runtime=runtime)
    script = 'set -f; printf "%s\\n" $(cat)'
    line = export(plan, "docker", 0)
    done = subprocess.run(["sh", "-c", script], input=line, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    environment, _ = worker_environment(plan, plan.ranks[0])
    given = [word.removeprefix("--env=") for word in words if word.startswith("--env=")]
    assert len(words) == len(given) + 2
    assert given == [f"{name}={value}" for name, value in environment.items()]
