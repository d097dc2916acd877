"""Decide which CPUs and which memory each inference worker gets, bind it before it starts, and prove it.

The names below are loaded when they are first used, so ``import ompaffinity`` loads no dependency.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False
# Type checkers take it as true; importing typing would take most of the time of this import.

if TYPE_CHECKING:
    from ompaffinity import ray as ray
    from ompaffinity.bind.capacity import kv_cache_bytes as kv_cache_bytes
    from ompaffinity.bind.capacity import memory_budget as memory_budget
    from ompaffinity.bind.helper_threads import helper_threads as helper_threads
    from ompaffinity.bind.helper_threads import move_to_helper_cpus as move_to_helper_cpus
    from ompaffinity.bind.manager import OMPProcessManager as OMPProcessManager
    from ompaffinity.bind.mempolicy import can_set_mempolicy as can_set_mempolicy
    from ompaffinity.bind.process import ProcessBinding as ProcessBinding
    from ompaffinity.bind.process import bind_current_process as bind_current_process
    from ompaffinity.bind.worker_placement import current_placement as current_placement
    from ompaffinity.devices.live import live_gpus as live_gpus
    from ompaffinity.devices.model import GPU as GPU
    from ompaffinity.devices.model import GPUHome as GPUHome
    from ompaffinity.devices.recorded import recorded_gpus as recorded_gpus
    from ompaffinity.errors import BindingError as BindingError
    from ompaffinity.errors import CapacityError as CapacityError
    from ompaffinity.errors import IDListError as IDListError
    from ompaffinity.errors import NoMemoryNodeError as NoMemoryNodeError
    from ompaffinity.errors import OMPAffinityError as OMPAffinityError
    from ompaffinity.errors import PlacementError as PlacementError
    from ompaffinity.errors import RequestError as RequestError
    from ompaffinity.errors import StartMethodError as StartMethodError
    from ompaffinity.errors import TopologyError as TopologyError
    from ompaffinity.ids import format_id_list as format_id_list
    from ompaffinity.ids import parse_id_list as parse_id_list
    from ompaffinity.integrations.vllm.cpu_resources import determine_available_memory as determine_available_memory
    from ompaffinity.integrations.vllm.cpu_resources import get_allowed_cpu_list as get_allowed_cpu_list
    from ompaffinity.integrations.vllm.cpu_resources import get_device_total_memory as get_device_total_memory
    from ompaffinity.integrations.vllm.cpu_resources import get_memory_affinity as get_memory_affinity
    from ompaffinity.integrations.vllm.cpu_resources import get_memory_node_info as get_memory_node_info
    from ompaffinity.integrations.vllm.cpu_resources import get_visible_memory_node as get_visible_memory_node
    from ompaffinity.integrations.vllm.device_nodes import get_all_device_numa_nodes as get_all_device_numa_nodes
    from ompaffinity.integrations.vllm.device_nodes import get_auto_numa_nodes as get_auto_numa_nodes
    from ompaffinity.integrations.vllm.device_nodes import get_device_numa_node as get_device_numa_node
    from ompaffinity.integrations.vllm.device_nodes import get_numa_node_if_available as get_numa_node_if_available
    from ompaffinity.integrations.vllm.gpu_workers import configure_subprocess as configure_subprocess
    from ompaffinity.integrations.vllm.numa_node import numa_bind_to_node as numa_bind_to_node
    from ompaffinity.integrations.vllm.process_memory import MemoryBinding as MemoryBinding
    from ompaffinity.integrations.vllm.process_memory import init_cpu_memory_env as init_cpu_memory_env
    from ompaffinity.measure.session import Comparison as Comparison
    from ompaffinity.measure.session import compare_variants as compare_variants
    from ompaffinity.messages import Message as Message
    from ompaffinity.openmp.detect import RuntimeLibrary as RuntimeLibrary
    from ompaffinity.openmp.detect import expected_runtimes as expected_runtimes
    from ompaffinity.openmp.detect import probe_runtimes as probe_runtimes
    from ompaffinity.openmp.plan_document import plan_document as plan_document
    from ompaffinity.placement.check_gpu import NUMABindConfig as NUMABindConfig
    from ompaffinity.placement.model import LeftOut as LeftOut
    from ompaffinity.placement.model import Plan as Plan
    from ompaffinity.placement.model import RankPlacement as RankPlacement
    from ompaffinity.placement.plan import make_plan as make_plan
    from ompaffinity.placement.request import PlacementRequest as PlacementRequest
    from ompaffinity.proof.compare import log_current_affinity_state as log_current_affinity_state
    from ompaffinity.proof.compare import verify_current_process as verify_current_process
    from ompaffinity.proof.drift import Change as Change
    from ompaffinity.proof.verdict import Difference as Difference
    from ompaffinity.proof.verdict import RankVerdict as RankVerdict
    from ompaffinity.proof.verdict import ThreadVerdict as ThreadVerdict
    from ompaffinity.proof.watch import Watcher as Watcher
    from ompaffinity.proof.watch_self import Watch as Watch
    from ompaffinity.proof.watch_self import watch_current_process as watch_current_process
    from ompaffinity.proof.watch_status import RankStatus as RankStatus
    from ompaffinity.proof.watch_status import WatchStatus as WatchStatus
    from ompaffinity.topology.model import LogicalCPUInfo as LogicalCPUInfo
    from ompaffinity.topology.model import MemoryNodeInfo as MemoryNodeInfo
    from ompaffinity.topology.model import Topology as Topology
    from ompaffinity.topology.source import load_topology as load_topology

_NAMES_OF_MODULES = {
    "bind.capacity": ("kv_cache_bytes", "memory_budget"),
    "bind.worker_placement": ("current_placement",),
    "bind.helper_threads": ("helper_threads", "move_to_helper_cpus"),
    "bind.manager": ("OMPProcessManager",),
    "bind.mempolicy": ("can_set_mempolicy",),
    "bind.process": ("ProcessBinding", "bind_current_process"),
    "devices.live": ("live_gpus",),
    "devices.model": ("GPU", "GPUHome"),
    "devices.recorded": ("recorded_gpus",),
    "errors": (
        "BindingError",
        "CapacityError",
        "IDListError",
        "NoMemoryNodeError",
        "OMPAffinityError",
        "PlacementError",
        "RequestError",
        "StartMethodError",
        "TopologyError",
    ),
    "ids": ("format_id_list", "parse_id_list"),
    "integrations.vllm.cpu_resources": (
        "determine_available_memory",
        "get_allowed_cpu_list",
        "get_device_total_memory",
        "get_memory_affinity",
        "get_memory_node_info",
        "get_visible_memory_node",
    ),
    "integrations.vllm.device_nodes": (
        "get_all_device_numa_nodes",
        "get_auto_numa_nodes",
        "get_device_numa_node",
        "get_numa_node_if_available",
    ),
    "integrations.vllm.gpu_workers": ("configure_subprocess",),
    "integrations.vllm.numa_node": ("numa_bind_to_node",),
    "integrations.vllm.process_memory": ("MemoryBinding", "init_cpu_memory_env"),
    "measure.session": ("Comparison", "compare_variants"),
    "messages": ("Message",),
    "openmp.detect": ("RuntimeLibrary", "expected_runtimes", "probe_runtimes"),
    "openmp.plan_document": ("plan_document",),
    "placement.check_gpu": ("NUMABindConfig",),
    "placement.model": ("LeftOut", "Plan", "RankPlacement"),
    "placement.plan": ("make_plan",),
    "placement.request": ("PlacementRequest",),
    "proof.compare": ("log_current_affinity_state", "verify_current_process"),
    "proof.drift": ("Change",),
    "proof.verdict": ("Difference", "RankVerdict", "ThreadVerdict"),
    "proof.watch": ("Watcher",),
    "proof.watch_self": ("Watch", "watch_current_process"),
    "proof.watch_status": ("RankStatus", "WatchStatus"),
    "topology.model": ("LogicalCPUInfo", "MemoryNodeInfo", "Topology"),
    "topology.source": ("load_topology",),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}

__all__ = ["__version__", "ray", *_MODULE_OF_NAME]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name == "ray":
        return import_module(f"{__name__}.ray")
    module = _MODULE_OF_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
