"""An OpenVINO model without end."""

import numpy
import openvino
import openvino.opset13 as operations

batch = operations.parameter([512, 1024], numpy.float32)
weights = operations.constant(numpy.random.rand(1024, 1024).astype("float32"))
product = operations.matmul(batch, weights, False, False)
compiled = openvino.Core().compile_model(openvino.Model([product], [batch], "model"), "CPU")
values = numpy.random.rand(512, 1024).astype("float32")
while True:
    compiled(values)
