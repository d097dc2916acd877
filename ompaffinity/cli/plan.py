"""``plan``: a dry run."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.cli.options import EXPORT_FORMATS, planning_options
from ompaffinity.errors import RequestError
from ompaffinity.messages import WARNING, WEIGHTS_NOT_EXPORTED, has_warning
from ompaffinity.openmp.plan_document import plan_document
from ompaffinity.openmp.variables import environment_messages
from ompaffinity.placement.environment import requested
from ompaffinity.placement.memory import WEIGHTED
from ompaffinity.placement.options import OPTIONS_FLAG, OPTIONS_VARIABLE
from ompaffinity.placement.plan import make_plan
from ompaffinity.topology.record import opened
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.placement.model import Plan
    from ompaffinity.topology.model import Topology


def run_plan(values: dict[str, Any]) -> int:
    """Print the plan that `values` ask for; 1 under --strict with a warning, else 0."""
    if "ray" in values:
        return _run_cluster_plan(values)
    topology, plan = plan_from_values(values)
    rank = values.get("rank")
    if rank is not None and not 0 <= rank < len(plan.ranks):
        raise RequestError(f"--rank is {rank}, but the plan has the ranks 0 to {len(plan.ranks) - 1}")
    if "svg" in values:
        from ompaffinity.cli.picture import write_picture

        write_picture(topology, plan, values["svg"])
    form = _form(values)
    if values.get("map") and form != "table":
        raise RequestError(f"--map goes with the table, and not with {form}; leave one of them out")
    if form == "json":
        sys.stdout.write(json.dumps(plan_document(plan, rank)) + "\n")
    elif form in EXPORT_FORMATS:
        from ompaffinity.cli.exports import WITHOUT_WEIGHTS, export
        from ompaffinity.cli.text import print_messages

        sys.stdout.write(export(plan, form, rank))
        messages = [message for message in plan.messages if message.level == WARNING]
        if form in WITHOUT_WEIGHTS and any(placed.memory_policy == WEIGHTED for placed in plan.ranks):
            messages.append(WEIGHTS_NOT_EXPORTED(form=form))
        print_messages(messages)
    else:
        from ompaffinity.cli.plan_tables import print_plan

        if values.get("map"):
            from ompaffinity.cli.terminal_map import print_map

            print_map(topology, plan)
        print_plan(topology, plan, rank)
    return int(bool(values.get("strict")) and has_warning(plan.messages))


def _form(values: dict[str, Any]) -> str:
    """Return the format of the output.

    Raises:
        RequestError: --json contradicts --format.
    """
    form: str = values.get("format", "json" if values.get("json") else "table")
    if values.get("json") and form != "json":
        raise RequestError(f"--json and --format {form} are two formats; leave one of them out")
    return form


def _run_cluster_plan(values: dict[str, Any]) -> int:
    """Print the plan over the nodes of a Ray cluster."""
    for field, option in {"machine": "--machine", "synthetic": "--synthetic", "architecture": "--arch"}.items():
        if field in values:
            raise RequestError(
                f"--ray reads every node of the cluster, so {option} cannot be combined with it; leave one out"
            )
    if values.keys() & {"svg", "map"}:
        raise RequestError("--svg and --map are for one machine; a cluster's plan is a table or json")
    if "source" in values:
        raise RequestError("--ray reads every node as --source auto does; leave --source out")
    if values.get("format", "table") not in ("table", "json"):
        raise RequestError(f"--format {values['format']} is for one machine; a cluster's plan is a table or json")
    from ompaffinity.integrations.ray.actors import plan_cluster
    from ompaffinity.integrations.ray.document import cluster_document

    given = planning_options(values)
    plan = plan_cluster(address=values["ray"], **given)
    rank = values.get("rank")
    if rank is not None and not 0 <= rank < len(plan.ranks):
        raise RequestError(f"--rank is {rank}, but the plan has the ranks 0 to {len(plan.ranks) - 1}")
    if _form(values) == "json":
        sys.stdout.write(json.dumps(cluster_document(plan, rank)) + "\n")
    else:
        from ompaffinity.cli.plan_tables import print_cluster_plan

        print_cluster_plan(plan, rank)
    return int(bool(values.get("strict")) and has_warning(plan.all_messages))


def plan_from_values(values: dict[str, Any]) -> tuple[Topology, Plan]:
    """Return the machine and the plan that the options ask for, with what keeps workers here from following it."""
    topology, plan = planned(values)
    is_live = not values.keys() & {"machine", "synthetic"}
    if is_live and any(rank.bound for rank in plan.ranks):
        plan = plan._replace(messages=(*plan.messages, *environment_messages(os.environ, plan)))
        if any(rank.memory_policy != "none" for rank in plan.ranks):
            from ompaffinity.bind.memory_fallbacks import with_accepted_memory

            plan = with_accepted_memory(plan)
    return topology, plan


def planned(values: dict[str, Any]) -> tuple[Topology, Plan]:
    """Return the machine and the plan that the options ask for; options win over the environment."""
    machine = {name: values[name] for name in ("machine", "synthetic", "architecture", "source") if name in values}
    given, files = planning_options(values), None
    environ: Mapping[str, str] = os.environ
    if "options" in values or OPTIONS_FLAG in os.environ.get(OPTIONS_VARIABLE, ""):
        from ompaffinity.bind.saved_options import resolved

        files = resolved(given, os.environ)
        given, environ = files.given, files.environ
    request = requested(given, environ)
    if request.avoid:
        from ompaffinity.bind.plan_files import avoids_live, held_by_plans

        if avoids_live(given, os.environ) and machine.keys() & {"machine", "synthetic"}:
            raise RequestError("--avoid live is what runs on this machine; name plan files for a recorded one")
        request = request._replace(avoid=held_by_plans(request.avoid))
    with opened(machine.get("machine")) as recording:
        topology = load_topology(**{**machine, "machine": recording})
        if request.for_gpus:
            from ompaffinity.bind.live_plan import with_gpu_homes

            request = with_gpu_homes(request, topology, machine=recording, synthetic="synthetic" in machine)
    plan = make_plan(topology, request)
    return topology, plan if files is None else plan._replace(messages=(*files.messages(topology), *plan.messages))
