"""``verify``: check a plan against the kernel's data."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.plan_files import saved_placements
from ompaffinity.cli.log import messages_not_logged
from ompaffinity.cli.options import flags_of
from ompaffinity.errors import RequestError
from ompaffinity.messages import has_warning
from ompaffinity.placement.request import AUTO, PlacementRequest
from ompaffinity.proof.verify import library_to_probe, verify_plan, verify_processes

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.proof.verdict import Verdict


def run_verify(values: dict[str, Any]) -> int:
    """Print the verdict; return 1 if something differs, or with --strict for a warning, else 0."""
    with messages_not_logged():
        verdict = _live_verdict(values) if "pids" in values else _probed_verdict(values)
    if values.get("json"):
        sys.stdout.write(json.dumps(verdict.to_document()) + "\n")
    else:
        from ompaffinity.cli.tables import print_verdict

        print_verdict(verdict)
    strict = bool(values.get("strict")) and has_warning(verdict.messages)
    return int(strict or not verdict.holds)


def _live_verdict(values: dict[str, Any]) -> Verdict:
    conflicting = values.keys() & {*PlacementRequest._fields, "library", "command", "seconds", "probe"}
    if conflicting:
        raise RequestError(
            f"--pid checks live workers and cannot be combined with {flags_of('verify', conflicting)}; omit it, or name"
            " the plan of the workers with --plan FILE"
        )
    return verify_processes(values["pids"], saved_placements(values["plan"]) if "plan" in values else None)


def _probed_verdict(values: dict[str, Any]) -> Verdict:
    if "plan" in values:
        raise RequestError("--plan requires --pid; name the live workers to check with --pid PID...")
    request = {name: values[name] for name in PlacementRequest._fields if name in values}
    strict = bool(values.get("strict"))
    if "command" in values:
        manager = OMPProcessManager(strict=strict, probe=values.get("probe", ()), **request)
        return _command_verdict(values, manager)
    if "seconds" in values:
        raise RequestError("--seconds requires a command; write it after --")
    if "probe" in values:
        raise RequestError("--probe requires a command; write it after --, or name a runtime with --library")
    runtime = request.get("runtime", AUTO)
    family, library = library_to_probe(runtime, os.environ, values.get("library"))
    if runtime == AUTO:
        request["runtime"] = family
    return verify_plan(OMPProcessManager(strict=strict, **request), library)


def _command_verdict(values: dict[str, Any], manager: OMPProcessManager) -> Verdict:
    from ompaffinity.proof.command import verify_command

    if "library" in values:
        raise RequestError("--library cannot be combined with a command, which loads its own runtime; omit --library")
    seconds = values.get("seconds", 30)
    if seconds < 1:
        raise RequestError(f"--seconds is {seconds}; it must be at least 1")
    return verify_command(manager, values["command"], seconds)
