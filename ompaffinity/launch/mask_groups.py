"""Which local ranks share this process's mask, for a launcher or a script under it may have bound them.

Only the launcher has its own options (Slurm lists them for its steps), so the ranks are observed: all processes below
the one that started them, the launcher, with their masks (proc(5), sched_getaffinity(2)). A rank that has bound
itself by now has a part of the mask that it was given, so that it still counts to those who share that mask.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ompaffinity.launch.ranks import local_rank_variable
from ompaffinity.proc import mask_of, parent_of, processes_below, started_with
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ompaffinity.launch.ranks import LauncherRank

WAIT_SECONDS = 5.0
POLL_SECONDS = 0.02


class MaskGroup(NamedTuple):
    """The local ranks that share a rank's mask, itself among them, ascending; whether all of them were seen."""

    local_rank: int
    ranks: tuple[int, ...]
    certain: bool = True

    @property
    def number(self) -> int:
        """Which of these ranks it is, from 0."""
        return self.ranks.index(self.local_rank)


def mask_group_of(environ: Mapping[str, str], place: LauncherRank) -> MaskGroup:
    """Return this rank's place among the local ranks that share its mask.

    A rank that is not seen within five seconds (it has ended, or has not begun) counts to those who share where the
    masks are too wide for all ranks to have one of their own: then nothing is given twice, but something may be left
    unused.
    """
    size = place.local_size
    everybody = MaskGroup(place.local_rank, tuple(range(size)))
    if size == 1 or not hasattr(os, "sched_getaffinity"):
        return everybody
    kind = environ.get("SLURM_CPU_BIND_TYPE", "")
    if place.launcher == "Slurm" and kind.startswith(("mask_cpu", "map_cpu")):
        return _listed_by_slurm(environ, place.local_rank, size)
    variable = local_rank_variable(place.launcher)
    mine = os.sched_getaffinity(0)
    if variable is None or variable not in environ:
        # Only the options name the rank: a mask that is one of as many parts of the starter's is its own.
        starters = mask_of(os.getppid()) or mine
        own = mine < starters and size * len(mine) <= len(starters)
        return MaskGroup(place.local_rank, (place.local_rank,)) if own else everybody
    launcher = _launcher(variable)
    given = mask_of(launcher)
    if given is None or mine == given:
        return everybody
    return _seen(variable, launcher, place.local_rank, size, mine, given)


def environments_of_ranks(place: LauncherRank, names: Collection[str]) -> dict[int, dict[str, str]] | None:
    """Return what the first process of each local rank that has these variables was started with.

    A script under the launcher may set them before it starts the rank. None where not all are seen in five seconds.
    """
    variable, size = local_rank_variable(place.launcher), place.local_size
    if variable is None:
        return None
    launcher = _launcher(variable)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found: dict[int, dict[str, str]] = {}
        for pid in processes_below(launcher):
            environment = _environment(pid)
            rank = environment.get(variable, "")
            if rank.isascii() and rank.isdigit() and environment.keys() >= set(names):
                found.setdefault(int(rank), environment)
        if found.keys() >= set(range(size)):
            return found
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)


def _listed_by_slurm(environ: Mapping[str, str], local_rank: int, size: int) -> MaskGroup:
    """Slurm lists its tasks' masks (srun(1), SLURM_CPU_BIND_LIST); the list begins anew where there are more tasks."""
    listed = environ.get("SLURM_CPU_BIND_LIST", "").split(",")
    masks = [listed[rank % len(listed)] for rank in range(size)]
    return MaskGroup(local_rank, tuple(rank for rank, mask in enumerate(masks) if mask == masks[local_rank]))


def _seen(variable: str, launcher: int, local_rank: int, size: int, mine: set[int], given: set[int]) -> MaskGroup:
    """Look at the other ranks until each of them has been bound, as this one was."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        masks = _masks_of_ranks(variable, launcher)
        masks[local_rank] = mine
        open_ranks = {rank for rank in range(size) if masks.get(rank, given) == given}
        if not open_ranks or time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    if size * len(mine) <= len(given):
        # There is room for a mask of its own for each.
        open_ranks, masks = set(), {rank: masks.get(rank, given) for rank in range(size)}
    sharers = tuple(rank for rank in range(size) if rank in open_ranks or masks[rank] <= mine)
    return MaskGroup(local_rank, sharers, not open_ranks)


def _launcher(variable: str) -> int:
    """Return the nearest ancestor without a local rank: it, or its own parent, assigns them."""
    pid = os.getppid()
    while pid > 1 and variable in _environment(pid):
        pid = parent_of(pid)
    return pid


def _masks_of_ranks(variable: str, launcher: int) -> dict[int, set[int]]:
    """Return the narrowest mask of each local rank's processes below the launcher."""
    found: dict[int, set[int]] = {}
    for pid in processes_below(launcher):
        text = _environment(pid).get(variable, "")
        mask = mask_of(pid)
        if mask is None or not (text.isascii() and text.isdigit()):
            continue
        rank = int(text)
        if rank not in found or len(mask) < len(found[rank]):
            found[rank] = mask
    return found


def _environment(pid: int) -> dict[str, str]:
    """Return what a process was started with, nothing where it may not be read."""
    try:
        return started_with(pid)
    except OSError:
        return {}
