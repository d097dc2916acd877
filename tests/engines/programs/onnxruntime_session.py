"""An onnxruntime session without end: ``onnxruntime_session.py [THREADS]`` (0: its own choice)."""

import sys

import numpy
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

THREADS = int((*sys.argv[1:], "0")[0])
weights = numpy_helper.from_array(numpy.random.rand(1024, 1024).astype("float32"), "weights")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["in", "weights"], ["out"])],
    "graph",
    [helper.make_tensor_value_info("in", TensorProto.FLOAT, [512, 1024])],
    [helper.make_tensor_value_info("out", TensorProto.FLOAT, [512, 1024])],
    [weights],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = THREADS
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
batch = numpy.random.rand(512, 1024).astype("float32")
while True:
    session.run(None, {"in": batch})
