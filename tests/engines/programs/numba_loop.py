"""A parallel loop of numba in its OpenMP threading layer, without end: ``numba_loop.py [THREADS]``."""

import os
import sys

if sys.argv[1:]:
    os.environ["NUMBA_NUM_THREADS"] = sys.argv[1]

import numba
import numpy

numba.config.THREADING_LAYER = "omp"


@numba.njit(parallel=True)
def total(values: numpy.ndarray) -> float:
    found = 0.0
    for at in numba.prange(values.shape[0]):
        found += numpy.sqrt(values[at])
    return found


numbers = numpy.random.rand(3_000_000)
while True:
    total(numbers)
