from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ompaffinity.bind.pages import MappedMemory
from ompaffinity.cli.main import main
from ompaffinity.proof import inspect as inspect_module
from ompaffinity.proof.inspect import Inspection, inspect_all, inspect_processes
from ompaffinity.proof.observe import ProcessState, ThreadState
from ompaffinity.topology.source import load_topology
from tests.placement.machines import synthetic, with_distances

if TYPE_CHECKING:
    from ompaffinity.topology.model import Topology

CPUS = sorted(os.sched_getaffinity(0))
MIB = 2**20


def process(pid: int, *masks: tuple[int, ...], running: int = 0, **bytes_by_node: int) -> ProcessState:
    threads = [
        ThreadState(pid + number, "worker", "R" if number < running else "S", cpus, cpus[0])
        for number, cpus in enumerate(masks)
    ]
    memory = MappedMemory({"default": {int(node[1:]): size for node, size in bytes_by_node.items()}}, {})
    return ProcessState(pid, "worker", tuple(threads), {}, None, (), memory, ())


def inspected(topology: Topology, *states: ProcessState) -> Inspection:
    return inspect_module._inspected(topology, list(states))


def codes(inspection: Inspection) -> list[tuple[str, tuple[int, ...]]]:
    return [(finding.code, finding.pids) for finding in inspection.findings]


def test_processes_that_are_pinned_to_one_core() -> None:
    topology = synthetic("numa:2 core:2 pu:2")
    first, second = process(10, (0,), (0, 1, 2, 3)), process(20, (1,))
    inspection = inspected(topology, first, second, process(30, (2,)), process(40, (0, 1, 2, 3)))
    assert codes(inspection) == [("core-shared", (10, 20))]
    assert "CPU 0-1" in inspection.findings[0].message
    assert codes(inspected(topology, process(10, (0,), (0,)), process(20, (2, 3)))) == []


def test_a_process_and_its_children_are_one() -> None:
    topology = synthetic("core:2 pu:1")
    family = [process(10, (0,)), process(20, (0,))._replace(parent=10), process(30, (0,))._replace(parent=20)]
    assert codes(inspected(topology, *family)) == []
    assert codes(inspected(topology, *family, process(40, (0,)))) == [("core-shared", (10, 20, 30, 40))]


def test_threads_that_crowd_on_one_cpu() -> None:
    topology = synthetic("core:4 pu:1")
    assert codes(inspected(topology, process(10, (0,), (0,), (0,), running=2))) == [("threads-on-one-cpu", (10,))]
    assert codes(inspected(topology, process(10, (0,), (0,), (0,), running=1))) == []
    assert codes(inspected(topology, process(10, (0, 1), (0, 1), running=2))) == []


def test_memory_that_is_far() -> None:
    topology = with_distances(synthetic("numa:2 core:2 pu:1"), [[10, 21], [21, 10]])
    far = inspected(topology, process(10, (0,), n0=30 * MIB, n1=70 * MIB))
    assert codes(far) == [("memory-far", (10,))]
    assert "70 MiB at distance 21" in far.findings[0].message
    assert far.processes[0].bytes_by_distance == {10: 30 * MIB, 21: 70 * MIB}
    assert codes(inspected(topology, process(10, (0,), n0=80 * MIB, n1=70 * MIB))) == []
    assert codes(inspected(topology, process(10, (0, 2), n1=70 * MIB))) == []
    assert codes(inspected(topology, process(10, (0,), n1=10 * MIB))) == []


def test_the_document_is_plain() -> None:
    topology = synthetic("numa:2 core:2 pu:1")
    document = inspected(topology, process(10, (0, 1), n0=5)).to_document()
    assert json.loads(json.dumps(document)) == document
    (row,) = document["processes"]
    assert row["threads"] == [{"thread_id": 10, "name": "worker", "state": "S", "cpus": "0-1", "last_cpu": 0}]
    assert (row["bytes_by_node"], row["bytes_by_distance"], row["policy"]) == ({"0": 5}, {"10": 5}, "default")


def pinned_sleeper() -> subprocess.Popen[bytes]:
    code = f"import os, sys; os.sched_setaffinity(0, {{{CPUS[0]}}}); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_live_processes_on_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    with pinned_sleeper() as first, pinned_sleeper() as second:
        pids = tuple(sorted((first.pid, second.pid)))
        inspection = inspect_processes(load_topology(), pids)
        assert codes(inspection) == [("core-shared", pids)]
        arguments = ["inspect", *map(str, pids)]
        assert main(arguments) == 0
        assert "[core-shared]" in capsys.readouterr().out
        assert main([*arguments, "--strict", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["findings"][0]["pids"] == list(pids)
        if len(CPUS) > 1:
            everything = inspect_all(load_topology())
            assert set(pids) <= {entry.state.pid for entry in everything.processes}
            assert os.getpid() not in {entry.state.pid for entry in everything.processes}
        for child in (first, second):
            child.communicate()


def test_processes_that_vanish_meanwhile_are_no_crash() -> None:
    code = "import subprocess\nwhile True: subprocess.run(['true'])"
    busy = subprocess.Popen([sys.executable, "-c", code])
    try:
        topology = load_topology()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            inspect_all(topology)
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "no process is given; name processes (inspect PID...), or use --all"),
        (["1", "--all"], "both process ids and --all are given"),
        (["x"], "PID has 'x'; it must be a list of process ids"),
        (["999999999"], "there is no process 999999999"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1
