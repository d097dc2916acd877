"""The command line: output, exit status, and one line for every error."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.cli.main import main
from tests.conftest import ROOT, run_command
from tests.topology.test_source import SMALL
from tests.topology.test_tree import make_tar

TWO_CORES = ("--synthetic", "core:2 pu:1", "--arch", "x86_64")


def test_plan_prints_the_documented_keys() -> None:
    done = run_command("plan", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["schema"] == "ompaffinity.plan/1"
    (rank,) = plan["ranks"]
    assert set(rank["cpus"]) <= os.sched_getaffinity(0)
    assert list(rank) == [
        "rank", "local_rank", "bound", "cpus", "helper_cpus", "places", "affinity", "nodes", "memory_policy", "device",
        "node_ranks", "local_world_size", "memory_budget_bytes", "devices", "environment", "unset",
    ]  # fmt: skip
    assert list(plan) == [
        "schema",
        "architecture",
        "machine",
        "runtime",
        "granularity",
        "ranks",
        "reserved",
        "left_out",
        "avoided",
        "warnings",
    ]


def test_reports_that_no_core_can_be_reserved_for_two_ranks_on_two_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--tp", "2", *TWO_CORES]) == 0
    assert "note: 0 of 2 cores could be reserved" in capsys.readouterr().err
    assert main(["plan", "--tp", "2", *TWO_CORES, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [rank["cpus"] for rank in plan["ranks"]] == [[0], [1]]


def test_plans_two_ranks_on_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--tp", "2", "--synthetic", "core:1 pu:2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [rank["cpus"] for rank in plan["ranks"]] == [[0], [1]]
    assert "ranks-share-cores" in [warning["code"] for warning in plan["warnings"]]
    assert main(["plan", "--tp", "2", "--synthetic", "core:1 pu:2", "--json", "--strict"]) == 1


def test_plan_prints_a_table_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--synthetic", "package:2 numa:2 core:4 pu:2", "--arch", "x86_64", "--span", "node"]
    assert main(["plan", "--tp", "2", *machine]) == 0
    text = capsys.readouterr().out
    for words in (
        "synthetic (x86_64",
        "2 packages, 4 NUMA nodes",
        "rank",
        "helper CPUs",
        "1-5:2",
        "bind 0",
        "unused-node",
        "smt-sibling",
    ):
        assert words in text
    assert "--threads-per-core" in text
    assert "\x1b" not in text
    # A line above the tables has any length: it is one line for grep.
    assert max(map(len, text.splitlines()[2:])) <= 80


def test_the_table_shows_unbound_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--bind", "none", *TWO_CORES]) == 0
    text = capsys.readouterr().out
    assert "not bound" in text
    assert "--bind auto plans them" in " ".join(text.split())


def test_prints_colours_only_on_request() -> None:
    assert "\x1b[" in run_command("plan", *TWO_CORES, FORCE_COLOR="1").stdout
    assert "\x1b[" not in run_command("plan", *TWO_CORES).stdout
    quiet = run_command("plan", *TWO_CORES, FORCE_COLOR="1", NO_COLOR="1").stdout
    assert "\x1b[1;33" not in quiet
    assert "\x1b[36" not in quiet


def test_format_env_sets_the_environment_of_a_rank() -> None:
    done = run_command("plan", "--tp", "2", *TWO_CORES, "--rank", "1", "--format", "env")
    assert done.stdout.startswith("# rank 1\n")
    script = done.stdout + 'echo "$OMP_NUM_THREADS $OMP_PLACES ${KMP_AFFINITY-unset} $OMPAFFINITY_PLACEMENT"\n'
    shell = subprocess.run(["sh"], input=script, capture_output=True, text=True, env={"KMP_AFFINITY": "x"}, check=True)
    threads, places, stale, placement = shell.stdout.split(" ", 3)
    assert (threads, places, stale) == ("1", "{1}", "unset")
    assert json.loads(placement)["rank"] == 1


def test_rank_selects_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--tp", "2", *TWO_CORES, "--rank", "1", "--json"]) == 0
    assert [rank["rank"] for rank in json.loads(capsys.readouterr().out)["ranks"]] == [1]
    assert main(["plan", "--tp", "2", *TWO_CORES, "--rank", "2"]) == 2


def test_options_override_environment_variables() -> None:
    done = run_command("plan", "--json", *TWO_CORES, OMPAFFINITY_BIND="1")
    assert json.loads(done.stdout)["ranks"][0]["cpus"] == [1]
    done = run_command(
        "plan", "--json", *TWO_CORES, "--bind", "auto", OMPAFFINITY_BIND="1", VLLM_CPU_NUM_OF_RESERVED_CPU="0"
    )
    assert json.loads(done.stdout)["ranks"][0]["cpus"] == [0, 1]


def test_topology_prints_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ompaffinity.topology/1"
    assert {cpu["cpu"] for cpu in document["cpus"] if cpu["allowed"]} == os.sched_getaffinity(0)
    assert main(["topology"]) == 0
    text = capsys.readouterr().out
    assert f"live ({os.uname().machine}, read from sysfs)" in text
    assert "allowed CPUs" in text


def test_topology_prints_a_recorded_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = make_tar(tmp_path / "box.tar.gz", SMALL)
    assert main(["topology", "--machine", archive]) == 0
    assert "box (unknown, read from sysfs): 2 packages, 1 NUMA node, 4 cores" in capsys.readouterr().out
    first, second = (
        run_command("plan", "--tp", "2", "--machine", archive, "--arch", "x86_64", "--json").stdout for _ in range(2)
    )
    assert first == second
    assert str(tmp_path) not in first


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("plan", "--wings"),
        ("plan", "--tp", "0"),
        ("plan", "--tp", "-3"),
        ("plan", "--tp", "1000"),
        ("plan", "--tp", "100000000"),
        ("plan", "--machine", "/does/not/exist"),
        ("plan", "--machine", __file__),
        ("plan", "--machine", "/proc/self/fd"),
        ("plan", "--synthetic", "rack:1 pu:1"),
        ("plan", "--synthetic", "pu:1", "--machine", "/tmp"),
        ("plan", "--cpus", "9999"),
        ("plan", "--nodes", "9999"),
        ("plan", "--bind", "9999"),
        ("plan", "--bind", "0|0", "--tp", "2"),
        ("plan", "--rank", "7"),
        ("plan", "--reserve", "1", "--reserve-per-rank", "1"),
        ("topology", "--machine", "two\nlines"),
        ("plan", "--bind", "0", "--cpus", "0"),
        ("plan", "--arch", "riscv64"),
        ("plan", "--machine", "/dev/zero"),
        ("plan", "--synthetic", "core:2 pu:2 l2:2"),
        ("topology", "--capture", "/does/not/exist/machine.json"),
    ],
)
def test_rejects_invalid_input_with_one_line_and_status_2(arguments: tuple[str, ...]) -> None:
    done = run_command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ompaffinity: error: ")
    assert done.stderr.count("\n") == 1


def test_rejects_an_invalid_environment_variable_with_one_line() -> None:
    done = run_command("plan", OMPAFFINITY_RESERVED_CPUS="many")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "OMPAFFINITY_RESERVED_CPUS" in done.stderr


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with redirections that only a shell can make; ``ompaffinity`` stands for the module."""
    line = command.replace("ompaffinity", f"{sys.executable} -m ompaffinity")
    settings = {**os.environ, **environment}
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, cwd=ROOT, env=settings, timeout=60, check=False
    )


