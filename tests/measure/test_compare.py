"""The command, live: real ranks, real variants."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import ompaffinity
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.cli.compare import variants_of
from ompaffinity.errors import RequestError
from ompaffinity.launch.guard import RankGuard
from ompaffinity.launch.output import MAX_LINE
from ompaffinity.launch.signals import SignalReceiver
from ompaffinity.measure import runs
from ompaffinity.measure.runs import CommandFailedError, Run, TooSlowError, metric_of
from ompaffinity.measure.variants import VARIANTS, variant_manager
from tests.conftest import CPUS, needs_drawsvg, needs_two_cpus, run_command

FAST = {"runtime": "gomp", "granularity": "thread"}
REPORT = """
import json, os
names = ("OMP_NUM_THREADS", "OMP_PLACES", "GOMP_CPU_AFFINITY", "OMPAFFINITY_PLACEMENT", "RANK", "WORLD_SIZE")
print(json.dumps([sorted(os.sched_getaffinity(0)), *(os.environ.get(name) for name in names)]), file=open(
    os.environ["REPORT"] + os.environ["RANK"], "w"))
print("rate: 2.5")
"""


def measure_run(
    manager: OMPProcessManager, command: list[str], metric: re.Pattern[str] | None, most_seconds: float
) -> Run:
    with SignalReceiver() as signals, RankGuard() as guard:
        return runs.measure_run(manager, command, metric, most_seconds, signals, guard)


def reported(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> list[Any]:
    """Return what each rank of a variant finds."""
    monkeypatch.setenv("REPORT", str(folder / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    manager = variant_manager(VARIANTS[name], FAST | asked)
    measure_run(manager, [sys.executable, "-c", REPORT], None, 60)
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}[0-9]"))]


@needs_two_cpus
def test_what_each_variant_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {"tensor_parallel_size": 2, "reserve": 0}
    plan = reported("plan", tmp_path, monkeypatch, **two)
    masks = [report[0] for report in plan]
    assert masks == [list(ompaffinity.parse_id_list(json.loads(report[4])["affinity"])) for report in plan]
    threads = [report[1] for report in plan]
    assert all(report[4] is not None for report in plan)
    assert [report[5:] for report in plan] == [["0", "2"], ["1", "2"]]
    owned = [sorted(json.loads(report[4])["cpus"]) for report in plan]
    assert not set(owned[0]) & set(owned[1])
    assert reported("mask", tmp_path, monkeypatch, **two) == [
        [cpus, None, None, None, None, str(rank), "2"] for rank, cpus in enumerate(owned)
    ]
    assert reported("threads", tmp_path, monkeypatch, **two) == [
        [CPUS, threads[rank], None, None, None, str(rank), "2"] for rank in range(2)
    ]
    # What the user has set is nothing of ours.
    assert reported("none", tmp_path, monkeypatch, **two) == [
        [CPUS, "7", None, None, None, str(rank), "2"] for rank in range(2)
    ]


@needs_two_cpus
def test_a_mask_has_the_cpus_of_the_rank_and_no_policy() -> None:
    asked = FAST | {"tensor_parallel_size": 2, "reserve": 0, "helper_cpus": "node"}
    plan = variant_manager(VARIANTS["plan"], asked).plan
    mask = variant_manager(VARIANTS["mask"], asked).plan
    assert [rank.affinity for rank in mask.ranks] == [tuple(sorted(rank.cpus)) for rank in plan.ranks]
    assert {rank.affinity for rank in plan.ranks} == {tuple(CPUS)}
    assert {rank.memory_policy for rank in mask.ranks} == {"none"}


def test_variants_of_ones_own() -> None:
    (plan, own) = variants_of(["plan", "mine=--reserve 0 --threads-per-core all"])
    assert plan.name == "plan"
    assert (own.request or {})["reserve"] == 0
    assert own.flags == "--reserve 0 --threads-per-core all"
    for wrong, words in (
        (["nonsense"], "must be one of none, threads"),
        (["plan", "plan"], "twice"),
        (["plan=--reserve 0"], "use a new name"),
        (["=--reserve 0"], "use a new name"),
        (["mine=--nonsense 0"], "mine: there is no option --nonsense"),
        (["mine=--reserve 'x"], "mine: No closing quotation"),
        (["mine=--pid 1"], "not a planning option"),
    ):
        with pytest.raises(RequestError, match=words):
            variants_of(wrong)


def manager() -> OMPProcessManager:
    return variant_manager(VARIANTS["none"], FAST)


def test_the_time_and_the_figure_of_a_run() -> None:
    code = "import time; time.sleep(0.3); print('rate: 1'); print('rate: 1,234.5')"
    run = measure_run(manager(), [sys.executable, "-c", code], metric_of("rate: ([0-9.,]+)"), 60)
    assert run.figure == 1234.5
    assert 0.3 <= run.seconds < 30
    assert run.others >= 0


def test_the_cpu_time_of_the_command_does_not_count_as_other_load() -> None:
    """It runs for a second on each CPU, itself and its child; only what is left of the time is others'."""
    code = """
import os, sys, time
children = [os.fork() for _ in range(len(os.sched_getaffinity(0)) - 1)] if len(sys.argv) < 2 else []
if 0 in children: children = []
end = time.process_time() + 1
while time.process_time() < end: pass
for child in children:
    if child: os.waitpid(child, 0)
"""
    cpus = len(os.sched_getaffinity(0))
    start = os.times()
    run = measure_run(manager(), [sys.executable, "-c", code, "alone"], None, 60)
    took = os.times()
    used = took.children_user + took.children_system - start.children_user - start.children_system
    assert used >= 1
    # Were it counted, this alone would be the command's second.
    assert run.others <= cpus - 0.9 / run.seconds


