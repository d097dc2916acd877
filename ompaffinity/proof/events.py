"""Wait for what the kernel reports of watched processes, or until it is time to look again.

Sources: pidfd_open(2), inotify(7), netlink(7) with NETLINK_KOBJECT_UEVENT. Each of them is left out where it is not
available; `cpuset.cpus.effective` changes without an event where a group above changes.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

IN_MODIFY, IN_IGNORED = 0x2, 0x8000
EVENT_HEADER = struct.Struct("iIII")
"""struct inotify_event without its name: watch, mask, cookie, length of the name."""
IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
KOBJECT_UEVENT = 15
UEVENT_GROUP = 1
EVENT_BYTES = 65536
SETTLING_SECONDS = 0.1
"""After an event: the kernel changes the masks of many threads one after the other."""


class Events:
    """A context manager that wakes for the end of processes, changes of cpusets, and CPUs that go on- or offline."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._processes: dict[int, int] = {}
        self._files: set[str] = set()
        self._own: list[int] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._own += (self._wake_read, self._wake_write)
        self._poll.register(self._wake_read, select.POLLIN)
        self._inotify = self._opened_inotify()
        self._uevents = self._opened_uevents()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in (*self._processes.values(), *self._own):
            with suppress(OSError):
                os.close(descriptor)
        self._processes.clear()
        self._own.clear()
        if self._uevents is not None:
            self._uevents.close()

    def wake(self) -> None:
        """End a wait; may be called from a signal handler or another thread."""
        with suppress(OSError):
            os.write(self._wake_write, b"\0")

    def watch_processes(self, pids: Iterable[int]) -> None:
        """Wake when one of these processes ends, and no more for others."""
        wanted = set(pids)
        for pid in self._processes.keys() - wanted:
            self._drop(pid)
        for pid in wanted - self._processes.keys():
            try:
                descriptor = os.pidfd_open(pid)
            except (OSError, AttributeError):
                continue
            self._processes[pid] = descriptor
            self._poll.register(descriptor, select.POLLIN)

    def watch_files(self, paths: Iterable[str]) -> None:
        """Wake on a write to one of these files."""
        if self._inotify is None:
            return
        wanted = set(paths)
        self._files &= wanted
        for path in wanted - self._files:
            if ctypes.CDLL(None).inotify_add_watch(self._inotify, os.fsencode(path), IN_MODIFY) >= 0:
                self._files.add(path)

    def wait(self, seconds: float) -> bool:
        """Wait for so many seconds at most; return whether an event ended it."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            found = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
            if not found:
                return False
            if self._is_relevant(found):
                return True

    def _is_relevant(self, descriptors: set[int]) -> bool:
        """Read what the events are about; return whether they matter."""
        relevant = False
        if self._uevents is not None and self._uevents.fileno() in descriptors:
            descriptors = descriptors - {self._uevents.fileno()}
            relevant = self._is_about_cpus(self._uevents)
        if self._wake_read in descriptors:
            with suppress(OSError):
                os.read(self._wake_read, EVENT_BYTES)
        for pid, descriptor in list(self._processes.items()):
            if descriptor in descriptors:
                self._drop(pid)
        if self._inotify in descriptors:
            self._read_inotify()
            time.sleep(SETTLING_SECONDS)
        return relevant or bool(descriptors)

    def _read_inotify(self) -> None:
        """Read all events; after the end of a group its files may come back under the same paths."""
        with suppress(OSError):
            content = b"" if self._inotify is None else os.read(self._inotify, EVENT_BYTES)
            while len(content) >= EVENT_HEADER.size:
                _, mask, _, length = EVENT_HEADER.unpack_from(content)
                content = content[EVENT_HEADER.size + length :]
                if mask & IN_IGNORED:
                    self._files.clear()

    @staticmethod
    def _is_about_cpus(uevents: socket.socket) -> bool:
        relevant = False
        with suppress(OSError):
            while True:
                # kobject-uevent: "offline@/devices/system/cpu/cpu3" and fields, each ended by a NUL.
                relevant |= b"@/devices/system/cpu/cpu" in uevents.recv(EVENT_BYTES)
        return relevant

    def _drop(self, pid: int) -> None:
        descriptor = self._processes.pop(pid)
        self._poll.unregister(descriptor)
        os.close(descriptor)

    def _opened_inotify(self) -> int | None:
        descriptor: int = ctypes.CDLL(None).inotify_init1(IN_FLAGS)
        if descriptor < 0:
            return None
        self._own.append(descriptor)
        self._poll.register(descriptor, select.POLLIN)
        return descriptor

    def _opened_uevents(self) -> socket.socket | None:
        try:
            found = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, KOBJECT_UEVENT)
        except (OSError, AttributeError):
            return None
        try:
            found.bind((0, UEVENT_GROUP))
        except OSError:
            found.close()
            return None
        self._poll.register(found.fileno(), select.POLLIN)
        return found
