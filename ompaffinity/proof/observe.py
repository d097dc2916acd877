"""What the kernel reports about a live process: its threads, where its pages are, what it was started with.

Everything comes from /proc (proc(5)); the process itself is not involved. `problems` names what cannot be read because
the process is another user's or the kernel hides it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.pages import MappedMemory, mapped_memory
from ompaffinity.errors import ProcessEndedError, RequestError
from ompaffinity.mapped import mapped_files
from ompaffinity.openmp.detect import MappedRuntimes, RuntimeLibrary, runtimes_of_process
from ompaffinity.placement.document import PLACEMENT_VARIABLE, PUBLISHED_NAME, parse_placement
from ompaffinity.proc import (
    MAX_ARGUMENT_BYTES,
    Environment,
    ProcessFacts,
    allowed_cpus,
    bytes_read,
    command_line,
    environment_of,
    memory_file,
    process_facts,
    status_fields,
    thread_ids,
    thread_times,
)
from ompaffinity.proof.engines import Engine, engines_of
from ompaffinity.records import NamedTuple
from ompaffinity.shown import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import RankPlacement

ENDED_STATES = ("Z", "X")
NUMA_MAPS_SECONDS = 2.0


class ThreadState(NamedTuple):
    """One thread: the kernel's id, its name, ``R`` for running or another state letter, its mask, its last CPU.

    `start_time` is in clock ticks since boot. `run_ns` is its CPU time so far in nanoseconds, `delay_ns` the time that
    it waited for a CPU, None where the kernel does not count it.
    """

    thread_id: int
    name: str
    state: str
    cpus: tuple[int, ...]
    last_cpu: int | None
    start_time: int = 0
    run_ns: int = 0
    delay_ns: int | None = None


class ProcessState(NamedTuple):
    """A process as the kernel shows it at one time.

    `memory` is None where there is no numa_maps, it may not be read, or was not requested. `environment` is what the
    process was *started* with: later changes do not show; it is `environment_complete` unless the program has
    overwritten a part. `placement` is what the manager set there. `runtimes_known` is False where its libraries may not
    be read. `forked`: it has executed no program since it was forked. `seconds` is the monotonic time of the
    observation, `bytes_read` what it has read so far (None: unknown), `peak_bytes` the most memory that it had. `ticks`
    is its CPU time so far, with that of threads that have ended, in clock ticks.
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
    start_time: int = 0
    forked: bool = False
    engines: tuple[Engine, ...] = ()
    environment_complete: bool = True
    seconds: float = 0.0
    bytes_read: int | None = None
    peak_bytes: int = 0
    ticks: int = 0


def require_proc() -> None:
    """Raise unless /proc shows this process.

    Raises:
        RequestError: /proc is not mounted, or it is that of another PID namespace.
    """
    try:
        process_facts(os.getpid())
    except OSError:
        raise RequestError("/proc does not show this process; mount it (mount -t proc proc /proc)") from None


def observe_threads(pid: int) -> ProcessState:
    """Return the threads of a process and how it was started, without what takes longer to read.

    Raises:
        ProcessEndedError: there is no such process (any more).
        RequestError: its threads may not be seen.
    """
    facts, seconds, threads = _facts_and_threads(pid)
    return ProcessState(
        pid=pid,
        command=shown(" ".join(command_line(pid))),
        threads=threads,
        environment=None,
        placement=None,
        runtimes=(),
        memory=None,
        problems=(),
        parent=facts.parent,
        start_time=facts.start_time,
        forked=facts.forked,
        seconds=seconds,
        ticks=facts.ticks,
    )


