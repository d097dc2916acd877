"""Metrics of a watch for Prometheus: in a file for the textfile collector, or over HTTP (prometheus_client)."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.files import write_whole
from ompaffinity.interpreter import install_command
from ompaffinity.proof.verdict import DIFFERS, HOLDS, UNPROVEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

    from ompaffinity.proof.watch_status import RankStatus, WatchStatus

VERDICT_VALUES = {HOLDS: 1, UNPROVEN: 0, DIFFERS: -1}
LABELS = ("rank", "local_rank", "pid")
GAUGES = {
    "ompaffinity_rank_verdict": ("1: the plan holds, 0: unproven, -1: it differs", None),
    "ompaffinity_rank_busy_threads": ("Threads that were busy in the last interval", "busy_threads"),
    "ompaffinity_rank_planned_threads": ("OpenMP threads in the plan", "planned_threads"),
    "ompaffinity_rank_local_bytes": ("Memory on the nodes of the rank", "local_bytes"),
    "ompaffinity_rank_remote_bytes": ("Memory on other nodes", "remote_bytes"),
    "ompaffinity_rank_memory_age_seconds": ("Time since the memory was read", "memory_age"),
}
COUNTERS = {
    "ompaffinity_rank_run_delay_seconds": ("Time that the threads waited for a CPU", "delay_seconds"),
    "ompaffinity_rank_foreign_cpu_seconds": ("CPU time of others on the CPUs of the rank", "foreign_seconds"),
    "ompaffinity_rank_drifts": ("Times that the binding was changed from outside or by the program", "drifts"),
    "ompaffinity_rank_repairs": ("Times that the binding was repaired", "repairs"),
    "ompaffinity_rank_restarts": ("Times that another process became the rank", "restarts"),
}
"""{name: (help, field of `RankStatus`)}; the names of counters end in _total where they are published."""
LAST_CHECK = "ompaffinity_watch_last_check_timestamp_seconds"
MAX_PORT = 65535


class Metrics:
    """The metrics of the last status.

    Raises:
        RequestError: prometheus_client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client.registry import CollectorRegistry
        except ImportError:
            command = install_command("ompaffinity[metrics]")
            raise RequestError(f"metrics require prometheus_client; install it with: {command}") from None
        self._status: WatchStatus | None = None
        self._checked = 0.0
        self._registry: CollectorRegistry = CollectorRegistry()
        self._registry.register(self)

    def update(self, status: WatchStatus) -> None:
        """Publish this status from now on."""
        self._status, self._checked = status, time.time()

    def write(self, path: str) -> None:
        """Write the metrics to a file, whole or not at all, in Prometheus's text format.

        Raises:
            OSError: it cannot be written.
        """
        from prometheus_client import generate_latest

        write_whole(path, generate_latest(self._registry))

    @contextmanager
    def served(self, address: str) -> Iterator[None]:
        """Serve the metrics over HTTP at ``HOST:PORT`` inside the context.

        Raises:
            RequestError: the address is invalid, or the port is in use.
        """
        from prometheus_client import start_http_server

        host, port = parse_address(address)
        try:
            server, thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise RequestError(f"--listen {address} cannot be used: {error.strerror or error}") from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last status, as prometheus_client asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._status
        # Of two servers the ranks that have ended may have the same labels, which a scraper rejects.
        ranks = {} if status is None else {_labels(rank): rank for rank in status.ranks}
        families: list[GaugeMetricFamily | CounterMetricFamily] = []
        for name, (text, field) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for labels, rank in ranks.items():
                value = VERDICT_VALUES[rank.verdict] if field is None else getattr(rank, field)
                if value is not None:
                    gauge.add_metric(labels, value)
            families.append(gauge)
        for name, (text, field) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for labels, rank in ranks.items():
                counter.add_metric(labels, getattr(rank, field))
            families.append(counter)
        yield from families
        yield GaugeMetricFamily(LAST_CHECK, "When the ranks were checked last", value=self._checked)


def _labels(rank: RankStatus) -> tuple[str, str, str]:
    return str(rank.rank), str(rank.local_rank), str(rank.pid or "")


def parse_address(address: str) -> tuple[str, int]:
    """Return the host and the port of ``HOST:PORT``; IPv6 addresses stand in brackets.

    Raises:
        RequestError: it is no such address.
    """
    host, colon, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= len(str(MAX_PORT)) and int(port) <= MAX_PORT
    if not colon or not host or not is_port:
        raise RequestError(f"--listen is {address[:100]!r}; it must be HOST:PORT, as in 127.0.0.1:9400")
    return host.removeprefix("[").removesuffix("]"), int(port)
