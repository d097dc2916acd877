"""Any running processes: where their threads may run and their pages are, and what is wrong with that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.proc import process_ids
from ompaffinity.proof.compare import main_policy
from ompaffinity.proof.observe import ProcessState, observe_process
from ompaffinity.topology.model import LOCAL_DISTANCE, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ompaffinity.topology.model import Topology

MANY_RUNNABLE = 2
"""So many threads that want to run and may run on one CPU only take turns on it."""
FAR_SHARE = 0.5
FAR_BYTES = 64 * 2**20
"""Less memory than this is not worth a word, wherever it is."""


class Finding(NamedTuple):
    """Something wrong: a stable code, the processes, and a sentence that says what to do."""

    code: str
    pids: tuple[int, ...]
    message: str


class InspectedProcess(NamedTuple):
    """A process, and its bytes by the SLIT distance (10 = local) from the nodes that its threads may run on."""

    state: ProcessState
    bytes_by_distance: dict[int, int] | None

    def to_document(self) -> dict[str, Any]:
        """Return the process as plain values, ready for JSON."""
        state = self.state
        memory = None if state.memory is None else state.memory.bytes_by_node
        return {
            "pid": state.pid,
            "command": state.command,
            "rank": None if state.placement is None else state.placement.rank,
            "threads": [thread._asdict() | {"cpus": format_id_list(thread.cpus)} for thread in state.threads],
            "runtimes": [library.path for library in state.runtimes],
            "policy": main_policy(state),
            "bytes_by_node": None if memory is None else {str(node): size for node, size in sorted(memory.items())},
            "bytes_by_distance": None
            if self.bytes_by_distance is None
            else {str(distance): size for distance, size in sorted(self.bytes_by_distance.items())},
            "notes": list(state.problems),
        }


class Inspection(NamedTuple):
    """What was found of some processes; `unseen` are those that may not be looked at, or ended meanwhile."""

    processes: tuple[InspectedProcess, ...]
    findings: tuple[Finding, ...]
    unseen: tuple[int, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.inspect/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.inspect/1",
            "processes": [process.to_document() for process in self.processes],
            "findings": [finding._asdict() | {"pids": list(finding.pids)} for finding in self.findings],
            "unseen": list(self.unseen),
        }


def inspect_processes(topology: Topology, pids: Iterable[int]) -> Inspection:
    """Return what the kernel says of these processes, and what is wrong among them.

    Raises:
        RequestError: there is no such process, or it may not be looked at.
    """
    return _inspected(topology, [observe_process(pid) for pid in dict.fromkeys(pids)])


def inspect_all(topology: Topology) -> Inspection:
    """Return the same of every process that is bound to fewer CPUs than this machine has online.

    Kernel threads and this process itself are left out.
    """
    online = {cpu.id for cpu in topology.cpus if cpu.online}
    states, unseen = [], []
    for pid in process_ids():
        if pid == os.getpid():
            continue
        try:
            state = observe_process(pid)
        except RequestError:
            unseen.append(pid)
            continue
        # A kernel thread has no command line.
        if state.command and any(not online <= set(thread.cpus) for thread in state.threads):
            states.append(state)
    return _inspected(topology, states)._replace(unseen=tuple(unseen))


def _inspected(topology: Topology, states: list[ProcessState]) -> Inspection:
    processes = tuple(InspectedProcess(state, _bytes_by_distance(topology, state)) for state in states)
    findings = (
        *_shared_cores(topology, states),
        *(finding for state in states for finding in _crowded_cpus(state)),
        *(finding for process in processes for finding in _far_memory(process)),
    )
    return Inspection(processes, findings)


def _bytes_by_distance(topology: Topology, state: ProcessState) -> dict[int, int] | None:
    if state.memory is None or not topology.nodes:
        return None
    node_of = {cpu.id: cpu.numa_node for cpu in topology.cpus}
    homes = {node_of[cpu] for thread in state.threads for cpu in thread.cpus if cpu in node_of} - {UNKNOWN}
    found: dict[int, int] = {}
    for node, size in state.memory.bytes_by_node.items():
        distance = min((topology.distance(home, node) for home in homes), default=LOCAL_DISTANCE)
        found[distance] = found.get(distance, 0) + size
    return found


def _shared_cores(topology: Topology, states: list[ProcessState]) -> Iterator[Finding]:
    """Find cores to which threads of two processes are pinned, each within that core.

    A process and those that it started count as one: children inherit the mask.
    """
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
    for processes in pinned.values():
        if len({_oldest(pid, parents) for pid in processes}) > 1:
            by_pids.setdefault(tuple(sorted(processes)), set()).update(*processes.values())
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


def _crowded_cpus(state: ProcessState) -> Iterator[Finding]:
    """Find CPUs where several threads of a process want to run and may run nowhere else."""
    wanting: dict[int, int] = {}
    for thread in state.threads:
        if thread.state == "R" and len(thread.cpus) == 1:
            wanting[thread.cpus[0]] = wanting.get(thread.cpus[0], 0) + 1
    for cpu, count in sorted(wanting.items()):
        if count >= MANY_RUNNABLE:
            yield Finding(
                "threads-on-one-cpu",
                (state.pid,),
                f"{count} runnable threads of process {state.pid} may run on CPU {cpu} only: later threads inherited"
                " the mask of a pinned one; start them under helper_threads(), or give the first thread more room",
            )


def _far_memory(process: InspectedProcess) -> Iterator[Finding]:
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
