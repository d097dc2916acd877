"""The documents that the verbs print match the schemas in docs/, key by key."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from ompaffinity.errors import PlacementError
from ompaffinity.integrations.ray.cluster import make_cluster_plan
from ompaffinity.integrations.ray.document import cluster_document
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.model import Topology
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, ROOT, recorded_names, run_command
from tests.guests.inside.computing import bound_program, started_program
from tests.integrations.ray.test_cluster import LARGE, node
from tests.openmp.libraries import GOMP, needs_gomp
from tests.strategies import requests, topologies

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "docs" / "schemas").glob("*.json")}


def check(document: Any) -> None:
    schema = SCHEMAS[document["schema"].replace("/", "-")]
    errors = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]
    assert errors == []


def test_every_document_has_a_valid_schema() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
    named = {
        name
        for path in (ROOT / "ompaffinity").rglob("*.py")
        for name in re.findall(r'"(ompaffinity\.[a-z]+/[0-9])"', path.read_text())
    }
    assert {name.replace("/", "-") for name in named} == SCHEMAS.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",),
        ("plan", "--tp", "2", "--bind", "none"),
        ("plan", "--synthetic", LARGE, "--tp", "3", "--numa-bind-nodes", "0", "0", "1", "--utilization", "0.5"),
        ("topology",),
        ("topology", "--synthetic", LARGE),
        ("devices",),
        ("doctor",),
        ("inspect", "--all"),
        ("inspect", str(os.getpid())),
    ],
)
def test_verbs_print_valid_documents(arguments: tuple[str, ...]) -> None:
    check(json.loads(run_command(*arguments, "--json").stdout))


@needs_gomp
def test_verify_prints_a_valid_document() -> None:
    done = run_command("verify", "--library", GOMP, "--json")
    check(json.loads(done.stdout))


@needs_gomp
def test_watch_prints_a_valid_document() -> None:
    with bound_program(GOMP, CPUS[:1]) as (pid, _, _):
        document = json.loads(run_command("watch", "--pid", str(pid), "--once", "--json").stdout)
    check(document)
    assert document["changes"]
    for change in document["changes"]:
        check(change)


@needs_gomp
def test_bind_prints_a_valid_document(tmp_path: Path) -> None:
    undo = tmp_path / "undo.json"
    with started_program(GOMP, 1) as (pid, _):
        for arguments in (("--pid", str(pid), "--save", str(undo)), ("--undo", str(undo))):
            check(json.loads(run_command("bind", *arguments, "--json").stdout))
    check(json.loads(undo.read_text()))


def test_compare_prints_a_valid_document() -> None:
    command = ("--variant", "none", "--variant", "plan", "--", sys.executable, "-c", "pass")
    check(json.loads(run_command("compare", "--runtime", "gomp", "--budget", "6", "--json", *command).stdout))


@pytest.mark.parametrize("name", recorded_names("sysfs", ".tar.gz")[::7])
def test_recorded_machines_give_valid_documents(name: str, recorded_machines: Path) -> None:
    path = str(recorded_machines / "sysfs" / f"{name}.tar.gz")
    for verb in ("topology", "devices"):
        check(json.loads(run_command(verb, "--machine", path, "--json").stdout))


@given(topologies(), requests())
def test_plans_for_machines_of_any_shape_are_valid(topology: Topology, request: PlacementRequest) -> None:
    check(json.loads(json.dumps(topology.to_document())))
    try:
        plan = make_plan(topology, request)
    except PlacementError:
        return
    check(json.loads(json.dumps(plan_document(plan))))


def test_cluster_plans_are_valid() -> None:
    plan = make_cluster_plan([node("a", LARGE), node("b", LARGE)], PlacementRequest(data_parallel_size=3))
    check(json.loads(json.dumps(cluster_document(plan))))


def test_the_schemas_reject_additional_and_missing_keys() -> None:
    document = plan_document(make_plan(load_topology(synthetic=LARGE), PlacementRequest()))
    check(document)
    for damaged in (document | {"more": 1}, {key: value for key, value in document.items() if key != "ranks"}):
        with pytest.raises(AssertionError):
            check(damaged)