@contextmanager
def _readable(pid: int) -> Iterator[None]:
    """Turn the errors of reading a process into those of this package."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessEndedError(f"there is no process {pid} (any more)") from None
    except OSError as error:
        raise RequestError(f"process {pid} cannot be read: {error.strerror} (hidepid, or another user's)") from None


def facts_of(pid: int) -> ProcessFacts:
    """Return the parent, the start time and the state of a process.

    Raises:
        ProcessEndedError: there is no such process (any more).
        RequestError: it may not be seen.
    """
    with _readable(pid):
        return process_facts(pid)


def _facts_and_threads(pid: int) -> tuple[ProcessFacts, float, tuple[ThreadState, ...]]:
    with _readable(pid):
        facts = process_facts(pid)
        seconds = time.monotonic()
        threads = tuple(_threads(pid))
    if not threads:
        raise ProcessEndedError(f"there is no process {pid} (any more)")
    if all(thread.state in ENDED_STATES for thread in threads):
        raise ProcessEndedError(
            f"process {pid} has ended, and its parent has not asked for its exit status yet (zombie)"
        )
    return facts, seconds, threads


def observe_again(before: ProcessState) -> ProcessState:
    """Return a later state of a process whose environment and libraries are known, without reading these again.

    The kernel reads them under the lock of the process's memory, which a busy process may hold for long.

    Raises:
        ProcessEndedError, RequestError: as `observe_threads`.
    """
    facts, seconds, threads = _facts_and_threads(before.pid)
    if facts.start_time != before.start_time:
        raise ProcessEndedError(f"process {before.pid} has ended, and another one has its number now")
    return with_threads(before, facts, seconds, threads)


def with_threads(
    before: ProcessState, facts: ProcessFacts, seconds: float, threads: tuple[ThreadState, ...]
) -> ProcessState:
    """Return a state of the same process with the threads of a later one."""
    return before._replace(
        threads=threads,
        parent=facts.parent,
        forked=facts.forked,
        seconds=seconds,
        ticks=facts.ticks,
        memory=None,
        bytes_read=bytes_read(before.pid),
        peak_bytes=_peak_bytes(before.pid),
    )


def observe_process(pid: int, *, with_memory: bool = True) -> ProcessState:
    """Return what the kernel reports about the process `pid`.

    Reading where its pages are takes about 16 ms per GiB of small pages; `with_memory` includes it.

    Raises:
        ProcessEndedError: there is no such process (any more).
        RequestError: not even its threads may be seen.
    """
    problems: list[str] = []
    state = observe_threads(pid)
    environment = _environment(pid, problems)
    placement = None if environment is None else _placement(environment.variables, problems)
    if environment is not None and not environment.complete:
        placement = placement or _published_placement(pid, problems)
        problems.append("the program has overwritten a part of its environment (setproctitle); that part is unknown")
    runtimes, engines = _libraries(pid)
    problems += runtimes.problems
    return state._replace(
        environment=None if environment is None else environment.variables,
        placement=placement,
        runtimes=runtimes.libraries,
        memory=_memory(pid, problems) if with_memory else None,
        problems=tuple(problems),
        runtimes_known=not runtimes.problems,
        engines=engines,
        environment_complete=environment is not None and environment.complete,
        bytes_read=bytes_read(pid),
        peak_bytes=_peak_bytes(pid),
    )


def _threads(pid: int) -> Iterator[ThreadState]:
    for number in thread_ids(pid):
        thread = observe_thread(pid, number)
        if thread is not None:
            yield thread


def observe_memory(known: ProcessState) -> ProcessState:
    """Return the state of a process with where its pages are now; what cannot be read is among its problems."""
    problems = list(known.problems)
    return known._replace(memory=_memory(known.pid, problems), problems=tuple(problems))


def observe_thread(pid: int, number: int) -> ThreadState | None:
    """Return a thread of a process, None where it has ended or its mask is unknown.

    Raises:
        OSError: it may not be seen.
    """
    try:
        fields = status_fields(pid, number)
        cpus, times = allowed_cpus(fields), thread_times(pid, number)
    except (FileNotFoundError, ProcessLookupError):
        # The thread ended between the listing and the reading.
        return None
    if cpus is None:
        return None
    name, state = fields.get("Name", ""), fields.get("State", "?")[:1]
    return ThreadState(number, name, state, cpus, times.last_cpu, times.start_time, times.run_ns, times.delay_ns)


def _placement(variables: dict[str, str], problems: list[str]) -> RankPlacement | None:
    text = variables.get(PLACEMENT_VARIABLE)
    if text is None:
        return None
    try:
        return parse_placement(text)
    except RequestError as error:
        problems.append(str(error))
        return None


def _published_placement(pid: int, problems: list[str]) -> RankPlacement | None:
    text = memory_file(pid, PUBLISHED_NAME, MAX_ARGUMENT_BYTES)
    if text is None:
        return None
    return _placement({PLACEMENT_VARIABLE: text.decode(errors="replace")}, problems)


def _libraries(pid: int) -> tuple[MappedRuntimes, tuple[Engine, ...]]:
    try:
        files = mapped_files(pid)
    except OSError as error:
        return MappedRuntimes((), (f"its libraries cannot be read (/proc/{pid}/maps: {error.strerror})",)), ()
    return runtimes_of_process(pid, files), engines_of(mapped.path for mapped in files)


def _peak_bytes(pid: int) -> int:
    try:
        number, _, unit = status_fields(pid).get("VmHWM", "").partition(" ")
        return int(number) * 1024 if unit == "kB" else 0
    except (OSError, ValueError):
        return 0


def _environment(pid: int, problems: list[str]) -> Environment | None:
    try:
        return environment_of(pid)
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