def test_the_load_of_others_is_in_cpus() -> None:
    code = "import os\nend = os.times().user + 60\nwhile os.times().user < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        try:
            run = measure_run(manager(), ["sleep", "0.4"], None, 60)
        finally:
            busy.kill()
    # Beside other work it may have a part of a CPU only.
    assert 0.45 <= run.others <= len(CPUS) + 0.1


def test_the_figure_is_that_of_the_ranks_that_print_one() -> None:
    code = "import os; print('rate: 2' if os.environ['RANK'] != '1' else 'no rate')"
    three = variant_manager(VARIANTS["none"], FAST | {"tensor_parallel_size": 3, "oversubscribe": True})
    assert measure_run(three, [sys.executable, "-c", code], metric_of("rate: ([0-9]+)"), 60).figure == 4


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('no model'); sys.exit(3)", "rank 0 ended with status 3: no model"),
        ("import os; os.kill(os.getpid(), 9)", "rank 0 was ended by signal 9: it printed nothing"),
        ("print('rate: fast')", "finds 'fast' in the output of rank 0, which is no number"),
        ("print('nothing')", "finds nothing in the output"),
    ],
)
def test_a_command_that_fails(code: str, words: str) -> None:
    with pytest.raises(CommandFailedError, match=words):
        measure_run(manager(), [sys.executable, "-c", code], re.compile(r"rate: (\w+)"), 60)


@pytest.mark.parametrize("printed", ["inf", "1e400", "nan", "1,5", "1.234,5"])
def test_a_figure_that_is_no_number(printed: str) -> None:
    with pytest.raises(CommandFailedError, match="which is no number"):
        measure_run(manager(), [sys.executable, "-c", f"print('rate: {printed}')"], re.compile(r"rate: (\S+)"), 60)


def output_of(*parts: bytes, metric: str = r"rate: ([0-9.]+)") -> runs.RankOutput:
    output = runs.RankOutput(metric_of(metric))
    for part in parts:
        output.feed(part)
    output.finish()
    return output


def test_the_last_hit_and_the_last_line_count_however_long_the_output_is() -> None:
    noise = b"x" * 99 + b"\n"
    output = output_of(b"rate: 1\n", *[noise * 10486] * 70, b"rate", b": 2", b".5\n\n", b"the end")
    assert (output.hit, output.last_line) == ("2.5", "the end")
    assert output_of(b"rate: 3").hit == "3"
    assert output_of(b"1%\rrate: 4\r\n").hit == "4"
    assert output_of(b"no figure\n").hit is None


