"""What the ranks print: each line with its rank, in a colour of its own on a terminal, or into a file per rank.

A thread hands the lines on, so that a reader who does not read (a pager, Ctrl-S) holds up the ranks' output and
nothing else. It writes to the file descriptors themselves: the interpreter may end while it waits there.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, BinaryIO

CHUNK = 65536
MAX_DRAINED = 2**20
"""What a pipe can hold at most by default (pipe(7), pipe-max-size)."""
COLOURS = (36, 33, 35, 32, 34, 31)
"""ECMA-48 foreground colours, told apart without red and green side by side for two to four ranks."""


class RankOutput:
    """Hands on the lines of all ranks; a context manager, for it may hold files open.

    `when_closed` is called, in another thread, when nobody reads what is handed on any more.

    Raises:
        RequestError: the folder for the files cannot be written to.
    """

    def __init__(self, ranks: int, log_dir: str | None, when_closed: Callable[[], None]) -> None:
        self._width = len(str(ranks - 1))
        self._log_dir = log_dir
        self._when_closed = when_closed
        self._files: list[BinaryIO] = []
        self._streams: list[tuple[IO[bytes], _Lines]] = []
        self._thread: threading.Thread | None = None
        self._stop, self._stopped = socket.socketpair()
        if log_dir is not None:
            try:
                os.makedirs(log_dir, exist_ok=True)
            except OSError as error:
                raise RequestError(f"--log-dir {log_dir} cannot be made: {error.strerror}") from None

    def __enter__(self) -> RankOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        if self._thread is None or not self._thread.is_alive():
            self._stop.close()
            self._stopped.close()

    def targets(self, rank: int) -> tuple[BinaryIO | int, BinaryIO | int]:
        """Return what a rank's standard output and standard error are to be: pipes, or files that it writes itself."""
        if self._log_dir is None:
            return subprocess.PIPE, subprocess.PIPE
        return self._file(rank, "out"), self._file(rank, "err")

    def add(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Take the pipes of a rank."""
        for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                stream.flush()
                self._streams.append((pipe, _Lines(stream.fileno(), self._prefix(rank, stream.isatty()))))

    def start(self) -> None:
        """Begin to hand on what comes."""
        if self._streams:
            self._thread = threading.Thread(target=self._hand_on, name="ompaffinity-output", daemon=True)
            self._thread.start()

    def finish(self, seconds: float) -> None:
        """Hand on what is there already, for so many seconds at most; what is printed later is lost."""
        if self._thread is not None:
            self._stop.send(b"x")
            self._thread.join(seconds)

    def _hand_on(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stopped, selectors.EVENT_READ)
            for pipe, lines in self._streams:
                selector.register(pipe, selectors.EVENT_READ, lines)
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if key.data is None:
                        self._drain()
                        return
                    # It is readable, so that nothing is its end.
                    if not self._take(key.fd, key.data):
                        selector.unregister(key.fileobj)

    def _take(self, descriptor: int, lines: _Lines) -> int:
        """Hand on what a pipe holds; return how many bytes that were, 0 at its end."""
        try:
            text = os.read(descriptor, CHUNK)
        except OSError:
            # It holds nothing now, or was closed, for this thread came too late.
            return 0
        self._hand_over(lines, text)
        return len(text)

    def _hand_over(self, lines: _Lines, text: bytes) -> None:
        """Hand on what a rank printed; nothing is the end of it."""
        try:
            if text:
                lines.take(text)
            else:
                lines.finish()
        except OSError:
            # Nobody reads any more; what comes is still read, or the ranks would wait for ever.
            lines.close()
            self._when_closed()

    def _drain(self) -> None:
        """Hand on what is in the pipes; somebody whom a rank has started may fill them for ever."""
        for pipe, lines in self._streams:
            drained = 0
            while drained < MAX_DRAINED and (size := self._take(pipe.fileno(), lines)):
                drained += size
            self._hand_over(lines, b"")

    def _file(self, rank: int, name: str) -> BinaryIO:
        path = os.path.join(str(self._log_dir), f"rank-{rank}.{name}")
        try:
            file = open(path, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise RequestError(f"--log-dir: {path} cannot be written: {error.strerror}") from None
        self._files.append(file)
        return file

    def _prefix(self, rank: int, terminal: bool) -> bytes:
        text = f"[rank {rank:{self._width}}] "
        if terminal and not os.environ.get("NO_COLOR"):
            text = f"\x1b[{COLOURS[rank % len(COLOURS)]}m{text}\x1b[0m"
        return text.encode()


class _Lines:
    """One stream of one rank: whole lines are handed on, each with the prefix; the last one may have no end.

    A carriage return ends a line, too, for progress bars; a line without an end is cut at 1 MiB.
    """

    def __init__(self, descriptor: int, prefix: bytes) -> None:
        self._descriptor: int | None = descriptor
        self._prefix = prefix
        self._rest = b""

    def take(self, text: bytes) -> None:
        text = self._rest + text
        # A carriage return at the end may be half of a line's end.
        held = text[-1:] if text.endswith(b"\r") else b""
        text = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\r\n")
        *lines, self._rest = text.split(b"\n")
        self._rest += held
        if len(self._rest) > MAX_DRAINED:
            lines.append(self._rest)
            self._rest = b""
        self._write(lines)

    def finish(self) -> None:
        rest, self._rest = self._rest.removesuffix(b"\r"), b""
        if rest:
            self._write([rest])

    def close(self) -> None:
        """Hand on nothing any more."""
        self._descriptor = None

    def _write(self, lines: list[bytes]) -> None:
        if self._descriptor is None:
            return
        ended = [self._prefix + line + (b"" if line.endswith(b"\r") else b"\n") for line in lines]
        text = memoryview(b"".join(ended))
        while text:
            try:
                text = text[os.write(self._descriptor, text) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
