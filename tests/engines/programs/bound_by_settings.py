"""An engine with the settings of its placement: ``bound_by_settings.py ENGINE [MODEL]``; works without end."""

import sys

import numpy

from ompaffinity import current_placement
from ompaffinity.integrations.engines import llama_cpp_arguments, openvino_config, session_options

placement = current_placement()
batch = numpy.random.rand(512, 1024).astype("float32")
if sys.argv[1] == "onnxruntime":
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(numpy.random.rand(1024, 1024).astype("float32"), "weights")
    shapes = {"in": [512, 1024], "out": [512, 1024]}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    product = helper.make_node("MatMul", ["in", "weights"], ["out"])
    graph = helper.make_graph([product], "graph", [ends["in"]], [ends["out"]], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(placement), providers=["CPUExecutionProvider"]
    )
    while True:
        session.run(None, {"in": batch})
if sys.argv[1] == "openvino":
    import openvino
    import openvino.opset13 as operations

    parameter = operations.parameter([512, 1024], numpy.float32)
    constant = operations.constant(numpy.random.rand(1024, 1024).astype("float32"))
    product = operations.matmul(parameter, constant, False, False)
    model = openvino.Model([product], [parameter], "model")
    compiled = openvino.Core().compile_model(model, "CPU", openvino_config(placement))
    while True:
        compiled(batch)
if sys.argv[1] == "llama.cpp":
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = sys.argv[2]
    options.n_ctx = 256
    options.warmup = False
    words = llama_cpp_arguments(placement)
    values = dict(zip(words[::2], words[1::2]))
    for threads in (options.cpuparams, options.cpuparams_batch):
        mask = list(threads.cpumask)
        for cpu in range(len(mask)):
            mask[cpu] = bool(int(values["--cpu-mask"], 16) >> cpu & 1)
        threads.n_threads = int(values["-t"])
        threads.cpumask = mask
        threads.mask_valid = True
        threads.strict_cpu = values["--cpu-strict"] == "1"
    server = xllamacpp.Server(options)
    while True:
        server.handle_completions({"prompt": "t1 t2", "max_tokens": 100, "ignore_eos": True})
