"""Verify Ray's actors: each one verifies itself, and the verdicts are gathered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.errors import RequestError
from ompaffinity.integrations.ray.nodes import in_one_line
from ompaffinity.proof.compare import verify_current_process
from ompaffinity.proof.verdict import Difference, RankVerdict, Verdict, with_differences, without_process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ompaffinity.integrations.ray.cluster import ClusterPlan, ClusterRank
    from ompaffinity.placement.model import RankPlacement

    Answer = tuple[str, int | None, RankVerdict | None]

ANSWER_SECONDS = 60.0


def verify_cluster(
    actors: Sequence[Any], plan: ClusterPlan | None = None, *, timeout_seconds: float = ANSWER_SECONDS
) -> Verdict:
    """Return how each actor compares with its placement from `actor_options`, or with those of `plan` in order.

    Call it when each has run OpenMP once: its threads are identified by their masks. An actor that does not answer
    within `timeout_seconds` (it waits for resources, has died, or is busy) is a difference; so is one that was
    started as another rank or runs on another node than the plan's, and a rank of the plan without an actor.

    Raises:
        RequestError: there are more actors than the plan has ranks.
    """
    import ray

    ranks = () if plan is None else plan.ranks
    if plan is not None and len(actors) > len(ranks):
        raise RequestError(f"there are {len(actors)} actors, but the plan has {len(ranks)} ranks")
    placements = [_expected(ranks[number] if ranks else None) for number in range(len(actors))]
    asked = [actor.__ray_call__.remote(look_at_actor, placement) for actor, placement in zip(actors, placements)]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_seconds) if asked else ([], [])
    verdicts: list[RankVerdict] = []
    started: dict[int, int] = {}
    for number, reference in enumerate(asked):
        if reference not in ready:
            verdicts.append(_without_answer(number, f"it does not answer within {timeout_seconds:g} seconds"))
            continue
        try:
            answer = ray.get(reference)
        except Exception as error:  # noqa: BLE001
            verdicts.append(_without_answer(number, in_one_line(error)))
            continue
        verdicts.append(_judged(number, answer, ranks[number] if ranks else None, started))
    verdicts += [_without_answer(rank.rank, "there is no actor of this rank") for rank in ranks[len(actors) :]]
    return Verdict(tuple(verdicts), () if plan is None else plan.all_messages)


def _expected(planned: ClusterRank | None) -> RankPlacement | None:
    """Return the placement to compare an actor with, None for the one that it has received.

    The placement of a GPU rank depends on the GPU that the scheduler gives it.
    """
    return None if planned is None or planned.placement.gpu is not None else planned.placement


def _judged(number: int, answer: Answer, planned: ClusterRank | None, started: dict[int, int]) -> RankVerdict:
    """Return the verdict on the actor at this place, which has answered.

    `started` has the place of the actor of each rank seen so far; this one is added.
    """
    node_id, rank, verdict = answer
    if verdict is None:
        return _without_answer(number, "it has no placement; start it with actor_options(plan, rank)")
    found = []
    if planned is not None and rank != number:
        as_whom = "as no rank" if rank is None else f"as rank {rank}"
        found.append(Difference("actor", f"it was started {as_whom}, and stands here as rank {number}"))
    if rank is not None and started.setdefault(rank, number) != number:
        found.append(Difference("actor", f"another one was started as rank {rank}, too"))
    if planned is not None and node_id != planned.node_id:
        text = f"it runs on node {node_id[:8]}, the plan requires {planned.node_id[:8]}"
        found.append(Difference("actor", text, "another scheduling strategy than actor_options gives"))
    return with_differences(verdict, found)


def look_at_actor(_actor: object, placement: RankPlacement | None) -> Answer:
    """Return the actor's node, the rank that it was started as, and its verdict; it is run inside of the actor."""
    import ray

    own = current_placement()
    verdict = verify_current_process(placement)
    return ray.get_runtime_context().get_node_id(), None if own is None else own.rank, verdict


def _without_answer(rank: int, reason: str) -> RankVerdict:
    return without_process(rank, [Difference("actor", reason)])
