"""The document of a plan: its ranks with the variables of each."""

from __future__ import annotations

import json

from ompaffinity.openmp.plan_document import plan_document, rank_document, worker_environment
from ompaffinity.placement.document import PLACEMENT_VARIABLE, parse_placement
from tests.placement.machines import plan_for

PLAN = plan_for("core:4 pu:1", 2)


def test_has_all_ranks_or_the_one_that_is_asked_for() -> None:
    assert [rank["rank"] for rank in plan_document(PLAN)["ranks"]] == [0, 1]
    assert [rank["rank"] for rank in plan_document(PLAN, 1)["ranks"]] == [1]


def test_a_rank_has_its_variables_beside_its_placement() -> None:
    document = rank_document(PLAN, PLAN.ranks[1])
    assert parse_placement(json.dumps(document)) == PLAN.ranks[1]
    assert document["environment"]["OMP_NUM_THREADS"] == "1"
    assert "KMP_AFFINITY" in document["unset"]


def test_a_worker_gets_its_placement_and_the_variables_of_its_runtime() -> None:
    environment, unset = worker_environment(PLAN, PLAN.ranks[1])
    assert parse_placement(environment.pop(PLACEMENT_VARIABLE)) == PLAN.ranks[1]
    document = rank_document(PLAN, PLAN.ranks[1])
    assert (environment, list(unset)) == (document["environment"], document["unset"])
