"""One step of work in each engine: what a worker of `benchmarks.engines` and `benchmarks.waiting` repeats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.decoder import CACHE, LAYERS, WIDTH, DecoderLayer
from benchmarks.teams import serve
from ompaffinity.bind.worker_placement import current_placement
from ompaffinity.integrations.engines import llama_cpp_arguments, openvino_config, session_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from ompaffinity.placement.model import RankPlacement

ROWS, COLUMNS = 512, 1024
TOKENS = 8
"""Tokens that a step of llama.cpp generates."""
MODEL_PROGRAM = Path(__file__).resolve().parent.parent / "tests" / "engines" / "programs" / "llama_server.py"


def work(_rank: int, engine: str, model: str, settings: bool, connection: Any) -> None:
    """Serve as one rank of an engine, with its own settings for the placement if requested: for `start_team`."""
    serve(connection, STEPS[engine](model, settings))


def make_model(path: str) -> None:
    """Write a small random model for llama.cpp."""
    subprocess.run([sys.executable, str(MODEL_PROGRAM), path], check=True)


def _torch_step(_model: str, _settings: bool) -> Callable[[], object]:
    import torch

    torch.manual_seed(0)
    layers = [DecoderLayer(torch, torch.float32) for _ in range(LAYERS)]
    states = torch.randn(8, WIDTH)
    count = 0

    def step() -> None:
        nonlocal count
        with torch.inference_mode():
            hidden = states
            for layer in layers:
                hidden = layer.step(hidden, count % CACHE)
        count += 1

    return step


def _onnxruntime_step(_model: str, settings: bool) -> Callable[[], object]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(_random(COLUMNS, COLUMNS), "weights")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, COLUMNS]) for name in ("in", "out")]
    product = helper.make_node("MatMul", ["in", "weights"], ["out"])
    graph = helper.make_graph([product], "graph", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = session_options(_placement()) if settings else onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = _random(ROWS, COLUMNS)
    return lambda: session.run(None, {"in": batch})


def _openvino_step(_model: str, settings: bool) -> Callable[[], object]:
    import openvino
    import openvino.opset13 as operations

    parameter = operations.parameter([ROWS, COLUMNS], np.float32)
    product = operations.matmul(parameter, operations.constant(_random(COLUMNS, COLUMNS)), False, False)
    config = openvino_config(_placement()) if settings else {}
    compiled = openvino.Core().compile_model(openvino.Model([product], [parameter], "model"), "CPU", config)
    batch = _random(ROWS, COLUMNS)
    return lambda: compiled(batch)


def _llama_step(model: str, settings: bool) -> Callable[[], object]:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = model
    options.n_ctx = 256
    options.warmup = False
    if settings:
        words = llama_cpp_arguments(_placement())
        values = dict(zip(words[::2], words[1::2]))
        for threads in (options.cpuparams, options.cpuparams_batch):
            wanted = int(values["--cpu-mask"], 16)
            threads.n_threads = int(values["-t"])
            threads.cpumask = [bool(wanted >> cpu & 1) for cpu in range(len(list(threads.cpumask)))]
            threads.mask_valid = True
            threads.strict_cpu = values["--cpu-strict"] == "1"
    server = xllamacpp.Server(options)
    request = {"prompt": "t1 t2", "max_tokens": TOKENS, "ignore_eos": True}
    return lambda: server.handle_completions(request)


def _placement() -> RankPlacement:
    placement = current_placement()
    if placement is None:
        raise RuntimeError("this worker was started without a placement")
    return placement


def _random(*shape: int) -> Any:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


STEPS = {
    "torch": _torch_step,
    "onnxruntime": _onnxruntime_step,
    "llama.cpp": _llama_step,
    "OpenVINO": _openvino_step,
}
