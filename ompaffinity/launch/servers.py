"""Servers that start and bind their own workers: `exec` and `run` can only give them a part of the machine."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from ompaffinity.bind.profile import WorkerProfile
from ompaffinity.messages import SERVER_BINDS_WORKERS
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.placement.request import AUTO
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ompaffinity.messages import Message

SUBCOMMANDS = ("serve", "bench", "run-batch", "chat", "complete")
SERVERS = {
    "vllm": ("vLLM", ("vllm.entrypoints",), "OMPAFFINITY_VLLM=1 {command}, or the variable of plan --format vllm"),
    "sglang": ("SGLang", ("sglang.launch_server",), "{command} with the variable of plan --format sglang"),
}
"""Program: name, prefixes of its modules, and what binds its workers."""
RESTRICTING = ("bind", "cpus", "nodes", "avoid")
SHOWN_LENGTH = 100

SERVER_PROFILE = WorkerProfile(lambda _plan, _placement, _environ: ({}, (PLACEMENT_VARIABLE,)))
"""The mask and the memory policy without variables: those of OpenMP would reach the server's workers."""


class Server(NamedTuple):
    """A server that binds its own workers."""

    name: str
    instead: str

    def message(self, verb: str) -> Message:
        """Return the warning that this verb does not bind the workers, and what does."""
        return SERVER_BINDS_WORKERS(server=self.name, verb=verb, instead=self.instead)

    def options(self, given: Mapping[str, Any], ranks: int) -> dict[str, Any]:
        """Return the planning options for the server: a part of the machine for each of several, else no binding.

        CPU lists in the environment are those of its workers.
        """
        if "bind" in given:
            return dict(given)
        if ranks == 1 and not any(name in given for name in RESTRICTING):
            return {"bind": "none"}
        # The server reserves cores itself.
        reserve = {} if "reserve_per_rank" in given else {"reserve": 0}
        return {"bind": AUTO, **reserve, **given}


def server_of(command: Sequence[str]) -> Server | None:
    """Return the server that a command starts, also behind a wrapper (``uv run vllm serve``), None for others."""
    for program, (name, modules, instead) in SERVERS.items():
        for word, following in zip(command, (*command[1:], "")):
            starts = os.path.basename(word) == program and following in SUBCOMMANDS
            if starts or (word == "-m" and following.startswith(modules)):
                words = shlex.join(command)
                shown = words if len(words) <= SHOWN_LENGTH else f"{words[:SHOWN_LENGTH]} ..."
                return Server(name, instead.format(command=shown))
    return None
