"""Ways to start a worker: the launcher's thread, and those that are refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from ompaffinity.bind import starter_thread
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.errors import BindingError, RequestError, StartMethodError
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.openmp import team
from tests.openmp.libraries import GOMP, LLVM, needs_gomp, needs_llvm

ROOT = Path(__file__).resolve().parents[2]


def live_plan(**request: object) -> Plan:
    return make_plan(load_topology(), PlacementRequest(runtime="gomp", **request))  # type: ignore[arg-type]


def spawned(target: object, *arguments: object) -> multiprocessing.process.BaseProcess:
    return multiprocessing.get_context("spawn").Process(target=target, args=arguments)  # type: ignore[arg-type]


@needs_gomp
def test_start_binds_the_worker_and_never_the_caller() -> None:
    plan = live_plan()
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = spawned(team.send_report, sender, GOMP)
    before, mask = dict(os.environ), os.sched_getaffinity(0)
    assert OMPProcessManager(plan).start(process, rank=0) == plan.ranks[0]
    assert (dict(os.environ), os.sched_getaffinity(0)) == (before, mask)
    report = receiver.recv()
    process.join(60)
    assert report["inherited"] == list(plan.ranks[0].affinity)
    assert report["masks"] == [list(place) for place in plan.ranks[0].places]


def test_the_launcher_lives_as_long_as_its_workers() -> None:
    manager = OMPProcessManager(live_plan())
    processes = [spawned(team.wait_for_death_of_parent_thread) for _ in range(2)]
    for process in processes:
        manager.start(process, rank=0)
    del manager
    threads = [thread for thread in threading.enumerate() if thread.name == "ompaffinity-starter"]
    assert [(thread.daemon, thread.is_alive()) for thread in threads] == [(True, True)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_what_goes_wrong_in_the_launcher_reaches_the_caller() -> None:
    manager = OMPProcessManager(live_plan())
    process = spawned(print)
    with pytest.raises(RequestError, match="is not one of the"):
        manager.start(process, rank=9)
    with manager.configure_omp_envs(0), pytest.raises(RequestError, match="makes its own context"):
        manager.start(process, rank=0)
    manager.start(process, rank=0)
    process.join(60)
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        manager.start(process, rank=0)
    strict = OMPProcessManager(
        live_plan()._replace(ranks=(live_plan().ranks[0]._replace(affinity=(60000,)),)), strict=True
    )
    with pytest.raises(BindingError):
        strict.start(spawned(print), rank=0)


def test_a_forkserver_is_refused_and_all_is_as_it_was() -> None:
    manager = OMPProcessManager(live_plan())
    process = multiprocessing.get_context("forkserver").Process(target=print)
    before, mask, original = dict(os.environ), os.sched_getaffinity(0), forkserver.connect_to_new_process
    with pytest.raises(StartMethodError, match=r'forkserver-environment: .*get_context\("spawn"') as error:
        manager.start(process, rank=0)
    assert error.value.code == "forkserver-environment"
    with pytest.raises(StartMethodError), manager.configure_omp_envs(0):
        process.start()
    assert (dict(os.environ), os.sched_getaffinity(0)) == (before, mask)
    assert forkserver.connect_to_new_process == original


def run_parent(code: str, **environment: str) -> str:
    """Run a fresh parent process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """if True:
    import ctypes, multiprocessing, sys
    from tests.openmp import team
    from tests.bind.test_start_methods import live_plan
    from ompaffinity import OMPProcessManager, StartMethodError
    manager = OMPProcessManager(live_plan())
    for library in {libraries}:
        team.form_team(library)
    process = multiprocessing.get_context("fork").Process(target=print, args=("forked",))
    try:
        with manager.configure_omp_envs(0):
            process.start()
        process.join(60)
        print("exit status", process.exitcode)
    except StartMethodError as error:
        print(error.code, "libgomp" in str(error))
    process = multiprocessing.get_context("fork").Process(target=sys.exit)
    process.start()
    process.join(60)
    print("outside", process.exitcode)
"""


@needs_gomp
def test_a_fork_after_libgomp_is_refused() -> None:
    assert run_parent(FORK.format(libraries=[GOMP])) == "fork-after-openmp True\noutside 0\n"


def test_a_fork_without_openmp_is_not() -> None:
    assert run_parent(FORK.format(libraries=[])) == "forked\nexit status 0\noutside 0\n"


@needs_llvm
def test_llvms_runtime_survives_a_fork() -> None:
    assert run_parent(FORK.format(libraries=[LLVM])) == "forked\nexit status 0\noutside 0\n"


@needs_gomp
@needs_llvm
def test_the_runtime_that_is_used_decides() -> None:
    output = run_parent(FORK.format(libraries=[LLVM, GOMP]), LD_PRELOAD=LLVM)
    assert output == "forked\nexit status 0\noutside 0\n"


@needs_gomp
def test_a_worker_that_binds_nothing_may_be_started_in_any_way() -> None:
    code = FORK.format(libraries=[GOMP]).replace("live_plan()", "live_plan(bind='none')")
    assert run_parent(code) == "forked\nexit status 0\noutside 0\n"


@needs_gomp
def test_a_forked_worker_may_fork_itself_after_it_loaded_libgomp() -> None:
    code = """if True:
        import ctypes, os, sys
        from tests.bind.test_start_methods import live_plan
        from ompaffinity import OMPProcessManager
        with OMPProcessManager(live_plan()).configure_omp_envs(0):
            child = os.fork()
            if not child:
                ctypes.CDLL("libgomp.so.1")
                grandchild = os.fork()
                if not grandchild:
                    os._exit(5)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_parent(code) == "5\n"


@needs_gomp
@needs_llvm
def test_a_libgomp_behind_another_runtime_is_refused_too() -> None:
    output = run_parent(FORK.format(libraries=[LLVM, GOMP]))
    assert output == "fork-after-openmp True\noutside 0\n"


def test_the_process_on_the_reserved_cpus_is_refused_a_forkserver_as_well() -> None:
    plan = live_plan()
    manager = OMPProcessManager(plan._replace(reserved=plan.reserved or plan.ranks[0].cpus))
    process = multiprocessing.get_context("forkserver").Process(target=print)
    with pytest.raises(StartMethodError), manager.configure_reserved():
        process.start()


def test_reports_each_time_that_a_launcher_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter_thread, "_jobs", None)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                starter_thread.call_in_starter(int)
    assert starter_thread.call_in_starter(lambda: 7) == 7


def test_an_interrupt_waits_for_what_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        ended.set()

    # A shell starts what is in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            starter_thread.call_in_starter(slow)
    finally:
        signal.signal(signal.SIGINT, before)
    assert begun.is_set()
    assert ended.is_set()


def test_other_threads_may_fork_meanwhile() -> None:
    code = """if True:
        import os, threading
        from tests.bind.test_start_methods import live_plan
        from ompaffinity import OMPProcessManager
        from ompaffinity.bind import start_methods
        def refuse(): raise RuntimeError
        start_methods._check_fork = refuse
        def fork():
            child = os.fork()
            if not child:
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        with OMPProcessManager(live_plan()).configure_omp_envs(0):
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
    """
    assert run_parent(code) == "7\n"


def test_fork_is_the_original_again_after_the_last_context() -> None:
    fork = os.fork
    manager = OMPProcessManager(runtime="gomp")
    with manager.configure_omp_envs(0):
        assert os.fork is not fork
        with manager.configure_omp_envs(0):
            pass
        assert os.fork is not fork
    assert os.fork is fork
