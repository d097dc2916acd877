"""The program that kills process groups when the process that named them ends without notice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ompaffinity.errors import SupervisionError
from ompaffinity.launch import group_killer
from ompaffinity.launch.guard import RankGuard
from ompaffinity.launch.signals import ENDING
from tests.conftest import ROOT
from tests.launch.test_run import running_children, wait_until


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that leads a group of its own."""
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def killer() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-I", "-S", group_killer.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def end_input(process: subprocess.Popen[bytes], *lines: object) -> None:
    """Write these lines and end the input; the program must succeed."""
    process.communicate("".join(f"{line}\n" for line in lines).encode(), timeout=30)
    assert process.returncode == 0


def ignored_signals(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/status").read_text().partition("\nSigIgn:\t")[2].split()[0]
    return {number for number in range(1, 65) if int(text, 16) >> number - 1 & 1}


def test_kills_the_groups_when_the_input_ends() -> None:
    with killer() as process, sleeper() as first, sleeper() as second:
        end_input(process, first.pid, second.pid)
        assert [first.wait(30), second.wait(30)] == [-9, -9]


def test_kills_no_group_that_was_removed() -> None:
    with killer() as process, sleeper() as kept, sleeper() as killed:
        end_input(process, kept.pid, killed.pid, -kept.pid)
        assert killed.wait(30) == -9
        assert kept.poll() is None


def test_a_group_that_is_gone_does_not_save_the_others() -> None:
    with sleeper() as gone:
        pass
    with killer() as process, sleeper() as killed:
        end_input(process, gone.pid, killed.pid)
        assert killed.wait(30) == -9


def test_ignores_the_signals_that_end_ranks() -> None:
    with killer() as process, sleeper() as killed:
        wait_until(lambda: ignored_signals(process.pid) >= set(ENDING))
        for number in ENDING:
            process.send_signal(number)
        end_input(process, killed.pid)
        assert killed.wait(30) == -9


def test_ranks_run_on_where_the_process_that_guards_them_was_killed() -> None:
    before = running_children(os.getpid())
    with RankGuard() as guard, sleeper() as rank:
        (pid,) = {*running_children(os.getpid())} - {*before, rank.pid}
        os.kill(pid, 9)
        wait_until(lambda: pid not in running_children(os.getpid()))
        guard.add(rank.pid)
        guard.remove(rank.pid)
        assert rank.poll() is None


def test_the_process_that_guards_ranks_ends_with_its_context_and_kills_no_group() -> None:
    before = running_children(os.getpid())
    with sleeper() as kept:
        with RankGuard() as guard:
            guard.add(kept.pid)
        assert {*running_children(os.getpid())} == {*before, kept.pid}
        assert kept.poll() is None


def test_a_guard_that_is_started_later_gets_the_groups_that_were_added_before() -> None:
    program = (
        "import os, sys; from ompaffinity.launch.guard import RankGuard\n"
        "guard = RankGuard(later=True).__enter__()\n"
        "for group in map(int, sys.argv[1:]): guard.add(group)\n"
        "guard.remove(int(sys.argv[1])); guard.start(); os.kill(os.getpid(), 9)"
    )
    with sleeper() as kept, sleeper() as killed:
        subprocess.run([sys.executable, "-c", program, str(kept.pid), str(killed.pid)], check=False, cwd=ROOT)
        assert killed.wait(30) == -9
        assert kept.poll() is None


def test_a_guard_that_was_never_started_starts_no_process() -> None:
    before = running_children(os.getpid())
    with RankGuard(later=True) as guard:
        guard.add(2**22)
        assert running_children(os.getpid()) == before


@pytest.mark.parametrize("later", [False, True])
def test_a_guard_that_cannot_be_started_is_an_error_and_leaves_no_pipe(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/missing/python")
    before = os.listdir("/proc/self/fd")
    guard = RankGuard(later=later)
    with pytest.raises(SupervisionError, match=r"the process that guards the ranks cannot be started: .*/missing"):
        guard.__enter__().start()
    assert os.listdir("/proc/self/fd") == before


def test_an_interrupt_while_the_guard_starts_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen", interrupt)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt):
        RankGuard().start()
    assert os.listdir("/proc/self/fd") == before
