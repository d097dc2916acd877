"""The keyword arguments that plan, typed: a type checker finds one that is misspelt."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from ompaffinity.devices.model import GPUHome
    from ompaffinity.placement.request import HeldCPUs


class PlanOptions(TypedDict, total=False):
    """The fields of `PlacementRequest`; `bind` is also the text of ``--bind``, `avoid` also names plan files.

    `options` is a file that ``compare --save`` wrote.
    """

    options: str | os.PathLike[str]

    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    bind: str | tuple[tuple[int, ...], ...]
    cpus: tuple[int, ...] | None
    nodes: tuple[int, ...] | None
    avoid: Iterable[str | os.PathLike[str] | HeldCPUs]
    threads_per_core: int | None
    core_type: str
    reserve: int | None
    reserve_per_rank: int | None
    kv_transfer: bool
    distribute: str
    span: str
    helper_cpus: str
    oversubscribe: bool
    runtime: str
    granularity: str
    wait_policy: str
    memory_policy: str
    utilization: float | None
    numa_bind: bool
    numa_bind_nodes: tuple[int, ...] | None
    numa_bind_cpus: tuple[tuple[int, ...], ...] | None
    gpus: tuple[int, ...] | None
    share: bool
    gpu_homes: tuple[GPUHome, ...] | None
