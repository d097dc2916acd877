"""What a kernel does to a server that runs: cpusets (v2) that move, CPUs that go offline, pages that migrate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ompaffinity.bind.pages import mapped_memory, migrate_process_pages
from ompaffinity.ids import format_id_list
from ompaffinity.proc import mask_of, thread_ids
from ompaffinity.proof.events import Events
from ompaffinity.proof.watch import Watcher
from tests.guests.inside.common import NODES, ids, nodes_with_memory
from tests.guests.inside.computing import bound_program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.proof.drift import Change

GROUPS = Path("/sys/fs/cgroup")
SECONDS = 2.0
CHECKS = 100
HELD = 160
"""Memory of the worker in MiB; less than 64 MiB that move are not reported."""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group (v2) of its own."""
    (GROUPS / "cgroup.subtree_control").write_text("+cpuset")
    folder = GROUPS / "served"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture(scope="module")
def homes() -> list[tuple[int, list[int]]]:
    """The nodes with memory and CPUs, each with its first two CPUs; at least two nodes."""
    return [
        (node, ids(NODES / f"node{node}" / "cpulist")[:2])
        for node in nodes_with_memory()
        if node in ids(NODES / "has_cpu")
    ]


def changes_until(watcher: Watcher, kind: str) -> list[Change]:
    """Check until there is a change of this kind; return all changes."""
    found: list[Change] = []
    for _ in range(CHECKS):
        time.sleep(SECONDS)
        found += watcher.check().changes
        if kind in [change.kind for change in found]:
            return found
    raise AssertionError(f"no {kind} among {[str(change) for change in found]}")


def cpus_of(pid: int) -> set[int]:
    """Return the CPUs on which the threads of a process may run."""
    return {cpu for number in thread_ids(pid) for cpu in mask_of(number) or ()}


def test_a_server_follows_a_cpuset_that_moves(group: Path, homes: list[tuple[int, list[int]]], library: str) -> None:
    (_, first), (_, second) = homes[:2]
    (group / "cpuset.cpus").write_text(format_id_list(first))
    with bound_program(library, first) as (pid, _, _):
        (group / "cgroup.procs").write_text(str(pid))
        watcher = Watcher([pid], repair=True)
        watcher.start()
        with Events() as events:
            events.watch_files(watcher.files())
            (group / "cpuset.cpus").write_text(format_id_list(second))
            assert events.wait(60)
        changes = changes_until(watcher, "replanned")
        assert "cpuset-changed" in [change.kind for change in changes]
        assert cpus_of(pid) <= set(second)


def test_a_cpu_that_goes_offline_and_online_again(homes: list[tuple[int, list[int]]], library: str) -> None:
    cpus = homes[1][1]
    switch = Path(f"/sys/devices/system/cpu/cpu{cpus[-1]}/online")
    with bound_program(library, cpus) as (pid, team, placement):
        watcher = Watcher([pid], repair=True)
        watcher.start()
        try:
            with Events() as events:
                switch.write_text("0")
                assert events.wait(60)
            changes = changes_until(watcher, "replanned")
            assert "cpus-offline" in [change.kind for change in changes]
            assert cpus[-1] not in cpus_of(pid)
        finally:
            switch.write_text("1")
        changes_until(watcher, "replanned")
        time.sleep(SECONDS)
        watcher.check()
        if watcher.check().verdict == "holds":
            assert [mask_of(number) for number in team] == [set(place) for place in placement.places]
        assert cpus[-1] in cpus_of(pid)


def test_pages_that_migrate_are_reported_and_moved_back(homes: list[tuple[int, list[int]]], library: str) -> None:
    (home, cpus), (other, _) = homes[:2]
    with bound_program(library, cpus, HELD) as (pid, _, placement):
        assert placement.nodes == (home,)
        watcher = Watcher([pid], repair=True, memory_seconds=0.0)
        watcher.start()
        migrate_process_pages([home], [other], pid)
        assert mapped_memory(pid).anonymous.get(other, 0) > HELD * 2**19
        changes = [change for change in changes_until(watcher, "repaired") if change.kind != "verdict"]
        assert [change.kind for change in changes] == ["memory-moved", "repaired"]
        assert f"MiB on node {other}" in changes[0].message
        assert mapped_memory(pid).anonymous.get(home, 0) > HELD * 2**19
