"""The vLLM plugin: ``OMPAFFINITY_VLLM=1 vllm serve ...`` starts vLLM's CPU workers under a plan of this package.

vLLM calls `register` (entry point group ``vllm.general_plugins``) in its API server, in each EngineCore and in each
worker. It replaces names in vLLM's modules; nothing of vLLM is imported before that, and without the variable vLLM is
left alone. Where a name is missing, or the version is unknown, vLLM keeps its own binding, with a warning.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

SWITCH, WARNED = "OMPAFFINITY_VLLM", "OMPAFFINITY_VLLM_WARNED"
KNOWN_VERSIONS = ("0.32.",)
MANAGER_MODULE, EXECUTOR_MODULE = "vllm.utils.ompmultiprocessing", "vllm.v1.executor.multiproc_executor"
NUMA_MODULE = "vllm.utils.numa_utils"
logger = logging.getLogger("ompaffinity.vllm")


def register() -> None:
    """Replace vLLM's binding by that of this package, if OMPAFFINITY_VLLM is 1 (or true)."""
    if os.environ.get(SWITCH, "").strip().lower() not in ("1", "true"):
        return
    _log_with_vllm()
    try:
        version = importlib.metadata.version("vllm")
        if not version.startswith(KNOWN_VERSIONS):
            raise AttributeError(f"version {version} is unknown; known are {', '.join(KNOWN_VERSIONS)}*")
        changes = _changes()
    except (ImportError, AttributeError) as error:
        _warn_once(f"vLLM keeps its own binding of workers: {error}")
        return
    for module, name, value in changes:
        setattr(module, name, value)


def _log_with_vllm() -> None:
    """Send this package's messages to vLLM's log: vLLM gives a handler to its own logger alone."""
    ours = logging.getLogger("ompaffinity")
    ours.parent = logging.getLogger("vllm")
    ours.setLevel(logging.INFO)


def _warn_once(text: str) -> None:
    """Log a warning in the first process of the server; those that it starts inherit its environment."""
    if WARNED not in os.environ:
        os.environ[WARNED] = "1"
        logger.warning("%s", text)


def _changes() -> list[tuple[Any, str, Any]]:
    """Return (module or class, name, new value) of all that is replaced in this process.

    Raises:
        ImportError, AttributeError: vLLM lacks one of them.
    """
    platform = importlib.import_module("vllm.platforms").current_platform
    numa = importlib.import_module(NUMA_MODULE)
    if not platform.is_cpu():
        from ompaffinity.integrations.vllm.gpu_workers import configure_subprocess

        _required(numa, "configure_subprocess")
        return [(numa, "configure_subprocess", configure_subprocess)]
    from ompaffinity.bind.worker_placement import current_placement, publish_placement
    from ompaffinity.integrations.vllm.cpu_workers import CPUWorkerManager

    manager = importlib.import_module(MANAGER_MODULE)
    _required(manager, "OMPProcessManager")
    changes = [
        (manager, "OMPProcessManager", CPUWorkerManager),
        (numa, "configure_subprocess", _with_local_ranks(_required(numa, "configure_subprocess"))),
    ]
    executor = sys.modules.get(EXECUTOR_MODULE)
    if executor is not None:
        # It has imported the name already.
        _required(executor, "OMPProcessManager")
        changes.append((executor, "OMPProcessManager", CPUWorkerManager))
    placement = current_placement()
    if placement is not None and placement.bound:
        # vLLM gives its workers titles, which overwrite their environment.
        publish_placement()
        from ompaffinity.integrations.vllm.inside_worker import worker_changes

        changes += worker_changes(placement)
    return changes


def _required(module: ModuleType, name: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise AttributeError(f"{module.__name__} has no {name}")
    return found


def _with_local_ranks(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return vLLM's context around the start of a process, which also passes an EngineCore the local dp size."""
    from ompaffinity.integrations.vllm.cpu_workers import LOCAL_RANKS

    @contextmanager
    def configure_subprocess(
        vllm_config: Any, local_rank: int, dp_local_rank: int | None = None, process_kind: str = "worker"
    ) -> Iterator[None]:
        before = os.environ.get(LOCAL_RANKS)
        if process_kind == "EngineCore":
            os.environ[LOCAL_RANKS] = str(vllm_config.parallel_config.data_parallel_size_local)
        try:
            with original(vllm_config, local_rank, dp_local_rank, process_kind):
                yield
        finally:
            if before is None:
                os.environ.pop(LOCAL_RANKS, None)
            else:
                os.environ[LOCAL_RANKS] = before

    return configure_subprocess
