"""What the ranks print: read from their pipes in a thread of its own, and handed to one consumer per pipe.

No byte is lost. A reader that is slow, or does not read at all (a pager, Ctrl-S), makes the consumers wait, and the
full pipes then make the ranks wait. Only the thread waits so, thus signals are still handled and ranks still end.
"""

from __future__ import annotations

import fcntl
import os
import select
import selectors
import struct
import termios
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ompaffinity.errors import OutputError
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

CHUNK = 65536
MAX_LINE = 2**20
"""Bytes after which a line without an end is cut, so that it does not fill the memory."""
QUIET_SECONDS = 2.0
LEFTOVER_SECONDS = 5.0
"""When the last rank has ended, processes that it started may still hold its output. They are read until they print
nothing for QUIET_SECONDS, and for LEFTOVER_SECONDS at most, not counting the time in which our own reader made us wait.
"""


@runtime_checkable
class Consumer(Protocol):
    """Takes what one pipe delivers. Both methods may block, and raise OSError where they cannot write."""

    def feed(self, data: bytes) -> None: ...

    def finish(self) -> None:
        """Take the end of the output."""


class OutputReader:
    """Reads any number of pipes; `when_changed` is called, in the thread, when `done` or `error` changes."""

    def __init__(self, when_changed: Callable[[], None]) -> None:
        self.done = False
        """Whether all that was printed is delivered, and the pipes are closed."""
        self.error: OutputError | None = None
        """Why a consumer could not write; the output is still read then, and dropped."""
        self._when_changed = when_changed
        self._new: deque[tuple[IO[bytes], Consumer]] = deque()
        self._ranks_ended = self._abandoned = False
        self._deadline: float | None = None
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake_up = os.pipe()
        self._is_open = True
        self._has_started = False
        self._lock = threading.Lock()
        """Held while the descriptors are written to or closed, for their numbers may be used again."""
        self._selector.register(self._woken, selectors.EVENT_READ)

    def start(self) -> None:
        """Start the thread. It inherits the CPUs of the calling thread, so call this outside of a rank's context."""
        threading.Thread(target=self._run, name="ompaffinity-output", daemon=True).start()
        self._has_started = True

    def add(self, pipe: IO[bytes], consumer: Consumer) -> None:
        """Read this pipe, too; it is closed at its end."""
        self._new.append((pipe, consumer))
        self._wake()

    def ranks_have_ended(self) -> None:
        """Deliver what is left, within the limits above; `done` follows."""
        self._ranks_ended = True
        self._wake()

    def abandon(self) -> None:
        """Deliver nothing more: `done` at once, though the thread may still wait for a reader."""
        self._abandoned = self.done = True
        self._wake()
        self._when_changed()

    def close(self) -> None:
        """End the thread, or leave it behind where it waits for a reader."""
        if not self.done:
            self.abandon()
        if not self._has_started:
            self._close()

    def _wake(self) -> None:
        with self._lock:
            if self._is_open:
                os.write(self._wake_up, b"\0")

    def _run(self) -> None:
        try:
            while not self._abandoned and not self._is_delivered():
                events = self._selector.select(QUIET_SECONDS if self._ranks_ended else None)
                if not events:
                    break
                for key, _ in events:
                    self._handle(key)
        finally:
            try:
                self._close()
            finally:
                self.done = True
                self._when_changed()

    def _is_delivered(self) -> bool:
        """Return whether the ranks have ended, and nothing more is to be read."""
        if not self._ranks_ended or self._new:
            return False
        if self._deadline is None:
            self._deadline = time.monotonic() + LEFTOVER_SECONDS
        if time.monotonic() >= self._deadline:
            self._read_what_is_there()
            return True
        return len(self._selector.get_map()) == 1

    def _handle(self, key: selectors.SelectorKey) -> None:
        if key.data is not None:
            self._read(key, CHUNK)
            return
        os.read(self._woken, CHUNK)
        while self._new:
            pipe, consumer = self._new.popleft()
            self._selector.register(pipe, selectors.EVENT_READ, _Source(pipe, consumer, self._fail))

    def _read(self, key: selectors.SelectorKey, size: int) -> int:
        """Hand on what a readable pipe holds, up to `size` bytes; return how many, 0 at its end."""
        data = os.read(key.fd, size)
        before = _blocked_seconds()
        if data:
            key.data.feed(data)
        else:
            self._selector.unregister(key.fileobj)
            key.data.finish()
            key.data.close()
        if self._deadline is not None:
            self._deadline += _blocked_seconds() - before
        return len(data)

    def _read_what_is_there(self) -> None:
        """Deliver what was printed until now: what the ranks printed is part of it, however late this is."""
        for key in [key for key in self._selector.get_map().values() if key.data is not None]:
            left = _readable_bytes(key.fd)
            while left and not self._abandoned and (size := self._read(key, min(left, CHUNK))):
                left -= size

    def _fail(self, error: OSError) -> None:
        if self.error is None:
            self.error = OutputError(error)
            self._when_changed()

    def _close(self) -> None:
        for key in [*self._selector.get_map().values()]:
            if key.data is not None:
                if not self._abandoned:
                    key.data.finish()
                key.data.close()
        while self._new:
            self._new.popleft()[0].close()
        self._selector.close()
        with self._lock:
            self._is_open = False
            os.close(self._woken)
            os.close(self._wake_up)


