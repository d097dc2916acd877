"""The bindings that a command is tried under: ours in several forms, and what users do without us."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.openmp.variables import BINDING_VARIABLES, MANAGED_VARIABLES
from ompaffinity.placement.architecture import ALL
from ompaffinity.placement.document import PLACEMENT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.placement.model import RankPlacement

NOTHING, THREADS, MASK, PLAN = "nothing", "threads", "mask", "plan"


class Variant(NamedTuple):
    """One way to start the ranks: what of a plan they get (`kind`), and how its request differs from the one asked for.

    `flags` is the same as options of the command line.
    """

    name: str
    summary: str
    kind: str = PLAN
    request: dict[str, Any] | None = None
    flags: str = ""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("none", "nothing is set", NOTHING),
        Variant("threads", "OMP_NUM_THREADS alone, as many threads as the plan has", THREADS),
        Variant("mask", "each rank's CPUs as a mask alone, as taskset does", MASK),
        Variant("plan", "the plan as asked for"),
        Variant("thread", "each thread on its CPU", request={"granularity": "thread"}, flags="--granularity thread"),
        Variant("team", "a team that floats", request={"granularity": "team"}, flags="--granularity team"),
        Variant("smt", "all SMT siblings", request={"threads_per_core": ALL}, flags="--threads-per-core all"),
        Variant("no-smt", "one thread per core", request={"threads_per_core": 1}, flags="--threads-per-core 1"),
        Variant("no-reserve", "no core kept back", request={"reserve": 0}, flags="--reserve 0"),
        Variant("span", "ranks over all nodes", request={"span": "machine"}, flags="--span machine"),
        Variant("spread", "nodes far apart", request={"distribute": "spread"}, flags="--distribute spread"),
        Variant("memory-none", "no memory policy", request={"memory_policy": "none"}, flags="--memory-policy none"),
        Variant(
            "memory-bind", "memory of its nodes only", request={"memory_policy": "bind"}, flags="--memory-policy bind"
        ),
        Variant(
            "memory-interleave",
            "memory of its nodes in turn",
            request={"memory_policy": "interleave"},
            flags="--memory-policy interleave",
        ),
        Variant("active", "idle threads spin", request={"wait_policy": "active"}, flags="--wait-policy active"),
        Variant("brief", "idle threads soon sleep", request={"wait_policy": "brief"}, flags="--wait-policy brief"),
        Variant("passive", "idle threads sleep", request={"wait_policy": "passive"}, flags="--wait-policy passive"),
    )
}
USUAL = (
    "none",
    "threads",
    "mask",
    "plan",
    "thread",
    "team",
    "smt",
    "no-smt",
    "no-reserve",
    "span",
    "memory-none",
    "brief",
)
"""Tried where none are named; those that would start the same as another one are left out."""


def _own_cpus_alone(placement: RankPlacement) -> RankPlacement:
    own = tuple(sorted({*placement.cpus, *placement.helper_cpus}))
    return placement._replace(affinity=own, memory_policy="none")


class VariantManager(OMPProcessManager):
    """Starts the ranks of one variant: with all of the plan, or with a part of it alone.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
    """

    def __init__(self, variant: Variant, asked: Mapping[str, Any]) -> None:
        super().__init__(**{**asked, **(variant.request or {})})
        self._kind = variant.kind
        self._threads = [len(placement.cpus) for placement in self.plan.ranks]
        if variant.kind in (NOTHING, THREADS):
            ranks = (placement._replace(bound=False) for placement in self.plan.ranks)
            self.plan = self.plan._replace(ranks=tuple(ranks))
        elif variant.kind == MASK:
            self.plan = self.plan._replace(ranks=tuple(map(_own_cpus_alone, self.plan.ranks)))

    def _environment(self, placement: RankPlacement) -> tuple[dict[str, str], tuple[str, ...]]:
        others = (*BINDING_VARIABLES, PLACEMENT_VARIABLE)
        if self._kind == PLAN:
            return super()._environment(placement)
        if self._kind == THREADS:
            return {"OMP_NUM_THREADS": str(self._threads[placement.local_rank])}, others
        return {}, (*others, "OMP_NUM_THREADS") if self._kind == MASK else (PLACEMENT_VARIABLE,)

    def what_it_sets(self) -> tuple[object, ...]:
        """Return what each rank hears and gets: two variants with the same are one."""
        found = []
        for rank in range(len(self.plan.ranks)):
            with self.configure_omp_envs(rank) as placement:
                heard = {name: os.environ[name] for name in MANAGED_VARIABLES if name in os.environ}
            policy = (placement.memory_policy, placement.nodes) if placement.memory_policy != "none" else ()
            taken = (placement.affinity, policy) if placement.bound else ()
            found.append((tuple(sorted(heard.items())), taken))
        return tuple(found)