def test_a_number_that_a_long_line_cuts_does_not_count() -> None:
    long = b"x" * (MAX_LINE - 3)
    assert output_of(b"rate: 1\n", long + b"rate: 234567", b"89 rate: 7\n").hit == "1"
    # The line after it is searched again.
    assert output_of(long + b"rate: 234567", b"89\nrate: 5\n").hit == "5"
    assert output_of(b"rate: 6, " + long, long, b"\n").hit == "6"


def test_reports_a_failing_rank_while_another_one_waits_for_it() -> None:
    code = "import os, sys, time; sys.exit('no GPU') if os.environ['RANK'] == '1' else time.sleep(300)"
    two = variant_manager(VARIANTS["none"], FAST | {"tensor_parallel_size": 2, "oversubscribe": True})
    with pytest.raises(CommandFailedError, match="rank 1 ended with status 1: no GPU"):
        measure_run(two, [sys.executable, "-c", code], None, 60)


def test_leaves_out_usual_variants_that_are_not_available() -> None:
    done = run_command("compare", "--runtime", "gomp", "--bind", str(CPUS[0]), "--budget", "12", "--json", *WORK)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "--threads-per-core cannot be combined" in document["left_out"]["smt"]


def test_one_variant_is_compared_with_nothing_set() -> None:
    done = run_command(*COMPARE, "--budget", "6", "--variant", "mine=--reserve 0", "--json", *WORK)
    assert [variant["name"] for variant in json.loads(done.stdout)["variants"]] == ["none", "mine"]


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(CommandFailedError, match="/no/such cannot be started: No such file"):
        measure_run(manager(), ["/no/such"], None, 60)


def test_a_run_that_takes_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time;"
        " time.sleep(300)']); open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}'); time.sleep(300)"
    )
    pids = tmp_path / "pids"
    with pytest.raises(TooSlowError):
        measure_run(manager(), [sys.executable, "-c", code, str(pids)], None, 3)
    end = time.monotonic() + 10
    left = [Path("/proc", pid) for pid in pids.read_text().split()]
    while time.monotonic() < end and any(_runs(path) for path in left):
        time.sleep(0.02)
    assert not any(_runs(path) for path in left)


def _runs(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize("metric", ["rate", "(a)(b)", "("])
def test_a_metric_that_is_none(metric: str) -> None:
    with pytest.raises(CommandFailedError, match=r"--metric"):
        metric_of(metric)


COMPARE = ("compare", "--runtime", "gomp", "--granularity", "thread", "--reserve", "0", "--budget", "30")
WORK = ("--", sys.executable, "-c", "print('rate: 5')")


def test_the_command_and_its_json() -> None:
    done = run_command(*COMPARE, "--metric", "rate: ([0-9]+)", "--json", *WORK)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "ompaffinity.compare/1"
    assert (document["baseline"], document["better"]) == ("none", "higher")
    assert document["rounds"] >= 6
    assert document["narrow"]
    for variant in document["variants"]:
        assert variant["speed"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert len(variant["seconds"]) == len(variant["other_cpus"]) == document["rounds"]
        assert variant["verdict"] == "no difference"
    assert document["advice"]["variant"] == "plan"
    assert "does not matter" in document["advice"]["text"]
    assert document["left_out"]["thread"] == "starts the ranks in the same way as plan"
    # Quiet in a pipe.
    assert done.stderr == ""


@needs_drawsvg
def test_the_table_and_the_plot(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    done = run_command(
        *COMPARE, "--variant", "none", "--variant", "mine=--reserve 0 --threads-per-core 1", "--metric",
        "rate: ([0-9]+)", "--lower", "--svg", str(path), *WORK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    assert "[1.000, 1.000]" in done.stdout
    texts = [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("text")]  # noqa: S314
    assert {"none", "mine"} <= set(texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the command is missing"),
        (("--lower", *WORK), "--lower requires --metric"),
        (("--budget", "0", *WORK), "--budget is 0"),
        (("--variant", "none", *WORK), "in the same way as none"),
        (("--variant", "mine=--help", *WORK), "requests help"),
        (("--svg", "/no/such/plot.svg", *WORK), "cannot be written"),
        (("--", "/no/such"), "under none: /no/such cannot be started"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run_command("compare", "--runtime", "gomp", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
