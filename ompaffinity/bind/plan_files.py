"""Read plans that were saved with ``plan --json``: from a file or a pipe, within limits of size and time."""

from __future__ import annotations

import errno
import os
import select
import time
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.placement.document import held_cpus_from_document, plan_ranks_from_document
from ompaffinity.placement.environment import requested, split_options
from ompaffinity.placement.fields import MAX_DOCUMENT_BYTES, Source, decode_document
from ompaffinity.placement.options import OPTIONS_VARIABLE
from ompaffinity.placement.request import LIVE, HeldCPUs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from ompaffinity.placement.model import RankPlacement

READ_SECONDS = 5.0
"""So long a pipe may take."""
BLOCK_BYTES = 2**20
# Without O_NONBLOCK the opening of a FIFO waits for a writer without limit.
OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK


def held_by_plans(
    plans: Iterable[str | os.PathLike[str] | HeldCPUs], launcher: int | None = None
) -> tuple[HeldCPUs, ...]:
    """Return the CPUs that each of these plan files holds; ``"live"`` is what the processes running here hold.

    `launcher` is as in `held_live`.

    Raises:
        RequestError: a file cannot be read or is not a plan.
        TopologyError: sysfs lists no CPU.
    """
    if not isinstance(plans, (list, tuple)) or not all(
        isinstance(plan, (str, os.PathLike, HeldCPUs)) for plan in plans
    ):
        raise RequestError(f"--avoid (avoid) is {plans!r}; it must be a list of plan files")
    held: list[HeldCPUs] = []
    for plan in plans:
        if plan == LIVE:
            from ompaffinity.bind.live_holders import held_live

            held += held_live(launcher)
        else:
            held.append(plan if isinstance(plan, HeldCPUs) else _held_by_file(plan))
    return tuple(held)


def avoids_live(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Return whether these options, or those of the environment, ask to keep off what runs here."""
    avoid = given.get("avoid")
    if avoid is None:
        # A file of measured options holds none of these.
        _, text = split_options(environ.get(OPTIONS_VARIABLE, ""))
        avoid = [*requested({}, {OPTIONS_VARIABLE: text}).avoid]
    return isinstance(avoid, (list, tuple)) and LIVE in avoid


def saved_placements(path: str | os.PathLike[str]) -> tuple[RankPlacement, ...]:
    """Return the placements of the ranks in a plan file.

    Raises:
        RequestError: the file cannot be read or is not a plan.
    """
    source = _source("--plan", path)
    return plan_ranks_from_document(_read(path, source), source)


def saved_document(path: str | os.PathLike[str], source: Source) -> object:
    """Return the value of a JSON file or pipe, within the limits of a plan.

    Raises:
        RequestError: it cannot be read, or is not JSON.
    """
    return _read(path, source)


def _held_by_file(path: str | os.PathLike[str]) -> HeldCPUs:
    source = _source("--avoid", path)
    return held_cpus_from_document(_read(path, source), os.path.basename(path), source)


def _source(option: str, path: str | os.PathLike[str]) -> Source:
    return Source(
        f"{option} {os.fspath(path)}",
        "is not a plan as `ompaffinity plan --json` prints it",
        "pass a file that `ompaffinity plan --json` wrote",
    )


def _read(path: str | os.PathLike[str], source: Source) -> object:
    try:
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            content = b"".join(_blocks(descriptor))
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL.
        raise RequestError(f"{source.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return decode_document(content, source)


def _blocks(descriptor: int) -> Iterator[bytes]:
    """Yield what a file or pipe holds, one block more than a plan may have at most.

    Raises:
        OSError: it cannot be read, or a pipe has not ended after `READ_SECONDS`.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + READ_SECONDS
    left = MAX_DOCUMENT_BYTES + 1
    while left > 0:
        remaining = deadline - time.monotonic()
        if remaining < 0 or not poll.poll(1000 * remaining):
            raise TimeoutError(errno.ETIMEDOUT, f"the data did not end within {READ_SECONDS:.0f} seconds")
        try:
            block = os.read(descriptor, min(BLOCK_BYTES, left))
        except BlockingIOError:
            # Another reader of the pipe was faster.
            continue
        if not block:
            return
        left -= len(block)
        yield block
