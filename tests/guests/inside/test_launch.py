"""Who is started by a launcher binds itself, by system calls whose numbers differ from architecture to architecture."""

from __future__ import annotations

import json
import sys
from typing import Any

from ompaffinity.launch import bind_exec
from tests.guests.inside.common import nodes_with_memory, ompaffinity, run

REPORT = """
import json, os
from tests.guests.inside.common import NODES, nodes_of, touched
unbound = os.environ.get("OMPAFFINITY_UNBOUND")
pages = nodes_of(touched(4)) if NODES.exists() else {}
print(json.dumps([sorted(os.sched_getaffinity(0)), list(pages), unbound]))
"""
WORKER = ["--", sys.executable, "-c", REPORT]


def report(*command: str) -> Any:
    return json.loads(run(*command, *WORKER).splitlines()[-1])


def test_the_standalone_file_binds_without_libnuma(guest: dict[str, Any]) -> None:
    start = [sys.executable, "-I", "-S", bind_exec.__file__]
    last = guest["cpus"] - 1
    for node in nodes_with_memory()[-2:]:
        cpus, nodes, unbound = report(*start, "--cpus", str(last), "--bind", str(node))
        assert (cpus, nodes, unbound) == ([last], [node], None)
    cpus, _, unbound = report(*start, "--cpus", str(last), "--bind", "1000")
    assert cpus == [last]
    assert "memory: bind rejected" in unbound


def test_each_local_rank_is_bound_and_execs_its_command(guest: dict[str, Any]) -> None:
    plan = ompaffinity("plan", "--tp", "4")
    for rank in plan["ranks"]:
        place = ("--local-rank", str(rank["rank"]), "--local-world-size", "4")
        cpus, nodes, unbound = report(sys.executable, "-m", "ompaffinity", "exec", *place)
        assert set(rank["cpus"]) <= set(cpus)
        assert unbound is None
        if rank["memory_policy"] == "bind":
            assert nodes == rank["nodes"]


def test_ranks_are_started_here() -> None:
    lines = run(sys.executable, "-m", "ompaffinity", "run", "--tp", "2", *WORKER).splitlines()
    plan = ompaffinity("plan", "--tp", "2")
    found = {int(line[6]): json.loads(line.partition("] ")[2]) for line in lines if line.startswith("[rank ")}
    for rank in plan["ranks"]:
        cpus, nodes, _ = found[rank["rank"]]
        assert set(rank["cpus"]) <= set(cpus)
        if rank["memory_policy"] == "bind":
            assert nodes == rank["nodes"]
