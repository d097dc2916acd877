"""Signal handlers that raise at any moment leave nothing behind."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

import ompaffinity
from ompaffinity.bind import deferred_signals as deferred_module
from ompaffinity.bind.deferred_signals import StandIn, deferred_signals, surely
from ompaffinity.bind.helper_threads import helper_threads
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.mempolicy import thread_policy
from ompaffinity.bind.process import bind_current_process, current_binding
from tests.bind.test_manager import live_plan
from tests.conftest import has_libnuma

ROUNDS = 400
LONGEST_SECONDS = 0.002


class InterruptError(TimeoutError):
    """What the handler raises: an OSError, which must not be taken for the kernel's."""


@pytest.fixture(autouse=True)
def handler() -> Iterator[Callable[[int, FrameType | None], None]]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise InterruptError

    before = signal.signal(signal.SIGALRM, interrupt)
    yield interrupt
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def interrupted(work: Callable[[], object], seconds: float) -> bool:
    """Return whether the handler has raised in this work."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except InterruptError:
        return True
    return False


@contextmanager
def other_thread(wanted: bool) -> Iterator[None]:
    """Let there be another thread, to which the kernel can deliver signals that the main thread blocks."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        end.set()
        if wanted:
            thread.join()


def worker_contexts() -> Callable[[], object]:
    manager = OMPProcessManager(tensor_parallel_size=1, runtime="gomp", memory_policy="bind")

    def work() -> None:
        with manager.configure_omp_envs(0):
            pass
        with manager.configure_reserved():
            pass

    return work


def helper_contexts() -> Callable[[], object]:
    (placement,) = live_plan().ranks

    def work() -> None:
        with helper_threads(placement):
            pass

    return work


def process_bindings() -> Callable[[], object]:
    placement = live_plan().ranks[0]._replace(memory_policy="bind", nodes=tuple(ompaffinity.get_memory_affinity()[:1]))

    def work() -> None:
        try:
            bind_current_process(placement).undo()
        finally:
            # Raised after the binding was made and before the caller had it, or on the way into undo().
            signal.setitimer(signal.ITIMER_REAL, 0)
            binding = current_binding()
            if binding is not None:
                binding.undo()

    return work


@pytest.mark.parametrize("threads", [False, True], ids=["alone", "beside-a-thread"])
@pytest.mark.parametrize("contexts", [worker_contexts, helper_contexts, process_bindings])
def test_a_handler_that_raises_leaves_nothing_behind(
    contexts: Callable[[], Callable[[], object]], threads: bool, handler: object
) -> None:
    def state() -> object:
        policy = thread_policy() if has_libnuma() else None
        # Another thread can enter only if no lock is left behind.
        manager, entered = OMPProcessManager(live_plan()), []

        def enter() -> None:
            with manager.configure_omp_envs(0):
                entered.append(True)

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        thread.join(30)
        handlers = (signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGINT))
        return dict(os.environ), os.sched_getaffinity(0), policy, os.fork, handlers, entered, current_binding()

    work, moments = contexts(), random.Random(0)  # noqa: S311
    with other_thread(threads):
        work()
        before = state()
        hits = 0
        for _ in range(ROUNDS):
            hits += interrupted(work, moments.uniform(1e-6, LONGEST_SECONDS))
            assert state() == before
    assert hits


def test_a_section_ends_before_its_signals_are_handled() -> None:
    ran: list[str] = []

    def section() -> None:
        signal.raise_signal(signal.SIGALRM)
        ran.append("all")

    with pytest.raises(InterruptError):
        surely(section)
    with pytest.raises(InterruptError):
        deferred(section)
    assert ran == ["all", "all"]


def deferred(section: Callable[[], None]) -> None:
    with deferred_signals() as arrived:
        section()
        assert list(arrived) == [signal.SIGALRM]


def test_a_section_runs_though_a_handler_raises_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = deferred_module.StandIn.install

    def install(stand_in: deferred_module.StandIn) -> None:
        original(stand_in)
        if not calls:
            calls.append("interrupted")
            raise InterruptError

    monkeypatch.setattr(deferred_module.StandIn, "install", install)
    with pytest.raises(InterruptError):
        surely(lambda: calls.append("section"))
    assert calls == ["interrupted", "section"]


def test_handlers_that_raise_are_all_called() -> None:
    called: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        called.append(number)
        raise InterruptError

    numbers = [signal.SIGUSR1, signal.SIGUSR2]
    before = [signal.signal(number, remember) for number in numbers]
    try:
        with pytest.raises(InterruptError), deferred_signals():
            for number in numbers:
                signal.raise_signal(number)
        assert sorted(called) == sorted(numbers)
        assert [signal.getsignal(number) for number in numbers] == [remember] * 2
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def test_a_stand_in_that_is_left_behind_passes_signals_on_and_is_removed_by_the_next(
    handler: Callable[[int, FrameType | None], None],
) -> None:
    stand_in = deferred_module.StandIn()
    stand_in.install()
    stand_in.section_runs = False
    assert signal.getsignal(signal.SIGALRM) == stand_in.handle
    with pytest.raises(InterruptError):
        signal.raise_signal(signal.SIGALRM)
    with deferred_signals():
        pass
    assert signal.getsignal(signal.SIGALRM) is handler


def test_the_main_thread_can_be_interrupted_while_it_waits_for_its_turn() -> None:
    manager = OMPProcessManager(live_plan())
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with manager.configure_omp_envs(0):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(InterruptError), manager.configure_omp_envs(0):
        pytest.fail("the context was entered")
    leave.set()
    thread.join()
    with manager.configure_omp_envs(0):
        pass


def test_a_stand_in_that_is_left_in_place_passes_its_signals_on() -> None:
    numbers = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: numbers.append(number))
    try:
        with StandIn() as stand_in:
            stand_in.install()
            stand_in.handle(signal.SIGUSR1, None)
            assert numbers == []
        assert numbers == [signal.SIGUSR1]
        stand_in.handle(signal.SIGUSR1, None)
        assert numbers == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)
