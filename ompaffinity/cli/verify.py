"""``verify``: check a plan against the kernel's data."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.plan_files import saved_placements
from ompaffinity.bind.profile import COMMAND_PROFILE
from ompaffinity.cli.checks import seconds_of
from ompaffinity.cli.exported import exported_placements
from ompaffinity.cli.log import messages_not_logged
from ompaffinity.cli.options import flags_of, planning_options
from ompaffinity.errors import CommandStartError, RequestError
from ompaffinity.messages import has_warning
from ompaffinity.placement.request import AUTO, PlacementRequest
from ompaffinity.proof.verdict import DIFFERS, UNPROVEN
from ompaffinity.proof.verify import LIVE_SECONDS, library_to_probe, verify_plan, verify_processes

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.proof.verdict import Verdict

UNPROVEN_STATUS = 3
COMMAND_SECONDS = 30


def run_verify(values: dict[str, Any]) -> int:
    """Print the verdict; return 1 if something differs, or with --strict for a warning, 3 if unproven, else 0."""
    try:
        with messages_not_logged():
            verdict = _live_verdict(values) if "pids" in values else _probed_verdict(values)
    except CommandStartError as error:
        sys.stderr.write(f"ompaffinity: error: {error}\n")
        return UNPROVEN_STATUS
    if values.get("json"):
        sys.stdout.write(json.dumps(verdict.to_document()) + "\n")
    else:
        from ompaffinity.cli.proof_tables import print_verdict

        print_verdict(verdict)
    strict = bool(values.get("strict")) and has_warning(verdict.messages)
    if verdict.verdict == UNPROVEN:
        return 1 if strict else UNPROVEN_STATUS
    return int(strict or verdict.verdict == DIFFERS)


def _live_verdict(values: dict[str, Any]) -> Verdict:
    conflicting = values.keys() & {*PlacementRequest._fields, "options", "library", "command", "probe"}
    if conflicting:
        raise RequestError(
            f"--pid checks live workers and cannot be combined with {flags_of('verify', conflicting)}; omit it, or name"
            " the plan of the workers with --plan FILE"
        )
    placements = saved_placements(values["plan"]) if "plan" in values else None
    if "as" in values:
        if placements is None:
            raise RequestError("--as requires --plan; name the plan that was exported with --plan FILE")
        placements = exported_placements(placements, values["as"])
    return verify_processes(values["pids"], placements, seconds=seconds_of(values, "seconds", LIVE_SECONDS))


def _probed_verdict(values: dict[str, Any]) -> Verdict:
    for option in ("plan", "as"):
        if option in values:
            raise RequestError(f"--{option} requires --pid; name the live workers to check with --pid PID...")
    request = planning_options(values)
    strict = bool(values.get("strict"))
    if "command" in values:
        manager = OMPProcessManager(strict=strict, probe=values.get("probe", ()), profile=COMMAND_PROFILE, **request)
        return _command_verdict(values, manager)
    if "seconds" in values:
        raise RequestError("--seconds requires a command or --pid; write the command after --")
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
    return verify_command(manager, values["command"], seconds_of(values, "seconds", COMMAND_SECONDS))
