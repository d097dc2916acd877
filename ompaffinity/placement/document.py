"""Plans and placements as JSON documents. What comes from outside is validated here, every field, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.ids import MAX_ID, format_id_list
from ompaffinity.placement.fields import WHOLE, DocumentReader, Source, decode_document
from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.request import AUTO, MAX_RANKS, MEMORY_POLICIES, HeldCPUs

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.placement.fields import Row

PLACEMENT_VARIABLE = "OMPAFFINITY_PLACEMENT"
PUBLISHED_NAME = "ompaffinity-placement"
"""The memory file that holds it in a process that overwrites its environment."""
PLAN_SCHEMA = "ompaffinity.plan/1"
MAX_RANK = 2**31 - 1
MAX_BYTES = 2**63 - 1
MAX_NAME = 1000
SIBLING = "smt-sibling"

PLACEMENT_POLICIES = tuple(policy for policy in MEMORY_POLICIES if policy != AUTO)
"""The words of a placement: a plan has decided what ``auto`` is."""

ENVIRONMENT = Source(
    PLACEMENT_VARIABLE, "does not hold a placement", "unset it, or start the worker again with ompaffinity"
)


def placement_document(placement: RankPlacement) -> dict[str, Any]:
    """Return one rank's placement as plain values: what a worker finds in OMPAFFINITY_PLACEMENT."""
    return {
        "rank": placement.rank,
        "local_rank": placement.local_rank,
        "bound": placement.bound,
        "cpus": list(placement.cpus),
        "helper_cpus": list(placement.helper_cpus),
        "places": [format_id_list(place) for place in placement.places],
        "affinity": format_id_list(placement.affinity),
        "nodes": list(placement.nodes),
        "memory_policy": placement.memory_policy,
        "device": placement.gpu,
        "node_ranks": list(placement.node_ranks),
        "local_world_size": placement.local_world_size,
        "memory_budget_bytes": placement.memory_budget,
        "devices": list(placement.gpus),
    }


def parse_placement(text: str) -> RankPlacement:
    """Return the placement in the JSON text of OMPAFFINITY_PLACEMENT.

    Raises:
        RequestError: it is not such a text, or a newer version made it.
    """
    return placement_from_document(decode_document(text, ENVIRONMENT))


def placement_from_document(document: object, source: Source = ENVIRONMENT) -> RankPlacement:
    """Return the placement that `placement_document` wrote.

    Raises:
        RequestError: a field is missing or invalid, the fields do not fit each other, or a newer version made it.
    """
    return _placement(DocumentReader(source).row(WHOLE, document))


def plan_ranks_from_document(document: object, source: Source) -> tuple[RankPlacement, ...]:
    """Return the placements of the ranks in an ``ompaffinity.plan/1`` document.

    Raises:
        RequestError: as `placement_from_document`, or it is no such document.
    """
    return _plan_ranks(_plan(document, source))


def held_cpus_from_document(document: object, name: str, source: Source) -> HeldCPUs:
    """Return the CPUs that an ``ompaffinity.plan/1`` document holds, under the `name` of its plan.

    These are the CPUs of the ranks with their siblings, and those where other threads of the ranks may run.

    Raises:
        RequestError: as `plan_ranks_from_document`, or the plan binds no CPU.
    """
    # The reasons are with the rules that give them, which a worker does not need.
    from ompaffinity.placement.reasons import REASONS

    plan = _plan(document, source)
    held, known = set(plan.id_list("reserved")), set[int]()
    for placement in _plan_ranks(plan):
        held.update(placement.cpus, placement.helper_cpus, placement.affinity)
    for group in plan.rows("left_out"):
        cpus = group.id_list("cpus")
        known.update(cpus)
        if group.word("reason", REASONS) == SIBLING:
            held.update(cpus)
    if not held:
        raise RequestError(f"{source.name} binds no CPU, so there is nothing to keep off; leave it out")
    return HeldCPUs(name, tuple(sorted(held)), tuple(sorted(known | held)))


