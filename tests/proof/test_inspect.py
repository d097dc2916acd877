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
from ompaffinity.errors import ProcessEndedError
from ompaffinity.placement.document import placement_document
from ompaffinity.proof.inspect import Inspection, inspect_all, inspect_processes, sampled_processes
from ompaffinity.proof.inspect import inspected as inspect_samples
from ompaffinity.proof.observe import ProcessState, ThreadState
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, ROOT, needs_namespaces, needs_two_cpus
from tests.placement.machines import synthetic, with_distances
from tests.proof.observations import ALONE, GNU

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.topology.model import Topology

MIB = 2**20


def process(pid: int, *masks: tuple[int, ...], **bytes_by_node: int) -> ProcessState:
    threads = [ThreadState(pid + number, "worker", "S", cpus, cpus[0]) for number, cpus in enumerate(masks)]
    memory = MappedMemory({"default": {int(node[1:]): size for node, size in bytes_by_node.items()}}, {})
    return ProcessState(pid, "worker", tuple(threads), {}, None, (), memory, ())


def inspected(topology: Topology, *states: ProcessState, busy: Sequence[tuple[int, ...]] = ((), ())) -> Inspection:
    """Inspect processes of which these threads were busy in each half of the window."""
    samples = []
    for at in range(len(busy) + 1):
        ran = {number: sum(number in half for half in busy[:at]) for half in busy for number in half}
        samples.append(
            {
                state.pid: state._replace(
                    seconds=float(at),
                    threads=tuple(
                        thread._replace(run_ns=ran.get(thread.thread_id, 0) * 10**9, delay_ns=0)
                        for thread in state.threads
                    ),
                )
                for state in states
            }
        )
    return inspect_samples(topology, list(states), samples)


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


def test_busy_threads_that_crowd_on_one_cpu() -> None:
    topology = synthetic("core:4 pu:1")
    crowd = process(10, (0,), (0,), (0,))
    assert codes(inspected(topology, crowd, busy=((10, 11), (10, 11)))) == [("threads-on-one-cpu", (10,))]
    # What one half of the window shows alone does not count.
    assert codes(inspected(topology, crowd, busy=((10, 11), (10,)))) == []
    assert codes(inspected(topology, crowd, busy=((10,), (10,)))) == []
    assert codes(inspected(topology, process(10, (0, 1), (0, 1)), busy=((10, 11), (10, 11)))) == []
    three = process(10, (0, 1), (0, 1), (0, 1))
    assert codes(inspected(topology, three, busy=((10, 11, 12),) * 2)) == [("cpus-oversubscribed", (10,))]


def test_processes_that_share_a_placement() -> None:
    text = json.dumps(placement_document(ALONE))
    server = process(10, (4,))._replace(
        command="gunicorn", environment={"OMPAFFINITY_PLACEMENT": text}, placement=ALONE
    )
    workers = [
        server._replace(pid=pid, parent=10, forked=True, runtimes=(GNU,), command="gunicorn") for pid in (20, 30)
    ]
    inspection = inspected(synthetic("core:8 pu:1"), server, *workers)
    assert codes(inspection) == [("placement-shared", (20, 30))]
    assert "both were forked by process 10" in inspection.findings[0].message
    assert [found.kind for found in inspection.processes] == ["supervisor", "rank", "rank"]


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
    assert row["threads"] == [
        {
            "thread_id": 10,
            "name": "worker",
            "state": "S",
            "cpus": "0-1",
            "last_cpu": 0,
            "busy": False,
            "run_seconds": 0.0,
            "delay_seconds": 0.0,
        }
    ]
    assert (row["kind"], row["busy_threads"]) == ("process", 0)
    assert (row["bytes_by_node"], row["bytes_by_distance"], row["policy"]) == ({"0": 5}, {"10": 5}, "default")


def pinned(work: str) -> subprocess.Popen[bytes]:
    code = f"import os, sys; os.sched_setaffinity(0, {{{CPUS[0]}}}); print(flush=True)\n{work}"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_live_processes_on_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    with pinned("sys.stdin.read()") as first, pinned("sys.stdin.read()") as second:
        pids = tuple(sorted((first.pid, second.pid)))
        inspection = inspect_processes(load_topology(), pids)
        assert codes(inspection) == [("core-shared", pids)]
        assert 0.9 < inspection.seconds < 30
        arguments = ["inspect", *map(str, pids)]
        assert main(arguments) == 0
        assert "[core-shared]" in capsys.readouterr().out
        assert main(["inspect", "--pid", *map(str, pids), "--strict", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["findings"][0]["pids"] == list(pids)
        if len(CPUS) > 1:
            everything = inspect_all(load_topology())
            assert set(pids) <= {entry.state.pid for entry in everything.processes}
            assert os.getpid() not in {entry.state.pid for entry in everything.processes}
        for child in (first, second):
            child.communicate()


@needs_two_cpus
def test_an_unbound_busy_process_is_shown_beside_bound_ones() -> None:
    with pinned("while True: pass") as bound, subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            inspection = inspect_all(load_topology(), 2.0)
        finally:
            for child in (bound, other):
                child.kill()
    kinds = {entry.state.pid: entry.kind for entry in inspection.processes}
    assert kinds[bound.pid] == "process"
    assert kinds[other.pid] == "competitor"
    row = next(entry for entry in inspection.processes if entry.state.pid == bound.pid)
    assert len(row.busy_threads) == 1


def test_a_server_is_inspected_with_all_that_it_started() -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        below = int(server.stdout.readline())
        inspection = inspect_processes(load_topology(), [server.pid])
        os.kill(below, 9)
    assert [entry.state.pid for entry in inspection.processes] == [server.pid, below]


def test_a_process_that_ends_in_the_window_is_an_error() -> None:
    with (
        subprocess.Popen(["sleep", "0.5"]) as process,
        pytest.raises(ProcessEndedError, match=f"process {process.pid} "),
    ):
        sampled_processes([process.pid], 1.5)


def test_two_runs_on_an_idle_process_agree() -> None:
    with pinned("sys.stdin.read()") as child:
        runs = {tuple(codes(inspect_processes(load_topology(), [child.pid]))) for _ in range(3)}
        child.communicate()
    assert runs == {()}


def test_processes_that_vanish_meanwhile_are_no_crash() -> None:
    code = "import subprocess\nwhile True: subprocess.run(['true'])"
    busy = subprocess.Popen([sys.executable, "-c", code])
    try:
        topology = load_topology()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            inspect_all(topology, 0.1)
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "no process is given; name processes (inspect PID...), or use --all"),
        (["1", "--all"], "both process ids and --all are given"),
        (["x"], "PID has 'x'; it must be a list of process ids"),
        (["1", "--seconds", "0"], "--seconds is 0; it must be at least 1"),
        (["999999999"], "there is no process 999999999"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


@needs_namespaces
@pytest.mark.parametrize("words", [("inspect", "--all"), ("inspect", "1"), ("verify", "--pid", "1")])
def test_without_proc_that_is_the_error(words: tuple[str, ...]) -> None:
    script = 'mount -t tmpfs none /proc && exec "$0" -m ompaffinity "$@"'
    command = ["unshare", "-m", "sh", "-c", script, sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "/proc does not show this process; mount it" in done.stderr
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1


@needs_namespaces
def test_where_nothing_can_be_seen_that_is_the_result() -> None:
    # Without capabilities not even root sees processes that have them, if it is not in the group root.
    script = (
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --regid 65534 --clear-groups --bounding-set -all"
        ' --inh-caps -all "$0" -m ompaffinity inspect --all'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "No process could be observed." in done.stdout
    assert "hidepid" in done.stdout
