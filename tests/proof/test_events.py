"""What ends a wait: a process that ends, a cpuset that is written, a wake-up, or the time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ompaffinity.proof.events import Events


def test_waits_until_the_time_is_over() -> None:
    with Events() as events:
        start = time.monotonic()
        assert not events.wait(0.2)
        assert time.monotonic() - start >= 0.2


def test_the_end_of_a_process_ends_the_wait_once() -> None:
    with subprocess.Popen(["sleep", "60"]) as process, Events() as events:
        events.watch_processes([process.pid])
        assert not events.wait(0.05)
        process.kill()
        assert events.wait(10)
        assert not events.wait(0.05)


def test_a_process_that_is_watched_no_more_ends_no_wait() -> None:
    with subprocess.Popen(["sleep", "60"]) as process, Events() as events:
        events.watch_processes([process.pid])
        events.watch_processes([])
        process.kill()
        process.wait()
        assert not events.wait(0.05)


def test_a_file_that_is_written_ends_the_wait(tmp_path: Path) -> None:
    file = tmp_path / "cpuset.cpus"
    file.write_text("0-1")
    with Events() as events:
        events.watch_files([str(file), str(tmp_path / "absent")])
        assert not events.wait(0.05)
        file.write_text("0")
        assert events.wait(10)


def test_a_wake_up_ends_the_wait() -> None:
    with Events() as events:
        events.wake()
        assert events.wait(10)
        assert not events.wait(0.05)


def test_no_descriptor_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process, Events() as events:
        events.watch_processes([process.pid])
        events.watch_files(["/proc/self/status"])
        process.wait()
    assert os.listdir("/proc/self/fd") == before
