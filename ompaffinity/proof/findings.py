"""What is wrong with running processes: the rules of ``inspect``. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.proof.compare import main_policy
from ompaffinity.proof.tree import how_it_was_shared
from ompaffinity.records import NamedTuple
from ompaffinity.topology.model import LOCAL_DISTANCE, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ompaffinity.proof.activity import Activity
    from ompaffinity.proof.observe import ProcessState
    from ompaffinity.proof.tree import Group
    from ompaffinity.topology.model import Topology

RANK, COMPETITOR, PROCESS = "rank", "competitor", "process"
FAR_SHARE = 0.5
FAR_BYTES = 64 * 2**20
"""Less memory than this is not reported, wherever it is."""


class Finding(NamedTuple):
    """Something wrong: a stable code, the processes, and a sentence with the remedy."""

    code: str
    pids: tuple[int, ...]
    message: str


class InspectedProcess(NamedTuple):
    """A process and its activity in each half of the window.

    `kind` is ``rank``, ``supervisor`` (of ranks), ``helper`` (of a rank), ``competitor`` (not bound, but busy and
    allowed on the CPUs of bound processes) or ``process``. `bytes_by_distance` are its bytes by the SLIT distance
    (10 = local) from the nodes that its threads may run on.
    """

    state: ProcessState
    bytes_by_distance: dict[int, int] | None
    halves: tuple[Activity, ...] = ()
    kind: str = PROCESS
    role: str | None = None

    @property
    def busy_threads(self) -> tuple[int, ...]:
        """The ids of the threads that were busy in both halves."""
        busy = [{thread.thread_id for thread in half.busy} for half in self.halves]
        return tuple(sorted(set.intersection(*busy))) if busy else ()

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of all threads in the window."""
        return sum(thread.run_seconds for half in self.halves for thread in half.threads)

    @property
    def delay_seconds(self) -> float | None:
        """The longest time that a busy thread waited for a CPU, per second; None where that is unknown."""
        busy = set(self.busy_threads)
        delays: dict[int, float] = {}
        for half in self.halves:
            for thread in half.threads:
                if thread.thread_id in busy and thread.delay_seconds is not None:
                    delays[thread.thread_id] = delays.get(thread.thread_id, 0.0) + thread.delay_seconds
        seconds = sum(half.seconds for half in self.halves)
        return max(delays.values()) / seconds if delays else None

    def times_of(self, thread_id: int) -> tuple[float | None, float | None]:
        """Return the seconds that a thread ran and waited for a CPU in the window, None where that is unknown."""
        found = [thread for half in self.halves for thread in half.threads if thread.thread_id == thread_id]
        delays = [thread.delay_seconds for thread in found]
        run = round(sum(thread.run_seconds for thread in found), 6) if found else None
        known = [delay for delay in delays if delay is not None]
        return run, round(sum(known), 6) if found and len(known) == len(delays) else None

    def to_document(self) -> dict[str, Any]:
        """Return the process as plain values, ready for JSON."""
        state = self.state
        memory = None if state.memory is None else state.memory.bytes_by_node
        busy, delay = self.busy_threads, self.delay_seconds
        threads = []
        for thread in state.threads:
            run_seconds, delay_seconds = self.times_of(thread.thread_id)
            threads.append(
                {
                    "thread_id": thread.thread_id,
                    "name": thread.name,
                    "state": thread.state,
                    "cpus": format_id_list(thread.cpus),
                    "last_cpu": thread.last_cpu,
                    "busy": thread.thread_id in busy,
                    "run_seconds": run_seconds,
                    "delay_seconds": delay_seconds,
                }
            )
        return {
            "pid": state.pid,
            "parent": state.parent,
            "kind": self.kind,
            "role": self.role,
            "command": state.command,
            "rank": None if state.placement is None else state.placement.rank,
            "threads": threads,
            "busy_threads": len(busy),
            "delay_seconds": None if delay is None else round(delay, 6),
            "runtimes": [library.path for library in state.runtimes],
            "engines": [engine.name for engine in state.engines],
            "policy": main_policy(state),
            "bytes_by_node": None if memory is None else {str(node): size for node, size in sorted(memory.items())},
            "bytes_by_distance": None
            if self.bytes_by_distance is None
            else {str(distance): size for distance, size in sorted(self.bytes_by_distance.items())},
            "notes": list(state.problems),
        }


