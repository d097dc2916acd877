"""Which processes of a tree are the ranks, and what the others are. Pure."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.proof.verdict import Difference, OtherProcess
from ompaffinity.records import NamedTuple
from ompaffinity.shown import brief_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.observe import ProcessState

SUPERVISOR, HELPER, OTHER = "supervisor", "helper", "other"
ROLES = (
    (r"^VLLM::EngineCore|vllm.*EngineCore", "vLLM scheduler (EngineCore)"),
    (r"^VLLM::DPCoordinator", "vLLM data-parallel coordinator"),
    (r"^VLLM::APIServer|\bvllm(\.entrypoints\S*)? serve\b|vllm\.entrypoints", "vLLM API server"),
    (r"^sglang::(scheduler|detokenizer)|sglang\.launch_server", "SGLang server"),
    (r"multiprocessing\.resource_tracker", "resource tracker of multiprocessing"),
    (r"multiprocessing\.forkserver", "fork server of multiprocessing"),
    (r"torch\.distributed\.(run|launch)|\btorchrun\b", "torchrun"),
    (r"^(\S*/)?(mpirun|mpiexec|orterun|prterun|srun|slurmstepd|hydra_\S+)\b", "launcher"),
    (r"^ray::|raylet", "Ray"),
)
PREFORK = r"\b(gunicorn|uvicorn|hypercorn|celery|uwsgi|granian)\b"
PATTERNS = tuple((re.compile(pattern), role) for pattern, role in ROLES)
PREFORK_PATTERN = re.compile(PREFORK)


MAIN_SHARE = 0.25
"""A process with less CPU time than this part of the busiest one of its group is no rank of it."""


class Member(NamedTuple):
    """A process of a tree: its state, its most busy threads in a window, the placement of its group, and its CPU time.

    `placement` is its own, that of its nearest ancestor that has one, or None; `key` distinguishes its rank, also where
    another placement has replaced the one that it was started with.
    """

    state: ProcessState
    busy_threads: int = 0
    placement: RankPlacement | None = None
    cpu_seconds: float = 0.0
    key: tuple[int, tuple[int, ...]] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self.state.pid

    @property
    def computes(self) -> bool:
        """Whether it has a library that computes, and threads that were busy."""
        return self.busy_threads > 0 and self.has_library

    @property
    def has_library(self) -> bool:
        """Whether an OpenMP runtime or another engine is loaded."""
        return bool(self.state.runtimes or self.state.engines)

    @property
    def has_team(self) -> bool:
        """Whether a thread that has used CPU time is bound to a place after the first."""
        if self.placement is None or len(set(self.placement.places)) < 2:
            return False
        places = set(self.placement.places[1:])
        return any(thread.cpus in places and thread.run_ns > 0 for thread in self.state.threads)


class Group(NamedTuple):
    """The processes that are one rank: there is one, or the placement was given to several of them."""

    placement: RankPlacement | None
    ranks: tuple[Member, ...]


def role_of(command: str) -> str | None:
    """Return what a process is by its command or title, None where that is not known."""
    return next((role for pattern, role in PATTERNS if pattern.search(command)), None)


def placements_in_tree(
    states: Mapping[int, ProcessState], given: Mapping[int, RankPlacement]
) -> dict[int, RankPlacement | None]:
    """Return the placement of each process: its own, else that of its nearest ancestor in the tree.

    `given` are placements of processes that are known otherwise.
    """
    found: dict[int, RankPlacement | None] = {}

    def placement_of(pid: int) -> RankPlacement | None:
        if pid not in found:
            state = states[pid]
            found[pid] = state.placement or given.get(pid)
            if found[pid] is None and state.parent in states and state.parent != pid:
                found[pid] = placement_of(state.parent)
        return found[pid]

    # Parents first, because a chain of processes may be longer than the stack is deep.
    for pid in sorted(states, key=lambda number: (states[number].start_time, number)):
        placement_of(pid)
    return found


def groups_of(members: Sequence[Member]) -> list[Group]:
    """Return the groups of processes with one placement, each with those that are its ranks.

    Data-parallel groups number their ranks anew; the local rank and the CPUs distinguish placements.
    """
    groups: dict[tuple[int, tuple[int, ...]] | None, list[Member]] = {}
    for member in members:
        placement = member.placement
        key = None if placement is None else member.key or placement.key
        groups.setdefault(key, []).append(member)
    return [Group(found[0].placement, tuple(_ranks(found))) for found in groups.values()]


def _ranks(members: list[Member]) -> list[Member]:
    """Return the processes of a group that are ranks: those at work with a team, else those that may become it."""
    candidates = [member for member in members if not _is_known_server(member, members)] or members
    at_work = _main_workers([member for member in candidates if member.computes], candidates)
    # A server beside its worker computes, too, but not in a team.
    at_work = [member for member in at_work if member.has_team] or at_work
    with_team = at_work or [member for member in candidates if member.has_team]
    if with_team:
        return _not_forked_by(with_team)
    with_library = [member for member in candidates if member.has_library]
    return _idle_ranks(with_library, members) if with_library else _topmost(candidates, members)


def _main_workers(at_work: list[Member], candidates: list[Member]) -> list[Member]:
    """Leave out what is busy for a moment only, such as a command that a rank runs; add the siblings of the others.

    Such a command has an OpenMP library too where LD_PRELOAD names one.
    """
    most = max((member.cpu_seconds for member in at_work), default=0.0)
    main = [member for member in at_work if member.cpu_seconds >= MAIN_SHARE * most]
    servers = {member.state.parent for member in main if member.state.forked}
    idle = [member for member in candidates if member.state.forked and member.state.parent in servers]
    return main + [member for member in idle if member.has_library and member not in main]


def _not_forked_by(members: list[Member]) -> list[Member]:
    """Leave out what one of them has forked, which is its helper: the loaders of its data, for example."""
    pids = {member.pid for member in members}
    return [member for member in members if not (member.state.forked and member.state.parent in pids)]


def _topmost(candidates: list[Member], members: list[Member]) -> list[Member]:
    """Nothing computes here (yet): return the command itself, not what it has started."""
    states = {member.pid: member.state for member in members}
    chosen = [member for member in candidates if member.busy_threads] or candidates
    pids = {member.pid for member in chosen}
    return [member for member in chosen if not pids & ancestors_of(member.pid, states)]


def _is_known_server(member: Member, members: list[Member]) -> bool:
    if role_of(member.state.command) is not None:
        return True
    has_forked = any(other.state.forked and other.state.parent == member.pid for other in members)
    return has_forked and PREFORK_PATTERN.search(member.state.command) is not None


def _idle_ranks(with_library: list[Member], members: list[Member]) -> list[Member]:
    """Return the workers, not the server that has the library too and has started them."""
    states = {member.pid: member.state for member in members}
    pids = {member.pid for member in with_library}
    parents = {ancestor for member in with_library for ancestor in ancestors_of(member.pid, states)}
    leaves = [member for member in with_library if member.pid not in parents]
    forking = {member.state.parent for member in leaves if member.state.forked and member.state.parent in pids}
    # An idle process that has forked others with its library, and is no known server, is the rank.
    return [member for member in with_library if member.pid in forking] or leaves


def ancestors_of(pid: int, states: Mapping[int, ProcessState]) -> set[int]:
    """Return the processes above a process among these."""
    found: set[int] = set()
    parent = states[pid].parent
    while parent in states and parent not in found:
        found.add(parent)
        parent = states[parent].parent
    return found


def other_processes(states: Mapping[int, ProcessState], ranks: Iterable[int]) -> tuple[OtherProcess, ...]:
    """Return the processes that are no rank, each with what it is."""
    chosen = set(ranks)
    above = {ancestor for pid in chosen if pid in states for ancestor in ancestors_of(pid, states)}
    others = []
    for pid, state in sorted(states.items()):
        if pid in chosen:
            continue
        below = bool(ancestors_of(pid, states) & chosen)
        kind = SUPERVISOR if pid in above else HELPER if below else OTHER
        others.append(OtherProcess(pid, state.parent, kind, role_of(state.command), brief_command(state.command)))
    return tuple(others)


def shared_placement(first: Member, second: Member, states: Mapping[int, ProcessState]) -> Difference:
    """Return the difference that two processes have the placement of one rank, with how the second got it."""
    placement = second.placement
    rank = "?" if placement is None else placement.rank
    text = f"process {second.pid} has the placement of rank {rank}, and so has process {first.pid}"
    return Difference("process", text, how_it_was_shared(second, states))


def how_it_was_shared(member: Member, states: Mapping[int, ProcessState]) -> str | None:
    """Return how a process got the placement of another one, and what to do; None where that is unknown."""
    parent = states.get(member.state.parent)
    if not member.state.forked:
        if parent is None or parent.environment is None or PLACEMENT_VARIABLE not in parent.environment:
            return None
        return (
            f"it inherited the environment of process {parent.pid} by exec; start each worker under"
            " configure_omp_envs(rank), or with `ompaffinity run`"
        )
    if parent is None:
        return "it was forked by a process that was bound as this rank; bind each worker after the fork"
    if "multiprocessing.forkserver" in parent.command:
        return (
            "the fork server of multiprocessing gives every worker the environment of its first one; use the start"
            " method spawn"
        )
    name = os.path.basename(parent.command.split(" ")[0]) or "a process"
    cause = (
        f"both were forked by process {parent.pid} ({name}), which was bound as one rank; start a server with one"
        " worker per rank"
    )
    if parent.runtimes:
        cause += (
            "; it loaded an OpenMP runtime before the fork (--preload), and the GNU runtime hangs in a forked process"
            " if its team was formed before: load the model in the worker"
        )
    return cause
