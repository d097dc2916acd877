from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

import ompaffinity
from ompaffinity.bind import live_plan as live_plan_module
from ompaffinity.bind import manager as manager_module
from ompaffinity.bind import scope, team_policy
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.mempolicy import LibnumaMissingError, ThreadPolicy, thread_policy
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.placement.document import parse_placement, placement_document
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, ROOT, needs_libnuma
from tests.openmp.team import send_policy


def live_plan(ranks: int = 1, **request: object) -> Plan:
    return make_plan(load_topology(), PlacementRequest(tensor_parallel_size=ranks, runtime="gomp", **request))  # type: ignore[arg-type]


def changed(plan: Plan, **fields: Any) -> Plan:
    return plan._replace(ranks=tuple(rank._replace(**fields) for rank in plan.ranks))


def test_the_context_sets_and_restores_everything() -> None:
    manager = OMPProcessManager(live_plan())
    before, mask = dict(os.environ), os.sched_getaffinity(0)
    with manager.configure_omp_envs(rank=0, local_rank=0) as placement:
        assert os.environ["OMP_NUM_THREADS"] == str(len(placement.cpus))
        assert os.sched_getaffinity(0) == set(placement.affinity)
        assert ompaffinity.current_placement() == placement
    assert dict(os.environ) == before
    assert os.sched_getaffinity(0) == mask
    assert ompaffinity.current_placement() is None


def test_stale_variables_are_hidden_inside_and_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = {
        "KMP_AFFINITY": "compact",
        "OMP_THREAD_LIMIT": "1",
        "MKL_NUM_THREADS": "3",
        "OMP_NUM_THREADS": "77",
        "OMP_SCHEDULE": "static",
    }
    for name, value in stale.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with OMPProcessManager(live_plan()).configure_omp_envs(0):
        assert not {"KMP_AFFINITY", "OMP_THREAD_LIMIT"} & set(os.environ)
        assert os.environ["MKL_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] != "77"
        assert os.environ["OMP_SCHEDULE"] == "static"
    assert dict(os.environ) == before


def test_an_error_inside_restores_too_and_passes_through() -> None:
    before, mask = dict(os.environ), os.sched_getaffinity(0)
    with pytest.raises(KeyboardInterrupt), OMPProcessManager(live_plan()).configure_omp_envs(0):
        raise KeyboardInterrupt
    assert dict(os.environ) == before
    assert os.sched_getaffinity(0) == mask


def test_restores_only_variables_that_still_have_the_value_it_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"UNRELATED": "old", "OMP_DYNAMIC": "true", "KMP_AFFINITY": "compact"}.items():
        monkeypatch.setenv(name, value)
    for name in ("OMP_NUM_THREADS", "OMP_STACKSIZE"):
        monkeypatch.setenv(name, "removed again after the test")
        monkeypatch.delenv(name)
    with OMPProcessManager(live_plan()).configure_omp_envs(0):
        changes = {"UNRELATED": "new", "OMP_NUM_THREADS": "99", "KMP_AFFINITY": "none", "OMP_STACKSIZE": "1M"}
        os.environ.update(changes)
        del os.environ["OMP_DYNAMIC"]
    assert {name: os.environ[name] for name in changes} == changes
    assert "OMP_DYNAMIC" not in os.environ
    assert "GOMP_CPU_AFFINITY" not in os.environ


def test_contexts_nest() -> None:
    plan = live_plan(min(2, len(CPUS)))
    manager = OMPProcessManager(plan)
    first, last = plan.ranks[0], plan.ranks[-1]
    with manager.configure_omp_envs(0):
        with manager.configure_omp_envs(len(plan.ranks) - 1):
            assert os.sched_getaffinity(0) == set(last.affinity)
            assert ompaffinity.current_placement() == last
        assert os.sched_getaffinity(0) == set(first.affinity)
        assert ompaffinity.current_placement() == first


def test_threads_wait_for_each_other_and_others_are_untouched() -> None:
    manager = OMPProcessManager(live_plan())
    started, seen = threading.Event(), []

    def other() -> None:
        started.set()
        with manager.configure_omp_envs(0):
            seen.append("entered")

    with manager.configure_omp_envs(0):
        thread = threading.Thread(target=other)
        thread.start()
        started.wait(10)
        thread.join(0.2)
        assert not seen
    thread.join(10)
    assert seen == ["entered"]


def test_a_loop_inside_of_a_context_may_start_workers() -> None:
    manager, mask = OMPProcessManager(live_plan()), os.sched_getaffinity(0)

    async def start() -> None:
        with manager.configure_omp_envs(0):
            await asyncio.sleep(0)

    with manager.configure_omp_envs(0):
        asyncio.run(start())
    assert os.sched_getaffinity(0) == mask


def test_coroutines_that_interleave_are_refused_and_nothing_is_lost() -> None:
    manager = OMPProcessManager(live_plan())
    before, mask = dict(os.environ), os.sched_getaffinity(0)

    async def start() -> str:
        try:
            with manager.configure_omp_envs(0):
                await asyncio.sleep(0.01)
        except RequestError as error:
            return str(error)
        return "started"

    async def start_two() -> list[str]:
        return list(await asyncio.gather(start(), start()))

    first, second = asyncio.run(start_two())
    assert first == "started"
    assert "one after another" in second
    assert dict(os.environ) == before
    assert os.sched_getaffinity(0) == mask
    assert asyncio.run(start()) == "started"


