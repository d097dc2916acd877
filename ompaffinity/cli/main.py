"""The entry point: parse, run the verb, and turn every expected error into one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from io import BufferedWriter, RawIOBase, TextIOWrapper
from typing import TYPE_CHECKING

from ompaffinity.cli.log import set_verbosity
from ompaffinity.cli.parse import parse_command_line
from ompaffinity.errors import InterruptedBySignalError, OMPAffinityError, OutputError, RequestError
from ompaffinity.shown import shown

if TYPE_CHECKING:
    from typing import Any, TextIO

RUNNERS = {
    "plan": ("plan", "run_plan"),
    "topology": ("topology", "run_topology"),
    "devices": ("devices", "run_devices"),
    "verify": ("verify", "run_verify"),
    "inspect": ("inspect", "run_inspect"),
    "watch": ("watch", "run_watch"),
    "bind": ("bind", "run_bind"),
    "compare": ("compare", "run_compare"),
    "doctor": ("doctor", "run_doctor"),
    "completion": ("completion", "run_completion"),
    "exec": ("launch", "run_exec"),
    "run": ("launch", "run_run"),
}
"""{verb: (module of this room, function)}: each verb loads what it needs."""
WITHOUT_OUTPUT = ("exec", "run")
"""Verbs that print nothing themselves: they start their command also where standard output is closed."""
DONE, CHECK_FAILED, BAD_INPUT = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (by default this process's) and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        _prepare_streams(words)
        status = _run(words)
        sys.stdout.flush()
        return status
    except InterruptedBySignalError as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OutputError as error:
        # The reader has gone (`| head`): it wants no more, and no message.
        return DONE if error.closed else _fail(str(error))
    except OMPAffinityError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(_what_failed(error))
    except ImportError as error:
        return _fail(f"cannot load what this command needs: {_innermost(error)}; reinstall ompaffinity")
    except MemoryError:
        return _fail("out of memory; raise the memory limit (ulimit -v, control group)")


def _run(arguments: list[str]) -> int:
    try:
        verb, values = parse_command_line(arguments)
    except SystemExit:
        # Help or the version was printed.
        return DONE
    set_verbosity(quiet=bool(values.pop("quiet", False)), verbose=bool(values.pop("verbose", False)))
    module, function = RUNNERS[verb]
    status: int = getattr(import_module(f"ompaffinity.cli.{module}"), function)(values)
    return status


def _fail(text: str) -> int:
    print(f"ompaffinity: error: {shown(' '.join(text.split()))}", file=sys.stderr)
    return BAD_INPUT


def _what_failed(error: OSError) -> str:
    """Return what failed: the file, or else the place in this package that made the system call."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"cannot use {error.filename}: {reason}"
    place, trace = "", error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("ompaffinity."):
            place = f" in {module}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"a system call failed{place}: {reason}"


def _innermost(error: BaseException) -> BaseException:
    """Return the error at the root of an error: packages wrap why they cannot be loaded in pages of advice."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _prepare_streams(words: list[str]) -> None:
    """Make the standard streams fail in one known way, and exist also where they were closed at the start.

    Raises:
        RequestError: standard output is closed, and the verb prints there.
    """
    closed = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Or a file that is opened later gets this number, and what is meant for the stream is written there.
            # It is closed again when a command is executed.
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_Stream(2, raises=False), sys.stderr, "backslashreplace", line_buffering=True)
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        # An ASCII terminal still gets the table.
        sys.stdout = _text_stream(_Stream(1, raises=True), sys.stdout, "replace", line_buffering=os.isatty(1))
    elif isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if closed and not (words and words[0] in WITHOUT_OUTPUT):
        raise RequestError("standard output is closed, so there is nowhere to print to")


def _text_stream(stream: _Stream, before: TextIO | None, errors: str, *, line_buffering: bool) -> TextIOWrapper:
    encoding = "utf-8" if before is None else before.encoding
    return TextIOWrapper(BufferedWriter(stream), encoding, errors, line_buffering=line_buffering)


class _Stream(RawIOBase):
    """A standard stream that fails once, with OutputError or without notice, and then drops what is written.

    Dropped, for the interpreter writes what is still buffered at its exit, and would complain.
    """

    def __init__(self, descriptor: int, *, raises: bool) -> None:
        self._descriptor, self._raises = descriptor, raises
        self._has_failed = False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self._has_failed:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                self._has_failed = True
                if self._raises:
                    raise OutputError(error) from None
        return len(data)
