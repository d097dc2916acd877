"""Ray's actors: each one looks at itself, and the verdicts are gathered."""

from __future__ import annotations

from ompaffinity.proof.compare import Difference, RankVerdict, verify_current_process
from ompaffinity.proof.verify import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ompaffinity.placement.cluster import ClusterPlan
    from ompaffinity.placement.plan import RankPlacement

ANSWER_SECONDS = 60.0


def verify_cluster(
    actors: Sequence[Any], plan: ClusterPlan | None = None, *, timeout_seconds: float = ANSWER_SECONDS
) -> Verdict:
    """Return how each actor compares with the placement that `actor_options` told it, or with those of `plan` in order.

    Call it when each has run OpenMP once, for its threads are told by their masks. An actor that does not answer
    within `timeout_seconds` (it waits for resources, has died, or is busy) is a difference, and so is one that runs
    on another node than the plan's.
    """
    import ray

    expected = [None if plan is None else plan.ranks[number].placement for number in range(len(actors))]
    asked = [actor.__ray_call__.remote(look_at_actor, placement) for actor, placement in zip(actors, expected)]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_seconds) if asked else ([], [])
    verdicts: list[RankVerdict] = []
    for number, reference in enumerate(asked):
        if reference not in ready:
            verdicts.append(_without_answer(number, f"it does not answer within {timeout_seconds:g} seconds"))
            continue
        try:
            node_id, verdict = ray.get(reference)
        except Exception as error:  # noqa: BLE001
            # Whatever an actor died of arrives here; the last line says it.
            verdicts.append(_without_answer(number, str(error).strip().splitlines()[-1][:300]))
            continue
        if verdict is None:
            verdict = _without_answer(number, "it has no placement; start it with actor_options(plan, rank)")
        elif plan is not None and node_id != plan.ranks[number].node_id:
            elsewhere = Difference(
                "actor",
                f"it runs on node {node_id[:8]}, the plan says {plan.ranks[number].node_id[:8]}",
                "another scheduling strategy than actor_options gives",
            )
            verdict = verdict._replace(differences=(*verdict.differences, elsewhere))
        elif any(other.rank == verdict.rank and other.pid for other in verdicts):
            twice = Difference("actor", f"another one was started as rank {verdict.rank}, too")
            verdict = verdict._replace(differences=(*verdict.differences, twice))
        verdicts.append(verdict)
    return Verdict(tuple(verdicts), () if plan is None else plan.all_warnings)


def look_at_actor(_actor: object, placement: RankPlacement | None) -> tuple[str, RankVerdict | None]:
    """Return the actor's node and its verdict; it is run inside of the actor."""
    import ray

    verdict = verify_current_process(placement)
    return ray.get_runtime_context().get_node_id(), verdict


def _without_answer(rank: int, reason: str) -> RankVerdict:
    return RankVerdict(rank, 0, (), False, (), None, None, (Difference("actor", reason),), ())
