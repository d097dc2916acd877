"""What is undone, and what is left alone: other processes, other threads, what other code has set since."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import ompaffinity
from ompaffinity.bind import affinity, mempolicy, process, team_policy
from ompaffinity.bind.helper_threads import helper_threads
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.mempolicy import MemoryPolicyError, thread_policy
from ompaffinity.bind.process import ProcessBinding, bind_current_process, current_binding
from ompaffinity.bind.undo import Undo
from ompaffinity.errors import BindingError
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proc import start_time
from tests.bind.test_manager import changed, live_plan
from tests.bind.test_mempolicy import in_thread
from tests.conftest import ROOT, needs_libnuma

CPUS = sorted(os.sched_getaffinity(0))
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="a mask that can change needs two CPUs")
PLACEMENT = RankPlacement(0, 0, cpus=(CPUS[0],), places=((CPUS[0],),), affinity=(CPUS[0],))


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    """Give the test its mask back, whatever fails."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@needs_libnuma
@pytest.mark.parametrize("policy", ["none", "bind"])
def test_a_policy_that_is_none_or_has_no_nodes_changes_nothing(policy: str) -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])

    def work() -> None:
        mempolicy.set_thread_policy("preferred", nodes)
        before, undo = thread_policy(), Undo()
        accepted = team_policy.change_thread_policy(policy, nodes if policy == "none" else (), undo)
        assert accepted == mempolicy.AcceptedPolicy("none", ())
        assert thread_policy() == before

    in_thread(work)


@contextmanager
def waiting_thread() -> Iterator[threading.Thread]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        yield thread
    finally:
        end.set()
        thread.join()


