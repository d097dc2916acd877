"""The settings of engines that do not read OpenMP variables: threads and CPUs of a placement in their own words.

Nothing here imports an engine but `session_options`, which returns an object of onnxruntime. Sources: llama.cpp's
``tools/server/README.md`` (-t, --cpu-mask, --cpu-strict); onnxruntime, "Thread management"; OpenVINO, "Performance
Hints and Thread Scheduling".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError

if TYPE_CHECKING:
    from typing import Any

    from ompaffinity.placement.model import RankPlacement

INTRA_OP_AFFINITIES = "session.intra_op_thread_affinities"


def llama_cpp_arguments(placement: RankPlacement) -> list[str]:
    """Return the options of llama.cpp's programs for a rank: ``["-t", "2", "--cpu-mask", "0x6", "--cpu-strict", "1"]``.

    With ``--cpu-strict`` thread i runs on the i-th CPU of the mask alone.

    Raises:
        RequestError: the rank is not bound.
    """
    _check_bound(placement)
    mask = 0
    for cpu in placement.cpus:
        mask |= 1 << cpu
    return ["-t", str(len(placement.cpus)), "--cpu-mask", f"0x{mask:X}", "--cpu-strict", "1"]


def onnxruntime_settings(placement: RankPlacement) -> dict[str, str]:
    """Return the settings of a session of onnxruntime for a rank.

    ``intra_op_num_threads`` is an attribute of its SessionOptions, `INTRA_OP_AFFINITIES` a configuration entry: the CPU
    of each thread after the first, counted from 1. The first is the thread that runs the session.

    Raises:
        RequestError: the rank is not bound.
    """
    _check_bound(placement)
    settings = {"intra_op_num_threads": str(len(placement.cpus))}
    if len(placement.cpus) > 1:
        settings[INTRA_OP_AFFINITIES] = ";".join(str(cpu + 1) for cpu in placement.cpus[1:])
    return settings


def session_options(placement: RankPlacement) -> Any:
    """Return ``onnxruntime.SessionOptions`` for a rank; add what else the session needs.

    Raises:
        RequestError: the rank is not bound.
        ImportError: onnxruntime is not installed.
    """
    settings = onnxruntime_settings(placement)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings["intra_op_num_threads"])
    if INTRA_OP_AFFINITIES in settings:
        options.add_session_config_entry(INTRA_OP_AFFINITIES, settings[INTRA_OP_AFFINITIES])
    return options


def openvino_config(placement: RankPlacement) -> dict[str, str]:
    """Return the configuration of OpenVINO's CPU plugin for a rank: ``core.compile_model(model, "CPU", config)``.

    Without its own pinning the threads run within the mask that the rank was started with.

    Raises:
        RequestError: the rank is not bound.
    """
    _check_bound(placement)
    return {"INFERENCE_NUM_THREADS": str(len(placement.cpus)), "ENABLE_CPU_PINNING": "NO"}


def _check_bound(placement: RankPlacement) -> None:
    if not placement.bound:
        raise RequestError(f"rank {placement.rank} is not bound, so that it has no CPUs; plan without --bind none")
