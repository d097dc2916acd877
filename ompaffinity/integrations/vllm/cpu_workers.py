"""The manager of CPU workers with the interface that vLLM's executor calls (vllm.utils.ompmultiprocessing)."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.environment import change_environment
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.plan_files import avoids_live, held_by_plans
from ompaffinity.bind.undo import undone_at_end
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.placement.request import LIVE, parse_bind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ompaffinity.placement.model import RankPlacement

BIND_VARIABLE, SIMULATE_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_SIM_MULTI_NUMA"
VISIBLE_NODES_VARIABLE = "CPU_VISIBLE_MEMORY_NODES"
LOCAL_RANKS = "OMPAFFINITY_VLLM_LOCAL_DP_SIZE"
"""The number of data-parallel ranks on this machine, for an EngineCore: only the API server has it."""
AUTO, UNBOUND = "auto", "nobind"
INTEL_WAITING = {"KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0"}
"""What vLLM sets beside KMP_AFFINITY."""
logger = logging.getLogger("ompaffinity.vllm")


def request_for(config: Any, environ: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """Return the planning options for vLLM's configuration, and the local rank of its first worker in the plan.

    All data-parallel ranks of a machine make the same plan, and each takes its part; of explicit CPU lists each takes
    its slice, ordered as [DP, PP, TP].

    Raises:
        RequestError: the CPU lists do not fit the ranks.
    """
    parallel = config.parallel_config
    local: int = parallel.local_world_size
    dp_rank: int | None = parallel.data_parallel_rank_local
    text = environ.get(BIND_VARIABLE, "").strip() or AUTO
    if text == UNBOUND:
        return {"bind": "none", "tensor_parallel_size": local}, 0
    request: dict[str, Any] = {"kv_transfer": True} if config.kv_transfer_config else {}
    if text != AUTO:
        lists = text.split("|")
        if dp_rank is not None:
            lists = lists[dp_rank * local : (dp_rank + 1) * local]
        if len(lists) != local:
            raise RequestError(
                f"{BIND_VARIABLE} is {text!r}; it must have {local} CPU lists for each data-parallel rank, separated"
                " by |"
            )
        return {"bind": parse_bind("|".join(lists)), "tensor_parallel_size": local}, 0
    tensor: int = min(parallel.tensor_parallel_size, local)
    request |= {"tensor_parallel_size": tensor, "pipeline_parallel_size": max(1, local // tensor)}
    if dp_rank is None:
        return request, 0
    given = environ.get(LOCAL_RANKS, "")
    size = int(given) if given.isdecimal() else int(parallel.data_parallel_size_local or 1)
    return request | {"data_parallel_size": max(size, dp_rank + 1)}, dp_rank * local


class CPUWorkerManager:
    """Plans and binds the CPU workers of one vLLM engine: the interface of vLLM's OMPProcessManager.

    `cpu_lists`, `reserved_cpu_list`, `local_world_size`, `skip_setup` and `auto_setup` are read by vLLM.
    """

    def __init__(self, config: Any) -> None:
        environ = os.environ
        request, self._offset = request_for(config, environ)
        self.local_world_size: int = config.parallel_config.local_world_size
        self.skip_setup = request.get("bind") == "none"
        self.auto_setup = "bind" not in request
        # vLLM ignores the visible nodes where it simulates several, and so must the plan.
        simulates = environ.get(SIMULATE_VARIABLE, "0") != "0"
        hidden = environ.pop(VISIBLE_NODES_VARIABLE, None) if simulates else None
        if avoids_live({}, environ) and environ.get(LOCAL_RANKS, "1") != "1":
            # The engines of one server plan apart, and their ranks have one plan in common.
            request["avoid"] = held_by_plans((LIVE,), os.getppid())
        try:
            self._manager = OMPProcessManager(**request)
        finally:
            if hidden is not None:
                environ[VISIBLE_NODES_VARIABLE] = hidden
        ranks = self._manager.plan.ranks[self._offset : self._offset + self.local_world_size]
        self.cpu_lists = [list(placement.cpus) for placement in ranks]
        self.reserved_cpu_list = list(self._manager.plan.reserved)
        for placement in ranks:
            logger.info("%s", self._in_words(placement))

    def _in_words(self, placement: RankPlacement) -> str:
        plan = self._manager.plan
        if not placement.bound:
            return f"local rank {placement.local_rank - self._offset} is not bound"
        helpers = format_id_list(placement.helper_cpus) or "none"
        return (
            f"local rank {placement.local_rank - self._offset}: CPU {format_id_list(placement.cpus)}, helper CPUs"
            f" {helpers}, memory {placement.memory_policy} on node {format_id_list(placement.nodes) or 'any'},"
            f" runtime {plan.runtime}"
        )

    @contextmanager
    def configure_omp_envs(self, rank: int, local_rank: int) -> Iterator[None]:
        """Start the worker of this rank inside; vLLM counts `local_rank` within its data-parallel rank."""
        with self._manager.configure_omp_envs(rank, self._offset + local_rank) as placement:
            is_intel = placement.bound and self._manager.plan.runtime == "iomp"
            waiting = {name: value for name, value in INTEL_WAITING.items() if is_intel and name not in os.environ}
            with undone_at_end(lambda undo: change_environment(waiting, (), undo)):
                yield
