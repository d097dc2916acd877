"""``exec`` and ``run``: commands that are bound before they start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.profile import COMMAND_PROFILE
from ompaffinity.cli.options import planning_options
from ompaffinity.errors import RequestError
from ompaffinity.messages import has_warning, log_warnings
from ompaffinity.placement.request import product_of_sizes

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.messages import Message


def run_exec(values: dict[str, Any]) -> int:
    """Exec the command; returns only if it cannot be started: 127, or 1 under --strict with a warning."""
    from ompaffinity.launch.exec import exec_bound

    return exec_bound(
        _command(values, "exec"),
        planning_options(values),
        local_rank=values.get("local_rank"),
        local_world_size=values.get("local_world_size"),
        override=bool(values.get("override")),
        probe=values.get("probe", ()),
        strict=bool(values.get("strict")),
    )


def run_run(values: dict[str, Any]) -> int:
    """Start the ranks and supervise them; return the status of the first one that failed, else 0."""
    command = _command(values, "run")
    grace = values.get("grace", 10)
    if grace < 0:
        raise RequestError(f"--grace is {grace}; it must be a number of seconds")
    from ompaffinity.launch.servers import SERVER_PROFILE, server_of

    strict = bool(values.get("strict"))
    messages: list[Message] = []
    if values.get("override"):
        from ompaffinity.launch.exec import widen_to_cpuset

        messages += widen_to_cpuset()
    options = planning_options(values)
    profile, server = COMMAND_PROFILE, server_of(command)
    if server is not None:
        options, profile = server.options(options, product_of_sizes(options)), SERVER_PROFILE
        messages.append(server.message("run"))
    log_warnings(messages)
    manager = OMPProcessManager(strict=strict, probe=values.get("probe", ()), profile=profile, **options)
    if strict and has_warning([*messages, *manager.messages]):
        return 1
    from ompaffinity.launch.run import run_ranks

    return run_ranks(manager, command, log_dir=values.get("log_dir"), grace_seconds=grace)


def _command(values: dict[str, Any], verb: str) -> tuple[str, ...]:
    if "command" not in values:
        raise RequestError(f"{verb} needs a command; write ompaffinity {verb} -- python worker.py")
    command: tuple[str, ...] = values["command"]
    if not command[0]:
        raise RequestError(f"the command after -- is empty; write ompaffinity {verb} -- python worker.py")
    return command
