"""Decide which CPUs and which memory each inference worker gets, bind it from birth, and prove it.

The names below are loaded when they are first used: ``import ompaffinity`` itself costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ompaffinity.devices.nodes import get_all_device_numa_nodes as get_all_device_numa_nodes
    from ompaffinity.devices.nodes import get_auto_numa_nodes as get_auto_numa_nodes
    from ompaffinity.devices.nodes import get_device_numa_node as get_device_numa_node
    from ompaffinity.devices.nodes import get_numa_node_if_available as get_numa_node_if_available
    from ompaffinity.errors import BindingError as BindingError
    from ompaffinity.errors import CapacityError as CapacityError
    from ompaffinity.errors import IdListError as IdListError
    from ompaffinity.errors import NoMemoryNodeError as NoMemoryNodeError
    from ompaffinity.errors import OmpAffinityError as OmpAffinityError
    from ompaffinity.errors import PlacementError as PlacementError
    from ompaffinity.errors import RequestError as RequestError
    from ompaffinity.errors import StartMethodError as StartMethodError
    from ompaffinity.errors import TopologyError as TopologyError
    from ompaffinity.launch.gpu_worker import configure_subprocess as configure_subprocess
    from ompaffinity.memory.capacity import kv_cache_bytes as kv_cache_bytes
    from ompaffinity.memory.capacity import memory_budget as memory_budget
    from ompaffinity.memory.ladder import can_set_mempolicy as can_set_mempolicy
    from ompaffinity.openmp.current import current_placement as current_placement
    from ompaffinity.openmp.current import determine_available_memory as determine_available_memory
    from ompaffinity.openmp.current import get_device_total_memory as get_device_total_memory
    from ompaffinity.openmp.document import plan_document as plan_document
    from ompaffinity.openmp.in_process import ProcessBinding as ProcessBinding
    from ompaffinity.openmp.in_process import bind_current_process as bind_current_process
    from ompaffinity.openmp.manager import OMPProcessManager as OMPProcessManager
    from ompaffinity.openmp.process_memory import MemoryBinding as MemoryBinding
    from ompaffinity.openmp.process_memory import init_cpu_memory_env as init_cpu_memory_env
    from ompaffinity.openmp.threads import helper_threads as helper_threads
    from ompaffinity.openmp.threads import move_to_helper_cpus as move_to_helper_cpus
    from ompaffinity.openmp.whole_node import numa_bind_to_node as numa_bind_to_node
    from ompaffinity.placement.numa_bind import DeviceHome as DeviceHome
    from ompaffinity.placement.numa_bind import NumaBindConfig as NumaBindConfig
    from ompaffinity.placement.plan import Plan as Plan
    from ompaffinity.placement.plan import RankPlacement as RankPlacement
    from ompaffinity.placement.plan import make_plan as make_plan
    from ompaffinity.placement.request import PlacementRequest as PlacementRequest
    from ompaffinity.proof.compare import log_current_affinity_state as log_current_affinity_state
    from ompaffinity.proof.compare import verify_current_process as verify_current_process
    from ompaffinity.topology.helpers import get_allowed_cpu_list as get_allowed_cpu_list
    from ompaffinity.topology.helpers import get_memory_affinity as get_memory_affinity
    from ompaffinity.topology.helpers import get_memory_node_info as get_memory_node_info
    from ompaffinity.topology.helpers import get_visible_memory_node as get_visible_memory_node
    from ompaffinity.topology.idlist import format_id_list as format_id_list
    from ompaffinity.topology.idlist import parse_id_list as parse_id_list
    from ompaffinity.topology.load import load_topology as load_topology
    from ompaffinity.topology.model import LogicalCPUInfo as LogicalCPUInfo
    from ompaffinity.topology.model import MemoryNodeInfo as MemoryNodeInfo
    from ompaffinity.topology.model import Topology as Topology

_HOMES = {
    "devices.nodes": (
        "get_all_device_numa_nodes",
        "get_auto_numa_nodes",
        "get_device_numa_node",
        "get_numa_node_if_available",
    ),
    "errors": (
        "BindingError",
        "CapacityError",
        "IdListError",
        "NoMemoryNodeError",
        "OmpAffinityError",
        "PlacementError",
        "RequestError",
        "StartMethodError",
        "TopologyError",
    ),
    "launch.gpu_worker": ("configure_subprocess",),
    "memory.capacity": ("kv_cache_bytes", "memory_budget"),
    "memory.ladder": ("can_set_mempolicy",),
    "openmp.current": ("current_placement", "determine_available_memory", "get_device_total_memory"),
    "openmp.document": ("plan_document",),
    "openmp.in_process": ("ProcessBinding", "bind_current_process"),
    "openmp.manager": ("OMPProcessManager",),
    "openmp.process_memory": ("MemoryBinding", "init_cpu_memory_env"),
    "openmp.threads": ("helper_threads", "move_to_helper_cpus"),
    "openmp.whole_node": ("numa_bind_to_node",),
    "placement.numa_bind": ("DeviceHome", "NumaBindConfig"),
    "placement.plan": ("Plan", "RankPlacement", "make_plan"),
    "placement.request": ("PlacementRequest",),
    "proof.compare": ("log_current_affinity_state", "verify_current_process"),
    "topology.helpers": (
        "get_allowed_cpu_list",
        "get_memory_affinity",
        "get_memory_node_info",
        "get_visible_memory_node",
    ),
    "topology.idlist": ("format_id_list", "parse_id_list"),
    "topology.load": ("load_topology",),
    "topology.model": ("LogicalCPUInfo", "MemoryNodeInfo", "Topology"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
