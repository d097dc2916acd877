"""Start the ranks of a plan here, bound before they start, and supervise them until the last one has ended.

Each rank leads a session of its own, so that a signal also reaches what it started. When this process is killed, the
kernel kills its ranks (PR_SET_PDEATHSIG(2const)), and a process that guards them kills the rest.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ompaffinity.errors import NotExecutableError, RequestError
from ompaffinity.files import open_new
from ompaffinity.launch.bind_exec import NOT_STARTED
from ompaffinity.launch.guard import RankGuard
from ompaffinity.launch.output import PrefixedLines, descriptor_of
from ompaffinity.launch.parent_death import killed_with_parent
from ompaffinity.launch.ranks import free_port, rank_variables
from ompaffinity.launch.signals import SignalReceiver
from ompaffinity.launch.supervise import Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO, BinaryIO

    from ompaffinity.bind.manager import OMPProcessManager

COLOURS = (36, 33, 35, 32, 34, 31)
"""ECMA-48 foreground colours, in an order that avoids red beside green for two to four ranks."""


def run_ranks(
    manager: OMPProcessManager, command: Sequence[str], *, log_dir: str | None = None, grace_seconds: float = 10
) -> int:
    """Run `command` once per rank of the manager's plan; return 0, or the status of the first one that failed.

    When one fails the others are ended: SIGTERM, and SIGKILL after `grace_seconds`. Signals that this process gets
    are forwarded, except those that were ignored when it started (nohup). A signal that ends gives the status 128 and
    its number; so does SIGPIPE when the reader of the output is gone. All output is delivered, however slow its reader
    is; a second signal that ends, or one after the last rank has ended, drops what is left. Call it in the main thread.

    Raises:
        RequestError: `log_dir` cannot be written to, or a rank cannot be started.
        SupervisionError: the kernel refuses what is needed to supervise the ranks.
        OutputError: the output cannot be written, though its reader is there (a full disk).
        BindingError: the kernel refuses to bind, and the manager is strict.
    """
    with ExitStack() as stack:
        outputs = _outputs(len(manager.plan.ranks), log_dir, stack)
        signals, guard = stack.enter_context(SignalReceiver()), stack.enter_context(RankGuard(later=True))
        ranks = stack.enter_context(Supervisor(signals, guard, grace_seconds=grace_seconds))
        try:
            _start(manager, command, ranks, outputs)
        except NotExecutableError as error:
            print(f"ompaffinity: error: {error}", file=sys.stderr)
            return NOT_STARTED
        guard.start()
        ranks.wait()
        if ranks.status is not None:
            # What is left of a failed group must not print forever.
            ranks.kill()
        ranks.wait_for_output()
        if ranks.output.error is not None and not ranks.output.error.closed:
            raise ranks.output.error
        if ranks.status is None:
            ranks.release()
        return ranks.status or 0


def _start(
    manager: OMPProcessManager,
    command: Sequence[str],
    ranks: Supervisor,
    outputs: Sequence[tuple[PrefixedLines | BinaryIO, PrefixedLines | BinaryIO]],
) -> None:
    world_size, port = len(outputs), free_port()
    before_exec = killed_with_parent()
    for rank, (stdout, stderr) in enumerate(outputs):
        variables = rank_variables(rank, world_size, rank, world_size, port=port)
        if ranks.start(manager, rank, command, variables, stdout, stderr, before_exec=before_exec) is None:
            return


def _outputs(
    ranks: int, log_dir: str | None, stack: ExitStack
) -> list[tuple[PrefixedLines | BinaryIO, PrefixedLines | BinaryIO]]:
    """Return where each rank's stdout and stderr go: here, each line with its rank, or into files of its own."""
    if log_dir is None:
        return [(_prefixed(rank, ranks, sys.stdout), _prefixed(rank, ranks, sys.stderr)) for rank in range(ranks)]
    try:
        os.makedirs(log_dir, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--log-dir {log_dir} cannot be made: {error.strerror}") from None
    return [(_file(log_dir, rank, "out", stack), _file(log_dir, rank, "err", stack)) for rank in range(ranks)]


def _prefixed(rank: int, ranks: int, stream: IO[str] | None) -> PrefixedLines:
    prefix = f"[rank {rank:{len(str(ranks - 1))}}] "
    if stream is not None and stream.isatty() and not os.environ.get("NO_COLOR"):
        prefix = f"\x1b[{COLOURS[rank % len(COLOURS)]}m{prefix}\x1b[0m"
    return PrefixedLines(descriptor_of(stream), prefix.encode())


def _file(log_dir: str, rank: int, name: str, stack: ExitStack) -> BinaryIO:
    path = os.path.join(log_dir, f"rank-{rank}.{name}")
    try:
        return stack.enter_context(open(open_new(path), "wb"))
    except OSError as error:
        raise RequestError(f"--log-dir: {path} cannot be written: {error.strerror}") from None
