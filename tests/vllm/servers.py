"""Real vLLM servers: start one, wait until it answers, and end it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 300
OFFLINE = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def make_model(folder: Path) -> Path:
    """Write a small random model, and return its folder."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("make_model.py")), str(folder)], check=True)
    return folder


def number_type() -> str:
    """Return the type that this CPU computes with: bfloat16 is several times slower where it must emulate it."""
    flags = Path("/proc/cpuinfo").read_text()
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def serving(model: Path, log: Path, *arguments: str, **environment: str) -> Iterator[tuple[int, int]]:
    """Start ``vllm serve``, wait until it answers, and yield its pid and port."""
    port = free_port()
    words = ["serve", str(model), "--served-model-name", "m", "--port", str(port), "--dtype", number_type()]
    words += ["--max-model-len", "512", "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(2**28)]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *words, "--enforce-eager", *arguments]
    variables = {**os.environ, **OFFLINE, "VLLM_CACHE_ROOT": str(log.parent / "cache"), **environment}
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=variables, cwd=log.parent, start_new_session=True
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not is_healthy(port):
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.5)
        yield server.pid, port
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
