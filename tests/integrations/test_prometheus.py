"""Metrics of a watch: what is published, and how a scraper gets it."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.integrations.prometheus import Metrics, parse_address
from ompaffinity.proof.watch_status import RankStatus, WatchStatus

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed; [metrics] brings it")

STATUS = WatchStatus(
    12.0,
    (
        RankStatus(0, 0, 4711, "holds", busy_threads=4, planned_threads=4, foreign_seconds=1.5, drifts=2, repairs=1),
        RankStatus(1, 1, 4712, "differs", busy_threads=3, planned_threads=4, remote_bytes=2**20),
        RankStatus(2, 2, None, "unproven", planned_threads=4),
    ),
)


def published(metrics: Metrics, path: Path) -> dict[str, float]:
    metrics.write(str(path))
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_each_rank_has_its_verdict_and_its_counters(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.update(STATUS)
    found = published(metrics, tmp_path / "ompaffinity.prom")
    labels = [f'{{local_rank="{rank}",pid="{pid}",rank="{rank}"}}' for rank, pid in enumerate(("4711", "4712", ""))]
    assert [found[f"ompaffinity_rank_verdict{label}"] for label in labels] == [1, -1, 0]
    assert found[f"ompaffinity_rank_drifts_total{labels[0]}"] == 2
    assert found[f"ompaffinity_rank_repairs_total{labels[0]}"] == 1
    assert found[f"ompaffinity_rank_foreign_cpu_seconds_total{labels[0]}"] == 1.5
    assert found[f"ompaffinity_rank_remote_bytes{labels[1]}"] == 2**20
    assert found["ompaffinity_watch_last_check_timestamp_seconds"] > 0


def test_what_is_unknown_is_not_published(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.update(STATUS)
    assert not [name for name in published(metrics, tmp_path / "file") if "remote_bytes" in name and "4711" in name]


def test_serves_the_last_status_and_frees_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics = Metrics()
    for status in (WatchStatus(0.0, ()), STATUS):
        metrics.update(status)
        with metrics.served(f"127.0.0.1:{port}"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
            connection.close()
        assert ('pid="4711"' in text) == bool(status.ranks)


def test_a_port_that_is_in_use_is_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        words = f"--listen {address} cannot be used: Address already in use"
        with pytest.raises(RequestError, match=words), Metrics().served(address):
            pass


@pytest.mark.parametrize("address", ["", "9400", ":9400", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", "host:٣"])
def test_rejects_what_is_no_address(address: str) -> None:
    with pytest.raises(RequestError, match="it must be HOST:PORT"):
        parse_address(address)


def test_reads_addresses_with_brackets() -> None:
    assert [parse_address(text) for text in ("[::1]:9400", "localhost:65535")] == [("::1", 9400), ("localhost", 65535)]
