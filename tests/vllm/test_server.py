"""Real vLLM servers on this machine: bound by one variable, proven from outside, and untouched without it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bind.test_saved_options import saved
from tests.conftest import COMPETITORS, ROOT, needs_two_cpus
from tests.vllm.servers import OFFLINE, START_SECONDS, make_model, serving

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (tox -e vllm)"),
    needs_two_cpus,
]
PLUGIN = {"OMPAFFINITY_VLLM": "1"}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@contextmanager
def requests_to(port: int, threads: int = 8) -> Iterator[None]:
    """Keep the server busy meanwhile, from its first answer on: before that it compiles."""
    stop = threading.Event()
    body = json.dumps({"model": "m", "prompt": [5] * 64, "max_tokens": 64, "ignore_eos": True})

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        connection.close()

    def send() -> None:
        while not stop.is_set():
            ask()

    ask()
    senders = [threading.Thread(target=send) for _ in range(threads)]
    for sender in senders:
        sender.start()
    time.sleep(2)
    try:
        yield
    finally:
        stop.set()
        for sender in senders:
            sender.join()


def verified(pid: int) -> Any:
    """Return what verify reports of a server.

    Up to four times while it is unproven: the first answer comes from one rank, and the others compile at their first
    requests, which takes longer than a window.
    """
    command = [sys.executable, "-m", "ompaffinity", "verify", "--pid", str(pid), "--seconds", "15", "--json"]
    for _ in range(4):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        if document["verdict"] != "unproven":
            break
    return document


def in_words(document: Any) -> str:
    found = [(rank["pid"], rank["verdict"], rank["differences"], rank["notes"]) for rank in document["ranks"]]
    return json.dumps([found, document["others"]], indent=1)


@pytest.mark.parametrize(
    ("arguments", "environment", "lists"),
    [
        ((), {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}, ["0-1"]),
        (("--tensor-parallel-size", "2"), {"OMPAFFINITY_OPTIONS": "--options best.json"}, ["1", "0"]),
        (("--data-parallel-size", "2"), {}, ["0", "1"]),
    ],
    ids=["tp1", "tp2", "dp2"],
)
def test_a_server_is_bound_and_proven(
    arguments: tuple[str, ...], environment: dict[str, str], lists: list[str], model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = saved(tmp_path / "best.json", "--bind '1|0'")
    variables = {name: value.replace("best.json", options) for name, value in environment.items()}
    with serving(model, log, *arguments, **PLUGIN, **variables) as (pid, port), requests_to(port):
        document = verified(pid)
    text = log.read_text()
    assert document["verdict"] == "holds", in_words(document)
    assert [rank["threads"][0]["place"] for rank in document["ranks"]] == lists
    roles = [process["role"] for process in document["others"]]
    assert {"vLLM API server", "vLLM scheduler (EngineCore)"} <= set(roles)
    assert text.count("after warm-up: rank ") == len(lists)
    assert "vLLM keeps its own binding" not in text
    assert "options-measured-elsewhere" not in text


def test_a_watch_binds_again_what_taskset_moved(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ompaffinity", "watch", "--interval", "2", "--repair", "--json", "--pid"]
    with serving(model, tmp_path / "log", "--tensor-parallel-size", "2", **PLUGIN) as (pid, port), requests_to(port):
        document = verified(pid)
        worker = document["ranks"][1]["pid"]
        with subprocess.Popen([*command, str(pid)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as watch:
            assert watch.stdout is not None
            reported = (json.loads(line) for line in watch.stdout)
            changes = (change for change in reported if change["kind"] not in COMPETITORS)
            first = [next(changes) for _ in range(2)]
            subprocess.run(["taskset", "-a", "-p", "-c", "0", str(worker)], check=True, stdout=subprocess.DEVNULL)
            found: list[Any] = []
            while not found or found[-1]["kind"] != "repaired":
                found.append(next(changes))
            watch.terminate()
    assert {change["kind"] for change in first} == {"verdict"}
    moved = next(change for change in found if change["kind"] == "threads-rebound")
    assert (moved["rank"], moved["pid"]) == (1, worker)
    assert found[-1]["rank"] == 1


def test_explicit_lists_are_sliced_by_data_parallel_rank(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**PLUGIN, "VLLM_CPU_OMP_THREADS_BIND": "1|0"}
    with serving(model, log, "--data-parallel-size", "2", **environment) as (pid, port), requests_to(port):
        document = verified(pid)
    assert document["verdict"] == "holds", in_words(document)
    assert sorted(rank["threads"][0]["place"] for rank in document["ranks"]) == ["0", "1"]


PROGRAM = """if True:
    import importlib.metadata, json, sys
    from ompaffinity.integrations.vllm.plugin import register
    {before}
    register()
    import vllm.utils.ompmultiprocessing as module
    from vllm.utils import cpu_resource_utils
    print("answer", module.OMPProcessManager.__module__, cpu_resource_utils.get_memory_node_info(0).total_memory)
"""


def answer(before: str = "", **environment: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before or "pass")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **PLUGIN, **environment},
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("answer"))
    return line.split()[1:], done.stdout + done.stderr


@pytest.fixture(scope="module")
def untouched() -> list[str]:
    """What vLLM has without the plugin; importing it takes long."""
    return answer(OMPAFFINITY_VLLM="0")[0]


def test_vllm_is_untouched_without_the_variable(untouched: list[str]) -> None:
    assert untouched[0] == "vllm.utils.ompmultiprocessing"


@pytest.mark.parametrize(
    ("before", "warning"),
    [
        ("importlib.metadata.version = lambda name: '0.99.1'", "version 0.99.1 is unknown"),
        ("import vllm.utils.numa_utils as numa; del numa.configure_subprocess", "has no configure_subprocess"),
    ],
)
def test_an_unknown_vllm_keeps_its_own_binding(before: str, warning: str) -> None:
    (module, _), output = answer(before)
    assert module == "vllm.utils.ompmultiprocessing"
    assert output.count("vLLM keeps its own binding of workers: ") == 1
    assert warning in output


def test_each_worker_gets_its_share_of_the_memory(untouched: list[str]) -> None:
    from ompaffinity.bind.manager import OMPProcessManager

    manager = OMPProcessManager(tensor_parallel_size=2, runtime="gomp")
    environment = manager.environment(1)
    (module, share), _ = answer(**{name: environment[name] for name in environment if name.startswith("OMPAFF")})
    assert module == "ompaffinity.integrations.vllm.cpu_workers"
    assert int(share) * 2 == pytest.approx(int(untouched[1]), rel=0.01)
