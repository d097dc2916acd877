"""``verify``: the proof."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.plan_files import saved_placements
from ompaffinity.errors import RequestError
from ompaffinity.placement.request import AUTO, PlacementRequest
from ompaffinity.proof.verify import library_to_probe, verify_plan, verify_processes

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.proof.verdict import Verdict


def run_verify(values: dict[str, Any]) -> int:
    """Print the verdict; 1 if something differs, or under --strict with a warning, else 0."""
    verdict = _live_verdict(values) if "pids" in values else _probed_verdict(values)
    if values.get("json"):
        sys.stdout.write(json.dumps(verdict.to_document()) + "\n")
    else:
        from ompaffinity.cli.tables import print_verdict

        print_verdict(verdict)
    strict = bool(values.get("strict")) and any(message.level == "warning" for message in verdict.messages)
    return int(strict or not verdict.holds)


def _live_verdict(values: dict[str, Any]) -> Verdict:
    void = sorted(values.keys() & {*PlacementRequest._fields, "library", "command", "seconds"})
    if void:
        raise RequestError(
            f"--pid looks at workers that run already, so {', '.join(void)} cannot be met beside it; leave it out,"
            " or give the plan that they should follow with --plan FILE"
        )
    return verify_processes(values["pids"], saved_placements(values["plan"]) if "plan" in values else None)


def _probed_verdict(values: dict[str, Any]) -> Verdict:
    if "plan" in values:
        raise RequestError("--plan is what live workers are compared with; name them with --pid")
    request = {name: values[name] for name in PlacementRequest._fields if name in values}
    strict = bool(values.get("strict"))
    if "command" in values:
        return _command_verdict(values, OMPProcessManager(strict=strict, **request))
    if "seconds" in values:
        raise RequestError("--seconds is for a command; write it after --")
    asked = request.get("runtime", AUTO)
    family, library = library_to_probe(asked, os.environ, values.get("library"))
    if asked == AUTO:
        request["runtime"] = family
    return verify_plan(OMPProcessManager(strict=strict, **request), library)


def _command_verdict(values: dict[str, Any], manager: OMPProcessManager) -> Verdict:
    from ompaffinity.proof.command import verify_command

    if "library" in values:
        raise RequestError("--library is for a team of our own; the command after -- loads what it loads")
    seconds = values.get("seconds", 30)
    if seconds < 1:
        raise RequestError(f"--seconds is {seconds}; it must be at least 1")
    return verify_command(manager, values["command"], seconds)
