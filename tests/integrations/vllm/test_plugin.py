"""The vLLM plugin without vLLM: what it plans for a configuration, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.integrations.vllm.cpu_workers import LOCAL_RANKS, request_for
from tests.conftest import ROOT


def config(tensor: int = 1, local: int | None = None, dp_rank: int | None = None, **more: Any) -> Any:
    parallel = {
        "local_world_size": tensor if local is None else local,
        "tensor_parallel_size": tensor,
        "data_parallel_rank_local": dp_rank,
        "data_parallel_size_local": 1,
    }
    return SimpleNamespace(parallel_config=SimpleNamespace(**parallel), **{"kv_transfer_config": None, **more})


@pytest.mark.parametrize(
    ("configuration", "environ", "expected"),
    [
        (config(), {}, ({"tensor_parallel_size": 1, "pipeline_parallel_size": 1}, 0)),
        (config(2, 4), {}, ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 0)),
        # A tensor-parallel group over two machines.
        (config(4, 2), {}, ({"tensor_parallel_size": 2, "pipeline_parallel_size": 1}, 0)),
        (
            config(2, dp_rank=1),
            {LOCAL_RANKS: "3"},
            ({"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "data_parallel_size": 3}, 2),
        ),
        (
            config(1, dp_rank=1),
            {},
            ({"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 2}, 1),
        ),
        (
            config(kv_transfer_config=object()),
            {},
            ({"kv_transfer": True, "tensor_parallel_size": 1, "pipeline_parallel_size": 1}, 0),
        ),
        (config(2), {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, ({"bind": "none", "tensor_parallel_size": 2}, 0)),
        (
            config(2),
            {"VLLM_CPU_OMP_THREADS_BIND": "0-1|4,5"},
            ({"bind": ((0, 1), (4, 5)), "tensor_parallel_size": 2}, 0),
        ),
        (
            config(1, dp_rank=1),
            {"VLLM_CPU_OMP_THREADS_BIND": "0-1|4-5"},
            ({"bind": ((4, 5),), "tensor_parallel_size": 1}, 0),
        ),
    ],
)
def test_the_request_for_a_configuration(configuration: Any, environ: dict[str, str], expected: Any) -> None:
    assert request_for(configuration, environ) == expected


def test_rejects_lists_that_do_not_fit_the_ranks() -> None:
    with pytest.raises(RequestError, match=r"VLLM_CPU_OMP_THREADS_BIND is '0\|1\|2'; it must have 2 CPU lists"):
        request_for(config(2), {"VLLM_CPU_OMP_THREADS_BIND": "0|1|2"})


def output_of(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    return done.stdout + done.stderr


def test_nothing_is_imported_without_the_variable() -> None:
    code = (
        "import sys; from ompaffinity.integrations.vllm.plugin import register; register();"
        " print([name for name in sys.modules if name.split('.')[0] in ('vllm', 'torch')])"
    )
    assert output_of(code) == "[]\n"
    assert output_of(code, OMPAFFINITY_VLLM="0") == "[]\n"


def test_without_vllm_there_is_one_warning() -> None:
    code = (
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "from ompaffinity.integrations.vllm.plugin import register; register(); register()"
    )
    assert output_of(code, OMPAFFINITY_VLLM="1").count("vLLM keeps its own binding of workers") == 1