@pytest.mark.parametrize("form", ["--json", ""])
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_reports_unwritable_output_with_one_line(form: str, where: str) -> None:
    done = shell(f"ompaffinity plan {form} {where}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("ompaffinity: error: ")


def test_prints_without_unicode_and_without_a_width(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "mé.tar.gz", SMALL)
    done = run_command("plan", "--machine", archive, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rank" in run_command("plan", *TWO_CORES, COLUMNS="0").stdout


def test_rejects_a_pipe_as_machine(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run_command("plan", "--machine", str(tmp_path / "pipe"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_capture_gives_the_same_plan_byte_for_byte(tmp_path: Path) -> None:
    capture = str(tmp_path / "machine.json")
    done = run_command("topology", "--capture", capture)
    assert (done.returncode, done.stdout) == (0, "")
    assert run_command("plan", "--json", "--machine", capture).stdout == run_command("plan", "--json").stdout
    named = run_command("topology", "--capture", capture, "--label", "box 7", "--synthetic", "core:2 pu:1")
    assert named.returncode == 0
    assert json.loads(Path(capture).read_text())["machine"] == "box 7"
    assert os.uname().nodename not in Path(capture).read_text()
    odd = run_command("topology", "--capture", capture, "--label", "a\ab" * 2000, "--synthetic", "core:2 pu:1")
    assert odd.returncode == 0
    assert run_command("plan", "--machine", capture).returncode == 0
    printed = [run_command("topology", form, "--synthetic", "core:2 pu:1").stdout for form in ("--capture=-", "--json")]
    assert printed[0] == printed[1] != ""


def test_plans_from_saved_outputs_of_lscpu_and_hwloc(tmp_path: Path) -> None:
    saved = tmp_path / "box.json"
    saved.write_text('{"cpus": [{"cpu": 0, "core": 0, "node": 0}, {"cpu": 1, "core": 0, "node": 0}]}')
    plan = json.loads(run_command("plan", "--json", "--machine", str(saved), "--arch", "x86_64").stdout)
    assert (plan["machine"], plan["ranks"][0]["cpus"]) == ("box", [1])
    export = tmp_path / "box.xml"
    export.write_text(
        '<topology version="2.0"><object type="Machine"><object type="PU" os_index="3"/></object></topology>'
    )
    plan = json.loads(run_command("plan", "--json", "--machine", str(export)).stdout)
    assert plan["ranks"][0]["cpus"] == [3]


def test_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "ompaffinity", "topology", "--json", "--synthetic", "core:5000 pu:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_quiet_prints_no_messages_and_verbose_the_log() -> None:
    machine = ("plan", "--synthetic", "core:2 pu:1", "--tp", "2")
    plain, quiet, verbose = (run_command(*machine, *more) for more in ((), ("--quiet",), ("--verbose",)))
    assert "note: " in plain.stderr
    assert quiet.stderr == ""
    assert plain.stdout == quiet.stdout == verbose.stdout
    assert set(plain.stderr.splitlines()) < set(verbose.stderr.splitlines())
    assert "ompaffinity: read 2 CPUs (2 allowed)" in verbose.stderr


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_quiet_commands_print_no_warning(verb: str) -> None:
    place = ("--local-rank", "0", "--local-world-size", "1") if verb == "exec" else ()
    done = run_command(verb, "--quiet", *place, "--", "true", OMP_NUM_THREADS="7")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_log_of_a_quiet_command_is_not_that_of_the_next_one() -> None:
    machine = ["--synthetic", "core:2 pu:1", "--json"]
    logger = logging.getLogger("ompaffinity")
    assert main(["plan", "--quiet", *machine]) == 0
    assert logger.level == logging.ERROR
    assert main(["plan", *machine]) == 0
    assert logger.level == logging.NOTSET
