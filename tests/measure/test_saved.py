"""The advice of a comparison, saved as planning options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.measure.advice import Advice
from ompaffinity.measure.runs import Run
from ompaffinity.measure.saved import advised_document
from ompaffinity.measure.session import Settings, conclude
from ompaffinity.measure.variants import VARIANTS
from ompaffinity.topology.source import load_topology
from tests.cli.test_schemas import check
from tests.conftest import run_command

LOAD = (0.5, 0.25, 0.0)


def advised(variant: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the document for a comparison whose advice is this variant."""
    variants = [VARIANTS["none"], VARIANTS["plan"], VARIANTS[variant]]
    rounds = [{found.name: Run(1.0 + turn / 100, 1.0, 0.0) for found in variants} for turn in range(8)]
    settings = Settings(("python", "serve.py", "--token", "secret"))
    comparison = conclude(list({found.name: found for found in variants}.values()), rounds, settings, {})
    comparison = comparison._replace(advice=Advice(variant, "use it", {}))
    document = advised_document(comparison, request, load_topology(), LOAD)
    assert document is not None
    return document


def test_the_options_of_the_request_and_of_the_variant_are_saved() -> None:
    document = advised("helper-node", {"tensor_parallel_size": 2, "reserve": 1, "runtime": "gomp", "avoid": ["live"]})
    assert document["options"] == "--reserve 1 --helper-cpus node --runtime gomp"
    assert document["evidence"]["ranks"] == 2
    assert (document["evidence"]["baseline"], document["evidence"]["variant"]) == ("none", "helper-node")
    assert document["evidence"]["load_average"] == list(LOAD)


def test_the_option_of_the_variant_has_precedence() -> None:
    assert advised("no-reserve", {"reserve": 2})["options"] == "--reserve 0"


def test_no_argument_of_the_command_is_saved() -> None:
    document = advised("plan", {})
    assert document["evidence"]["command"] == "python serve.py ..."
    assert "secret" not in json.dumps(document)


@pytest.mark.parametrize(
    ("variant", "options"),
    [("none", "--bind none"), ("threads", "--bind none"), ("mask", "--granularity team --memory-policy none")],
)
def test_a_variant_that_is_no_plan_is_saved_as_what_comes_nearest(variant: str, options: str) -> None:
    assert advised(variant, {})["options"] == options


def test_without_advice_nothing_is_saved() -> None:
    variants = [VARIANTS["none"], VARIANTS["plan"]]
    rounds = [{found.name: Run(1.0, 1.0, 0.0) for found in variants}]
    comparison = conclude(variants, rounds, Settings(("true",)), {})
    assert advised_document(comparison, {}, load_topology(), LOAD) is None


def test_compare_saves_what_plan_reads(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    variants = ("--variant", "none", "--variant", "plan")
    done = run_command("compare", *variants, "--reserve", "0", "--budget", "30", "--save", str(file), "--", "true")
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    check(document)
    assert document["evidence"]["variant"] in ("none", "plan")
    assert run_command("plan", "--options", str(file), "--json").returncode == 0


def test_compare_saves_nothing_where_the_rounds_are_too_few(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    command = ("--budget", "3", "--save", str(file), "--", "sleep", "0.4")
    done = run_command("compare", "--variant", "none", "--variant", "plan", *command)
    assert (done.returncode, file.exists()) == (1, False)
    assert "is not written: too few rounds" in done.stderr


def test_compare_saves_the_options_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    command = ("compare", "--variant", "plan", "--variant", "none", "--budget", "30", "--save", str(file), "--", "true")
    done = run_command(*command, OMPAFFINITY_OPTIONS="--wait-policy brief", OMPAFFINITY_RESERVED_CPUS="0")
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    if document["evidence"]["variant"] == "plan":
        assert document["options"] == "--reserve 0 --wait-policy brief"
