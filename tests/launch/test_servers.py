"""Servers that bind their own workers: what a command gives them, and its messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.launch.servers import server_of
from tests.conftest import CPUS, ROOT, needs_two_cpus
from tests.openmp.libraries import needs_torch

SHOW = f"""#!{sys.executable}
import json, os
names = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "OMP_NUM_THREADS", "OMPAFFINITY_PLACEMENT")
print(json.dumps([sorted(os.sched_getaffinity(0)), [name for name in names if name in os.environ]]))
"""


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    """A program of this name that reports how it was started."""
    program = tmp_path / "vllm"
    program.write_text(SHOW)
    program.chmod(0o755)
    return str(program)


def start(*words: str, **environment: str) -> tuple[list[Any], list[str]]:
    """Return what the server's processes report, and the lines on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "ompaffinity", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition("] ")[2] if line.startswith("[rank") else line for line in done.stdout.splitlines()]
    return [json.loads(line) for line in lines], done.stderr.splitlines()


@pytest.mark.parametrize("verb", ["exec", "run"])
@pytest.mark.parametrize("lists", ["", "0|1"])
def test_a_server_that_binds_its_own_workers_is_started_unbound_with_one_line(verb: str, lists: str, vllm: str) -> None:
    command = [vllm, "serve", "--tensor-parallel-size", "2"]
    reports, lines = start(verb, "--", *command, VLLM_CPU_OMP_THREADS_BIND=lists)
    assert reports == [[CPUS, []]]
    (line,) = lines
    assert f"OMPAFFINITY_VLLM=1 {vllm} serve --tensor-parallel-size 2" in line
    assert "plan --format vllm" in line


@needs_two_cpus
def test_each_of_several_servers_gets_a_part_of_the_machine_without_variables(vllm: str) -> None:
    reports, _ = start("run", "--dp", "2", "--", vllm, "serve")
    masks = [set(mask) for mask, _ in reports]
    assert all(masks)
    assert masks[0].isdisjoint(masks[1])
    assert [names for _, names in reports] == [[], []]


def test_the_cpus_that_are_given_are_those_of_the_server(vllm: str) -> None:
    reports, _ = start("exec", "--cpus", str(CPUS[0]), "--", vllm, "serve")
    assert reports == [[CPUS[:1], []]]


def test_a_server_that_is_missing_gets_its_line_and_status_127() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ompaffinity", "exec", "--", "/nonexistent/vllm", "serve"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 127
    assert "OMPAFFINITY_VLLM=1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("vllm", "serve", "m"), "vLLM"),
        (("uv", "run", "vllm", "serve", "m"), "vLLM"),
        (("python", "-m", "vllm.entrypoints.openai.api_server"), "vLLM"),
        (("python3", "-m", "sglang.launch_server", "--tp", "6"), "SGLang"),
        (("sglang", "serve"), "SGLang"),
    ],
)
def test_a_server_is_known_behind_wrappers(command: tuple[str, ...], name: str) -> None:
    server = server_of(command)
    assert server is not None
    assert server.name == name


@pytest.mark.parametrize("command", [("python", "vllm.py"), ("cat", "vllm", "notes"), ("python", "-m", "json")])
def test_another_command_is_no_server(command: tuple[str, ...]) -> None:
    assert server_of(command) is None


def test_a_long_command_of_a_server_is_shown_in_part() -> None:
    words = f"vllm serve {'m' * 100}"
    server = server_of(words.split())
    assert server is not None
    assert f" {words[:100]} ..." in server.instead
    assert words[:101] not in server.instead
    short = server_of(words[:100].split())
    assert short is not None
    assert words[:100] in short.instead
    assert "..." not in short.instead


SERVER = """
import os, subprocess, sys
for worker, cpu in enumerate(sys.argv[1:3]):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_CPU_AFFINITY": cpu}
    code = "import os, torch; torch.ones(10); print(*sorted(os.sched_getaffinity(0)))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
"""


@needs_torch
@pytest.mark.parametrize("options", [(), ("--granularity", "team"), ("--reserve", "0", "--granularity", "team")])
def test_an_unknown_server_binds_its_own_workers_below_exec(options: tuple[str, ...]) -> None:
    cpus = CPUS[:2]
    words = ["exec", "--cpus", f"{cpus[0]},{cpus[-1]}", "--local-rank", "0", "--local-world-size", "1", *options]
    done = subprocess.run(
        [sys.executable, "-m", "ompaffinity", *words, "--", sys.executable, "-c", SERVER, str(cpus[0]), str(cpus[-1])],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.split() == [str(cpus[0]), str(cpus[-1])]