def shared_placements(groups: Iterable[Group], states: dict[int, ProcessState]) -> Iterator[Finding]:
    """Find placements that several processes have."""
    for group in groups:
        if group.placement is None or len(group.ranks) < 2:
            continue
        pids = tuple(sorted(member.pid for member in group.ranks))
        cause = how_it_was_shared(group.ranks[-1], states)
        yield Finding(
            "placement-shared",
            pids,
            f"processes {', '.join(map(str, pids))} have the placement of rank {group.placement.rank} and share its CPU"
            f" {format_id_list(group.placement.affinity)}" + ("" if cause is None else f": {cause}"),
        )


def shared_cores(topology: Topology, processes: Iterable[InspectedProcess]) -> Iterator[Finding]:
    """Find cores to which threads of two processes are pinned, each within that core.

    A process and those that it started count as one: children inherit the mask.
    """
    states = [process.state for process in processes]
    parents = {state.pid: state.parent for state in states}
    core_of = {cpu.id: (cpu.physical_core, cpu.numa_node) for cpu in topology.cpus if cpu.physical_core != UNKNOWN}
    pinned: dict[tuple[int, int], dict[int, set[int]]] = {}
    for state in states:
        for thread in state.threads:
            cores = {core_of.get(cpu) for cpu in thread.cpus}
            core = cores.pop() if len(cores) == 1 else None
            if core is not None:
                pinned.setdefault(core, {}).setdefault(state.pid, set()).update(thread.cpus)
    by_pids: dict[tuple[int, ...], set[int]] = {}
    for by_pid in pinned.values():
        if len({_oldest(pid, parents) for pid in by_pid}) > 1:
            by_pids.setdefault(tuple(sorted(by_pid)), set()).update(*by_pid.values())
    for pids, cpus in sorted(by_pids.items()):
        names = ", ".join(map(str, pids))
        yield Finding(
            "core-shared",
            pids,
            f"processes {names} are pinned to the same cores (CPU {format_id_list(cpus)}) and take turns there;"
            " give each its own (plan --avoid keeps a second server off the first one's)",
        )


def _oldest(pid: int, parents: dict[int, int]) -> int:
    """Return the first ancestor of a process among those that are looked at, or itself."""
    while parents.get(pid, 0) in parents and parents[pid] != pid:
        pid = parents[pid]
    return pid


def crowded_cpus(process: InspectedProcess) -> Iterator[Finding]:
    """Find masks with more threads that were busy in both halves than CPUs."""
    busy = set(process.busy_threads)
    masks: dict[tuple[int, ...], int] = {}
    for thread in process.state.threads:
        if thread.thread_id in busy:
            masks[thread.cpus] = masks.get(thread.cpus, 0) + 1
    pid = process.state.pid
    for cpus, count in sorted(masks.items()):
        if count <= len(cpus):
            continue
        if len(cpus) == 1:
            yield Finding(
                "threads-on-one-cpu",
                (pid,),
                f"{count} busy threads of process {pid} may run on CPU {cpus[0]} only: there are too many threads, or"
                " some inherited the mask of a pinned one; use as many threads as CPUs, or start the others under"
                " helper_threads()",
            )
        else:
            yield Finding(
                "cpus-oversubscribed",
                (pid,),
                f"{counted(count, 'busy thread')} of process {pid} share CPU {format_id_list(cpus)}; use as many"
                " threads as CPUs",
            )


def far_memory(process: InspectedProcess) -> Iterator[Finding]:
    """Find a process most of whose memory is on other nodes than its CPUs."""
    if process.bytes_by_distance is None:
        return
    total = sum(process.bytes_by_distance.values())
    far = {distance: size for distance, size in process.bytes_by_distance.items() if distance > LOCAL_DISTANCE}
    size = sum(far.values())
    if size >= FAR_BYTES and size > FAR_SHARE * total:
        parts = ", ".join(
            f"{amount / 2**20:.0f} MiB at distance {distance}" for distance, amount in sorted(far.items())
        )
        yield Finding(
            "memory-far",
            (process.state.pid,),
            f"of the {total / 2**20:.0f} MiB of process {process.state.pid} most are far from its CPUs ({parts});"
            " bind its memory from the start, or move it with migratepages",
        )
