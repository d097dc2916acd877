"""What ends a wait: a process that ends, a cpuset that is written, a wake-up, or the time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ompaffinity.proof.events import EVENT_BYTES, KOBJECT_UEVENT, UEVENT_GROUP, Events


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


def test_a_file_that_was_removed_and_comes_back_is_watched_again(tmp_path: Path) -> None:
    file = tmp_path / "cpuset.cpus"
    file.write_text("0-1")
    with Events() as events:
        events.watch_files([str(file)])
        file.unlink()
        assert events.wait(10)
        file.write_text("0-1")
        events.watch_files([str(file)])
        file.write_text("0")
        assert events.wait(10)


def kernel_reports_devices() -> bool:
    """Return whether the kernel reports changes of devices here: root's, and not in every container."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, KOBJECT_UEVENT) as reports:
            reports.settimeout(1)
            reports.bind((0, UEVENT_GROUP))
            report_change("cpu/cpu0")
            return bool(reports.recv(EVENT_BYTES))
    except OSError:
        return False


def report_change(device: str) -> None:
    """Let the kernel report that a device has changed (Documentation/ABI/testing/sysfs-uevent)."""
    Path(f"/sys/devices/system/{device}/uevent").write_text("change")


needs_reports = pytest.mark.skipif(not kernel_reports_devices(), reason="the kernel reports no change of devices here")


@needs_reports
def test_a_change_of_a_cpu_ends_the_wait() -> None:
    with Events() as events:
        report_change("cpu/cpu0")
        assert events.wait(10)
        assert not events.wait(0.05)


@needs_reports
def test_a_change_of_another_device_does_not_end_the_wait() -> None:
    with Events() as events:
        report_change("clocksource/clocksource0")
        assert not events.wait(0.3)


def test_the_end_of_a_process_ends_the_wait_where_no_device_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    with subprocess.Popen(["sleep", "60"]) as process, Events() as events:
        events.watch_processes([process.pid])
        process.kill()
        assert events.wait(10)
