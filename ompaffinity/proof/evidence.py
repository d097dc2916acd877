"""What a window proves: which threads used CPU time, and whether that is what the placement plans. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.messages import counted
from ompaffinity.proof.verdict import MASK, THREADS, Difference
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.proof.activity import Activity, ThreadActivity


class Evidence(NamedTuple):
    """What a window proves: the thread of each place (None: not seen at work), differences, and notes.

    `complete`: as many busy threads as planned were seen, each within its place. `by_count`: only their number proves
    the team, because its threads share a mask. `idle`: no thread was busy.
    """

    level: str
    threads: tuple[ThreadActivity | None, ...]
    busy: int = 0
    complete: bool = False
    by_count: bool = False
    idle: bool = False
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()


def evidence_of(
    placement: RankPlacement,
    activity: Activity,
    *,
    has_openmp: bool,
    own_threads: bool = False,
    with_caller: bool = False,
) -> Evidence:
    """Return what the activity of a rank's process proves about its placement.

    `own_threads`: the process has an engine that computes in threads of its own instead of an OpenMP team.
    `with_caller`: the thread that calls this engine waits for them, and may be busy besides.
    """
    if not placement.bound:
        busy = activity.busy
        return Evidence(MASK, (), len(busy), complete=bool(busy), by_count=True, idle=not busy)
    found = _of_team(placement, activity) if has_openmp else _within_mask(placement, activity, with_caller)
    if has_openmp and own_threads and not found.complete:
        found = _within_mask(placement, activity, with_caller)
    outside = tuple(threads_outside(placement, activity.threads))
    return found._replace(
        complete=found.complete and not outside and not found.differences,
        busy=len(activity.busy),
        idle=not activity.busy,
        differences=(*outside, *found.differences),
    )


def threads_outside(placement: RankPlacement, threads: Iterable[ThreadActivity]) -> Iterable[Difference]:
    """Yield a difference for each mask outside of the rank's CPUs: busy or idle, no thread may leave them."""
    masks: dict[tuple[int, ...], list[ThreadActivity]] = {}
    for thread in threads:
        if set(thread.cpus) - set(placement.affinity):
            masks.setdefault(thread.cpus, []).append(thread)
    for cpus, found in sorted(masks.items()):
        subject = thread_in_words(found[0])
        others = f" ({counted(len(found) - 1, 'other thread')} too)" if len(found) > 1 else ""
        kernel, plan = format_id_list(cpus), format_id_list(placement.affinity)
        yield Difference(subject, f"may run on CPU {kernel}, outside of the rank's {plan}{others}")


def thread_in_words(thread: ThreadActivity) -> str:
    """Return the subject of a sentence about a thread that is not known as an OpenMP thread."""
    return f"thread id {thread.thread_id} ({thread.name})"


def _of_team(placement: RankPlacement, activity: Activity) -> Evidence:
    if len(set(placement.places)) > 1:
        return _of_pinned_team(placement, activity)
    return _of_equal_places(placement, activity)


def _of_pinned_team(placement: RankPlacement, activity: Activity) -> Evidence:
    """A place after the first proves its thread by its mask alone, if the thread is active."""
    first, *others = placement.places
    planned = Counter(others)
    at_place = {place: [thread for thread in activity.active if thread.cpus == place] for place in planned}
    team = [next((thread for thread in activity.active if thread.cpus == first), None), *_at_places(others, at_place)]
    pinned, floating = _beside_places(placement, activity)
    differences = list(_crowded_places(planned, at_place, activity))
    # Without a thread at any other place the team may not have been formed yet.
    if team[0] is None and floating and any(team[1:]):
        team[0] = floating[0]
        differences.append(_difference_at(0, floating[0], first))
    missing = [number for number, thread in enumerate(team) if thread is None]
    differences += _at_wrong_places(pinned, placement, missing)
    extra, room = len(floating) - (team[0] in floating), len(set(placement.affinity) - set(placement.cpus))
    if extra > room:
        differences.append(_too_many(placement, activity, missing))
    complete = not missing and not differences
    notes = _beside_the_team(extra) if complete else ()
    return Evidence(THREADS, tuple(team), complete=complete, differences=tuple(differences), notes=notes)


def _beside_places(placement: RankPlacement, activity: Activity) -> tuple[list[ThreadActivity], list[ThreadActivity]]:
    """Return the busy threads that are at no place after the first: those pinned wrongly, and those that float."""
    beside = [thread for thread in activity.busy if thread.cpus not in placement.places[1:]]
    pinned = [thread for thread in beside if _is_misplaced(thread, placement)]
    return pinned, [thread for thread in beside if thread not in pinned]


