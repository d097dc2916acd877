"""Bind this process by the rank that its launcher gave it, then become the command."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.launch.bind_exec import NOT_STARTED, restore_signals
from ompaffinity.launch.mask_groups import MaskGroup, mask_group_of
from ompaffinity.launch.ranks import LauncherRank, local_world
from ompaffinity.messages import Message
from ompaffinity.placement.request import SIZES, PlacementRequest, product_of_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

logger = logging.getLogger("ompaffinity")

MAX_CPUS = 8192
"""NR_CPUS is at most this in any kernel today."""


def exec_bound(
    command: Sequence[str],
    options: Mapping[str, Any],
    *,
    local_rank: int | None = None,
    local_world_size: int | None = None,
    override: bool = False,
    strict: bool = False,
) -> int:
    """Become `command`, bound as the local rank that the launcher (or the arguments) say; returns only if not.

    `options` are those of a plan. It is for all local ranks that share this process's mask: for one, where the
    launcher has bound each rank apart. `override` plans with all that the cpuset leaves. The status is 1 where
    `strict` forbids a warning, 127 where the command cannot be started.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
        BindingError: the kernel refuses to bind, under `strict`.
    """
    place = local_world(os.environ, local_rank, local_world_size)
    said: list[Message] = []

    def warn(code: str, text: str) -> None:
        said.append(Message(code, "warning", text))
        logger.warning("%s: %s", code, text)

    if place is None:
        text = (
            "no launcher says which rank this is (torchrun, mpirun, srun ...), so it is taken for rank 0 of 1;"
            " say it with --local-rank and --local-world-size"
        )
        warn("rank-unknown", text)
        place = LauncherRank("nobody", 0, 1, 0, 1)
    if override:
        said += widen_to_cpuset()
        group = MaskGroup(place.local_rank, tuple(range(place.local_world_size or 1)))
    else:
        group = mask_group_of(os.environ, place)
    if not group.certain:
        text = (
            f"{place.launcher} or a script under it has bound the ranks, and not all of them were seen, so rank"
            f" {place.local_rank} takes one of {len(group.ranks)} parts of its mask; let the launcher bind none (mpirun"
            " --bind-to none, srun --cpu-bind=none), or say --override"
        )
        warn("outside-binding", text)
    _check_sizes(options, place)
    given, number, told = options_of_group(options, group, place)
    for message in told:
        warn(message.code, message.message)
    manager = OMPProcessManager(strict=strict, **given)
    if strict and any(message.level == "warning" for message in (*said, *manager.messages)):
        return 1
    rank = place.local_rank if place.rank is None else place.rank
    with manager.configure_omp_envs(rank, number):
        return _become(command)


def widen_to_cpuset() -> tuple[Message, ...]:
    """Give this process every CPU that its cpuset leaves it, whatever its mask; log and return what is refused."""
    if not hasattr(os, "sched_setaffinity"):
        return ()
    try:
        # The kernel takes what the cpuset allows of them (sched_setaffinity(2)).
        os.sched_setaffinity(0, range(MAX_CPUS))
    except OSError as error:
        text = (
            f"--override cannot widen the mask, CPU {format_id_list(os.sched_getaffinity(0))}: the kernel refuses"
            f" ({error.strerror}); allow sched_setaffinity in the seccomp profile, or leave --override out"
        )
        refused = Message("affinity-not-permitted", "warning", text)
        logger.warning("%s: %s", refused.code, refused.message)
        return (refused,)
    return ()


def options_of_group(
    options: Mapping[str, Any], group: MaskGroup, place: LauncherRank
) -> tuple[dict[str, Any], int, tuple[Message, ...]]:
    """Return the options of a plan for the ranks that share a mask, which rank of it this one is, and messages.

    Raises:
        RequestError: what is asked for GPUs makes no sense for so many ranks.
        TopologyError: the machine cannot be read.
    """
    ranks = len(group.ranks)
    sizes = {name: size for name, size in options.items() if name in SIZES}
    given = {name: value for name, value in options.items() if name not in SIZES}
    if ranks != product_of_sizes(sizes):
        independent = sizes and PlacementRequest(**sizes).group == 1
        sizes = {"data_parallel_size" if independent else "tensor_parallel_size": ranks}
    given |= sizes
    if not PlacementRequest(**given).for_gpus:
        return given, group.number, ()
    from ompaffinity.launch.gpus import gpus_of_group

    return gpus_of_group(given, group, place)


def _check_sizes(options: Mapping[str, Any], place: LauncherRank) -> None:
    """Refuse sizes that are another number of ranks than the launcher has started."""
    sizes = {name: size for name, size in options.items() if name in SIZES}
    product = product_of_sizes(sizes)
    if sizes and product != (place.local_world_size or 1):
        raise RequestError(
            f"--tp, --pp and --dp make {product} local ranks, but {place.launcher} started {place.local_world_size}"
            " on this machine; leave them out, or start as many"
        )


def _become(command: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        # None: it was closed at the start.
        if stream is not None:
            stream.flush()
    restore_signals()
    try:
        # The user's own command, as argv: no shell.
        os.execvp(command[0], list(command))  # noqa: S606
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"ompaffinity: error: {command[0]} cannot be started: {reason}", file=sys.stderr)
        return NOT_STARTED
