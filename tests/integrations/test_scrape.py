"""A real Prometheus scrapes a watch, and accepts the documented alert rules."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import ROOT, needs_two_cpus
from tests.openmp.libraries import needs_gomp
from tests.proof.test_watch import FIRST, server

UNPACKED = "/usr/local/lib/ompaffinity-tests/usr/bin"
PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{UNPACKED}"
SECONDS = 60
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus", path=PATH) is None,
    reason="Prometheus is not installed; scripts/install-system-packages unpacks it",
)


def program(name: str) -> str:
    return str(shutil.which(name, path=PATH))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def answer(port: int, query: str) -> list[dict[str, Any]]:
    """Return what Prometheus answers to a query; nothing while it starts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", f"/api/v1/query?query={quote(query)}")
        found: list[dict[str, Any]] = json.loads(connection.getresponse().read())["data"]["result"]
    except (OSError, ValueError, KeyError):
        return []
    finally:
        connection.close()
    return found


def waited_for(port: int, query: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = answer(port, query)
        if found:
            return found[0]
        time.sleep(0.2)
    raise AssertionError(f"no answer to {query} within {SECONDS} seconds")


@needs_prometheus
@needs_gomp
@needs_two_cpus
def test_prometheus_scrapes_the_verdict_and_the_drifts(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed; [metrics] brings it")
    metrics, port = free_port(), free_port()
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: watch, static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]}}]\n"
    )
    prometheus = (
        program("prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with server() as (pid, team, _):
        watch = ("watch", "--pid", str(pid), "--interval", "1", "--listen", f"127.0.0.1:{metrics}")
        with running(sys.executable, "-m", "ompaffinity", *watch), running(*prometheus):
            found = waited_for(port, "ompaffinity_rank_verdict == 1")
            labels = {name: found["metric"][name] for name in ("rank", "local_rank", "pid")}
            assert labels == {"rank": "0", "local_rank": "0", "pid": str(pid)}
            os.sched_setaffinity(team[1], {FIRST})
            assert waited_for(port, "ompaffinity_rank_verdict < 0")
            assert waited_for(port, "ompaffinity_rank_drifts_total > 0")["value"][1] == "1"


@needs_prometheus
def test_the_documented_alert_rules_are_valid(tmp_path: Path) -> None:
    (rules,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "production.md").read_text(), re.DOTALL)
    file = tmp_path / "rules.yml"
    file.write_text(rules)
    command = [program("promtool"), "check", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{rules.count('alert:')} rules found" in done.stdout
