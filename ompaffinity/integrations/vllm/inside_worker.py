"""What is replaced inside a CPU worker of vLLM: its memory policy, its share of the memory, and a verdict."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from ompaffinity.integrations.vllm.process_memory import init_cpu_memory_env
from ompaffinity.placement.memory import share_of
from ompaffinity.proof.compare import log_current_affinity_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ompaffinity.placement.model import RankPlacement

RESOURCES_MODULE, WORKER_MODULE = "vllm.utils.cpu_resource_utils", "vllm.v1.worker.cpu_worker"
PLATFORM_MODULE = "vllm.platforms.cpu"
logger = logging.getLogger("ompaffinity.vllm")


def worker_changes(placement: RankPlacement) -> list[tuple[Any, str, Any]]:
    """Return (module or class, name, new value) of all that is replaced in a worker with this placement.

    Raises:
        ImportError, AttributeError: vLLM lacks one of them.
    """
    resources = importlib.import_module(RESOURCES_MODULE)
    worker = importlib.import_module(WORKER_MODULE)
    platform = importlib.import_module(PLATFORM_MODULE).CpuPlatform
    operators = importlib.import_module("torch").ops._C
    memory_info = _memory_share(placement, resources.get_memory_node_info, resources.MemoryNodeInfo)
    helpers = list(placement.helper_cpus or placement.affinity)
    return [
        (resources, "get_memory_node_info", memory_info),
        (worker, "get_memory_node_info", memory_info),
        (operators, "init_cpu_memory_env", _memory_policy(placement)),
        (platform, "discover_numa_topology", classmethod(lambda _platform: [helpers])),
        (worker.CPUWorker, "compile_or_warm_up_model", _verified(worker.CPUWorker.compile_or_warm_up_model)),
    ]


def _memory_share(
    placement: RankPlacement, original: Callable[[int], Any], record: Callable[..., Any]
) -> Callable[..., Any]:
    """Return vLLM's function for the memory of a node, which gives this rank's share of its nodes instead."""

    def get_memory_node_info(node_id: int = 0) -> Any:
        from ompaffinity.bind.capacity import machine_memory

        memory = machine_memory()
        total = share_of(placement, memory.total, memory.limit)
        available = share_of(placement, memory.available, memory.left)
        if total is None or available is None:
            return original(node_id)
        return record(total_memory=total, available_memory=available)

    return get_memory_node_info


def _memory_policy(placement: RankPlacement) -> Callable[[Sequence[int]], None]:
    """Return what replaces vLLM's bind of a worker to the node of its first CPU: the policy of the plan."""

    def init_memory(_nodes: Sequence[int]) -> None:
        if placement.memory_policy != "none" and placement.nodes:
            init_cpu_memory_env(placement.nodes, placement.memory_policy)

    return init_memory


def _verified(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile_or_warm_up_model(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = original(self, *arguments, **keywords)
        log_current_affinity_state("after warm-up")
        return result

    return compile_or_warm_up_model
