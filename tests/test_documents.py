"""The README and the docs agree with the package."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.cli.options import PLAN_OUTPUT_OPTIONS, VERBS
from ompaffinity.placement.architecture import RULES
from ompaffinity.placement.options import PLAN_OPTIONS
from ompaffinity.placement.reasons import REASONS
from tests.conftest import ROOT, needs_two_cpus
from tests.openmp.libraries import needs_gomp

README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_python_examples_run(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(python_blocks(path)):
        if "import ray" in block and importlib.util.find_spec("ray") is None:
            pytest.skip("Ray is not installed (the extra [ray])")
        program = tmp_path / f"example{number}.py"
        program.write_text(
            block.replace("tensor_parallel_size=2", "tensor_parallel_size=1").replace("range(2)", "range(1)")
        )
        if "import torch" in block:
            program.write_text(program.read_text().replace("import torch ", "import json "))
        # A cluster of its own, although the machine may have one that runs.
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        command = [sys.executable, str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stderr


def test_the_api_page_has_an_example_of_every_function() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    examples = "".join(re.findall(r"```(?:python|text)\n(.*?)```", page, re.DOTALL))
    functions = {name.rpartition(".")[2] for name in re.findall(r"autofunction:: (\S+)", page)}
    # What the first needs has no public name, and the others are called by servers and by `plan_cluster`.
    without = {"compare_variants", "configure_subprocess", "numa_bind_to_node", "recorded_gpus", "make_cluster_plan"}
    assert functions - without == {name for name in functions if f"{name}(" in examples.replace(f"import {name}", "")}


def test_the_reference_names_every_option() -> None:
    for options in VERBS.values():
        for option in options:
            assert re.search(rf"`{option.flag}\b|, `{option.flag}\b| {option.flag} N", REFERENCE), option.flag
    for option in (*PLAN_OPTIONS, *PLAN_OUTPUT_OPTIONS):
        assert all(choice in REFERENCE for choice in option.choices)


def test_generated_tables_outputs_and_pictures_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate-docs"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_message_comes_from_the_catalogue() -> None:
    for path in (ROOT / "ompaffinity").rglob("*.py"):
        if path.name != "messages.py":
            assert not re.search(r'\bMessage\(\s*["f]', path.read_text()), path


def test_the_reference_names_every_reason_and_architecture() -> None:
    assert all(f"`{reason}`" in REFERENCE for reason in REASONS)
    assert all(rule.names[0] in REFERENCE for rule in RULES)


def test_the_readme_has_two_commands() -> None:
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert "ompaffinity plan --tp 2" in commands[0]
    assert commands[1].strip() == "scripts/run-tests"
    assert (ROOT / "scripts" / "run-tests").stat().st_mode & 0o111


def test_no_path_of_a_developer_is_in_the_project() -> None:
    for path in [*(ROOT / "ompaffinity").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        assert not re.search(r"/(home|root|work)/", path.read_text()), path


def test_links_between_pages_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def shell_blocks(path: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "docs").glob("*.md")) if shell_blocks(path)],
    ids=lambda path: path.name,
)
@needs_gomp
@needs_two_cpus
def test_shell_examples_run(path: Path, tmp_path: Path) -> None:
    from tests.devices.test_devices import TWO_NODES, machine

    record = tmp_path / "recorded"
    machine(record, TWO_NODES)
    subprocess.run(["tar", "-C", str(record), "-czf", str(tmp_path / "recorded.tar.gz"), "sys"], check=True)
    (tmp_path / "worker.py").write_text("import ctypes, time\nctypes.CDLL('libgomp.so.1')\ntime.sleep(0.1)\n")
    server = "import ctypes, time\nctypes.CDLL('libgomp.so.1')\nend = time.time() + 10\nwhile time.time() < end: pass\n"
    (tmp_path / "server.py").write_text(server)
    command = tmp_path / "bin" / "ompaffinity"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m ompaffinity "$@"\n')
    command.chmod(0o755)
    for block in shell_blocks(path):
        done = subprocess.run(
            ["sh", "-e"],
            # What the doctor finds is no fault of the example.
            input=block.replace("ompaffinity doctor", "ompaffinity doctor || test $? = 1"),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_every_interval_was_measured(page: str) -> None:
    results = "".join(path.read_text() for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")))
    quoted = re.findall(r"\d+(?:\.\d+)? \[[\d.]+, [\d.]+\]", (ROOT / page).read_text())
    assert quoted
    assert [interval for interval in quoted if interval not in results] == []
