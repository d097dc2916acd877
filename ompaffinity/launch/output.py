"""What the ranks print: each line with its rank, in a colour of its own on a terminal, or into a file per rank."""

from __future__ import annotations

import os
import sys

from ompaffinity.errors import RequestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import selectors
    import subprocess
    from types import TracebackType
    from typing import IO, BinaryIO

CHUNK = 65536
COLOURS = (36, 33, 35, 32, 34, 31)
"""ECMA-48 foreground colours, told apart without red and green side by side for two to four ranks."""


class RankOutput:
    """Hands on the lines of all ranks; a context manager, for it may hold files open.

    Raises:
        RequestError: the folder for the files cannot be written to.
    """

    def __init__(self, ranks: int, log_dir: str | None) -> None:
        self._width = len(str(ranks - 1))
        self._log_dir = log_dir
        self._files: list[BinaryIO] = []
        self._streams: list[tuple[IO[bytes], _Lines]] = []
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
        for _, lines in self._streams:
            lines.finish()
        for file in self._files:
            file.close()

    def add(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Take the output of a rank."""
        for pipe, stream, name in ((process.stdout, sys.stdout, "out"), (process.stderr, sys.stderr, "err")):
            if pipe is None:
                continue
            if self._log_dir is not None:
                self._streams.append((pipe, _Lines(self._file(rank, name), b"")))
            else:
                self._streams.append((pipe, _Lines(stream.buffer, self._prefix(rank, stream.isatty()))))

    def register(self, selector: selectors.BaseSelector) -> None:
        """Let a selector wait for all of it."""
        import selectors

        for pipe, lines in self._streams:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, lines)

    def pump(self, selector: selectors.BaseSelector, seconds: float) -> bool:
        """Hand on what comes within so many seconds; return whether anything came."""
        came = False
        for key, _ in selector.select(seconds):
            if not isinstance(key.data, _Lines):
                continue
            text = os.read(key.fd, CHUNK)
            came = True
            if text:
                key.data.take(text)
            else:
                selector.unregister(key.fileobj)
                key.data.finish()
        return came

    def _file(self, rank: int, name: str) -> BinaryIO:
        path = os.path.join(str(self._log_dir), f"rank-{rank}.{name}")
        try:
            # Each write is seen at once: somebody may follow the file.
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
    """One stream of one rank: whole lines are handed on, each with the prefix; the last one may have no end."""

    def __init__(self, target: BinaryIO, prefix: bytes) -> None:
        self._target = target
        self._prefix = prefix
        self._rest = b""

    def take(self, text: bytes) -> None:
        *lines, self._rest = (self._rest + text).split(b"\n")
        if len(self._rest) > CHUNK:
            lines.append(self._rest)
            self._rest = b""
        self._write(lines)

    def finish(self) -> None:
        if self._rest:
            self._write([self._rest])
            self._rest = b""

    def _write(self, lines: list[bytes]) -> None:
        if lines:
            self._target.write(b"".join(b"%s%s\n" % (self._prefix, line) for line in lines))
            self._target.flush()
