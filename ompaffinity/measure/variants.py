"""The bindings that a command is tried under: ours in several forms, and what users do without us."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.bind.live_plan import live_plan
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.profile import OPENMP_PROFILE, WorkerProfile
from ompaffinity.openmp.variables import BINDING_VARIABLES, MANAGED_VARIABLES
from ompaffinity.placement.architecture import ALL
from ompaffinity.placement.document import PLACEMENT_VARIABLE
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ompaffinity.bind.profile import Variables
    from ompaffinity.placement.model import Plan, RankPlacement

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
        Variant(
            "helper-node",
            "other threads on all CPUs of the node",
            request={"helper_cpus": "node"},
            flags="--helper-cpus node",
        ),
        Variant(
            "performance-cores",
            "performance cores alone",
            request={"core_type": "performance"},
            flags="--core-type performance",
        ),
        Variant("all-cores", "all kinds of cores", request={"core_type": "all"}, flags="--core-type all"),
        Variant("span-node", "each rank on one node", request={"span": "node"}, flags="--span node"),
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
    "helper-node",
    "performance-cores",
    "all-cores",
    "span-node",
    "span",
    "memory-none",
    "brief",
)
"""Tried where none are named; those that would start the same as another one are left out."""


def _own_cpus_alone(placement: RankPlacement) -> RankPlacement:
    own = tuple(sorted({*placement.cpus, *placement.helper_cpus}))
    return placement._replace(affinity=own, memory_policy="none")


def _threads_alone(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    del plan, environ
    return {"OMP_NUM_THREADS": str(len(placement.cpus))}, OURS


def _no_variables(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    del plan, placement, environ
    return {}, (*OURS, "OMP_NUM_THREADS")


def _users_variables(plan: Plan, placement: RankPlacement, environ: Mapping[str, str]) -> Variables:
    del plan, placement, environ
    return {}, (PLACEMENT_VARIABLE,)


OURS = (*BINDING_VARIABLES, PLACEMENT_VARIABLE)
PROFILES = {
    NOTHING: WorkerProfile(_users_variables),
    THREADS: WorkerProfile(_threads_alone),
    MASK: WorkerProfile(_no_variables),
    PLAN: OPENMP_PROFILE,
}


def variant_manager(variant: Variant, asked: Mapping[str, Any], probe: Sequence[str] = ()) -> OMPProcessManager:
    """Return the manager that starts the ranks of one variant: with all of the plan, or with a part of it alone.

    Raises:
        RequestError, PlacementError, TopologyError: there can be no such plan here.
    """
    plan = live_plan({**asked, **(variant.request or {})}, probe)
    ranks = plan.ranks
    if variant.kind in (NOTHING, THREADS):
        ranks = tuple(placement._replace(bound=False) for placement in ranks)
    elif variant.kind == MASK:
        ranks = tuple(map(_own_cpus_alone, ranks))
    return OMPProcessManager(plan._replace(ranks=ranks), profile=PROFILES[variant.kind])


def what_it_sets(manager: OMPProcessManager) -> tuple[object, ...]:
    """Return the variables, CPUs and memory policy of each rank: two variants with the same are one."""
    found = []
    for rank in range(len(manager.plan.ranks)):
        with manager.configure_omp_envs(rank) as placement:
            variables = {name: os.environ[name] for name in MANAGED_VARIABLES if name in os.environ}
        policy = (placement.memory_policy, placement.nodes) if placement.memory_policy != "none" else ()
        taken = (placement.affinity, policy) if placement.bound else ()
        found.append((tuple(sorted(variables.items())), taken))
    return tuple(found)
