"""What a kernel does to a server that runs: cpusets (v2) that move, and CPUs that go offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ompaffinity.ids import format_id_list
from ompaffinity.proc import mask_of, thread_ids
from ompaffinity.proof.events import Events
from ompaffinity.proof.watch import Watcher
from tests.guests.inside.common import NODES, ids, nodes_with_memory
from tests.guests.inside.computing import bound_program
from tests.guests.inside.watching import SECONDS, changes_until

if TYPE_CHECKING:
    from collections.abc import Iterator


GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group (v2) of its own."""
    (GROUPS / "cgroup.subtree_control").write_text("+cpuset")
    folder = GROUPS / "served"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture(scope="module")
def groups_of_cpus() -> list[list[int]]:
    """Two groups of two CPUs, on two nodes with memory if there are as many."""
    of_nodes = [
        ids(NODES / f"node{node}" / "cpulist") for node in nodes_with_memory() if node in ids(NODES / "has_cpu")
    ]
    # A kernel without NUMA has no nodes.
    of_nodes = of_nodes or [ids(Path("/sys/devices/system/cpu/online"))]
    if len(of_nodes) == 1:
        of_nodes = [of_nodes[0][:2], of_nodes[0][2:]]
    return [cpus[:2] for cpus in of_nodes]


def cpus_of(pid: int) -> set[int]:
    """Return the CPUs on which the threads of a process may run."""
    return {cpu for number in thread_ids(pid) for cpu in mask_of(number) or ()}


def test_a_server_follows_a_cpuset_that_moves(group: Path, groups_of_cpus: list[list[int]], library: str) -> None:
    first, second = groups_of_cpus[:2]
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


def test_a_cpu_that_goes_offline_and_online_again(groups_of_cpus: list[list[int]], library: str) -> None:
    cpus = groups_of_cpus[1]
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
