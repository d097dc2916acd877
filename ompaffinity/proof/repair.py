"""Bind again what has drifted, thread by thread, within the CPUs that are available now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.deferred_signals import deferred_signals
from ompaffinity.bind.running import Rebinding, bind_threads
from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.proof.adopt import refusals
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.drift import Mask, RankState


class Repair(NamedTuple):
    """What a repair did, in words, and why the kernel refused a part of it (empty: nothing was refused)."""

    binding: Rebinding
    message: str
    refused: tuple[str, ...] = ()


def repaired(placement: RankPlacement, state: RankState, masks: Mapping[int, Mask]) -> Repair:
    """Bind threads of a rank to these CPUs, {kernel id: CPUs}, as far as they are available.

    A thread none of whose CPUs is available gets all CPUs of the rank that are; so do other threads that may run
    outside of these. All others stay as they are.
    """
    rest = _available(placement.affinity, state, placement)
    wanted = {number: _available(cpus, state, placement) for number, cpus in masks.items()}
    with deferred_signals():
        binding = bind_threads(state.pid, state.start_time, wanted, rest, keep_narrower=True)
    reasons = tuple(dict.fromkeys(message.message for message in refusals(binding)))
    return Repair(binding, _in_words(binding), reasons)


def _available(cpus: Mask, state: RankState, placement: RankPlacement) -> Mask:
    for choice in (cpus, placement.affinity):
        left = state.available.intersection(choice)
        if left:
            return tuple(sorted(left))
    return tuple(sorted(state.available))


def _in_words(binding: Rebinding) -> str:
    shown = [f"thread {change.thread_id} on CPU {format_id_list(change.cpus)}" for change in binding.changes[:3]]
    more = len(binding.changes) - len(shown)
    rest = f" and {more} more" if more else ""
    return f"{counted(len(binding.changes), 'thread')} bound again: {', '.join(shown)}{rest}"
