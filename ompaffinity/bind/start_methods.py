"""Ways to start a process that cannot be bound by inheritance: refused while a worker is being started.

``fork`` in a process whose libgomp is loaded: the child keeps the settings that the library read, and hangs in
its first parallel region if one has run here. LLVM's and Intel's runtimes start anew in a forked child.
``forkserver``: the child inherits from the server, which was started long before with another environment.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

from ompaffinity.errors import StartMethodError
from ompaffinity.messages import FORK_AFTER_OPENMP, FORKSERVER_ENVIRONMENT, Message
from ompaffinity.openmp.detect import GOMP, IOMP, family_of_file, loaded_runtimes
from ompaffinity.openmp.library_path import preloaded_files
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from ompaffinity.bind.undo import Undo

FORK, FORKSERVER = "fork", "forkserver"


class Refusal:
    """The start methods that one thread must not use until its context ends."""

    def __init__(self, methods: Collection[str]) -> None:
        self.thread = threading.current_thread()
        self.methods = methods


class ReplacedFunction(NamedTuple):
    """A function of a module that starts processes, and what stands in its place."""

    module: Any
    name: str
    original: Any
    replacement: Any


_refusals: list[Refusal] = []
_replaced: list[ReplacedFunction] = []


def refuse_starts(methods: Collection[str], undo: Undo) -> None:
    """Make these start methods (``"fork"`` after OpenMP, ``"forkserver"``) raise in this thread until `undo` runs.

    Other threads may use them.

    Raises (where such a process is started):
        StartMethodError: with the code ``fork-after-openmp`` or ``forkserver-environment``.
    """
    refusal = Refusal(methods)
    undo.add(partial(_end, refusal))
    _refusals.append(refusal)
    if FORK in methods and hasattr(os, "fork"):
        _replace(os, "fork", FORK)
    if FORKSERVER in methods and "multiprocessing.context" in sys.modules and os.name == "posix":
        from multiprocessing import forkserver

        _replace(forkserver, "connect_to_new_process", FORKSERVER)


def _replace(module: Any, name: str, method: str) -> None:
    """Check the refusals of the calling thread before a module's function runs."""
    original = getattr(module, name)
    if any(original is function.replacement for function in _replaced):
        return

    def checked(*arguments: Any) -> Any:
        thread = threading.current_thread()
        if any(refusal.thread is thread and method in refusal.methods for refusal in _refusals):
            _check(method)
        return original(*arguments)

    _replaced.append(ReplacedFunction(module, name, original, checked))
    setattr(module, name, checked)


def _end(refusal: Refusal) -> None:
    if refusal in _refusals:
        _refusals.remove(refusal)
    if not _refusals:
        _put_back()


def _put_back() -> None:
    """Put the functions back, except those that other code has replaced meanwhile."""
    while _replaced:
        function = _replaced.pop()
        if getattr(function.module, function.name) is function.replacement:
            setattr(function.module, function.name, function.original)


def _forget_in_child() -> None:
    """Let a forked child, which is the worker, start what it likes."""
    _refusals.clear()
    _put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _check(method: str) -> None:
    if method == FORK:
        _check_fork()
    else:
        _check_forkserver()


def _check_fork() -> None:
    gnus = [library.path for library in loaded_runtimes() if library.family == GOMP]
    # A preloaded libiomp5 or libomp takes the calls that were meant for torch's libgomp, and survives a fork.
    if gnus and not any(family_of_file(path) == IOMP for path in preloaded_files(os.environ)):
        raise _refused(FORK_AFTER_OPENMP(library=os.path.basename(gnus[0])))


def _check_forkserver() -> None:
    raise _refused(FORKSERVER_ENVIRONMENT())


def _refused(message: Message) -> StartMethodError:
    return StartMethodError(message.code, message.message)