def status_of_fork(work: Callable[[], object]) -> int:
    """Return the exit status of a forked child that does this: 0 if what it returns is true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_two_cpus
def test_a_forked_child_undoes_nothing_of_its_parent() -> None:
    with bind_current_process(PLACEMENT) as binding:

        def undo() -> bool:
            binding.undo()
            return current_binding() is None and os.sched_getaffinity(0) == {CPUS[0]}

        assert status_of_fork(undo) == 0
        assert os.sched_getaffinity(0) == {CPUS[0]}
        assert current_binding() is binding
    assert os.sched_getaffinity(0) == set(CPUS)


@needs_two_cpus
def test_a_forked_child_can_be_bound_itself() -> None:
    with bind_current_process(PLACEMENT):
        other = PLACEMENT._replace(cpus=(CPUS[1],), places=((CPUS[1],),), affinity=(CPUS[1],))

        def bind() -> bool:
            with bind_current_process(other):
                bound = os.sched_getaffinity(0) == {CPUS[1]}
            return bound and os.sched_getaffinity(0) == {CPUS[0]}

        assert status_of_fork(bind) == 0


@needs_two_cpus
def test_a_forked_child_that_leaves_the_context_changes_nothing_of_its_parent() -> None:
    manager = OMPProcessManager(changed(live_plan(), affinity=(CPUS[0],)))
    context = manager.configure_omp_envs(0)
    with context:
        assert status_of_fork(lambda: context.__exit__(None, None, None) is not True) == 0
        assert os.sched_getaffinity(0) == {CPUS[0]}
    assert os.sched_getaffinity(0) == set(CPUS)


@needs_two_cpus
def test_a_thread_that_was_bound_in_another_way_since_is_left_alone() -> None:
    with waiting_thread() as thread:
        number = int(thread.native_id or 0)
        binding = bind_current_process(PLACEMENT)
        assert os.sched_getaffinity(number) == {CPUS[0]}
        os.sched_setaffinity(number, {CPUS[1]})
        binding.undo()
        assert os.sched_getaffinity(number) == {CPUS[1]}
    assert os.sched_getaffinity(0) == set(CPUS)


@needs_two_cpus
def test_a_later_thread_with_the_number_of_an_ended_one_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting_thread() as thread:
        number = int(thread.native_id or 0)
        binding = bind_current_process(PLACEMENT)
        monkeypatch.setattr(
            affinity, "start_time", lambda pid, asked: (start_time(pid, asked) or 0) + (asked == number)
        )
        binding.undo()
        assert os.sched_getaffinity(number) == {CPUS[0]}
    assert os.sched_getaffinity(0) == set(CPUS)


def test_the_start_time_of_a_thread_is_that_of_the_kernel() -> None:
    with waiting_thread() as thread:
        number = int(thread.native_id or 0)
        first, own = affinity.thread_identity(number), affinity.thread_identity(threading.get_native_id())
        assert first.runs
        assert first.start_time is not None
        assert own.start_time is not None
        assert first.start_time >= own.start_time
    # The kernel ends the thread a moment after Python has joined it.
    deadline = time.monotonic() + 30
    while first.runs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not first.runs


@needs_two_cpus
@needs_libnuma
def test_undo_in_another_thread_restores_masks_and_logs_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])
    ready, go_on = threading.Event(), threading.Event()
    bindings: list[ProcessBinding] = []

    def bind() -> None:
        bindings.append(bind_current_process(PLACEMENT._replace(memory_policy="bind", nodes=nodes)))
        ready.set()
        go_on.wait(30)

    thread = threading.Thread(target=bind)
    thread.start()
    ready.wait(30)
    try:
        with caplog.at_level(logging.WARNING, "ompaffinity"):
            bindings[0].undo()
        assert os.sched_getaffinity(int(thread.native_id or 0)) == set(CPUS)
        assert f"only thread {thread.native_id} itself can restore its memory policy" in caplog.text
    finally:
        go_on.set()
        thread.join()


def test_of_two_threads_that_bind_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    original = process._bind_team
    bindings: list[ProcessBinding] = []

    def slow(*arguments: Any) -> None:
        inside.set()
        go_on.wait(0.3)
        original(*arguments)

    monkeypatch.setattr(process, "_bind_team", slow)
    thread = threading.Thread(target=lambda: bindings.append(bind_current_process(PLACEMENT)))
    thread.start()
    inside.wait(30)
    try:
        with pytest.raises(BindingError, match="bound already"):
            bind_current_process(PLACEMENT)
    finally:
        thread.join()
        bindings[0].undo()
    assert current_binding() is None


@needs_libnuma
def test_a_memory_policy_that_cannot_be_restored_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(policy: object) -> None:
        raise MemoryPolicyError("refused for the test")

    nodes = tuple(ompaffinity.get_memory_affinity()[:1])
    before = thread_policy()
    manager = OMPProcessManager(changed(live_plan(), memory_policy="bind", nodes=nodes))
    try:
        with caplog.at_level(logging.WARNING, "ompaffinity"), manager.configure_omp_envs(0):
            monkeypatch.setattr(team_policy, "restore_thread_policy", refuse)
        assert "refused for the test" in caplog.text
        with pytest.raises(KeyError), manager.configure_omp_envs(0):
            raise KeyError
    finally:
        monkeypatch.undo()
        mempolicy.restore_thread_policy(before)


@needs_libnuma
def test_a_memory_policy_that_was_changed_since_is_left_alone() -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])
    before = thread_policy()
    try:
        with OMPProcessManager(changed(live_plan(), memory_policy="bind", nodes=nodes)).configure_omp_envs(0):
            mempolicy.set_thread_policy("interleave", nodes)
        assert thread_policy().mode == mempolicy.MPOL_INTERLEAVE
    finally:
        mempolicy.restore_thread_policy(before)


@needs_libnuma
def test_the_memory_of_a_process_is_undone_as_well() -> None:
    before = thread_policy()
    with ompaffinity.init_cpu_memory_env(ompaffinity.get_memory_affinity()[:1], migrate=False) as binding:
        assert thread_policy().mode == mempolicy.MPOL_BIND
        assert binding.threads == (threading.get_native_id(),)
    assert thread_policy() == before


@needs_two_cpus
def test_helper_threads_log_a_refusal_where_the_caller_raises_and_raise_it_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(number: int, cpus: object) -> None:
        raise PermissionError(1, "refused for the test")

    for raised in (KeyError, None):
        os.sched_setaffinity(0, CPUS)
        with (
            pytest.raises(raised or BindingError, match=None if raised else "refused for the test"),
            caplog.at_level(logging.WARNING, "ompaffinity"),
            monkeypatch.context() as patched,
            helper_threads(PLACEMENT),
        ):
            patched.setattr(os, "sched_setaffinity", refuse)
            if raised is not None:
                raise raised
        assert "refused for the test" in caplog.text
        caplog.clear()


def test_steps_run_once_in_reverse_and_in_their_process_only() -> None:
    ran: list[int] = []
    undo = Undo()
    for number in range(3):
        undo.add(partial(ran.append, number))

    def runs_nothing() -> bool:
        undo.run()
        return not ran

    assert status_of_fork(runs_nothing) == 0
    undo.run()
    undo.run()
    assert ran == [2, 1, 0]


@needs_two_cpus
def test_a_context_that_another_thread_closes_frees_its_turn() -> None:
    manager = OMPProcessManager(changed(live_plan(), affinity=(CPUS[0],)))
    before = dict(os.environ)

    def hold() -> Iterator[None]:
        with manager.configure_omp_envs(0):
            yield

    holder = hold()
    next(holder)
    thread = threading.Thread(target=holder.close)  # type: ignore[attr-defined]
    thread.start()
    thread.join()
    assert (dict(os.environ), os.sched_getaffinity(0)) == (before, set(CPUS))
    entered = []

    def enter() -> None:
        with manager.configure_omp_envs(0):
            entered.append(True)

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(30)
    assert entered


def test_contexts_that_end_in_another_order_leave_no_guard_behind() -> None:
    manager, fork = OMPProcessManager(live_plan()), os.fork
    first, second = manager.configure_omp_envs(0), manager.configure_omp_envs(0)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.fork is not fork
    second.__exit__(None, None, None)
    assert os.fork is fork


def test_variables_of_other_threads_survive_contexts() -> None:
    """One thread sets and removes variables of the OpenMP families while another one enters contexts."""
    code = """if True:
        import os, threading
        from ompaffinity import OMPProcessManager
        manager = OMPProcessManager(tensor_parallel_size=1, runtime="gomp")
        stop, lost = threading.Event(), []
        def change():
            number = 0
            while not stop.is_set():
                number += 1
                os.environ["OMP_SCHEDULE"] = os.environ["KMP_MINE"] = str(number)
                if (os.environ.get("OMP_SCHEDULE"), os.environ.get("KMP_MINE")) != (str(number), str(number)):
                    lost.append(number)
                os.environ.pop("OMP_SCHEDULE", None)
        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(500):
                with manager.configure_omp_envs(0):
                    pass
        finally:
            stop.set()
            thread.join()
        print(len(lost), "OMP_NUM_THREADS" in os.environ)
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0 False\n", "")
