"""--avoid and --oversubscribe: several servers on one host, and more ranks than CPUs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ompaffinity.bind.plan_files import held_by_plans
from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.model import Plan
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import HeldCPUs, PlacementRequest
from tests.placement.machines import codes, plan_for, reasons, synthetic, threads
from tests.strategies import topologies

if TYPE_CHECKING:
    from pathlib import Path

    from ompaffinity.topology.model import Topology


def saved(plan: Plan, path: Path) -> Path:
    path.write_text(json.dumps(plan_document(plan)))
    return path


def test_a_second_server_keeps_off_the_first(tmp_path: Path) -> None:
    topology = synthetic("package:2 numa:1 core:4 pu:2")
    first = make_plan(topology, PlacementRequest())
    file = saved(first, tmp_path / "first.json")
    (held,) = held_by_plans([file])
    assert held == HeldCPUs("first.json", tuple(range(8)), tuple(range(16)))
    second = make_plan(topology, PlacementRequest(avoid=(held,)))
    assert [rank.nodes for rank in second.ranks] == [(1,)]
    (not_allowed,) = [group for group in second.left_out if group.reason == "not-allowed"]
    assert not_allowed.cpus == tuple(range(8))
    assert not_allowed.detail == "the plan first.json holds 0-7 (--avoid)"
    third = held_by_plans([file, str(saved(second, tmp_path / "second.json"))])
    with pytest.raises(PlacementError, match=r"no CPU may be used beside what --avoid first\.json, second\.json holds"):
        make_plan(topology, PlacementRequest(avoid=third))


def test_cores_are_held_whole() -> None:
    plan = plan_for("core:4 pu:2", avoid=(HeldCPUs("a.json", (3, 5)),), reserve=0)
    assert threads(plan) == [(1, 7)]
    assert reasons(plan)["not-allowed"] == (2, 3, 4, 5)


def test_distinguishes_both_kinds_of_not_allowed() -> None:
    topology = synthetic("core:4 pu:1")
    narrow = topology._replace(cpus=tuple(cpu._replace(allowed=cpu.id > 0) for cpu in topology.cpus))
    plan = make_plan(narrow, PlacementRequest(avoid=(HeldCPUs("a", (1,)), HeldCPUs("b", (1, 2)))))
    (group,) = plan.left_out
    assert group.cpus == (0, 1, 2)
    assert group.detail.startswith("the plan a holds 1 (--avoid); the plan b holds 2 (--avoid); 0 outside the affinity")


@given(topologies(), st.integers(1, 3), st.integers(1, 3))
def test_two_servers_never_share_a_core(topology: Topology, first_ranks: int, second_ranks: int) -> None:
    try:
        first = make_plan(topology, PlacementRequest(tensor_parallel_size=first_ranks, cpus=topology.allowed_cpus[::2]))
        held = tuple(cpu for rank in first.ranks for cpu in rank.affinity)
        second = make_plan(
            topology, PlacementRequest(tensor_parallel_size=second_ranks, avoid=(HeldCPUs("first", held),))
        )
    except PlacementError:
        assume(False)
        raise
    cores = [
        {(topology.cpu(cpu).physical_core, topology.cpu(cpu).numa_node) for rank in plan.ranks for cpu in rank.affinity}
        for plan in (first, second)
    ]
    assert not cores[0] & cores[1]


def test_what_cannot_be_met_beside_another_plan_is_refused() -> None:
    held = (HeldCPUs("a.json", (0, 1)),)
    with pytest.raises(PlacementError, match=r"--cpus names CPU 1, whose core the plan a\.json holds"):
        plan_for("core:4 pu:1", avoid=held, cpus=(1, 2))
    with pytest.raises(PlacementError, match=r"--bind names CPU 0-1, whose core the plan a\.json holds"):
        plan_for("core:4 pu:1", avoid=held, bind=((0, 1),))
    with pytest.raises(PlacementError, match=r"--avoid b\.json holds CPU 9, which this machine does not have"):
        plan_for("core:4 pu:1", avoid=(HeldCPUs("b.json", (9,)),))


def test_a_plan_that_holds_nothing_or_not_all_is_refused(tmp_path: Path) -> None:
    unbound = saved(plan_for("core:2 pu:1", bind="none"), tmp_path / "none.json")
    with pytest.raises(RequestError, match=r"none\.json binds no CPU"):
        held_by_plans([unbound])
    topology = synthetic("numa:2 core:4 pu:1")
    part = tmp_path / "part.json"
    part.write_text(json.dumps(plan_document(make_plan(topology, PlacementRequest(tensor_parallel_size=2)), rank=0)))
    with pytest.raises(PlacementError, match=r"--avoid part\.json does not list CPU 4-6; it must be the whole plan"):
        make_plan(topology, PlacementRequest(avoid=held_by_plans([part])))


RANK: dict[str, Any] = {"cpus": [0], "helper_cpus": [], "affinity": "0"}
PLAN: dict[str, Any] = {"schema": "ompaffinity.plan/1", "reserved": "", "left_out": [], "ranks": [RANK]}


BROKEN_RANKS: list[object] = [{}, "", [[]], None]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"schema": "ompaffinity.topology/1"},
        {"schema": "ompaffinity.plan/1"},
        *(PLAN | {"ranks": [RANK | {"cpus": cpus}]} for cpus in ([float("inf")], [1.5], [True], "123", {"1": 2}, [-1])),
        *(PLAN | {"ranks": ranks} for ranks in BROKEN_RANKS),
        PLAN | {"reserved": "0-99999999"},
        PLAN | {"left_out": [{"cpus": "x", "reason": "offline"}]},
    ],
)
def test_documents_that_are_no_plan_are_refused(tmp_path: Path, document: object) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(document))
    with pytest.raises(RequestError, match="is not a plan as"):
        held_by_plans([file])


@pytest.mark.parametrize("text", ["", "[" * 100000, "\0"])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(RequestError, match="is not a plan as"):
        held_by_plans([file])


@pytest.mark.parametrize("avoid", [None, "plan.json", [5], 7])
def test_arguments_that_name_no_plan_are_refused(avoid: object) -> None:
    with pytest.raises(RequestError, match="must be a list of plan files"):
        held_by_plans(avoid)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="must be what held_by_plans returns"):
        plan_for("core:1 pu:1", avoid=avoid)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--avoid .*missing cannot be read: No such file"):
        held_by_plans([tmp_path / "missing"])


def test_more_ranks_than_cpus_share_them_if_that_is_asked_for() -> None:
    plan = plan_for("numa:2 core:2 pu:1", 9, oversubscribe=True)
    assert threads(plan) == [(0,), (0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)]
    assert codes(plan)["oversubscribed"] == "warning"
    assert "ranks-share-cores" not in codes(plan)
    assert plan.left_out == ()
    assert plan_for("core:4 pu:1", 4, oversubscribe=True) == plan_for("core:4 pu:1", 4)


def test_no_cpu_at_all_cannot_be_shared() -> None:
    topology = synthetic("core:1 pu:1")
    with pytest.raises(PlacementError, match="no CPU may be used"):
        make_plan(topology, PlacementRequest(oversubscribe=True, avoid=(HeldCPUs("a", (0,)),)))