def _beside_the_team(count: int) -> tuple[str, ...]:
    return (f"{counted(count, 'other thread')} of the process used CPU time beside the team",) if count > 0 else ()


def _at_places(
    places: list[tuple[int, ...]], at_place: dict[tuple[int, ...], list[ThreadActivity]]
) -> list[ThreadActivity | None]:
    left = {place: list(threads) for place, threads in at_place.items()}
    return [left[place].pop(0) if left[place] else None for place in places]


def _crowded_places(
    planned: Counter[tuple[int, ...]],
    at_place: dict[tuple[int, ...], list[ThreadActivity]],
    activity: Activity,
) -> Iterable[Difference]:
    for place, threads in at_place.items():
        count, number = sum(thread in activity.busy for thread in threads), planned[place]
        if count > number:
            text = f"{count} busy threads are bound to CPU {format_id_list(place)}, the plan has {number} there"
            yield Difference("team", text)


def _is_misplaced(thread: ThreadActivity, placement: RankPlacement) -> bool:
    """Return whether a thread is pinned to CPUs of the team in a way that the plan does not have."""
    if thread.cpus in (placement.places[0], placement.affinity) or set(thread.cpus) - set(placement.affinity):
        return False
    return bool(set(thread.cpus) & set(placement.cpus))


def _at_wrong_places(
    threads: list[ThreadActivity], placement: RankPlacement, missing: list[int]
) -> Iterable[Difference]:
    """Yield a difference for each pinned thread: a thread of the team if one is missing after the first."""
    free = [number for number in missing if number > 0]
    for thread in threads:
        if free:
            number = free.pop(0)
            yield _difference_at(number, thread, placement.places[number])
        else:
            text = f"is busy and bound to CPU {format_id_list(thread.cpus)}, which is no place of the plan"
            yield Difference(thread_in_words(thread), text)


def _difference_at(number: int, thread: ThreadActivity, place: tuple[int, ...]) -> Difference:
    kernel, plan = format_id_list(thread.cpus), format_id_list(place)
    return Difference(f"thread {number}", f"may run on CPU {kernel}, the plan requires {plan}")


def _too_many(placement: RankPlacement, activity: Activity, missing: list[int]) -> Difference:
    count, planned, cpus = len(activity.busy), len(placement.cpus), format_id_list(placement.affinity)
    if missing and count <= planned:
        places = format_id_list({cpu for number in missing for cpu in placement.places[number]})
        return Difference("team", f"{count} busy threads may run on CPU {cpus}, but none is bound to {places} alone")
    return Difference("team", f"{counted(count, 'busy thread')} on CPU {cpus}, the plan has {planned}")


def _of_equal_places(placement: RankPlacement, activity: Activity) -> Evidence:
    """The threads of a floating team, or the only thread: their number proves them, and each has this mask."""
    place = placement.places[0]
    differences = [
        _difference_at(number, thread, place)
        for number, thread in enumerate(activity.busy[: len(placement.cpus)])
        if thread.cpus != place and not set(thread.cpus) - set(placement.affinity)
    ]
    return _by_count(placement, activity, THREADS, differences)


def _within_mask(placement: RankPlacement, activity: Activity, with_caller: bool) -> Evidence:
    """Without OpenMP the masks may be narrower, but not such that busy threads crowd on fewer CPUs."""
    masks = Counter(thread.cpus for thread in activity.busy)
    differences = [
        Difference("threads", f"{count} busy threads are bound to CPU {format_id_list(cpus)}")
        for cpus, count in masks.items()
        if count > len(cpus) and set(cpus) < set(placement.affinity)
    ]
    return _by_count(placement, activity, MASK, differences, callers=int(with_caller))


def _by_count(
    placement: RankPlacement, activity: Activity, level: str, differences: list[Difference], callers: int = 0
) -> Evidence:
    planned, busy = len(placement.cpus), activity.busy
    team = (*busy[:planned], *(None for _ in range(planned - len(busy))))
    notes: tuple[str, ...] = ()
    if len(busy) > max(planned, len(placement.affinity)) + callers:
        differences = [*differences, _too_many(placement, activity, [])]
    elif len(busy) > planned + callers:
        notes = (f"{counted(len(busy), 'busy thread')}, the plan has {planned}; the others may be helper threads",)
    complete = planned <= len(busy) <= planned + callers and not differences
    return Evidence(level, team, complete=complete, by_count=True, differences=tuple(differences), notes=notes)
