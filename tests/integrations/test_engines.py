"""The settings of engines, in their own words."""

from __future__ import annotations

import pytest

from ompaffinity.cli.exports import export
from ompaffinity.errors import RequestError
from ompaffinity.integrations.engines import llama_cpp_arguments, onnxruntime_settings, openvino_config
from ompaffinity.placement.model import RankPlacement
from tests.placement.machines import plan_for

RANK = RankPlacement(0, 0, cpus=(1, 2, 70), places=((1, 7), (2,), (70,)), affinity=(1, 2, 7, 70))
ALONE = RankPlacement(1, 1, cpus=(3,), places=((3,),), affinity=(3,))


def test_llama_cpp_gets_the_number_of_threads_and_their_cpus() -> None:
    assert llama_cpp_arguments(RANK) == ["-t", "3", "--cpu-mask", "0x400000000000000006", "--cpu-strict", "1"]


def test_onnxruntime_gets_a_cpu_for_each_thread_after_the_first() -> None:
    assert onnxruntime_settings(RANK) == {
        "intra_op_num_threads": "3",
        "session.intra_op_thread_affinities": "3;71",
    }
    assert onnxruntime_settings(ALONE) == {"intra_op_num_threads": "1"}


def test_openvino_does_not_pin_by_itself() -> None:
    assert openvino_config(RANK) == {"INFERENCE_NUM_THREADS": "3", "ENABLE_CPU_PINNING": "NO"}


@pytest.mark.parametrize("settings", [llama_cpp_arguments, onnxruntime_settings, openvino_config])
def test_a_rank_without_binding_has_no_settings(settings: object) -> None:
    with pytest.raises(RequestError, match="rank 0 is not bound"):
        settings(RankPlacement(0, 0, bound=False))  # type: ignore[operator]


def test_exports_the_settings_of_each_rank() -> None:
    plan = plan_for("core:4 pu:1", 2, reserve=0)
    assert export(plan, "llama.cpp") == (
        "# rank 0\n-t 2 --cpu-mask 0x3 --cpu-strict 1\n# rank 1\n-t 2 --cpu-mask 0xC --cpu-strict 1\n"
    )
    assert export(plan, "onnxruntime", 1) == "intra_op_num_threads=2\nsession.intra_op_thread_affinities=4\n"
    assert export(plan, "openvino", 0) == "INFERENCE_NUM_THREADS=2\nENABLE_CPU_PINNING=NO\n"
    unbound = plan_for("core:4 pu:1", bind="none")
    assert export(unbound, "llama.cpp") == "# rank 0, not bound\n"
