"""Documents from outside: a valid one is read as it was written, any other one is a RequestError."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ompaffinity.bind.helper_threads import helper_threads, move_to_helper_cpus
from ompaffinity.bind.plan_files import held_by_plans, saved_placements
from ompaffinity.bind.process import bind_current_process
from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import OMPAffinityError, PlacementError, RequestError
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement import fields
from ompaffinity.placement.document import (
    PLACEMENT_VARIABLE,
    gpu_placements_from_document,
    held_cpus_from_document,
    parse_placement,
    placement_document,
    placement_from_document,
    plan_ranks_from_document,
)
from ompaffinity.placement.fields import Source, decode_document
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.proof.compare import verdict_of_state, verify_current_process
from ompaffinity.proof.observe import observe_process
from ompaffinity.proof.verify import verify_processes
from ompaffinity.topology.model import Topology
from tests.placement.machines import plan_for
from tests.proof.observations import timeline, window
from tests.strategies import requests, topologies

SOURCE = Source("--plan x.json", "is not a plan", "pass a plan")
GOOD: dict[str, Any] = {
    "rank": 0,
    "local_rank": 0,
    "bound": True,
    "cpus": [0],
    "helper_cpus": [1],
    "places": ["0-1"],
    "affinity": "0-1",
    "nodes": [0],
    "memory_policy": "bind",
    "device": None,
    "node_ranks": [1],
    "local_world_size": 1,
    "memory_budget_bytes": None,
    "devices": [],
}
PLAN: dict[str, Any] = {"schema": "ompaffinity.plan/1", "reserved": "1", "left_out": [], "ranks": [GOOD]}
VALUES = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 2, 2**31, 2**64, 10**19, 1.5, float("nan"), float("inf")),
        *("", "0", "x", "0-65535", "99999", "bind", "interleave", "preferred-many", "\x1b[31m", "__class__", "\ud800"),
        *([], [0], [-1], [65535], [0] * 1000, [True], ["0"], ["x"], [""], [[0]], ["0", "1"], ["0-1"], {}, {"a": 1}),
    ]
)
DOCUMENTS = st.builds(
    lambda changes, missing: {name: value for name, value in (GOOD | changes).items() if name not in missing},
    st.dictionaries(st.sampled_from([*GOOD, "unknown"]), VALUES, max_size=4),
    st.sets(st.sampled_from([*GOOD]), max_size=1),
)


@contextmanager
def process_as_before() -> Iterator[None]:
    """Give this process its variable and its mask back."""
    mask, before = os.sched_getaffinity(0), os.environ.get(PLACEMENT_VARIABLE)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mask)
        os.environ.pop(PLACEMENT_VARIABLE, None)
        if before is not None:
            os.environ[PLACEMENT_VARIABLE] = before


def bound_and_unbound() -> None:
    placement = current_placement()
    if placement is not None:
        bind_current_process(placement).undo()


def with_helper_threads() -> None:
    with helper_threads():
        pass


CONSUMERS: list[Callable[[], object]] = [
    current_placement,
    verify_current_process,
    bound_and_unbound,
    with_helper_threads,
    move_to_helper_cpus,
]


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.__name__)
@given(document=DOCUMENTS)
def test_any_placement_in_the_environment_is_used_or_refused(
    consumer: Callable[[], object], document: dict[str, Any]
) -> None:
    with process_as_before(), suppress(OMPAffinityError):
        os.environ[PLACEMENT_VARIABLE] = json.dumps(document)
        consumer()


@given(DOCUMENTS)
def test_any_saved_plan_is_used_or_refused(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(PLAN | {"ranks": [document]}))
    for consumer in (
        lambda: verify_processes([os.getpid()], saved_placements(path), seconds=0),
        lambda: held_by_plans([path]),
    ):
        with suppress(RequestError):
            consumer()


@given(st.dictionaries(st.sampled_from(["schema", "reserved", "left_out", "ranks", "unknown"]), VALUES, min_size=1))
def test_any_plan_document_is_read_or_refused(changes: dict[str, Any]) -> None:
    for read in (plan_ranks_from_document, lambda document, source: held_cpus_from_document(document, "x", source)):
        with suppress(RequestError):
            read(PLAN | changes, SOURCE)


@given(DOCUMENTS)
def test_any_placement_that_is_read_can_be_compared_and_written(document: dict[str, Any]) -> None:
    try:
        placement = placement_from_document(document)
    except RequestError:
        return
    verdict_of_state(placement, observe_process(os.getpid()))
    timeline(placement, *[window((placement.affinity or (0,), 1.0), ((1,), 0.6))] * 2).outcome()
    assert placement_from_document(placement_document(placement)) == placement


@given(topologies(), requests())
def test_every_plan_is_read_as_it_was_written(topology: Topology, request_: PlacementRequest) -> None:
    try:
        plan = make_plan(topology, request_)
    except PlacementError:
        assume(False)
        raise
    document = json.loads(json.dumps(plan_document(plan)))
    assert plan_ranks_from_document(document, SOURCE) == plan.ranks
    held = held_cpus_from_document(document, "a.json", SOURCE)
    assert set(held.cpus) >= {cpu for rank in plan.ranks for cpu in (*rank.cpus, *rank.affinity)}
    assert held.known == tuple(cpu.id for cpu in topology.cpus)


@pytest.mark.parametrize(
    "request_", [{"bind": "none"}, {"granularity": "team"}, {"utilization": 0.5}, {"bind": ((1,),)}]
)
def test_reads_plans_of_every_kind(request_: dict[str, Any]) -> None:
    plan = plan_for("numa:2 core:4 pu:2", **request_)
    assert plan_ranks_from_document(plan_document(plan), SOURCE) == plan.ranks


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": True}, "rank is True, expected a number from 0"),
        ({"rank": -1}, "rank is -1, expected a number from 0"),
        ({"local_rank": 2**31}, "local_rank is 2147483648, expected a number from 0"),
        ({"bound": 1}, "bound is 1, expected true or false"),
        ({"cpus": [0, 0]}, "cpus is [0, 0], expected each number once"),
        ({"cpus": [65536]}, "cpus[0] is 65536, expected a number from 0 to 65535"),
        ({"cpus": []}, "cpus is [], expected at least one CPU"),
        ({"cpus": "0"}, "cpus is '0', expected a list"),
        ({"cpus": [2]}, "cpus is [2], expected CPUs of the rank's affinity only"),
        ({"helper_cpus": [2]}, "helper_cpus is [2], expected CPUs of the rank's affinity only"),
        ({"places": []}, "places is [], expected 1 places, one for each of the cpus"),
        ({"places": [""]}, "places is [''], expected places with CPUs of the rank's affinity only"),
        ({"places": ["0-2"]}, "places is ['0-2'], expected places with CPUs of the rank's affinity only"),
        ({"places": [0]}, "places[0] is 0, expected an id list such as '0-3,8'"),
        ({"places": ["x"]}, "places[0]: 'x' in the id list"),
        ({"affinity": None}, "affinity is None, expected an id list"),
        ({"bound": False}, "cpus is [0], expected nothing, for the rank is not bound"),
        ({"nodes": [0, 1]}, "node_ranks is [1], expected 2 numbers"),
        ({"node_ranks": [0]}, "node_ranks[0] is 0, expected a number from 1"),
        ({"memory_policy": ["bind"]}, "memory_policy is ['bind'], expected one of bind, "),
        ({"memory_policy": "\x1b[31m"}, "memory_policy is '\\x1b[31m', expected one of bind, "),
        ({"device": -1}, "device is -1, expected a number from 0"),
        ({"local_world_size": 0}, "local_world_size is 0, expected a number from 1"),
        ({"memory_budget_bytes": -1}, "memory_budget_bytes is -1, expected a number from 0"),
        ({"memory_budget_bytes": 10**5000}, "memory_budget_bytes is a number of 16610 bits, expected"),
        ({"devices": [1.0]}, "devices[0] is 1.0, expected a number from 0"),
    ],
)
def test_rejects_an_invalid_field_with_its_value_and_what_to_do(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        placement_from_document(GOOD | changes)
    assert str(refused.value).startswith(f"OMPAFFINITY_PLACEMENT does not hold a placement: {sentence}")
    assert str(refused.value).endswith("; unset it, or start the worker again with ompaffinity")


@pytest.mark.parametrize(
    "name", ["rank", "local_rank", "bound", "cpus", "places", "affinity", "nodes", "memory_policy"]
)
def test_rejects_a_placement_without_a_field(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is missing"):
        placement_from_document({field: value for field, value in GOOD.items() if field != name})


def test_a_placement_of_the_first_release_has_its_nodes_to_itself() -> None:
    added = ("node_ranks", "local_world_size", "memory_budget_bytes", "devices")
    placement = placement_from_document({name: value for name, value in GOOD.items() if name not in added})
    assert (placement.node_ranks, placement.local_world_size) == ((1,), 1)
    assert (placement.memory_budget, placement.gpus) == (None, ())


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("rank", 0, 2**31 - 1),
        ("local_rank", 0, 2**31 - 1),
        ("local_world_size", 1, 2**31 - 1),
        ("device", 0, 65535),
        ("memory_budget_bytes", 0, 2**63 - 1),
    ],
)
def test_reads_numbers_up_to_their_limits(field: str, least: int, most: int) -> None:
    for value in (least, most):
        assert placement_document(placement_from_document(GOOD | {field: value}))[field] == value
    for value in (least - 1, most + 1):
        with pytest.raises(RequestError, match=f"{field} is {value}, expected"):
            placement_from_document(GOOD | {field: value})


def test_an_unbound_placement_has_no_cpus_and_may_have_nodes() -> None:
    nothing = {"bound": False, "cpus": [], "helper_cpus": [], "places": [], "affinity": ""}
    assert placement_from_document(GOOD | nothing).nodes == (0,)
    for field in ("cpus", "helper_cpus", "places", "affinity"):
        with pytest.raises(RequestError, match=f"{field} is .*, expected nothing, for the rank is not bound"):
            placement_from_document(GOOD | nothing | {field: GOOD[field]})


def test_a_plan_holds_the_cpus_of_its_ranks_its_reserve_and_siblings() -> None:
    left_out = [{"cpus": "2", "reason": "smt-sibling"}, {"cpus": "3", "reason": "offline"}]
    held = held_cpus_from_document(PLAN | {"reserved": "4", "left_out": left_out}, "x", SOURCE)
    assert (held.cpus, held.known) == ((0, 1, 2, 4), (0, 1, 2, 3, 4))
    with pytest.raises(RequestError, match="binds no CPU"):
        held_cpus_from_document(PLAN | {"reserved": "", "ranks": [], "left_out": left_out[1:]}, "x", SOURCE)


@pytest.mark.parametrize(("length", "is_read"), [(1000, True), (1001, False)])
def test_names_have_a_thousand_characters_at_most(length: int, is_read: bool) -> None:
    table = {"node_id": "n" * length, "by_gpu": {}}
    if is_read:
        assert gpu_placements_from_document(table, SOURCE) == ("n" * length, {})
    else:
        with pytest.raises(RequestError, match=r"node_id is .* expected a text of at most 1000 characters"):
            gpu_placements_from_document(table, SOURCE)


def test_ignores_unknown_fields() -> None:
    assert placement_from_document(GOOD | {"added_later": {"a": 1}}) == placement_from_document(GOOD)


@pytest.mark.parametrize(
    ("document", "value"),
    [
        (PLAN | {"schema": "ompaffinity.plan/2"}, "ompaffinity.plan/2"),
        (PLAN | {"schema": "ompaffinity.plan/10"}, "ompaffinity.plan/10"),
        (PLAN | {"ranks": [GOOD | {"memory_policy": "weighted-interleave-2"}]}, "weighted-interleave-2"),
        (PLAN | {"left_out": [{"cpus": "2", "reason": "on-the-moon", "detail": ""}]}, "on-the-moon"),
    ],
)
def test_rejects_the_words_of_a_newer_version_as_such(document: dict[str, Any], value: str) -> None:
    with pytest.raises(RequestError, match="was made by a newer version of ompaffinity: ") as refused:
        held_cpus_from_document(document, "x", SOURCE)
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize("schema", ["ompaffinity.topology/1", "ompaffinity.plan/0", "ompaffinity.plan/x", "", None])
def test_rejects_documents_of_another_kind(schema: object) -> None:
    with pytest.raises(RequestError, match="is not a plan: schema is"):
        plan_ranks_from_document(PLAN | {"schema": schema}, SOURCE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is empty"),
        ("{", "Expecting property name"),
        ("NaN", "NaN is not a number of JSON"),
        ("9" * 5000, "it has a number of 5000 digits"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[" + "[]," * fields.MAX_BRACKETS + "0]", "it has more values than any plan"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b" " * (fields.MAX_DOCUMENT_BYTES + 1), "it is larger than 16 MiB"),
    ],
)
def test_rejects_texts_that_are_no_json_of_a_plan(text: str | bytes, sentence: str) -> None:
    with pytest.raises(RequestError, match=f"is not a plan: {sentence}"):
        decode_document(text, SOURCE)


def test_rejects_lists_that_name_too_many_ids_in_all() -> None:
    cpus = {"cpus": [0], "places": ["0-65535"], "affinity": "0-65535", "helper_cpus": []}
    wide = [GOOD | cpus | {"rank": rank} for rank in range(20)]
    with pytest.raises(RequestError, match="its lists name more than 2097152 ids in all"):
        plan_ranks_from_document(PLAN | {"ranks": wide}, SOURCE)
    # A place that all threads of a team share counts once.
    team = GOOD | {"cpus": list(range(4000)), "places": ["0-3999"] * 4000, "affinity": "0-3999", "helper_cpus": []}
    (rank,) = plan_ranks_from_document(PLAN | {"ranks": [team]}, SOURCE)
    assert len(rank.places) == 4000


def test_reads_the_placements_of_gpus() -> None:
    table = {"node_id": "n", "by_gpu": {"0000:01:00.0": GOOD}}
    assert gpu_placements_from_document(table, SOURCE) == ("n", {"0000:01:00.0": parse_placement(json.dumps(GOOD))})
    changes: list[dict[str, Any]] = [{"node_id": 1}, {"by_gpu": []}, {"by_gpu": {"a": None}}, {"by_gpu": {"a": {}}}]
    for change in changes:
        with pytest.raises(RequestError, match="is not a plan: "):
            gpu_placements_from_document(table | change, SOURCE)