def test_coroutines_that_interleave_are_refused_also_within_a_context_around_their_loop() -> None:
    manager, mask = OMPProcessManager(live_plan()), os.sched_getaffinity(0)

    async def start() -> None:
        with manager.configure_omp_envs(0):
            await asyncio.sleep(0.01)

    async def start_two() -> list[object]:
        return list(await asyncio.gather(start(), start(), return_exceptions=True))

    with manager.configure_omp_envs(0):
        first, second = asyncio.run(start_two())
    assert first is None
    assert isinstance(second, RequestError)
    assert os.sched_getaffinity(0) == mask


def test_a_fork_beside_an_open_context_does_not_hang() -> None:
    manager = OMPProcessManager(live_plan())
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with manager.configure_omp_envs(0):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(10)
        with manager.configure_omp_envs(0):
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join(10)


def test_distinguishes_the_global_from_the_local_rank() -> None:
    with OMPProcessManager(live_plan()).configure_omp_envs(rank=5, local_rank=0) as placement:
        assert (placement.rank, placement.local_rank) == (5, 0)
        assert parse_placement(os.environ["OMPAFFINITY_PLACEMENT"]) == placement


@pytest.mark.parametrize("rank", [-1, 1, 99])
def test_a_rank_that_is_not_in_the_plan(rank: int) -> None:
    with (
        pytest.raises(RequestError, match="not one of the 1 ranks"),
        OMPProcessManager(live_plan()).configure_omp_envs(rank),
    ):
        pass


def test_a_child_is_bound_before_it_starts() -> None:
    code = "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    plan = live_plan(reserve=0, cpus=(CPUS[-1],))
    with OMPProcessManager(plan).configure_omp_envs(0):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=60)[0] == f"[{CPUS[-1]}] 1\n"


def test_the_resource_tracker_is_not_bound() -> None:
    code = """if True:
        import multiprocessing, os, sys
        from multiprocessing import resource_tracker
        from ompaffinity import OMPProcessManager, PlacementRequest, load_topology, make_plan
        plan = make_plan(load_topology(), PlacementRequest(cpus=(max(os.sched_getaffinity(0)),)))
        with OMPProcessManager(plan).configure_omp_envs(0):
            resource_tracker.ensure_running()
            pid = resource_tracker._resource_tracker._pid
            print(os.sched_getaffinity(pid) == os.sched_getaffinity(os.getppid()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_the_resource_tracker_is_started_once_in_each_process_that_uses_multiprocessing() -> None:
    code = """if True:
        import os, sys
        from ompaffinity import OMPProcessManager
        manager = OMPProcessManager(runtime="gomp")
        with manager.configure_omp_envs(0):
            print("multiprocessing" in sys.modules)
        from multiprocessing import context, resource_tracker
        resource_tracker.ensure_running = lambda: print(os.getpid() == first, flush=True)
        first = os.getpid()
        for _ in range(2):
            with manager.configure_omp_envs(0):
                pass
        if os.fork() == 0:
            with manager.configure_omp_envs(0):
                os._exit(0)
        os.wait()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False", "True", "False"]