class _Source:
    """A pipe and its consumer, whose first error is reported; what comes after it is dropped."""

    def __init__(self, pipe: IO[bytes], consumer: Consumer, when_failed: Callable[[OSError], None]) -> None:
        self._pipe = pipe
        self._consumer: Consumer | None = consumer
        self._when_failed = when_failed

    def feed(self, data: bytes) -> None:
        try:
            if self._consumer is not None:
                self._consumer.feed(data)
        except OSError as error:
            self._fail(error)

    def finish(self) -> None:
        try:
            if self._consumer is not None:
                self._consumer.finish()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        self._pipe.close()

    def _fail(self, error: OSError) -> None:
        self._consumer = None
        self._when_failed(error)


def _blocked_seconds() -> float:
    """Return a clock that runs while this thread waits, and not while it computes."""
    return time.monotonic() - time.thread_time()


def _readable_bytes(descriptor: int) -> int:
    """Return how many bytes a pipe holds (FIONREAD, pipe(7))."""
    buffer = fcntl.ioctl(descriptor, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", buffer)[0])


class Line(NamedTuple):
    r"""A line and its end: ``\n``, ``\r`` (progress bars), or nothing where the line was cut or is the last one."""

    text: bytes
    end: bytes


class LineSplitter:
    r"""Cuts a stream of bytes into lines. ``\r\n`` counts as ``\n``; a line of more than MAX_LINE bytes is cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Line]:
        """Return the lines that are complete with this data."""
        data = self._rest + data
        # A carriage return at the end may be half of a line's end.
        held = b"\r" if data.endswith(b"\r") else b""
        data = data.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\r\n")
        *lines, self._rest = data.split(b"\n")
        found = [Line(line[:-1], b"\r") if line.endswith(b"\r") else Line(line, b"\n") for line in lines]
        self._rest += held
        if len(self._rest) > MAX_LINE:
            found.append(Line(self._rest, b""))
            self._rest = b""
        return found

    def finish(self) -> list[Line]:
        """Return the last line if it has no end."""
        rest, self._rest = self._rest.removesuffix(b"\r"), b""
        return [Line(rest, b"")] if rest else []


class PrefixedLines:
    """A consumer that writes whole lines to a descriptor, each with a prefix; where there is none, it drops them."""

    def __init__(self, descriptor: int | None, prefix: bytes = b"") -> None:
        self._descriptor = descriptor
        self._prefix = prefix
        self._splitter = LineSplitter()

    def feed(self, data: bytes) -> None:
        self.write(self._splitter.feed(data))

    def finish(self) -> None:
        self.write(self._splitter.finish())

    def write(self, lines: list[Line]) -> None:
        """Write these lines, and wait as long as it takes."""
        if self._descriptor is None:
            return
        text = memoryview(b"".join(self._prefix + line.text + (line.end or b"\n") for line in lines))
        while text:
            try:
                text = text[os.write(self._descriptor, text) :]
            except BlockingIOError:
                # Another process that shares it made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


def descriptor_of(stream: IO[str] | None) -> int | None:
    """Return the descriptor of a standard stream, with its buffer written; None where it was closed at the start."""
    if stream is None:
        return None
    stream.flush()
    return stream.fileno()
