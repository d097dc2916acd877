"""The process that the reserved CPUs are kept for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.errors import BindingError
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology


def live_plan() -> Plan:
    """Return the plan of one rank, with a CPU reserved also where there is one CPU only."""
    plan = make_plan(load_topology(), PlacementRequest(runtime="gomp"))
    return plan._replace(reserved=plan.reserved or plan.ranks[0].cpus)


def test_it_runs_on_the_reserved_cpus_without_binding_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PLACES", "{0}")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    plan = live_plan()
    before, mask = dict(os.environ), os.sched_getaffinity(0)
    code = "import os; print(sorted(os.sched_getaffinity(0)), sorted(n for n in os.environ if n.startswith('OMP')))"
    with OMPProcessManager(plan).configure_reserved() as cpus:
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert cpus == plan.reserved
    assert child.stdout.strip() == f"{sorted(plan.reserved)} ['OMP_NUM_THREADS']"
    assert (dict(os.environ), os.sched_getaffinity(0)) == (before, mask)


def test_nothing_reserved_leaves_it_unbound_with_a_warning_or_fails() -> None:
    plan = live_plan()._replace(reserved=())
    manager, mask = OMPProcessManager(plan), os.sched_getaffinity(0)
    with manager.configure_reserved() as cpus:
        assert os.sched_getaffinity(0) == mask
    assert cpus == ()
    assert [message.code for message in manager.messages if message.level == "warning"] == ["nothing-reserved"]
    with pytest.raises(BindingError, match="--reserve N"), OMPProcessManager(plan, strict=True).configure_reserved():
        pass


def test_stays_unbound_if_the_reserved_cpus_are_not_available() -> None:
    manager, mask = OMPProcessManager(live_plan()._replace(reserved=(60000,))), os.sched_getaffinity(0)
    with manager.configure_reserved() as cpus:
        assert os.sched_getaffinity(0) == mask
    assert cpus == ()
    assert [message.code for message in manager.messages if message.level == "warning"] == ["affinity-not-permitted"]


def test_a_plan_that_binds_nothing_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PLACES", "{0}")
    plan = make_plan(load_topology(), PlacementRequest(bind="none"))
    with OMPProcessManager(plan).configure_reserved():
        assert os.environ["OMP_PLACES"] == "{0}"
