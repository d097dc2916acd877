"""How many bytes a worker may use, and how many are left for its KV cache.

What ranks share, a node or a control group, is divided among them evenly: a plan records for each rank with how many
others it shares. Nothing is guessed of other processes; what they use is not available.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import CapacityError, RequestError
from ompaffinity.messages import counted
from ompaffinity.placement.check import check_utilization
from ompaffinity.placement.memory import node_shares, share_of
from ompaffinity.records import NamedTuple
from ompaffinity.topology.limits import memory_left, read_limits
from ompaffinity.topology.model import UNKNOWN
from ompaffinity.topology.nodes import NODE_ROOT, read_nodes
from ompaffinity.topology.text import read_id_list
from ompaffinity.topology.tree import DirectoryTree

if TYPE_CHECKING:
    from ompaffinity.placement.model import RankPlacement
    from ompaffinity.topology.tree import Tree

DEFAULT_UTILIZATION = 0.9
LEAST_BYTES = 256 * 2**20
LEAST_PART = 0.05
"""A node with less available than either, the part being of its total, is nearly full, unless half of it is left."""


class MachineMemory(NamedTuple):
    """What there is, in bytes: {node: total}, {node: available}, the limit of the control groups and what it leaves."""

    total: dict[int, int]
    available: dict[int, int]
    limit: int | None
    left: int | None


def memory_budget(placement: RankPlacement, utilization: float | None = None) -> int:
    """Return how many bytes the rank with this placement may use in all.

    That is `utilization` of its part of its nodes' total memory, or of its part of the tightest limit of
    the control groups, whichever is less. Without it, the fraction in the plan (``--utilization``), else a part of 0.9.

    Raises:
        RequestError: `utilization` is not above 0 and at most 1.
        CapacityError: this machine does not report how much memory it has.
    """
    return _budget(placement, utilization, machine_memory())


def kv_cache_bytes(
    placement: RankPlacement,
    utilization: float | None = None,
    model_bytes: int | None = None,
    explicit: int | None = None,
) -> int:
    """Return how many bytes this process, the worker with this placement, may use for its KV cache.

    That is its budget (as `memory_budget`) without what the model takes: `model_bytes`, or by default all that is
    resident in this process (call it after a warm-up then). And it is never more than its part of what is
    available now, without what of the model is still to be loaded. Call it in every rank before any of them takes its
    cache, for they all divide what is available at that moment. `explicit` is a size that the user wants: it is
    returned if it fits.

    Raises:
        RequestError: an argument is no number of bytes.
        CapacityError: nothing is left, or less than `explicit`; the error names a remedy.
    """
    for name, size in (("model_bytes", model_bytes), ("explicit", explicit)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            raise RequestError(f"{name} is {size!r}; it must be a number of bytes")
    memory, resident = machine_memory(), resident_bytes()
    used = resident if model_bytes is None else model_bytes
    by_budget = _budget(placement, utilization, memory) - used
    now = share_of(placement, memory.available, memory.left)
    room = by_budget if now is None else min(by_budget, now - max(0, used - resident))
    if room <= 0 or (explicit is not None and explicit > room):
        raise CapacityError(_too_little(placement, memory, used, max(0, room), explicit, by_budget=room == by_budget))
    return room if explicit is None else explicit


def machine_memory() -> MachineMemory:
    """Return what memory this process may use: of each allowed node but GPUs' own, and within its control groups."""
    with DirectoryTree("/") as tree:
        limits = read_limits(tree)
        nodes = [node for node in read_nodes(tree, (), limits) if node.allowed and not node.device_memory]
        total = {node.id: node.total_memory for node in nodes}
        available = {node.id: node.available_memory for node in nodes}
        if all(size == UNKNOWN for size in total.values()):
            total, available = _whole_machine(tree, tuple(total))
        return MachineMemory(total, available, limits.memory_limit_bytes, memory_left(tree))


def resident_bytes() -> int:
    """Return how much memory of this process is resident."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _whole_machine(tree: Tree, nodes: tuple[int, ...]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the machine's memory where its nodes do not report theirs: each is assumed to have an even part."""
    import psutil

    memory = psutil.virtual_memory()
    parts = len(read_id_list(tree, f"{NODE_ROOT}/has_memory") or nodes or (0,))
    names = nodes or (0,)
    return dict.fromkeys(names, int(memory.total) // parts), dict.fromkeys(names, int(memory.available) // parts)


def _budget(placement: RankPlacement, utilization: float | None, memory: MachineMemory) -> int:
    if utilization is None and placement.memory_budget is not None:
        return placement.memory_budget
    part = DEFAULT_UTILIZATION if utilization is None else check_utilization(utilization)
    share = share_of(placement, memory.total, memory.limit)
    if share is None:
        raise CapacityError(
            "the memory size of this machine is unknown, so no budget can be computed; check that"
            " /sys/devices/system/node is readable"
        )
    return int(share * part)


def _too_little(
    placement: RankPlacement, memory: MachineMemory, used: int, room: int, explicit: int | None, *, by_budget: bool
) -> str:
    """Return one sentence: what there is, what was asked, who shares it, and which knob to turn."""
    wanted = "any" if explicit is None else _in_words(explicit)
    nodes = placement.nodes or tuple(memory.total)
    there = []
    for node, ranks in zip(nodes, node_shares(placement, nodes)):
        size, free = memory.total.get(node, UNKNOWN), memory.available.get(node, UNKNOWN)
        there.append(
            f"node {node} has {_in_words(size)}, {_in_words(free)} of it available, for {counted(ranks, 'rank')}"
        )
    if memory.limit is not None:
        there.append(
            f"the control group allows {_in_words(memory.limit)}, {_in_words(memory.left)} of it left,"
            f" for {counted(placement.local_world_size, 'rank')}"
        )
    why = "of its budget" if by_budget else "of its part of what is available"
    knobs = ["ask for less"] if explicit is not None else []
    knobs += ["raise the utilization"] if by_budget else ["stop what else uses the memory"]
    knobs += ["start fewer ranks", "give the ranks more nodes (--span, --memory-policy interleave)"]
    knobs += ["raise the limit of the control group (memory.max)"] if memory.limit is not None else []
    return (
        f"rank {placement.rank} has no room for {wanted} KV cache: {_in_words(room)} are left {why}"
        f" beside {_in_words(used)} for the model; {'; '.join(there)}; {', '.join(knobs[:-1])} or {knobs[-1]}"
    )


def _in_words(size: int | None) -> str:
    return "an unknown size" if size is None or size == UNKNOWN else f"{size / 2**30:.2f} GiB"


class FullNodes(NamedTuple):
    """Nodes that are nearly full together, and their memory in bytes."""

    nodes: tuple[int, ...]
    available_bytes: int
    total_bytes: int


def full_nodes(nodes: tuple[int, ...]) -> FullNodes | None:
    """Return these nodes if they are nearly full together, else None: the kernel kills a process bound to full nodes.

    Nearly full is less than 256 MiB, or than 5 % of their memory; small nodes are so if less than half is left.
    """
    memory = machine_memory()
    if not nodes or any(memory.available.get(node, UNKNOWN) == UNKNOWN for node in nodes):
        return None
    total, available = (sum(sizes[node] for node in nodes) for sizes in (memory.total, memory.available))
    if available >= min(max(LEAST_BYTES, LEAST_PART * total), total / 2):
        return None
    return FullNodes(nodes, available, total)
