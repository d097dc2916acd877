"""Bind a process that already runs to one NUMA node, with all of its threads."""

from __future__ import annotations

import logging
import os
from threading import get_native_id

from ompaffinity.bind.deferred_signals import deferred_signals
from ompaffinity.bind.process import ProcessBinding, threads_but
from ompaffinity.errors import BindingError, RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.messages import NODE_OUTSIDE_MASK, log_warnings
from ompaffinity.placement.memory import has_several_memory_nodes, nearest_memory_node
from ompaffinity.topology.source import load_topology

logger = logging.getLogger("ompaffinity")


def numa_bind_to_node(node: int) -> ProcessBinding:
    """Bind every thread of this process to the CPUs of a NUMA node, and its memory to that of the node.

    No thread gets a CPU that it did not have: its mask is cut down to those of the node. One that has none there keeps
    what it has, and is among `not_bound`; if that is the calling thread, nothing changes. The memory policy is
    that of the calling thread, its OpenMP team, and the threads that they start later; no page moves
    (`init_cpu_memory_env` moves them). What is not accepted is logged, and among the `messages`. ``undo()`` takes the
    binding back.

    Raises:
        RequestError: there is no such node, or it has no CPUs.
        BindingError: this system cannot bind threads, or the kernel refuses to bind the calling one.
        NoMemoryNodeError: no node that this process may use has memory.
        TopologyError: the machine cannot be read.
    """
    topology = load_topology()
    with_cpus = [known.id for known in topology.nodes if known.cpus]
    if isinstance(node, bool) or node not in with_cpus:
        known = format_id_list(with_cpus) or "none"
        raise RequestError(f"node {node!r} is no NUMA node with CPUs of this machine; these are {known}")
    if not hasattr(os, "sched_getaffinity"):
        raise BindingError("this system cannot bind threads to CPUs")
    binding = ProcessBinding()
    cpus = set(topology.node(node).cpus)
    mine = os.sched_getaffinity(0)
    if mine.isdisjoint(cpus):
        binding.messages.append(NODE_OUTSIDE_MASK(cpus=format_id_list(mine), node=node))
    else:
        memory = nearest_memory_node(topology, cpus) if has_several_memory_nodes(topology) else None
        _bind(binding, cpus, mine, memory)
    log_warnings(binding.messages)
    return binding


def _bind(binding: ProcessBinding, cpus: set[int], mine: set[int], memory: int | None) -> None:
    """Bind every thread to those of these CPUs that it has, and the memory to a node if there is one.

    Raises:
        BindingError: the kernel refuses to bind the calling thread; then nothing has changed.
    """
    try:
        with deferred_signals():
            binding.bind_thread(get_native_id(), tuple(sorted(mine & cpus)), must=True)
            for number, mask in threads_but([get_native_id()]):
                if mask & cpus:
                    binding.bind_thread(number, tuple(sorted(mask & cpus)), must=False)
                else:
                    reason = f"was bound to CPU {format_id_list(mask)} before, none of which is there"
                    binding.leave_thread(number, reason)
            if memory is not None:
                binding.bind_memory("bind", (memory,))
    except BaseException:
        binding.undo()
        raise
