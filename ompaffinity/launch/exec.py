"""Bind this process by the rank that its launcher gave it, then exec the command."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.plan_files import avoids_live, held_by_plans
from ompaffinity.bind.profile import COMMAND_PROFILE
from ompaffinity.bind.saved_options import resolved
from ompaffinity.bind.start_lock import StartLock
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.launch.bind_exec import NOT_STARTED, restore_signals
from ompaffinity.launch.mask_groups import MaskGroup, mask_group_of
from ompaffinity.launch.ranks import LauncherRank, local_world
from ompaffinity.launch.servers import SERVER_PROFILE, server_of
from ompaffinity.messages import MASK_NOT_WIDENED, RANK_UNKNOWN, RANKS_SHARE_MASK, Message, has_warning, log_warnings
from ompaffinity.placement.request import LIVE, SIZES, PlacementRequest, product_of_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

MAX_CPUS = 8192
"""NR_CPUS is at most this in any kernel today."""


def exec_bound(
    command: Sequence[str],
    options: Mapping[str, Any],
    *,
    local_rank: int | None = None,
    local_world_size: int | None = None,
    override: bool = False,
    probe: Sequence[str] = (),
    strict: bool = False,
) -> int:
    """Exec `command`, bound as the local rank of the launcher's variables (or of the arguments); returns on failure.

    `options` are those of a plan for all local ranks that share this process's mask: for one rank, where the launcher
    has bound each rank to CPUs of its own. `override` plans with all CPUs of the cpuset. The status is 1 where `strict`
    fails on a warning, 127 where the command cannot be started.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
        BindingError: the kernel refuses to bind, under `strict`.
    """
    place = local_world(os.environ, local_rank, local_world_size)
    server = server_of(command)
    messages: list[Message] = [] if server is None else [server.message("exec")]
    if place is None:
        if server is None:
            messages.append(RANK_UNKNOWN())
        place = LauncherRank("no launcher", 0, 1, 0, 1)
    if override:
        messages += widen_to_cpuset()
        group = MaskGroup(place.local_rank, tuple(range(place.local_size)))
    else:
        group = mask_group_of(os.environ, place)
    if not group.certain:
        messages.append(RANKS_SHARE_MASK(launcher=place.launcher, rank=place.local_rank, parts=len(group.ranks)))
    _check_sizes(options, place)
    given, number, about_gpus = options_of_group(options, group, place)
    messages += about_gpus
    log_warnings(messages)
    if avoids_live(given, os.environ):
        # Held until this process execs the command. The ranks of one launcher have one plan in common.
        StartLock()
        launcher = os.getppid() if place.local_size > 1 else None
        given["avoid"] = held_by_plans(given.get("avoid", (LIVE,)), launcher)
    profile = COMMAND_PROFILE
    if server is not None:
        given, profile = server.options(given, len(group.ranks)), SERVER_PROFILE
    manager = OMPProcessManager(strict=strict, probe=probe, profile=profile, **given)
    if strict and has_warning([*messages, *manager.messages]):
        return 1
    rank = place.local_rank if place.rank is None else place.rank
    with manager.configure_omp_envs(rank, number):
        return _become(command)


def widen_to_cpuset() -> tuple[Message, ...]:
    """Give this process every CPU of its cpuset, whatever its mask; return the warning that the kernel refuses it."""
    if not hasattr(os, "sched_setaffinity"):
        return ()
    try:
        # The kernel takes what the cpuset allows of them (sched_setaffinity(2)).
        os.sched_setaffinity(0, range(MAX_CPUS))
    except OSError as error:
        return (MASK_NOT_WIDENED(cpus=format_id_list(os.sched_getaffinity(0)), reason=error.strerror),)
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
    complete = resolved(given, {}).given
    if not PlacementRequest(**complete).for_gpus:
        return given, group.number, ()
    from ompaffinity.launch.gpus import gpus_of_group

    return gpus_of_group(complete, group, place)


def _check_sizes(options: Mapping[str, Any], place: LauncherRank) -> None:
    """Refuse sizes that are another number of ranks than the launcher has started."""
    sizes = {name: size for name, size in options.items() if name in SIZES}
    product = product_of_sizes(sizes)
    if sizes and product != place.local_size:
        raise RequestError(
            f"--tp, --pp and --dp make {product} local ranks, but {place.launcher} started {place.local_size}"
            " on this machine; leave them out, or start as many"
        )


def _become(command: Sequence[str]) -> int:
    restore_signals()
    try:
        # The user's own command, as argv: no shell.
        os.execvp(command[0], list(command))  # noqa: S606
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"ompaffinity: error: {command[0]} cannot be started: {reason}", file=sys.stderr)
        return NOT_STARTED
