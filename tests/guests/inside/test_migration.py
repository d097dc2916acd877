"""Pages of a server that runs, moved to another node by another program."""

from __future__ import annotations

from ompaffinity.bind.pages import mapped_memory, migrate_process_pages
from ompaffinity.proof.watch import Watcher
from tests.guests.inside.common import NODES, ids, nodes_with_memory
from tests.guests.inside.computing import bound_program
from tests.guests.inside.watching import changes_until

HELD = 160
"""Memory of the worker in MiB; less than 64 MiB that move are not reported."""


def test_pages_that_migrate_are_reported_and_moved_back(library: str) -> None:
    home, other = [node for node in nodes_with_memory() if node in ids(NODES / "has_cpu")][:2]
    cpus = ids(NODES / f"node{home}" / "cpulist")[:2]
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