def gpu_placements_from_document(document: object, source: Source) -> tuple[str, dict[str, RankPlacement]]:
    """Return (node id, {PCI address: placement}) of a table with what goes with each GPU of a node.

    Raises:
        RequestError: as `placement_from_document`, or it is no such table.
    """
    table = DocumentReader(source).row(WHOLE, document)
    placements = {address: _placement(row) for address, row in table.rows_by_name("by_gpu").items()}
    return table.text("node_id", MAX_NAME), placements


def _plan(document: object, source: Source) -> Row:
    plan = DocumentReader(source).row(WHOLE, document)
    schema = plan.text("schema", MAX_NAME)
    family, _, version = PLAN_SCHEMA.rpartition("/")
    given_family, _, given_version = schema.rpartition("/")
    if given_family == family and given_version.isascii() and given_version.isdigit() and given_version > version:
        raise source.newer(f"schema is {schema!r}, this version reads {PLAN_SCHEMA!r}")
    if schema != PLAN_SCHEMA:
        raise plan.invalid("schema", repr(PLAN_SCHEMA))
    return plan


def _plan_ranks(plan: Row) -> tuple[RankPlacement, ...]:
    rows = plan.rows("ranks")
    if len(rows) > MAX_RANKS:
        raise plan.invalid("ranks", f"at most {MAX_RANKS} ranks")
    return tuple(map(_placement, rows))


def _placement(row: Row) -> RankPlacement:
    nodes = row.ids("nodes")
    placement = RankPlacement(
        rank=row.integer("rank", 0, MAX_RANK),
        local_rank=row.integer("local_rank", 0, MAX_RANK),
        bound=row.flag("bound"),
        cpus=row.ids("cpus"),
        helper_cpus=row.ids("helper_cpus"),
        places=row.id_lists("places"),
        affinity=row.id_list("affinity"),
        nodes=nodes,
        memory_policy=row.word("memory_policy", PLACEMENT_POLICIES),
        gpu=row.optional_integer("device", 0, MAX_ID),
        # Plans of the first release lack how nodes are shared.
        node_ranks=row.counts("node_ranks", MAX_RANK, (1,) * len(nodes)),
        local_world_size=row.integer("local_world_size", 1, MAX_RANK, 1),
        memory_budget=row.optional_integer("memory_budget_bytes", 0, MAX_BYTES, None),
        gpus=row.ids("devices", ()),
    )
    if len(placement.node_ranks) != len(nodes):
        raise row.invalid("node_ranks", f"{len(nodes)} numbers, one for each of the nodes")
    if placement.bound:
        _check_bound(row, placement)
    else:
        _check_unbound(row, placement)
    return placement


def _check_bound(row: Row, placement: RankPlacement) -> None:
    """Check that threads, places and masks fit each other."""
    affinity = set(placement.affinity)
    if not placement.cpus:
        raise row.invalid("cpus", "at least one CPU, for the rank is bound")
    for name, cpus in (("cpus", placement.cpus), ("helper_cpus", placement.helper_cpus)):
        if not affinity.issuperset(cpus):
            raise row.invalid(name, "CPUs of the rank's affinity only")
    if len(placement.places) != len(placement.cpus):
        raise row.invalid("places", f"{len(placement.cpus)} places, one for each of the cpus")
    # Equal texts are one tuple, so that each place is looked at once, however many threads have it.
    for place in {id(place): place for place in placement.places}.values():
        if not place or not affinity.issuperset(place):
            raise row.invalid("places", "places with CPUs of the rank's affinity only")


def _check_unbound(row: Row, placement: RankPlacement) -> None:
    # The nodes may be there: a worker whose CPUs the kernel refused still has its share of the memory.
    for name in ("cpus", "helper_cpus", "places", "affinity"):
        if getattr(placement, name):
            raise row.invalid(name, "nothing, for the rank is not bound")
