"""The verb ``watch`` as a user or a health check calls it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import COMPETITORS, ROOT, needs_two_cpus, run_command
from tests.openmp.libraries import needs_gomp
from tests.proof.test_watch import FIRST, as_planned, masks, server


def lines_but_those_of_load(output: IO[str]) -> Iterator[str]:
    return (line for line in output if not any(kind in line for kind in COMPETITORS))


def watching(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ompaffinity", "watch", "--interval", "1", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@needs_two_cpus
@needs_gomp
def test_once_has_the_exit_status_of_verify() -> None:
    with server() as (pid, team, _):
        once = ("watch", "--pid", str(pid), "--once")
        done = run_command(*once)
        assert (done.returncode, done.stderr) == (0, "")
        assert "All ranks together: holds." in done.stdout
        os.sched_setaffinity(team[1], {FIRST})
        assert run_command(*once).returncode == 1


@needs_two_cpus
@needs_gomp
def test_once_with_repair_binds_and_proves_it() -> None:
    with server() as (pid, team, placement):
        os.sched_setaffinity(team[1], {FIRST})
        done = run_command("watch", "--pid", str(pid), "--once", "--repair", "--json")
        document = json.loads(done.stdout)
        assert (done.returncode, document["schema"], document["verdict"]) == (0, "ompaffinity.watch/1", "holds")
        assert "repaired" in [change["kind"] for change in document["changes"]]
        assert masks(team) == as_planned(placement)


@needs_two_cpus
@needs_gomp
def test_once_is_unproven_for_a_worker_that_idles() -> None:
    with server() as (pid, _, _):
        os.kill(pid, signal.SIGSTOP)
        try:
            assert run_command("watch", "--pid", str(pid), "--once").returncode == 3
        finally:
            os.kill(pid, signal.SIGCONT)


@needs_two_cpus
@needs_gomp
def test_prints_a_line_per_change_until_the_server_ends() -> None:
    with server() as (pid, team, _):
        process = watching("--pid", str(pid))
        assert process.stdout is not None
        lines = lines_but_those_of_load(process.stdout)
        assert next(lines).endswith("holds: every thread has its planned CPUs [verdict]\n")
        os.sched_setaffinity(team[1], {FIRST})
        assert "[threads-rebound]" in next(lines)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert output.endswith("the process has ended [rank-ended]\n")


@needs_two_cpus
@needs_gomp
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(number: signal.Signals) -> None:
    with server() as (pid, _, _):
        process = watching("--pid", str(pid), "--json", "--interval", "60")
        assert process.stdout is not None
        change = json.loads(next(lines_but_those_of_load(process.stdout)))
        assert (change["schema"], change["kind"]) == ("ompaffinity.change/1", "verdict")
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0


@needs_two_cpus
@needs_gomp
def test_shows_a_table_on_a_terminal_until_control_c() -> None:
    with server() as (pid, _, _):
        terminal, inner = pty.openpty()
        command = [sys.executable, "-m", "ompaffinity", "watch", "--pid", str(pid), "--interval", "1"]
        with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, cwd=ROOT) as process:
            os.close(inner)
            shown = ""
            while shown.count("Ctrl-C ends") < 2:
                shown += os.read(terminal, 65536).decode(errors="replace")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        os.close(terminal)
        assert "holds" in shown
        assert re.search(rf"{pid}\b.*2/2", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))


@needs_two_cpus
@needs_gomp
def test_writes_metrics_to_a_file(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed; [metrics] brings it")
    file = tmp_path / "ompaffinity.prom"
    with server() as (pid, _, _):
        assert run_command("watch", "--pid", str(pid), "--once", "--prometheus", str(file)).returncode == 0
    assert f'ompaffinity_rank_verdict{{local_rank="0",pid="{pid}",rank="0"}} 1.0' in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no process is given; name the server with --pid PID, or use --all"),
        (("--pid", "1", "--all"), "both process ids and --all are given"),
        (("--pid", "1", "--interval", "0"), "--interval is 0; it must be at least 1 second"),
        (("--all", "--once", "--listen", "127.0.0.1:9400"), "--listen cannot be combined with --once"),
        (("--all", "--listen", "9400"), "--listen is '9400'; it must be HOST:PORT"),
        (("--all", "--once", "--prometheus", "/nowhere/file"), "/nowhere"),
        (("--pid", "999999999"), "no process 999999999"),
        (("--all", "--plan", "/nowhere/plan.json"), "/nowhere/plan.json"),
    ],
)
def test_rejects_what_makes_no_sense(arguments: tuple[str, ...], words: str) -> None:
    done = run_command("watch", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_process_without_placement_needs_a_plan() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        done = run_command("watch", "--pid", str(process.pid), "--once")
        process.kill()
    assert done.returncode == 2
    assert "give the plan of the server with --plan FILE" in done.stderr
