"""Real control groups: a child is put into nested groups made for it, and reads its own limits."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

CPUS = sorted(os.sched_getaffinity(0))
CODE = """
import os, sys
for group in sys.argv[1:]:
    with open(group + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
from ompaffinity.cli.main import main
main(["topology", "--json"])
"""


def mount_point(controller: str) -> Path | None:
    """Return where a version 1 controller is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return Path(point)
    return None


@contextlib.contextmanager
def group(controller: str, outer: dict[str, str], inner: dict[str, str]) -> Iterator[Path]:
    """Make a group in a group, each with these files written; skip where that cannot be."""
    mount = mount_point(controller)
    if mount is None:
        pytest.skip(f"no version 1 control group controller {controller} on this machine")
    folder = mount / f"ompaffinity-test-{os.getpid()}"
    nested = folder / "inner"
    with contextlib.ExitStack() as made:
        try:
            for place, files in ((folder, outer), (nested, inner)):
                place.mkdir()
                made.callback(place.rmdir)
                for name, text in files.items():
                    (place / name).write_text(text)
        except OSError as error:
            pytest.skip(f"control groups cannot be created here: {error}")
        yield nested


def topology_inside(*groups: Path) -> dict[str, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, groups)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    document: dict[str, dict[str, object]] = json.loads(done.stdout)
    return document


def test_reads_a_nested_cpuset() -> None:
    last = str(CPUS[-1])
    everything = {"cpuset.mems": "0", "cpuset.cpus": ",".join(map(str, CPUS))}
    with group("cpuset", everything, {"cpuset.mems": "0", "cpuset.cpus": last}) as nested:
        limits = topology_inside(nested)["limits"]
    assert (limits["affinity"], limits["cpuset_cpus"], limits["cpuset_nodes"]) == (last, last, "0")


def test_reads_the_tightest_quota_of_nested_groups() -> None:
    wide = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    with group("cpu", wide, {"cpu.cfs_quota_us": "-1"}) as nested:
        assert topology_inside(nested)["limits"]["cpu_quota"] == 1.5


def test_reads_the_tightest_memory_limit_of_nested_groups() -> None:
    limit = 2**30
    with group("memory", {"memory.limit_in_bytes": str(limit)}, {}) as nested:
        limits = topology_inside(nested)["limits"]
    assert limits["memory_limit_bytes"] == limit
    usage = limits["memory_usage_bytes"]
    assert isinstance(usage, int)
    assert 0 < usage < limit
