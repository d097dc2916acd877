from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import RequestError
from ompaffinity.proof import observe
from ompaffinity.proof.observe import observe_process, parse_numa_maps

NUMA_MAPS = """\
00400000 default file=/usr/bin/python3 mapped=20 active=0 N0=12 N1=8 kernelpagesize_kB=4
7f0000000000 bind:1 anon=512 dirty=512 N1=512 kernelpagesize_kB=4
7f0040000000 bind:1 huge anon=2 dirty=2 N0=1 N1=1 kernelpagesize_kB=2048
7ffd00000000 interleave:0-1 stack
short
"""


def test_pages_by_policy_and_node() -> None:
    memory = parse_numa_maps(NUMA_MAPS.splitlines())
    assert memory.bytes_by_policy == {
        "default": {0: 12 * 4096, 1: 8 * 4096},
        "bind:1": {0: 2**21, 1: 2**21 + 512 * 4096},
    }
    assert memory.bytes_by_node == {0: 2**21 + 12 * 4096, 1: 2**21 + 520 * 4096}


@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_is_read(lines: list[str]) -> None:
    parse_numa_maps(lines)


def test_this_process() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="waiting")
    thread.start()
    try:
        state = observe_process(os.getpid())
    finally:
        stop.set()
        thread.join()
    masks = {entry.thread_id: entry.cpus for entry in state.threads}
    assert masks[os.getpid()] == tuple(sorted(os.sched_getaffinity(0)))
    assert thread.native_id in masks
    assert all(entry.last_cpu is None or entry.last_cpu >= 0 for entry in state.threads)
    assert state.environment is not None
    assert "pytest" in state.command
    assert state.placement is None
    assert state.runtimes == ()


def test_a_process_that_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(RequestError, match=f"there is no process {child.pid}"):
        observe_process(child.pid)


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print('done')"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RequestError, match=f"process {child.pid} has ended, and its parent"):
        observe_process(child.pid)
    child.stdout.close()
    child.wait()


def test_what_may_not_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *arguments: object, **keywords: object) -> object:
        if str(path).rpartition("/")[2] in ("environ", "maps", "numa_maps"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *arguments, **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(observe, "open", refuse, raising=False)
    monkeypatch.setattr(observe, "runtimes_of_process", lambda pid: refuse(f"/proc/{pid}/maps"))
    state = observe_process(os.getpid())
    assert (state.environment, state.memory, state.runtimes) == (None, None, ())
    assert len(state.problems) == 3
    assert all("Permission denied" in problem for problem in state.problems)


def test_a_placement_that_cannot_be_read_is_said() -> None:
    environment = {**os.environ, "OMPAFFINITY_PLACEMENT": "broken"}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()
        state = observe_process(child.pid)
        child.kill()
    assert state.placement is None
    assert any("does not hold a placement" in problem for problem in state.problems)