def test_a_plan_without_memory_policies_loads_nothing_about_them() -> None:
    code = """if True:
        import sys
        from ompaffinity import OMPProcessManager
        with OMPProcessManager(runtime="gomp", memory_policy="none").configure_omp_envs(0):
            print([name for name in sys.modules if "ompaffinity.bind.mem" in name])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"


def test_a_worker_stays_unbound_if_its_cpus_are_not_available(caplog: pytest.LogCaptureFixture) -> None:
    plan = changed(live_plan(), affinity=(5000,))
    before, mask = dict(os.environ), os.sched_getaffinity(0)
    manager = OMPProcessManager(plan)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "ompaffinity"), manager.configure_omp_envs(0) as placement:
            assert os.sched_getaffinity(0) == mask
            assert not placement.bound
            assert not {"OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "OMP_PLACES"} & (set(os.environ) - set(before))
            assert ompaffinity.current_placement() == placement
    assert "the kernel rejects CPU 5000" in caplog.text
    assert [message.code for message in manager.messages if message.level == "warning"] == ["affinity-not-permitted"]
    with pytest.raises(BindingError, match="5000"), OMPProcessManager(plan, strict=True).configure_omp_envs(0):
        pass
    assert dict(os.environ) == before
    assert os.sched_getaffinity(0) == mask


def test_a_mask_that_is_only_half_given_is_not_kept() -> None:
    mask = os.sched_getaffinity(0)
    plan = changed(live_plan(), affinity=(CPUS[0], 5000))
    with pytest.raises(BindingError, match="gave only"), OMPProcessManager(plan, strict=True).configure_omp_envs(0):
        pass
    assert os.sched_getaffinity(0) == mask


def test_without_libnuma_the_cpus_are_bound_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ThreadPolicy:
        raise LibnumaMissingError("libnuma cannot be loaded; install libnuma1")

    monkeypatch.setattr(team_policy, "thread_policy", missing)
    plan = changed(live_plan(), memory_policy="bind", nodes=(0,))
    manager = OMPProcessManager(plan)
    with manager.configure_omp_envs(0) as placement:
        assert os.sched_getaffinity(0) == set(placement.affinity)
    assert "libnuma-missing" in [message.code for message in manager.messages]


@needs_libnuma
@pytest.mark.parametrize(("policy", "mode"), [("bind", 2), ("preferred", 1), ("interleave", 3)])
def test_the_memory_policy_is_inherited_and_given_back(policy: str, mode: int) -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])
    before = thread_policy()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=send_policy, args=(sender,))
    with OMPProcessManager(changed(live_plan(), memory_policy=policy, nodes=nodes)).configure_omp_envs(0):
        assert thread_policy() == ThreadPolicy(mode, nodes)
        process.start()
    assert thread_policy() == before
    assert receiver.recv() == (mode, nodes)
    process.join(60)


@needs_libnuma
def test_a_refused_memory_policy_is_a_warning_or_an_error() -> None:
    plan = changed(live_plan(), memory_policy="bind", nodes=(900,))
    manager = OMPProcessManager(plan)
    before = thread_policy()
    with manager.configure_omp_envs(0):
        pass
    assert [message.code for message in manager.messages if message.level == "warning"] == [
        "memory-policy-not-permitted"
    ]
    with pytest.raises(BindingError), OMPProcessManager(plan, strict=True).configure_omp_envs(0):
        pass
    assert thread_policy() == before


def test_built_from_options_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPAFFINITY_RESERVED_CPUS", "0")
    manager = OMPProcessManager(tensor_parallel_size=1, runtime="gomp")
    assert manager.plan == live_plan(reserve=0)
    assert OMPProcessManager(bind=str(CPUS[-1]), runtime="gomp").plan.ranks[0].cpus == (CPUS[-1],)


def test_an_unknown_runtime_gets_a_team_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_plan_module, "expected_runtimes", lambda _environ: ())
    manager = OMPProcessManager(tensor_parallel_size=1)
    assert (manager.plan.runtime, manager.plan.granularity) == ("omp", "team")
    assert "runtime-unknown" in [message.code for message in manager.messages]
    by_thread = OMPProcessManager(granularity="thread")
    assert by_thread.plan.granularity == "thread"
    assert not any("floats" in message.message for message in by_thread.messages)


def test_no_binding_leaves_all_as_it_is() -> None:
    before, mask = dict(os.environ), os.sched_getaffinity(0)
    with OMPProcessManager(bind="none").configure_omp_envs(0) as placement:
        assert os.sched_getaffinity(0) == mask
        assert {name: value for name, value in os.environ.items() if name != "OMPAFFINITY_PLACEMENT"} == before
    assert not placement.bound


def test_wrong_arguments_of_the_manager() -> None:
    with pytest.raises(RequestError, match="not both"):
        OMPProcessManager(live_plan(), reserve=1)
    with pytest.raises(RequestError, match="it must be what make_plan returns"):
        OMPProcessManager("plan")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no such option"):
        # A type checker finds it as well: without the error, the checker reports the comment.
        OMPProcessManager(tensor_parallel=1)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match="--bind"):
        OMPProcessManager(bind="all")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "7", '{"rank": "x"}', "[" * 100_000])
def test_a_placement_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    if text:
        with pytest.raises(RequestError, match="OMPAFFINITY_PLACEMENT"):
            parse_placement(text)
        if len(text) < 1000:
            monkeypatch.setenv("OMPAFFINITY_PLACEMENT", text)
            with pytest.raises(RequestError):
                ompaffinity.current_placement()
    else:
        assert ompaffinity.current_placement() is None


def test_the_manager_uses_no_shell_and_writes_no_file() -> None:
    for module in (manager_module, scope, live_plan_module):
        source = Path(str(module.__file__)).read_text()
        assert not re.search(r"shell=True|os\.system|\bopen\(|tempfile", source)


@pytest.mark.parametrize(
    "change", ['"rank": 1e999', '"helper_cpus": [-1]', '"cpus": [9999999999999]', '"cpus": [1.5]', '"nodes": [true]']
)
def test_numbers_of_a_placement_are_checked(change: str) -> None:
    text = json.dumps(placement_document(live_plan().ranks[0]))
    with pytest.raises(RequestError, match="OMPAFFINITY_PLACEMENT does not hold a placement"):
        parse_placement(text[:-1] + ", " + change + "}")


def test_a_worker_that_is_refused_does_not_follow_stale_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PLACES", "{0}")
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    with OMPProcessManager(changed(live_plan(), affinity=(60000,))).configure_omp_envs(0) as placement:
        assert not placement.bound
        assert not {"OMP_PLACES", "OMP_THREAD_LIMIT"} & set(os.environ)
    assert os.environ["OMP_PLACES"] == "{0}"
