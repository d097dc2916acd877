"""What inspect, bind --pid, verify, watch and doctor print, line by line."""

from __future__ import annotations

import pytest

from ompaffinity.bind.pages import MappedMemory
from ompaffinity.bind.running import Rebinding, RefusedThread, ThreadChange
from ompaffinity.cli.process_tables import print_adoption, print_inspection
from ompaffinity.cli.proof_tables import print_diagnosis, print_verdict
from ompaffinity.cli.watch_tables import print_status
from ompaffinity.doctor.check import Diagnosis
from ompaffinity.doctor.record import Check
from ompaffinity.proof.adopt import AdoptedRank, Adoption
from ompaffinity.proof.drift import Change
from ompaffinity.proof.findings import Finding, InspectedProcess
from ompaffinity.proof.inspect import Inspection
from ompaffinity.proof.verdict import Difference, OtherProcess, RankVerdict, ThreadVerdict, Verdict
from ompaffinity.proof.watch_status import RankStatus, WatchStatus
from tests.cli.tables import lines_below, table
from tests.proof.observations import PLACEMENT, process, window

RANK = RankVerdict(
    rank=1,
    pid=100,
    verdict="holds",
    level="threads",
    runtimes=("gomp",),
    engines=(),
    team_known=False,
    threads=(ThreadVerdict(0, 100, (4, 6), (4, 6)), ThreadVerdict(1, 101, (5,), (5,))),
    busy_threads=2,
    delay_seconds=0.0,
    policy="bind:1",
    bytes_by_node={1: 3 << 20, 0: 1 << 20},
    differences=(),
    notes=(),
)
UNSEEN = RANK._replace(
    rank=0, pid=None, verdict="unproven", threads=(ThreadVerdict(0, None, (0,), None),), busy_threads=None
)
WRONG = RANK._replace(
    verdict="differs",
    threads=(ThreadVerdict(2, 102, (), (7,)), ThreadVerdict(1, 101, (5,), (4,))),
    differences=(Difference("thread 1", "may run on CPU 4, the plan requires 5", "taskset"),),
    notes=("its main thread waits",),
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_a_verdict_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(Verdict((RANK,)))
    text = capsys.readouterr().out
    assert table(text, "rank") == [
        ["1", "100", "0, others", "4,6", "4,6", "holds"],
        ["1", "100", "1", "5", "5", "holds"],
    ]
    assert lines_below(text) == [
        "rank 1: 2 busy threads, compared as OpenMP threads; memory policy bind:1, 1 MiB on node 0, 3 MiB on node 1",
        "The plan holds: 1 rank, every thread on its planned CPUs.",
    ]


def test_a_verdict_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    other = OtherProcess(7, 1, "supervisor", "vLLM scheduler", "x" * 50)
    print_verdict(Verdict((UNSEEN, WRONG), (), (other, other._replace(pid=8, role=None))))
    text = capsys.readouterr().out
    assert table(text, "rank") == [
        ["0", "-", "0, others", "0", "not seen"],
        ["1", "100", "2", "no such thread", "7", "DIFFERS"],
        ["1", "100", "1", "5", "4", "DIFFERS"],
    ]
    assert lines_below(text) == [
        "rank 0: not observed at work; memory policy bind:1, 1 MiB on node 0, 3 MiB on node 1",
        "rank 1, thread 1: may run on CPU 4, the plan requires 5; likely cause: taskset",
        "note: rank 1: its main thread waits",
        "rank 1: 2 busy threads, compared as OpenMP threads; memory policy bind:1, 1 MiB on node 0, 3 MiB on node 1",
        f"process 7 ({'x' * 40}) is no rank: supervisor, vLLM scheduler",
        f"process 8 ({'x' * 40}) is no rank: supervisor",
        "The plan does not hold for 1 of 2 ranks.",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"team_known": True}, "the process reported its OpenMP team"),
        ({"busy_threads": 1}, "1 busy thread, compared as OpenMP threads"),
        ({"level": "mask"}, "2 busy threads, compared as threads within the mask"),
        ({"level": "mask", "engines": ("openvino", "tbb")}, "compared as threads within the mask (openvino, tbb)"),
        ({"engines": ("openvino",)}, "compared as OpenMP threads; memory"),
        ({"bytes_by_node": None}, "; the nodes of its pages are unknown"),
        ({"bytes_by_node": {}}, "; memory policy bind:1, no pages"),
        ({"runtime_report": {1: (5,), 0: (4, 6)}}, "reported by the OpenMP runtime: 0 on 4,6, 1 on 5"),
    ],
)
def test_what_a_verdict_rests_on(changes: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(Verdict((RANK._replace(**changes),)))  # type: ignore[arg-type]
    assert words in capsys.readouterr().out


def test_an_unproven_verdict_counts_its_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(Verdict((UNSEEN, RANK, UNSEEN._replace(rank=2))))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("The plan is unproven for 2 of 3 ranks: nothing contradicts it")


def inspected(**changes: object) -> InspectedProcess:
    state = process((4, 6), (5,), (5,))._replace(command="worker " + "x" * 50, **changes)  # type: ignore[arg-type]
    halves = (window(((4, 6), 1.0), ((5,), 1.0), ((5,), 0.0), delay=0.25),) * 2
    return InspectedProcess(state, None, halves, "rank")


def test_the_table_of_an_inspection(capsys: pytest.CaptureFixture[str]) -> None:
    memory = MappedMemory({"bind:1": {1: 3 << 20, 0: 1 << 20}}, {})
    other = inspected(placement=None, memory=None)._replace(kind="competitor")
    helper = inspected(memory=None)._replace(kind="helper")
    rank = inspected(memory=memory, problems=("its maps may not be read",))
    print_inspection(Inspection((rank, other, helper), ()))
    text = capsys.readouterr().out
    command = ("worker " + "x" * 50)[:40]
    assert table(text, "pid") == [
        ["100", "rank 1", command, "1", "1", "25%", "4,6", "1 MiB on node 0, 3 MiB on node 1"],
        ["2", "1", "5"],
        ["100", "competitor", command, "1", "1", "25%", "4,6"],
        ["2", "1", "5"],
        ["100", "helper", command, "1", "1", "25%", "4,6"],
        ["2", "1", "5"],
    ]
    assert lines_below(text) == [
        "note: process 100: its maps may not be read",
        "No problem found in 0.0 seconds.",
    ]


def test_findings_and_what_may_not_be_seen_are_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("core-shared", (100, 101), "two processes share a core; bind them")
    print_inspection(Inspection((inspected(),), (finding,), (7, 8), 1.0, hidden=True))
    assert lines_below(capsys.readouterr().out) == [
        "two processes share a core; bind them [core-shared]",
        "note: process 7-8 may not be read by this user",
        "note: other users' processes are hidden (hidepid, or a container's own /proc)",
    ]
    print_inspection(Inspection((), (), (7,), 1.0))
    assert lines_below(capsys.readouterr().out)[-1] == "No process could be observed."


def test_the_threads_that_were_bound(capsys: pytest.CaptureFixture[str]) -> None:
    changes = (ThreadChange(100, 101, 5, "worker", (0, 1), (5,)), ThreadChange(9, 9, 5, "a\x1b[1m", (0, 1), (0,)))
    adoption = Adoption((AdoptedRank(PLACEMENT, 100, (100, 101)),), Rebinding(changes), ())
    print_adoption(adoption, undone=False)
    text = capsys.readouterr().out
    assert table(text, "rank") == [
        ["1", "100", "101", "worker", "1", "0-1", "5"],
        ["9", "9", "a\\x1b[1m", "0-1", "0"],
    ]
    assert lines_below(text) == ["2 threads got other CPUs."]
    refused = Rebinding(changes[:1], (RefusedThread(1, 2, "x", "not permitted"),))
    print_adoption(adoption._replace(binding=refused), undone=True)
    assert lines_below(capsys.readouterr().out) == ["1 thread got back the CPUs that they had before, 1 refused."]
    print_adoption(adoption._replace(binding=Rebinding()), undone=False)
    assert capsys.readouterr().out == "0 threads got other CPUs.\n"


@pytest.mark.parametrize(
    ("refused", "style"), [((), "\x1b[1m\x1b[32m"), ((RefusedThread(1, 2, "x", "not permitted"),), "\x1b[1m\x1b[33m")]
)
def test_refused_threads_have_the_colour_of_warnings(
    refused: tuple[RefusedThread, ...],
    style: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_adoption(Adoption((), Rebinding((), refused), ()), undone=False)
    assert capsys.readouterr().out.startswith(style)


def test_the_table_of_a_watch(capsys: pytest.CaptureFixture[str]) -> None:
    full = RankStatus(
        1, 1, 100, "differs", 2, 3, 0.25, 1.0, 0.5, 1.0, 3 << 20, 1 << 20, 2.0, 4, 2, 1, ("thread 1 moved",)
    )
    change = Change("mask", 1, 1, 100, "its mask changed", "taskset", "differs")
    print_status(WatchStatus(5.0, (RankStatus(0, 0, None, "unproven", planned_threads=3), full), (change,)))
    text = capsys.readouterr().out
    assert table(text, "rank") == [
        ["0", "-", "unproven", "-/3", "-", "-", "-", "-", "0"],
        ["1", "100", "differs", "2/3", "25%", "50%", "3 MiB", "1 MiB", "4, 2 repaired, 1 restarted"],
    ]
    assert lines_below(text) == [
        "rank 1: thread 1 moved",
        "rank 1 (process 100) differs: its mask changed; cause: taskset [mask]",
        "All ranks together: differs.",
    ]


def test_the_table_of_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    fine = Check("machine", "ok", "x86_64")
    print_diagnosis(Diagnosis((fine, Check("SMT", "warning", "cores differ", "set them online"))))
    text = capsys.readouterr().out
    assert table(text, "check") == [["ok", "machine", "x86_64"], ["warning", "SMT", "cores differ; set them online"]]
    assert lines_below(text) == ["Workers can be bound as planned."]
    print_diagnosis(Diagnosis((fine, Check("affinity", "problem", "refused", "allow it"))))
    assert lines_below(capsys.readouterr().out) == ["1 problem: workers cannot be bound as planned here."]
