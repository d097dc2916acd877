"""Which processes of a tree are ranks, and how several got one placement."""

from __future__ import annotations

from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.observe import ProcessState
from ompaffinity.proof.tree import (
    Member,
    groups_of,
    how_it_was_shared,
    other_processes,
    placements_in_tree,
    role_of,
)
from tests.proof.observations import ALONE, PLACEMENT, process

TEAM = ((4, 6), (5,))


def ranks(*states: ProcessState, busy: tuple[int, ...] = ()) -> list[list[int]]:
    """Return the ranks of each placement; the processes `busy` had a busy thread."""
    by_pid = {state.pid: state for state in states}
    placements = placements_in_tree(by_pid, {})
    members = [Member(state, int(state.pid in busy), placements[state.pid]) for state in states]
    return [[member.pid for member in group.ranks] for group in groups_of(members) if group.placement is not None]


def test_a_wrapper_is_no_rank() -> None:
    shell = process((4, 5, 6), pid=10, command="bash -c python worker.py", runtimes=())
    worker = process(*TEAM, pid=20, parent=10)
    assert ranks(shell, worker) == [[20]]
    assert ranks(shell, worker, busy=(10, 20)) == [[20]]
    assert ranks(shell) == [[10]]


def test_a_server_that_starts_its_worker_is_no_rank() -> None:
    server = process((4, 5, 6), pid=10, command="server")
    worker = process(*TEAM, pid=20, parent=10, run_ns=1)
    assert ranks(server, worker) == [[20]]
    assert ranks(server, worker, busy=(10, 20)) == [[20]]


def test_known_servers_are_no_ranks() -> None:
    engine = process((4, 5, 6), pid=10, command="VLLM::EngineCore")
    worker = process(*TEAM, pid=20, parent=10, command="VLLM::Worker_TP0")
    assert ranks(engine, worker, busy=(10, 20)) == [[20]]
    assert role_of("VLLM::EngineCore") == "vLLM scheduler (EngineCore)"
    assert role_of("/usr/bin/python3 /usr/bin/vllm serve model") == "vLLM API server"
    assert role_of("python worker.py") is None


def test_loaders_that_a_rank_forked_are_no_ranks() -> None:
    rank = process(*TEAM, pid=10, run_ns=1)
    loaders = [process((4, 6), pid=pid, parent=10, forked=True) for pid in (20, 30)]
    assert ranks(rank, *loaders) == [[10]]
    assert ranks(rank, *loaders, busy=(10, 20, 30)) == [[10]]
    idle = process((4, 6), pid=10)
    assert ranks(idle, *loaders) == [[10]]


def test_a_command_that_a_rank_runs_is_no_rank() -> None:
    """LD_PRELOAD gives it an OpenMP library, and it is busy while it starts."""
    rank = Member(process((4,), pid=10, placement=ALONE), 1, ALONE, cpu_seconds=5.0)
    command = Member(process((4,), pid=20, parent=10, placement=ALONE, command="lscpu"), 1, ALONE, cpu_seconds=0.4)
    (group,) = groups_of([rank, command])
    assert group.ranks == (rank,)
    second = command._replace(cpu_seconds=4.0)
    assert groups_of([rank, second])[0].ranks == (rank, second)


def test_an_idle_worker_of_a_prefork_server_is_a_rank_beside_a_busy_one() -> None:
    workers = [process((4,), pid=pid, parent=10, forked=True, placement=ALONE) for pid in (20, 30)]
    members = [Member(workers[0], 1, ALONE, cpu_seconds=3.0), Member(workers[1], 0, ALONE)]
    assert [member.pid for member in groups_of(members)[0].ranks] == [20, 30]


def test_workers_of_a_prefork_server_are_ranks() -> None:
    for runtimes in ((), process((4,)).runtimes):
        server = process((4, 5, 6), pid=10, command="python /bin/gunicorn -w 2 app:app", runtimes=runtimes)
        workers = [process((4, 6), pid=pid, parent=10, forked=True) for pid in (20, 30)]
        assert ranks(server, *workers) == [[20, 30]]


def test_a_process_has_a_team_where_a_thread_has_computed_at_a_place_of_its_own() -> None:
    state = process(*TEAM, run_ns=1)
    assert Member(state, 0, PLACEMENT).has_team
    assert not Member(process(*TEAM), 0, PLACEMENT).has_team
    assert not Member(state, 0, ALONE).has_team
    assert not Member(state).has_team


def test_a_server_that_has_forked_no_worker_is_the_rank() -> None:
    server = process((4, 5, 6), pid=10, command="python -m uvicorn app:app", run_ns=1)
    tool = process((4, 5, 6), pid=20, parent=10, command="tool")
    assert ranks(server, tool, busy=(10,)) == [[10]]


def test_ranks_of_data_parallel_groups_with_one_number_are_two() -> None:
    first = PLACEMENT._replace(rank=0, local_rank=0)
    second = PLACEMENT._replace(rank=0, local_rank=1, cpus=(8, 9), places=((8,), (9,)), affinity=(8, 9))
    assert ranks(process(*TEAM, pid=10, placement=first), process((8,), pid=20, placement=second)) == [[10], [20]]


def test_a_child_without_its_environment_belongs_to_its_parent() -> None:
    parent, child = process((4,), pid=10, placement=ALONE), process((4,), pid=20, parent=10, placement=None)
    orphan = process((4,), pid=30, placement=None)
    states = {state.pid: state for state in (parent, child, orphan)}
    assert placements_in_tree(states, {}) == {10: ALONE, 20: ALONE, 30: None}
    assert placements_in_tree({30: orphan}, {30: PLACEMENT}) == {30: PLACEMENT}


def test_names_the_way_in_which_a_placement_was_shared() -> None:
    def cause(parent: ProcessState | None, *, forked: bool) -> str:
        child = process((4,), pid=20, parent=10, forked=forked)
        return how_it_was_shared(Member(child), {} if parent is None else {10: parent}) or ""

    server = process((4,), pid=10, command="/bin/gunicorn", runtimes=())
    assert cause(server, forked=True).startswith("both were forked by process 10 (gunicorn), which was bound as one")
    assert "--preload" in cause(process((4,), pid=10, command="gunicorn"), forked=True)
    assert "--preload" not in cause(server, forked=True)
    fork_server = process((4,), pid=10, command="python -c from multiprocessing.forkserver import main")
    assert cause(fork_server, forked=True).startswith("the fork server of multiprocessing")
    assert cause(server, forked=False).startswith("it inherited the environment of process 10 by exec")
    assert cause(process((4,), pid=10, placement=None), forked=False) == ""
    assert cause(None, forked=False) == ""


def test_the_other_processes_are_listed_as_what_they_are() -> None:
    states = {
        state.pid: state
        for state in (
            process((4,), pid=10, command="python -m vllm.entrypoints.openai.api_server"),
            process((4,), pid=20, parent=10),
            process((4,), pid=30, parent=20, command="python -c from multiprocessing.resource_tracker import main"),
            process((4,), pid=40, parent=10),
        )
    }
    found = [(other.pid, other.kind, other.role) for other in other_processes(states, [20])]
    assert found == [
        (10, "supervisor", "vLLM API server"),
        (30, "helper", "resource tracker of multiprocessing"),
        (40, "other", None),
    ]


def test_the_group_of_a_placement_keeps_it() -> None:
    placement: RankPlacement | None = groups_of([Member(process((4,)), 0, PLACEMENT)])[0].placement
    assert placement == PLACEMENT
