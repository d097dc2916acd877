"""Which threads of a process used CPU time in a window. Pure.

A thread *competes* for CPU time while it runs or waits for a CPU. Waiting counts: of eight threads on one CPU each runs
for an eighth of the time only. A sleeping thread competes for none, whatever its mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from ompaffinity.proof.observe import ProcessState

ACTIVE_SHARE = 0.01
"""A thread that competes for less of the window is idle."""
BUSY_SHARE = 0.5
"""A thread is busy if it competes at least this part as long as the busiest thread of its process ..."""
LEAST_BUSY_SHARE = 0.1
"""... and for this part of the window."""
SATURATED_SHARE = 0.9
"""A process whose busiest thread competes for this part of the window does nothing but compute."""
READ_BYTES, GROWN_BYTES = 64 * 2**10, 16 * 2**20
"""A process that reads or grows by more than this in a window imports modules or loads a model."""
NANOSECOND = 1e-9


class ThreadActivity(NamedTuple):
    """One thread over a window: its id, name and mask, and the seconds that it ran and waited for a CPU.

    `delay_seconds` is None where the kernel does not count it.
    """

    thread_id: int
    name: str
    cpus: tuple[int, ...]
    run_seconds: float
    delay_seconds: float | None = None
    last_cpu: int | None = None

    @property
    def competing_seconds(self) -> float:
        """The seconds in which it ran or waited for a CPU."""
        return self.run_seconds + (self.delay_seconds or 0.0)


class Activity(NamedTuple):
    """The threads of a process over a window of so many seconds; `steady`: it neither read much nor grew meanwhile."""

    seconds: float
    threads: tuple[ThreadActivity, ...]
    main_thread: int = 0
    steady: bool = True

    @property
    def active(self) -> tuple[ThreadActivity, ...]:
        """The threads that are not idle: the main thread, then the busiest first."""
        found = [thread for thread in self.threads if thread.competing_seconds >= ACTIVE_SHARE * self.seconds]
        return tuple(sorted(found, key=self._order))

    @property
    def busy(self) -> tuple[ThreadActivity, ...]:
        """The threads that compete at least half as long as the busiest one, in the order of `active`."""
        least = max(BUSY_SHARE * self._most, LEAST_BUSY_SHARE * self.seconds)
        return tuple(thread for thread in self.active if thread.competing_seconds >= least)

    @property
    def saturated(self) -> bool:
        """Whether one thread competed during nearly the whole window."""
        return self._most >= SATURATED_SHARE * self.seconds

    @property
    def _most(self) -> float:
        return max((thread.competing_seconds for thread in self.threads), default=0.0)

    def _order(self, thread: ThreadActivity) -> tuple[bool, float, int]:
        return thread.thread_id != self.main_thread, -thread.competing_seconds, thread.thread_id


def activity_between(before: ProcessState, after: ProcessState) -> Activity | None:
    """Return what the threads of a process did between two observations, None if these are of two processes."""
    seconds = after.seconds - before.seconds
    if (before.pid, before.start_time) != (after.pid, after.start_time) or seconds <= 0:
        return None
    earlier = {(thread.thread_id, thread.start_time): thread for thread in before.threads}
    threads = []
    for thread in after.threads:
        first = earlier.get((thread.thread_id, thread.start_time))
        ran = thread.run_ns - (0 if first is None else first.run_ns)
        delay = thread.delay_ns
        if delay is not None and first is not None:
            delay = None if first.delay_ns is None else delay - first.delay_ns
        threads.append(
            ThreadActivity(
                thread.thread_id,
                thread.name,
                thread.cpus,
                max(0, ran) * NANOSECOND,
                None if delay is None else max(0, delay) * NANOSECOND,
                thread.last_cpu,
            )
        )
    has_read = (after.bytes_read or 0) - (before.bytes_read or 0) > READ_BYTES
    has_grown = after.peak_bytes - before.peak_bytes > GROWN_BYTES
    return Activity(seconds, tuple(threads), after.pid, steady=not has_read and not has_grown)
