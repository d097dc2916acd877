"""What is left of a placement in an export format: `verify --as FORM` compares with this and with nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.placement.memory import WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.placement.model import RankPlacement

COMPLETE = ("env", "systemd", "docker")
"""Formats with the OpenMP variables."""
MASK_AND_POLICY = ("numactl", "slurm")
SERVERS = ("vllm", "sglang")
"""Servers that bind each OpenMP thread of a worker to one CPU of its list, and the memory in their own way."""
ENGINES = ("llama.cpp", "onnxruntime", "openvino")
"""Settings of an engine, without the mask and the memory policy of its process."""


def exported_placements(placements: Sequence[RankPlacement], form: str) -> tuple[RankPlacement, ...]:
    """Return the placements as a worker has them that was started with this export of their plan."""
    exported = (_exported(placement, placements, form) for placement in placements)
    # No format has weights.
    return tuple(
        placement._replace(memory_policy="interleave") if placement.memory_policy == WEIGHTED else placement
        for placement in exported
    )


def _exported(placement: RankPlacement, placements: Sequence[RankPlacement], form: str) -> RankPlacement:
    if not placement.bound or placement.gpu is not None:
        return placement
    if form in SERVERS:
        own = tuple(sorted(placement.cpus))
        places = tuple((cpu,) for cpu in placement.cpus)
        return placement._replace(affinity=own, places=places, helper_cpus=(), memory_policy="none")
    if form == "env":
        # Variables alone: the mask of the process stays what it was, but its first thread is bound.
        return placement._replace(memory_policy="none")
    if form in ENGINES:
        return placement._replace(places=(placement.affinity,) * len(placement.cpus), memory_policy="none")
    if form in COMPLETE:
        # A control group restricts the memory without a policy.
        return placement._replace(memory_policy="none") if form == "docker" else placement
    others = {cpu for other in placements if other is not placement for cpu in (*other.cpus, *other.helper_cpus)}
    own = tuple(sorted({*placement.cpus, *placement.helper_cpus} | (set(placement.affinity) - others)))
    exported = placement._replace(affinity=own, places=(own,) * len(placement.cpus))
    return exported if form in MASK_AND_POLICY else exported._replace(memory_policy="none")
