"""Inference and numerical engines, recognised by the libraries that a process has mapped.

Sources: each engine's documentation of its threads; "Engines" in the documentation has what was measured.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Engine(NamedTuple):
    """An engine: its name, whether it computes in threads of its own instead of an OpenMP team, and what to set.

    `setting` follows "set" in a sentence; ``{threads}`` is the number of threads in the plan. An `auxiliary` library is
    part of others, which decide on their own threads. `caller_waits`: the thread that calls the engine waits for its
    threads, which are as many as planned without it.
    """

    name: str
    own_threads: bool
    setting: str
    auxiliary: bool = False
    caller_waits: bool = False


LIBRARIES = (
    (
        r"onnxruntime_pybind11_state|libonnxruntime\b",
        Engine("onnxruntime", True, "intra_op_num_threads={threads} in its SessionOptions (0 pins threads anywhere)"),
    ),
    (
        r"libopenvino\b",
        Engine("OpenVINO", True, "INFERENCE_NUM_THREADS={threads} and ENABLE_CPU_PINNING=NO in its configuration"),
    ),
    (r"libllama\b|xllamacpp", Engine("llama.cpp", True, "-t {threads} (n_threads)")),
    (r"_polars_runtime|polars\.abi3", Engine("polars", True, "POLARS_MAX_THREADS={threads}", caller_waits=True)),
    (
        r"libxla|xla_extension|libjax_common|_jax\.",
        Engine("XLA", True, "the mask: XLA starts one thread per CPU of it", caller_waits=True),
    ),
    (r"^omppool\.|^tbbpool\.|^workqueue\.", Engine("numba", False, "NUMBA_NUM_THREADS={threads}")),
    (r"libtorch_cpu\b", Engine("torch", False, "torch.set_num_threads({threads})")),
    (r"libctranslate2\b", Engine("CTranslate2", False, "inter_threads=1 and intra_threads={threads}")),
    (r"libtbb\b", Engine("TBB", True, "tbb::global_control max_allowed_parallelism={threads}", auxiliary=True)),
    (r"libmkl_", Engine("MKL", False, "MKL_NUM_THREADS={threads}", auxiliary=True)),
    (r"openblas", Engine("OpenBLAS", False, "OPENBLAS_NUM_THREADS={threads}", auxiliary=True)),
)
PATTERNS = tuple((re.compile(pattern), engine) for pattern, engine in LIBRARIES)


def engines_of(paths: Iterable[str]) -> tuple[Engine, ...]:
    """Return the engines whose libraries are among these files, without the auxiliary ones of others."""
    names = {os.path.basename(path) for path in paths}
    found = [engine for pattern, engine in PATTERNS if any(pattern.search(name) for name in names)]
    main = [engine for engine in found if not engine.auxiliary]
    return tuple(main or found)
