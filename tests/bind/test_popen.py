"""Workers whose environment is passed to them, so that the environment of this process never changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ompaffinity.bind.environment import copy_of
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.mempolicy import thread_policy
from ompaffinity.bind.profile import WorkerProfile
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.placement.document import parse_placement
from tests.bind.test_manager import changed, live_plan
from tests.conftest import has_libnuma

CPUS = sorted(os.sched_getaffinity(0))
REPORT = "import json, os; print(json.dumps([sorted(os.sched_getaffinity(0)), dict(os.environ)]))"
COMMAND = [sys.executable, "-c", REPORT]


def report(worker: subprocess.Popen[Any]) -> tuple[list[int], dict[str, str]]:
    mask, environment = json.loads(worker.communicate(timeout=60)[0])
    return mask, environment


@pytest.fixture(autouse=True)
def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment hold what a worker must not inherit, and what it must."""
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    monkeypatch.setenv("OMP_SCHEDULE", "static")


def test_environment_returns_all_of_it_and_changes_nothing() -> None:
    manager, before = OMPProcessManager(live_plan()), dict(os.environ)
    environment = manager.environment(5, local_rank=0)
    assert dict(os.environ) == before
    assert parse_placement(environment.pop("OMPAFFINITY_PLACEMENT")) == manager.plan.ranks[0]._replace(rank=5)
    with manager.configure_omp_envs(5, local_rank=0):
        assert environment == {name: value for name, value in os.environ.items() if name != "OMPAFFINITY_PLACEMENT"}
    assert "KMP_AFFINITY" not in environment
    assert environment["OMP_SCHEDULE"] == "static"
    environment["UNRELATED"] = "new"
    assert "UNRELATED" not in os.environ
    with pytest.raises(RequestError, match="not one of the 1 ranks"):
        manager.environment(1)


def test_popen_binds_the_worker_and_restores_the_thread() -> None:
    manager = OMPProcessManager(changed(live_plan(), affinity=(CPUS[-1],)))
    before = dict(os.environ), os.sched_getaffinity(0), thread_policy() if has_libnuma() else None
    mask, environment = report(manager.popen(0, COMMAND, stdout=subprocess.PIPE, text=True))
    assert mask == [CPUS[-1]]
    expected = manager.environment(0)
    assert {name: environment[name] for name in expected} == expected
    assert "KMP_AFFINITY" not in environment
    assert before == (dict(os.environ), os.sched_getaffinity(0), thread_policy() if has_libnuma() else None)


def test_popen_sets_the_workers_variables_in_the_environment_that_it_is_given() -> None:
    manager = OMPProcessManager(live_plan())
    base = {"PATH": os.environ["PATH"], "KMP_AFFINITY": "none", "MINE": "1"}
    _, environment = report(manager.popen(3, COMMAND, local_rank=0, env=base, stdout=subprocess.PIPE))
    assert environment["MINE"] == "1"
    assert "KMP_AFFINITY" not in environment
    assert "OMP_SCHEDULE" not in environment
    assert parse_placement(environment["OMPAFFINITY_PLACEMENT"]).rank == 3
    assert base["KMP_AFFINITY"] == "none"


def test_children_of_other_threads_inherit_nothing_from_popen() -> None:
    """Another thread starts a child while the command of `popen` is being started."""
    manager = OMPProcessManager(live_plan())
    begun, go_on = threading.Event(), threading.Event()

    def start() -> None:
        # Popen looks at this only when the mask is taken and nothing is started yet.
        class Argument(os.PathLike[str]):
            def __fspath__(self) -> str:
                begun.set()
                go_on.wait(30)
                return sys.executable

        worker = manager.popen(0, [Argument(), "-c", ""])  # type: ignore[list-item]
        assert worker.wait(60) == 0

    thread = threading.Thread(target=start)
    thread.start()
    try:
        assert begun.wait(30)
        child = subprocess.run(COMMAND, capture_output=True, text=True, check=True)
        mask, environment = json.loads(child.stdout)
        assert mask == CPUS
        assert environment["KMP_AFFINITY"] == "compact"
        assert "OMPAFFINITY_PLACEMENT" not in environment
    finally:
        go_on.set()
        thread.join()


@pytest.mark.parametrize(
    ("argv", "keywords", "match"),
    [
        (["true"], {"shell": True}, "got a true value for shell"),
        ("true", {}, "pass a list of words"),
        (b"true", {}, "pass a list of words"),
    ],
)
def test_popen_rejects_a_shell(argv: Any, keywords: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        OMPProcessManager(live_plan()).popen(0, argv, **keywords)


def test_a_command_that_cannot_be_started_restores_the_thread() -> None:
    with pytest.raises(FileNotFoundError):
        OMPProcessManager(changed(live_plan(), affinity=(CPUS[-1],))).popen(0, ["/no/such/command"])
    assert os.sched_getaffinity(0) == set(CPUS)


def test_popen_of_a_refused_mask_starts_unbound_or_raises_under_strict() -> None:
    plan = changed(live_plan(), affinity=(60000,))
    manager = OMPProcessManager(plan)
    mask, environment = report(manager.popen(0, COMMAND, stdout=subprocess.PIPE))
    assert mask == CPUS
    assert not parse_placement(environment["OMPAFFINITY_PLACEMENT"]).bound
    assert "KMP_AFFINITY" not in environment
    assert "affinity-not-permitted" in [message.code for message in manager.messages]
    with pytest.raises(BindingError, match="60000"):
        OMPProcessManager(plan, strict=True).popen(0, COMMAND)


def test_a_profile_selects_what_is_set_and_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = WorkerProfile(lambda plan, placement, environ: ({"MINE": environ["OMP_SCHEDULE"]}, ("KMP_AFFINITY",)), ())
    manager, fork = OMPProcessManager(live_plan(), profile=profile), os.fork
    environment = manager.environment(0)
    assert environment["MINE"] == "static"
    assert not {"KMP_AFFINITY", "OMP_NUM_THREADS", "OMPAFFINITY_PLACEMENT"} & environment.keys()
    with manager.configure_omp_envs(0) as placement:
        assert os.sched_getaffinity(0) == set(placement.affinity)
        assert os.fork is fork


def test_rejects_a_plan_for_another_machine() -> None:
    plan = live_plan()._replace(live=False, machine="recorded-server")
    with pytest.raises(RequestError, match="is for the machine 'recorded-server', not for this one"):
        OMPProcessManager(plan)


def test_a_copy_of_the_environment_survives_variables_that_vanish() -> None:
    class Vanishing(dict[str, str]):
        def __iter__(self) -> Iterator[str]:
            yield from ["GONE", "HERE"]

        def get(self, name: str, default: Any = None) -> Any:
            return "1" if name == "HERE" else default

    assert copy_of(Vanishing()) == {"HERE": "1"}
