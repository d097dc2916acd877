"""The typed keyword arguments of the planning functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.bind.options import PlanOptions
from ompaffinity.placement.request import PlacementRequest
from tests.conftest import ROOT

CALLS = """
import ompaffinity
ompaffinity.OMPProcessManager(tensor_parallel_size=2, reserve=0, bind="0-3|4-7", avoid=["first.json"])
ompaffinity.OMPProcessManager(tensor_paralel_size=2)
ompaffinity.OMPProcessManager(reserve="0")
ompaffinity.ray.plan_cluster(4, address="auto", reserve=0)
ompaffinity.ray.plan_cluster(4, adress="auto")
"""


def test_options_are_the_fields_of_a_request_and_a_file_of_options() -> None:
    assert [*PlanOptions.__annotations__] == ["options", *PlacementRequest._fields]


def test_a_type_checker_finds_a_misspelt_option(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (the extra [typing])")
    source = tmp_path / "calls.py"
    source.write_text(CALLS)
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *cache, str(source)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    lines = [line.partition(": error: ")[0] for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.rpartition(":")[2] for line in lines] == ["4", "5", "7"], done.stdout + done.stderr
