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
from typing import TYPE_CHECKING

from ompaffinity.errors import StartMethodError
from ompaffinity.openmp.detect import GOMP, IOMP, family_of_file, loaded_runtimes
from ompaffinity.openmp.library_path import preloaded_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


@contextmanager
def refuse_unbindable_starts(*, fork: bool = True) -> Iterator[None]:
    """Make ``fork`` after OpenMP (unless `fork` is False) and ``forkserver`` raise here until the context ends.

    Here is the calling thread; others do what they like.

    Raises (inside, where such a process is started):
        StartMethodError: with the code ``fork-after-openmp`` or ``forkserver-environment``.
    """
    with ExitStack() as stack:
        if fork and hasattr(os, "fork"):
            stack.enter_context(_checked(os, "fork", _check_fork))
        if "multiprocessing.context" in sys.modules and os.name == "posix":
            from multiprocessing import forkserver

            stack.enter_context(_checked(forkserver, "connect_to_new_process", _check_forkserver))
        yield


_checked_now: list[tuple[Any, str, Any]] = []


def _uncheck_in_child() -> None:
    """A forked child never leaves the context that it was forked in, and may start what it likes."""
    while _checked_now:
        module, name, original = _checked_now.pop()
        setattr(module, name, original)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_uncheck_in_child)


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
    _checked_now.append((module, name, original))
    try:
        yield
    finally:
        if _checked_now:
            _checked_now.pop()
        setattr(module, name, original)


def _check_fork() -> None:
    gnus = [library.path for library in loaded_runtimes() if library.family == GOMP]
    # A preloaded libiomp5 or libomp takes the calls that were meant for torch's libgomp, and survives a fork.
    if gnus and not any(family_of_file(path) == IOMP for path in preloaded_files(os.environ)):
        raise StartMethodError(
            "fork-after-openmp",
            f"{os.path.basename(gnus[0])} is loaded in this process: a forked worker would not hear its"
            " variables, and would hang in its first parallel region if one has run here;"
            ' start workers with multiprocessing.get_context("spawn")',
        )


def _check_forkserver() -> None:
    raise StartMethodError(
        "forkserver-environment",
        "the start method forkserver gives every worker the environment and the CPUs that its server was started"
        ' with; start workers with multiprocessing.get_context("spawn")',
    )
