from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from ompaffinity import mapped, proc
from ompaffinity.errors import RequestError
from ompaffinity.proof.observe import observe_process


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


def test_reports_what_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *arguments: object, **keywords: object) -> object:
        if str(path).rpartition("/")[2] in ("environ", "maps", "numa_maps"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *arguments, **keywords)  # type: ignore[call-overload]

    for module in (proc, mapped):
        monkeypatch.setattr(module, "open", refuse, raising=False)
    state = observe_process(os.getpid())
    assert (state.environment, state.memory, state.runtimes, state.runtimes_known) == (None, None, (), False)
    assert len(state.problems) == 3
    assert all("Permission denied" in problem for problem in state.problems)


def test_reports_an_unreadable_placement() -> None:
    environment = {**os.environ, "OMPAFFINITY_PLACEMENT": "broken"}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()
        state = observe_process(child.pid)
        child.kill()
    assert state.placement is None
    assert any("does not hold a placement" in problem for problem in state.problems)
