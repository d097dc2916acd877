"""The supervisor that ``run``, ``verify -- COMMAND`` and ``compare`` share, and what each of them does with signals."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.errors import NotExecutableError, RequestError, SupervisionError
from ompaffinity.launch.guard import RankGuard
from ompaffinity.launch.output import PrefixedLines
from ompaffinity.launch.rank_process import Ending, RankProcess
from ompaffinity.launch.signals import SignalReceiver
from ompaffinity.launch.supervise import Supervisor
from ompaffinity.measure.runs import CommandFailedError, measure_run
from ompaffinity.measure.variants import VARIANTS, variant_manager
from ompaffinity.proof.command import verify_command
from tests.conftest import ROOT
from tests.launch.test_group_killer import ignored_signals
from tests.launch.test_run import is_alive, wait_until

REQUEST: dict[str, Any] = {"runtime": "gomp", "granularity": "thread"}
OPTIONS = ("--runtime", "gomp", "--granularity", "thread")
VERBS = {
    "run": ("run", *OPTIONS),
    "verify": ("verify", *OPTIONS, "--seconds", "60"),
    "compare": ("compare", *OPTIONS, "--variant", "none", "--variant", "mask", "--budget", "600"),
}
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
IGNORES_SIGTERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
SET_SIGNALS = "import os, signal, sys; {}; os.execv(sys.argv[1], sys.argv[1:])"
DEFAULT_SIGNALS = SET_SIGNALS.format("[signal.signal(number, signal.SIG_DFL) for number in (1, 2, 3, 15, 17, 20)]")
"""pytest itself may run with signals ignored (nohup, a shell's &)."""


def command_line(verb: str, *command: str, signals: str = DEFAULT_SIGNALS) -> list[str]:
    return [sys.executable, "-c", signals, sys.executable, "-m", "ompaffinity", *VERBS[verb], "--", *command]


@contextmanager
def started(verb: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Start a verb whose rank sleeps with a child of its own; yields the verb, the rank and the child."""
    # It waits, so that its launcher has taken note of it.
    script = f"sleep 300 & echo $$ $! > {folder}/new; sleep 0.5; mv {folder}/new {folder}/pids; wait"
    with subprocess.Popen(
        command_line(verb, "sh", "-c", script),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as launcher:
        try:
            wait_until((folder / "pids").exists)
            rank, child = map(int, (folder / "pids").read_text().split())
            yield launcher, rank, child
        finally:
            launcher.kill()


@contextmanager
def supervisor(grace_seconds: float = 5, **policy: bool) -> Iterator[Supervisor]:
    with (
        SignalReceiver() as signals,
        RankGuard() as guard,
        Supervisor(signals, guard, grace_seconds=grace_seconds, **policy) as ranks,
    ):
        yield ranks


def start(ranks: Supervisor, *command: str) -> RankProcess:
    process = ranks.start(OMPProcessManager(**REQUEST), 0, command, {}, PrefixedLines(None))
    assert process is not None
    return process


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("command", ["true", "false"])
@pytest.mark.parametrize("verb", ["verify", "compare"])
def test_signals_only_groups_whose_leader_is_not_reaped(
    verb: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders = []
    killpg = os.killpg

    def check(group: int, number: int) -> None:
        # A zombie is in /proc, too; a reaped process is not, or is another one's child.
        leaders.append(parent_of(group))
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", check)
    if verb == "verify":
        verify_command(OMPProcessManager(**REQUEST), [command], 5)
    else:
        with SignalReceiver() as signals, RankGuard() as guard:
            manager = variant_manager(VARIANTS["none"], REQUEST)
            try:
                measure_run(manager, [command], None, 60, signals, guard)
            except CommandFailedError:
                assert command == "false"
    assert leaders
    assert set(leaders) == {os.getpid()}


def test_never_signals_a_reaped_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with supervisor() as ranks:
        process = start(ranks, "true")
        assert ranks.wait()
        ranks.release()
        signalled: list[int] = []
        monkeypatch.setattr(os, "killpg", lambda group, number: signalled.append(group))
        ranks.kill()
        process.signal_group(signal.SIGTERM)
    assert process.reaped
    assert signalled == []


def test_leaves_no_process_behind_when_starting_fails() -> None:
    ranks: list[RankProcess] = []
    with pytest.raises(RequestError, match="/no/such cannot be started"), supervisor() as group:
        ranks.append(start(group, "sleep", "300"))
        start(group, "/no/such")
    assert all(rank.reaped for rank in ranks)
    assert not any(is_alive(rank.pid) for rank in ranks)


def test_an_error_names_the_program_of_a_command() -> None:
    with pytest.raises(NotExecutableError, match=r"^/no/such cannot be started: No such file"), supervisor() as ranks:
        start(ranks, "/no/such", "argument")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_starts_no_thread_before_ranks_that_run_python_before_their_program(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "ompaffinity-output"]

    before = threads()
    with supervisor() as ranks:
        manager, called = OMPProcessManager(**REQUEST), tmp_path / "called"
        ranks.start(manager, 0, ["true"], {}, PrefixedLines(None), before_exec=called.touch)
        assert called.exists()
        assert threads() == before
        assert ranks.wait()
        assert threads() != before


def test_reads_the_output_of_ranks_at_once() -> None:
    before = threading.enumerate()
    with supervisor() as ranks:
        start(ranks, "sleep", "300")
        # One of those before may end meanwhile.
        assert [thread.name for thread in threading.enumerate() if thread not in before] == ["ompaffinity-output"]


def test_waits_for_as_long_as_it_is_asked_to() -> None:
    with supervisor() as ranks:
        start(ranks, "sleep", "0.2")
        assert ranks.wait(30)
    with supervisor() as ranks:
        start(ranks, "sleep", "300")
        begin = time.monotonic()
        assert not ranks.wait(0.3)
        assert time.monotonic() - begin >= 0.3


def test_handles_nothing_where_there_is_no_time_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with supervisor() as ranks:
        start(ranks, "sleep", "300")
        waits: list[float] = []
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "step", waits.append)
            assert not ranks.wait(0)
        assert waits == []


def test_kills_ranks_that_ignore_the_request_to_end() -> None:
    with supervisor(grace_seconds=0.3) as ranks:
        rank = start(ranks, sys.executable, "-c", IGNORES_SIGTERM)
        wait_until(lambda: signal.SIGTERM in ignored_signals(rank.pid))
        ranks.end(5)
        # Without a grace that ends, this is how long it would take.
        assert ranks.wait(60)
    assert str(rank.ending) == "was ended by signal 9"
    assert ranks.status == 5


def test_an_ending_is_the_status_or_the_signal() -> None:
    endings = [Ending(3, by_signal=False), Ending(15, by_signal=True)]
    assert [str(ending) for ending in endings] == ["ended with status 3", "was ended by signal 15"]
    assert [ending.status for ending in endings] == [3, 143]


def test_reports_a_rank_that_something_else_reaped() -> None:
    with pytest.raises(SupervisionError, match="was reaped by another part of this process"), supervisor() as ranks:
        process = start(ranks, "true")
        os.waitpid(process.pid, 0)
        ranks.wait()
    # Its number may belong to another process by now.
    assert process.reaped
    assert process.pidfd is None


def test_restores_every_signal_handler() -> None:
    numbers = [*ENDING, signal.SIGUSR1, signal.SIGTSTP, signal.SIGCHLD]
    before = [signal.getsignal(number) for number in numbers]
    with SignalReceiver():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("in_main_thread", [True, False])
@pytest.mark.parametrize("has_pidfds", [True, False])
def test_finds_ended_ranks_without_pidfds_and_in_other_threads(
    has_pidfds: bool, in_main_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = []

    def supervise() -> None:
        with supervisor() as ranks:
            start(ranks, "sh", "-c", "sleep 0.3; exit 7")
            ranks.wait()
            statuses.append(ranks.status)

    def refuse(_pid: int) -> int:
        raise PermissionError(1, "refused")

    if not has_pidfds:
        monkeypatch.setattr(os, "pidfd_open", refuse)
    if in_main_thread:
        supervise()
    else:
        thread = threading.Thread(target=supervise)
        thread.start()
        thread.join()
    assert statuses == [7]


def test_takes_descriptors_above_the_limit_of_select() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("the limit of open files is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1050)]
    try:
        with SignalReceiver() as signals, RankGuard() as guard:
            run = measure_run(variant_manager(VARIANTS["none"], REQUEST), ["true"], None, 60, signals, guard)
        assert run.seconds > 0
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("verb", ["run", "verify", "compare"])
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_the_ranks_and_is_the_status(verb: str, number: signal.Signals, tmp_path: Path) -> None:
    with started(verb, tmp_path) as (launcher, rank, child):
        launcher.send_signal(number)
        assert launcher.wait(30) == 128 + number
        wait_until(lambda: not is_alive(rank) and not is_alive(child))


@pytest.mark.parametrize("verb", ["run", "verify", "compare"])
def test_ranks_do_not_outlive_a_killed_launcher(verb: str, tmp_path: Path) -> None:
    with started(verb, tmp_path) as (launcher, rank, child):
        launcher.kill()
        launcher.wait(30)
        wait_until(lambda: not is_alive(rank) and not is_alive(child))


@pytest.mark.parametrize("verb", ["run", "verify", "compare"])
def test_suspends_and_continues_the_ranks_with_the_launcher(verb: str, tmp_path: Path) -> None:
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    with started(verb, tmp_path) as (launcher, rank, child):
        launcher.send_signal(signal.SIGTSTP)
        wait_until(lambda: {state(pid) for pid in (launcher.pid, rank, child)} == {"T"})
        launcher.send_signal(signal.SIGCONT)
        wait_until(lambda: "T" not in {state(pid) for pid in (launcher.pid, rank, child)})
        launcher.terminate()
        assert launcher.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("verb", "command", "status"),
    [
        ("run", "echo here; exit 3", 3),
        ("run", "echo here", 0),
        # No thread is busy, so the plan is unproven.
        ("verify", "echo here >&2; sleep 1", 3),
        ("compare", "echo here >&2; exit 3", 2),
    ],
)
def test_works_where_sigchld_is_ignored(verb: str, command: str, status: int) -> None:
    ignoring = SET_SIGNALS.format("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    done = subprocess.run(
        command_line(verb, "sh", "-c", command, signals=ignoring),
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "cannot write" not in done.stderr
    assert "here" in done.stdout + done.stderr


def test_an_idle_run_does_not_wake(tmp_path: Path) -> None:
    def switches(pid: int) -> int:
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
        return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)

    with started("run", tmp_path) as (launcher, _, _):
        # Until it has settled.
        before = -1
        deadline = time.monotonic() + 30
        while (now := switches(launcher.pid)) != before and time.monotonic() < deadline:
            before = now
            time.sleep(0.5)
        time.sleep(1)
        assert switches(launcher.pid) - now <= 2


def test_reads_what_a_process_prints_after_its_rank_has_ended() -> None:
    done = subprocess.run(
        command_line("run", "sh", "-c", "(for i in 1 2 3; do sleep 0.5; echo late $i; done) & echo early"),
        capture_output=True, text=True, check=True, cwd=ROOT, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[rank 0] early", *(f"[rank 0] late {i}" for i in (1, 2, 3))]


def test_compare_kills_what_a_run_left_running(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid"
    with SignalReceiver() as signals, RankGuard() as guard:
        manager = variant_manager(VARIANTS["none"], REQUEST)
        measure_run(manager, ["sh", "-c", script], None, 60, signals, guard)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid))


def test_compare_prints_the_rounds_before_a_signal(tmp_path: Path) -> None:
    count = f"echo x >> {tmp_path}/runs; sleep 0.1"
    words = command_line("compare", "sh", "-c", count)
    words.insert(words.index("--variant"), "--json")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT) as launcher:
        # Two variants: warm-up, and one round at least.
        wait_until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text().count("x") > 6)
        launcher.send_signal(signal.SIGTERM)
        text, _ = launcher.communicate(timeout=30)
        assert launcher.returncode == 128 + signal.SIGTERM
    document = json.loads(text)
    assert document["complete"] is False
    assert document["rounds"] >= 1
    assert [len(variant["figures"]) for variant in document["variants"]] == [document["rounds"]] * 2
