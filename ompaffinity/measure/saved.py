"""The advice of a comparison as a file for ``--options``: the options, and the evidence for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.bind.saved_options import SCHEMA, measured_machine
from ompaffinity.measure.variants import MASK, NOTHING, PLAN, THREADS
from ompaffinity.placement.environment import options_text
from ompaffinity.placement.request import SIZES, product_of_sizes
from ompaffinity.shown import brief_command

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.measure.session import Comparison
    from ompaffinity.topology.model import Topology

INSTEAD: dict[str, dict[str, Any]] = {
    NOTHING: {"bind": "none"},
    THREADS: {"bind": "none"},
    MASK: {"granularity": "team", "memory_policy": "none"},
    PLAN: {},
}
"""What comes nearest to a variant that is no plan, in planning options."""
NOT_SAVED = (*SIZES, "avoid", "options")
"""The number of ranks is that of the command; other servers are others the next time."""


def advised_document(
    comparison: Comparison, request: Mapping[str, Any], topology: Topology, load: tuple[float, float, float]
) -> dict[str, Any] | None:
    """Return the ``ompaffinity.options/1`` document of the advised variant; None where there is no advice.

    `request` are the planning options of the comparison, `load` the load averages at its end. The command is
    shortened: its arguments may be secret.
    """
    result = next((found for found in comparison.results if found.variant.name == comparison.advice.variant), None)
    if result is None:
        return None
    variant = result.variant
    chosen = {**request, **(variant.request or {}), **INSTEAD[variant.kind]}
    if variant.kind in (NOTHING, THREADS):
        chosen = INSTEAD[variant.kind]
    baseline = comparison.results[0].variant.name
    return {
        "schema": SCHEMA,
        "options": options_text({name: value for name, value in chosen.items() if name not in NOT_SAVED}),
        "machine": measured_machine(topology).to_document(),
        "evidence": {
            "variant": variant.name,
            "baseline": baseline,
            "speed": result.speed._asdict(),
            "verdict": result.verdict,
            "advice": comparison.advice.text,
            "ranks": product_of_sizes(request),
            "command": brief_command(" ".join(comparison.settings.command)),
            "metric": None if comparison.settings.metric is None else comparison.settings.metric.pattern,
            "rounds": len(comparison.counted),
            "quiet": comparison.quiet,
            "load_average": [round(value, 2) for value in load],
        },
    }
