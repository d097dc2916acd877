"""The entry point: parse, run the verb, and turn every expected error into one line and an exit status."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from ompaffinity.cli.parse import parse_command_line
from ompaffinity.errors import OmpAffinityError, RequestError

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (by default this process's) and return its exit status."""
    try:
        _prepare_output()
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except OmpAffinityError as error:
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
    if verb == "plan":
        from ompaffinity.cli.plan import run_plan

        return run_plan(values)
    if verb == "verify":
        from ompaffinity.cli.verify import run_verify

        return run_verify(values)
    if verb == "inspect":
        from ompaffinity.cli.inspect import run_inspect

        return run_inspect(values)
    if verb == "devices":
        from ompaffinity.cli.devices import run_devices

        return run_devices(values)
    if verb == "doctor":
        from ompaffinity.cli.doctor import run_doctor

        return run_doctor(values)
    if verb == "exec":
        from ompaffinity.cli.launch import run_exec

        return run_exec(values)
    if verb == "run":
        from ompaffinity.cli.launch import run_run

        return run_run(values)
    from ompaffinity.cli.topology import run_topology

    return run_topology(values)
