"""Ways to start a process that cannot be bound by inheritance: refused while a worker is being started.

``fork`` in a process whose libgomp is loaded: the child keeps the settings that the library read, and hangs in
its first parallel region if one has run here. LLVM's and Intel's runtimes start anew in a forked child.
``forkserver``: the child inherits from the server, which was started long before with another environment.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, contextmanager

from ompaffinity.errors import StartMethodError
from ompaffinity.openmp.runtimes import GOMP, loaded_runtimes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


@contextmanager
def refuse_unbindable_starts() -> Iterator[None]:
    """Make ``fork`` after OpenMP and ``forkserver`` raise in the calling thread until the context ends.

    Raises (inside, where such a process is started):
        StartMethodError: with the code ``fork-after-openmp`` or ``forkserver-environment``.
    """
    with ExitStack() as stack:
        if hasattr(os, "fork"):
            stack.enter_context(_checked(os, "fork", _check_fork))
        if "multiprocessing.context" in sys.modules and os.name == "posix":
            from multiprocessing import forkserver

            stack.enter_context(_checked(forkserver, "connect_to_new_process", _check_forkserver))
        yield


@contextmanager
def _checked(module: Any, name: str, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before a module's function whenever this thread calls it."""
    original = getattr(module, name)
    owner = threading.get_ident()

    def checked(*arguments: Any) -> Any:
        if threading.get_ident() == owner:
            check()
        return original(*arguments)

    setattr(module, name, checked)
    try:
        yield
    finally:
        setattr(module, name, original)


def _check_fork() -> None:
    loaded = loaded_runtimes()
    # The first one is the one that is used: a preloaded libiomp5 beside torch's libgomp survives a fork.
    if loaded and loaded[0].family == GOMP:
        raise StartMethodError(
            "fork-after-openmp",
            f"{os.path.basename(loaded[0].path)} is loaded in this process: a forked worker would not hear its"
            " variables, and would hang in its first parallel region if one has run here;"
            ' start workers with multiprocessing.get_context("spawn")',
        )


def _check_forkserver() -> None:
    raise StartMethodError(
        "forkserver-environment",
        "the start method forkserver gives every worker the environment and the CPUs that its server was started"
        ' with; start workers with multiprocessing.get_context("spawn")',
    )
