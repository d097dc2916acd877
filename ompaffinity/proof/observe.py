"""What the kernel says of a live process: its threads, where its pages are, what it was started with.

Everything comes from /proc (proc(5)); nothing is asked of the process itself. What cannot be read, for
the process is another user's, has ended, or the kernel hides it, is said in `problems`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.bind.pages import MappedMemory, mapped_memory
from ompaffinity.errors import RequestError
from ompaffinity.openmp.detect import MappedRuntimes, RuntimeLibrary, runtimes_of_process
from ompaffinity.placement.document import PLACEMENT_VARIABLE, parse_placement
from ompaffinity.proc import (
    allowed_cpus,
    command_line,
    last_cpu,
    parent_of,
    started_with,
    status_fields,
    thread_ids,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import RankPlacement

ENDED_STATES = ("Z", "X")
NUMA_MAPS_SECONDS = 5.0


class ThreadState(NamedTuple):
    """One thread: the kernel's id, its name, ``R`` for running or another state letter, its mask, its last CPU."""

    thread_id: int
    name: str
    state: str
    cpus: tuple[int, ...]
    last_cpu: int | None


class ProcessState(NamedTuple):
    """A process as the kernel shows it. `memory` is None where there is no numa_maps or it may not be read.

    `environment` is what the process was *started* with: later changes do not show there. `placement` is what
    we gave it, if it was started by us. `runtimes_known` is False where its libraries may not be read; `parent` is
    the process that started it.
    """

    pid: int
    command: str
    threads: tuple[ThreadState, ...]
    environment: dict[str, str] | None
    placement: RankPlacement | None
    runtimes: tuple[RuntimeLibrary, ...]
    memory: MappedMemory | None
    problems: tuple[str, ...]
    runtimes_known: bool = True
    parent: int = 0


def observe_process(pid: int) -> ProcessState:
    """Return what the kernel says of the process `pid`.

    Raises:
        RequestError: there is no such process (any more), or not even its threads may be seen.
    """
    problems: list[str] = []
    try:
        threads = tuple(_threads(pid))
    except FileNotFoundError:
        raise RequestError(f"there is no process {pid} (any more)") from None
    except OSError as error:
        raise RequestError(f"process {pid} cannot be read: {error.strerror} (hidepid, or another user's)") from None
    if not threads:
        raise RequestError(f"there is no process {pid} (any more)")
    if all(thread.state in ENDED_STATES for thread in threads):
        raise RequestError(f"process {pid} has ended, and its parent has not asked for its exit status yet (zombie)")
    environment = _environment(pid, problems)
    placement = None
    if environment is not None and PLACEMENT_VARIABLE in environment:
        try:
            placement = parse_placement(environment[PLACEMENT_VARIABLE])
        except RequestError as error:
            problems.append(str(error))
    runtimes = _runtimes(pid)
    problems += runtimes.problems
    return ProcessState(
        pid=pid,
        command=" ".join(command_line(pid)),
        threads=threads,
        environment=environment,
        placement=placement,
        runtimes=runtimes.libraries,
        memory=_memory(pid, problems),
        problems=tuple(problems),
        runtimes_known=not runtimes.problems,
        parent=parent_of(pid),
    )


def _threads(pid: int) -> Iterator[ThreadState]:
    for number in thread_ids(pid):
        try:
            fields = status_fields(pid, number)
            cpus, last = allowed_cpus(fields), last_cpu(pid, number)
        except (FileNotFoundError, ProcessLookupError):
            # The thread ended between the listing and the reading.
            continue
        if cpus is not None:
            yield ThreadState(number, fields.get("Name", ""), fields.get("State", "?")[:1], cpus, last)


def _runtimes(pid: int) -> MappedRuntimes:
    try:
        return runtimes_of_process(pid)
    except OSError as error:
        return MappedRuntimes((), (f"its libraries cannot be read (/proc/{pid}/maps: {error.strerror})",))


def _environment(pid: int, problems: list[str]) -> dict[str, str] | None:
    try:
        return started_with(pid)
    except OSError as error:
        problems.append(f"what it was started with cannot be read (/proc/{pid}/environ: {error.strerror})")
        return None


def _memory(pid: int, problems: list[str]) -> MappedMemory | None:
    try:
        memory = mapped_memory(pid, NUMA_MAPS_SECONDS)
    except FileNotFoundError:
        problems.append("where its pages are is not known: this kernel has no numa_maps (CONFIG_NUMA)")
    except OSError as error:
        problems.append(f"where its pages are cannot be read (/proc/{pid}/numa_maps: {error.strerror})")
    else:
        if not memory.complete:
            problems.append(f"where its pages are is known of a part only: {NUMA_MAPS_SECONDS:.0f} seconds were over")
        return memory
    return None
