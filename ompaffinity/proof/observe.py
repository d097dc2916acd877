"""What the kernel says of a live process: its threads, where its pages are, what it was started with.

Everything comes from /proc (proc(5)); nothing is asked of the process itself. What cannot be read, for
the process is another user's, has ended, or the kernel hides it, is said in `problems`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.bind.pages import MappedMemory, mapped_memory
from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import parse_id_list
from ompaffinity.openmp.detect import RuntimeLibrary, runtimes_of_process
from ompaffinity.placement.document import PLACEMENT_VARIABLE, parse_placement
from ompaffinity.proc import parent_of, started_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ompaffinity.placement.model import RankPlacement

ENDED_STATES = ("Z", "X")
LAST_CPU_FIELD = 39
"""proc(5), /proc/pid/stat: "processor", counted from 1; the second field ends with the last parenthesis."""


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
        raise RequestError(
            f"process {pid} cannot be looked at: {error.strerror} (hidepid, or another user's)"
        ) from None
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
    runtimes: tuple[RuntimeLibrary, ...] = ()
    known = True
    try:
        runtimes = runtimes_of_process(pid)
    except OSError as error:
        known = False
        problems.append(f"its libraries cannot be read (/proc/{pid}/maps: {error.strerror})")
    return ProcessState(
        pid=pid,
        command=_command(pid),
        threads=threads,
        environment=environment,
        placement=placement,
        runtimes=runtimes,
        memory=_memory(pid, problems),
        problems=tuple(problems),
        runtimes_known=known,
        parent=parent_of(pid),
    )


def _threads(pid: int) -> Iterator[ThreadState]:
    folder = f"/proc/{pid}/task"
    for name in sorted(os.listdir(folder), key=int):
        try:
            fields = _status(f"{folder}/{name}/status")
            last_cpu = _last_cpu(f"{folder}/{name}/stat")
            cpus = tuple(parse_id_list(fields["Cpus_allowed_list"]))
        except (FileNotFoundError, ProcessLookupError, KeyError, IDListError):
            # The thread ended between the listing and the reading.
            continue
        yield ThreadState(int(name), fields.get("Name", ""), fields.get("State", "?")[:1], cpus, last_cpu)


def _status(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _last_cpu(path: str) -> int | None:
    with open(path, encoding="utf-8", errors="replace") as file:
        # The name, in parentheses, may hold anything.
        fields = file.read().rpartition(")")[2].split()
    number = fields[LAST_CPU_FIELD - 3] if len(fields) > LAST_CPU_FIELD - 3 else ""
    return int(number) if number.isdigit() else None


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode(errors="replace") for word in words if word)


def _environment(pid: int, problems: list[str]) -> dict[str, str] | None:
    try:
        return started_with(pid)
    except OSError as error:
        problems.append(f"what it was started with cannot be read (/proc/{pid}/environ: {error.strerror})")
        return None


def _memory(pid: int, problems: list[str]) -> MappedMemory | None:
    try:
        return mapped_memory(pid)
    except FileNotFoundError:
        problems.append("where its pages are is not known: this kernel has no numa_maps (CONFIG_NUMA)")
    except OSError as error:
        problems.append(f"where its pages are cannot be read (/proc/{pid}/numa_maps: {error.strerror})")
    return None
