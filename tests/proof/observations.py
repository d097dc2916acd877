"""Processes and windows that tests invent: what the kernel would report about them."""

from __future__ import annotations

import json

from ompaffinity.bind.pages import MappedMemory
from ompaffinity.openmp.detect import RuntimeLibrary
from ompaffinity.placement.document import placement_document
from ompaffinity.placement.model import RankPlacement
from ompaffinity.proof.activity import Activity, ThreadActivity
from ompaffinity.proof.observe import ProcessState, ThreadState
from ompaffinity.proof.timeline import Timeline

PLACEMENT = RankPlacement(
    1, 1, cpus=(4, 5), helper_cpus=(6,), places=((4, 6), (5,)), affinity=(4, 5, 6), nodes=(1,), memory_policy="bind"
)
FLOATING = PLACEMENT._replace(places=((4, 5, 6), (4, 5, 6)))
ALONE = PLACEMENT._replace(cpus=(4,), helper_cpus=(), places=((4,),), affinity=(4,))
GNU = RuntimeLibrary("/lib/libgomp.so.1", "gomp", "loaded")
SECONDS = 0.5
Mask = tuple[int, ...]


def process(
    *masks: Mask,
    pid: int = 100,
    parent: int = 1,
    command: str = "worker",
    policy: str = "bind:1",
    placement: RankPlacement | None = PLACEMENT,
    runtimes: tuple[RuntimeLibrary, ...] = (GNU,),
    run_ns: int = 0,
    forked: bool = False,
) -> ProcessState:
    """Return a process with a thread for each mask, started with this placement in its environment."""
    threads = [
        ThreadState(pid + number, "worker", "S", cpus, cpus[0], run_ns=run_ns) for number, cpus in enumerate(masks)
    ]
    environment = {} if placement is None else {"OMPAFFINITY_PLACEMENT": json.dumps(placement_document(placement))}
    memory = MappedMemory({policy: {1: 4096}}, {})
    return ProcessState(
        pid, command, tuple(threads), environment, placement, runtimes, memory, (), parent=parent, forked=forked
    )


def window(*threads: tuple[Mask, float], delay: float | None = 0.0, steady: bool = True) -> Activity:
    """Return a window of threads, each with its mask and the part of it that it ran; the first is the main thread.

    Those that ran also waited for a CPU, for `delay` of the window.
    """
    delays = [None if delay is None else delay * SECONDS * bool(share) for _, share in threads]
    return Activity(
        SECONDS,
        tuple(
            ThreadActivity(100 + number, "worker", cpus, share * SECONDS, delays[number])
            for number, (cpus, share) in enumerate(threads)
        ),
        100,
        steady,
    )


def timeline(placement: RankPlacement, *windows: Activity, has_openmp: bool = True, **engine: bool) -> Timeline:
    """Return the timeline of a process that showed these windows."""
    found = Timeline(placement)
    for activity in windows:
        found.add(activity, has_openmp=has_openmp, **engine)
    return found
