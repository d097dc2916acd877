"""The entry point: parse, run the verb, and turn every expected error into one line and an exit status."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper

from ompaffinity.cli.parse import parse_command_line
from ompaffinity.errors import OMPAffinityError, RequestError

RUNNERS = {
    "plan": ("plan", "run_plan"),
    "topology": ("topology", "run_topology"),
    "devices": ("devices", "run_devices"),
    "verify": ("verify", "run_verify"),
    "inspect": ("inspect", "run_inspect"),
    "compare": ("compare", "run_compare"),
    "doctor": ("doctor", "run_doctor"),
    "completion": ("completion", "run_completion"),
    "exec": ("launch", "run_exec"),
    "run": ("launch", "run_run"),
}
"""{verb: (module of this room, function)}: each verb loads what it needs."""
DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (by default this process's) and return its exit status."""
    try:
        _prepare_output()
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except OMPAffinityError as error:
        print(f"ompaffinity: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing more can be said there.
        _drop_output()
        return DONE
    except OSError as error:
        _drop_output()
        what = "cannot write the output" if error.filename is None else f"cannot use {error.filename}"
        print(f"ompaffinity: error: {what}: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _prepare_output() -> None:
    if sys.stdout is None:
        raise RequestError("standard output is closed, so there is nowhere to print to")
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that knows ASCII only still gets the table.
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    """Let what is still buffered go nowhere, or the interpreter complains about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    verb, values = parse_command_line(arguments)
    module, function = RUNNERS[verb]
    status: int = getattr(import_module(f"ompaffinity.cli.{module}"), function)(values)
    return status
