"""Any running processes: where their threads may run and their pages are, which are busy, and what is wrong with that.

The processes are observed three times. What concerns CPU time counts only if it is found in both halves of the window.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import ProcessEndedError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.proc import process_ids, processes_below
from ompaffinity.proof.activity import Activity, activity_between
from ompaffinity.proof.findings import (
    COMPETITOR,
    PROCESS,
    RANK,
    Finding,
    InspectedProcess,
    crowded_cpus,
    far_memory,
    shared_cores,
    shared_placements,
)
from ompaffinity.proof.observe import ProcessState, observe_process, observe_threads, require_proc
from ompaffinity.proof.tree import OTHER, Group, Member, groups_of, other_processes, placements_in_tree, role_of
from ompaffinity.records import NamedTuple
from ompaffinity.shown import brief_command
from ompaffinity.topology.model import LOCAL_DISTANCE, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ompaffinity.topology.model import Topology

WINDOW_SECONDS = 1.0


class Inspection(NamedTuple):
    """What was found of some processes in a window of so many seconds.

    `unseen` are those that this user may not see; `hidden`: the kernel hides other users' processes (hidepid).
    """

    processes: tuple[InspectedProcess, ...]
    findings: tuple[Finding, ...]
    unseen: tuple[int, ...] = ()
    seconds: float = 0.0
    hidden: bool = False

    @property
    def has_seen_nothing(self) -> bool:
        """Whether there were processes, and none of them could be seen."""
        return not self.processes and bool(self.unseen or self.hidden)

    def with_brief_commands(self) -> Inspection:
        """Return the same with the start of each command alone: arguments may be secret."""
        processes = (
            process._replace(state=process.state._replace(command=brief_command(process.state.command)))
            for process in self.processes
        )
        return self._replace(processes=tuple(processes))

    def to_document(self) -> dict[str, Any]:
        """Return the ``ompaffinity.inspect/1`` document: plain values, ready for JSON."""
        return {
            "schema": "ompaffinity.inspect/1",
            "seconds": round(self.seconds, 3),
            "processes": [process.to_document() for process in self.processes],
            "findings": [finding._asdict() | {"pids": list(finding.pids)} for finding in self.findings],
            "unseen": list(self.unseen),
            "hidden": self.hidden,
        }


def inspect_processes(topology: Topology, pids: Iterable[int], seconds: float = WINDOW_SECONDS) -> Inspection:
    """Return what these processes and all those below them do in a window, and what is wrong among them.

    Raises:
        RequestError: there is no such process, or it may not be seen.
    """
    samples, unseen = _sampled_tree(pids, seconds)
    return inspected(topology, [_details(state) for state in samples[-1].values()], samples, unseen=unseen)


def inspect_all(topology: Topology, seconds: float = WINDOW_SECONDS) -> Inspection:
    """Return the same of every process that is bound to fewer CPUs than this machine has online.

    Added are unbound processes that were busy and may run on the CPUs of these. Kernel threads and this process are
    left out.

    Raises:
        RequestError: /proc is not mounted.
    """
    require_proc()
    hidden = 1 not in process_ids()
    online = {cpu.id for cpu in topology.cpus if cpu.online}
    samples, unseen = _sampled(process_ids, seconds)
    # A kernel thread has no command line.
    latest = [state for state in samples[-1].values() if state.command]
    bound = [state for state in latest if any(not online <= set(thread.cpus) for thread in state.threads)]
    cpus = {cpu for state in bound for thread in state.threads for cpu in thread.cpus if not online <= {*thread.cpus}}
    competing = [state for state in latest if state not in bound and _competes(state.pid, samples, cpus)]
    states = [_details(state) for state in (*bound, *competing)]
    found = inspected(topology, states, samples, unseen=unseen, competing={state.pid for state in competing})
    return found._replace(hidden=hidden)


def sampled_processes(pids: Iterable[int], seconds: float = WINDOW_SECONDS) -> dict[int, InspectedProcess]:
    """Observe these processes and all those below them for a window, without their memory; return them by their ids.

    Raises:
        RequestError: one of them, or one below, may not be seen, or there is no such process.
    """
    samples, unseen = _sampled_tree(pids, seconds)
    if unseen:
        raise RequestError(f"process {format_id_list(unseen)} may not be seen; run as its user, or as root")
    for pid in pids:
        if pid not in samples[-1]:
            raise ProcessEndedError(f"process {pid} has ended meanwhile")
    return {
        pid: InspectedProcess(_details(state, with_memory=False), None, _halves(pid, samples))
        for pid, state in samples[-1].items()
    }


Samples = list[dict[int, ProcessState]]


def _sampled(
    pids: Callable[[], Iterable[int]], seconds: float, first: dict[int, ProcessState] | None = None
) -> tuple[Samples, tuple[int, ...]]:
    """Observe these processes at the start, in the middle and at the end; return that, and what may not be seen."""
    samples: Samples = []
    unseen: set[int] = set()
    for number in range(3):
        if number:
            time.sleep(seconds / 2)
        seen = dict(first or {}) if not number else {}
        for pid in pids():
            if pid in seen or pid == os.getpid():
                continue
            try:
                seen[pid] = observe_threads(pid)
            except ProcessEndedError:
                continue
            except RequestError:
                unseen.add(pid)
        samples.append(seen)
    return samples, tuple(sorted(unseen))


def _sampled_tree(pids: Iterable[int], seconds: float) -> tuple[Samples, tuple[int, ...]]:
    """Observe these processes and all those below them, as `_sampled` does.

    Raises:
        RequestError: there is no such process, or it may not be seen.
    """
    require_proc()
    roots = tuple(dict.fromkeys(pids))
    first = {pid: observe_threads(pid) for pid in roots}
    return _sampled(lambda: (*roots, *(pid for pid in processes_below(*roots) if pid != os.getpid())), seconds, first)


def _halves(pid: int, samples: Samples) -> tuple[Activity, ...]:
    if not all(pid in sample for sample in samples):
        return ()
    found = (activity_between(samples[at][pid], samples[at + 1][pid]) for at in range(len(samples) - 1))
    halves = tuple(half for half in found if half is not None)
    return halves if len(halves) == len(samples) - 1 else ()


def _competes(pid: int, samples: Samples, cpus: set[int]) -> bool:
    """Return whether a process was busy in both halves in threads that may run on some of these CPUs."""
    halves = _halves(pid, samples)
    return bool(halves) and all(any(cpus & {*thread.cpus} for thread in half.busy) for half in halves)


def _details(state: ProcessState, *, with_memory: bool = True) -> ProcessState:
    """Return the state with all that is known of the process, or as it is if it has ended meanwhile."""
    try:
        return observe_process(state.pid, with_memory=with_memory)
    except RequestError:
        return state


def inspected(
    topology: Topology,
    states: list[ProcessState],
    samples: Samples,
    *,
    unseen: tuple[int, ...] = (),
    competing: Iterable[int] = (),
) -> Inspection:
    """Return what was found of these processes, whose activity is in the samples."""
    by_pid = {state.pid: state for state in states}
    placements = placements_in_tree(by_pid, {})
    halves = {pid: _halves(pid, samples) for pid in by_pid}
    members = [
        Member(
            state,
            max((len(half.busy) for half in halves[pid]), default=0),
            placements[pid],
            sum(thread.run_seconds for half in halves[pid] for thread in half.threads),
        )
        for pid, state in by_pid.items()
    ]
    groups = [group for group in groups_of(members) if group.placement is not None]
    kinds = _kinds(groups, by_pid) | dict.fromkeys(competing, COMPETITOR)
    processes = tuple(
        InspectedProcess(
            state,
            _bytes_by_distance(topology, state),
            halves[state.pid],
            kinds.get(state.pid, PROCESS),
            role_of(state.command),
        )
        for state in states
    )
    bound = [process for process in processes if process.kind != COMPETITOR]
    findings = (
        *shared_placements(groups, by_pid),
        *shared_cores(topology, bound),
        *(finding for process in processes for finding in crowded_cpus(process)),
        *(finding for process in processes for finding in far_memory(process)),
    )
    times = [max((state.seconds for state in sample.values()), default=0.0) for sample in (samples[0], samples[-1])]
    return Inspection(processes, findings, unseen, max(0.0, times[1] - times[0]))


def _kinds(groups: Iterable[Group], states: dict[int, ProcessState]) -> dict[int, str]:
    """Return what the processes of a tree with ranks are."""
    ranks = {member.pid for group in groups for member in group.ranks}
    others = other_processes(states, ranks) if ranks else ()
    return dict.fromkeys(ranks, RANK) | {process.pid: process.kind for process in others if process.kind != OTHER}


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
