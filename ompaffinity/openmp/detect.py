"""Detect the OpenMP runtime that a worker will load, from the content of the files and not from their names.

What counts is what a file exports: ``__kmpc_fork_call`` is LLVM's libomp or Intel's libiomp5 (family
``"iomp"``; they export ``GOMP_parallel`` too), ``GOMP_parallel`` alone is GNU's libgomp (``"gomp"``). Debian's
``llvm/lib/libgomp.so`` is a libomp, for example. Sources: ld.so(8), elf(5).
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ompaffinity.errors import RequestError
from ompaffinity.interpreter import child_command
from ompaffinity.mapped import mapped_files, open_mapped_file, open_regular
from ompaffinity.messages import log_debug
from ompaffinity.openmp.elf import ELFError, SharedLibrary
from ompaffinity.openmp.library_path import find_library, library_path, preloaded_files
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ompaffinity.mapped import MappedFile

GOMP, IOMP = "gomp", "iomp"
FAMILY_SYMBOLS = (("__kmpc_fork_call", IOMP), ("GOMP_parallel", GOMP))
SYSTEM_LIBRARIES = ("libgomp.so.1", "libomp.so.5", "libiomp5.so")
"""The names of runtimes that are installed for all programs."""
TORCH_LIBRARY = "libtorch_cpu.so"
MAX_CANDIDATES = 64
"""Mapped files with "omp" in their names; processes have a handful."""


class RuntimeLibrary(NamedTuple):
    """An OpenMP runtime: its file (links resolved), its family, and why it is loaded."""

    path: str
    family: str
    reason: str = ""


class MappedRuntimes(NamedTuple):
    """The OpenMP runtimes that a process has mapped; `problems` are files that may be more of them, and why.

    Without problems these are all.
    """

    libraries: tuple[RuntimeLibrary, ...]
    problems: tuple[str, ...] = ()


def family_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the family of the OpenMP runtime in a shared library, None if it is none or cannot be read."""
    try:
        descriptor = open_regular(os.fspath(path))
    except (OSError, ValueError):
        return None
    with _closing(descriptor):
        return family_of_descriptor(descriptor)


def family_of_descriptor(descriptor: int) -> str | None:
    """Return the family of the OpenMP runtime in an open file, None if it is none or is damaged."""
    try:
        library = SharedLibrary(descriptor)
        return next((family for symbol, family in FAMILY_SYMBOLS if library.exports(symbol)), None)
    except (OSError, ELFError):
        return None


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def expected_runtimes(environ: Mapping[str, str]) -> tuple[RuntimeLibrary, ...]:
    """Return the runtimes that a Python worker with this environment will load, the one that it will use first.

    These are what LD_PRELOAD names, then what torch brings, if torch is installed for this interpreter; without either,
    the libiomp5 that pip installed with MKL. None is loaded here. Empty where nothing is known.
    """
    preloaded = _classified(RuntimeLibrary(path, "", "preloaded") for path in preloaded_files(environ))
    # A library that is loaded under the name that torch needs is not loaded again.
    names = {_soname(library.path) for library in preloaded}
    found = [RuntimeLibrary(path, "", "torch's") for name, path in _needed_by_torch(environ) if name not in names]
    runtimes = _classified([*preloaded, *found]) or _classified(_installed_with_mkl())
    log_debug("OpenMP runtimes of the workers: %s", ", ".join(map(str, runtimes)) or "none found")
    return runtimes


def system_runtimes(environ: Mapping[str, str], origins: Iterable[str] = ()) -> Iterator[RuntimeLibrary]:
    """Yield the runtimes that the loader finds by their usual names, GNU's first; `origins` are searched first."""
    folders = tuple(origins)
    for name in SYSTEM_LIBRARIES:
        path = find_library(name, environ, folders)
        family = None if path is None else family_of_file(path)
        if path is not None and family is not None:
            yield RuntimeLibrary(path, family, "of the system")


def _installed_with_mkl() -> list[RuntimeLibrary]:
    folder = os.path.join(sys.prefix, "lib")
    try:
        has_mkl = any(name.startswith("libmkl_rt.so") for name in os.listdir(folder))
    except OSError:
        return []
    return [RuntimeLibrary(os.path.join(folder, "libiomp5.so"), "", "MKL's")] if has_mkl else []


def _soname(path: str) -> str | None:
    try:
        descriptor = open_regular(path)
    except OSError:
        return None
    with _closing(descriptor):
        try:
            return SharedLibrary(descriptor).soname
        except (OSError, ELFError):
            return None


def _classified(libraries: Iterable[RuntimeLibrary]) -> tuple[RuntimeLibrary, ...]:
    """Return those that are OpenMP runtimes, each file once, in order."""
    seen: dict[str, RuntimeLibrary] = {}
    for library in libraries:
        path = os.path.realpath(library.path)
        family = family_of_file(path)
        if family is not None and path not in seen:
            seen[path] = RuntimeLibrary(path, family, library.reason)
    return tuple(seen.values())


def _needed_by_torch(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (name, file) of the OpenMP libraries that torch is linked with, without importing it."""
    from importlib.util import find_spec

    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return []
    if spec is None or spec.origin is None:
        return []
    folder = os.path.join(os.path.dirname(spec.origin), "lib")
    try:
        descriptor = open_regular(os.path.join(folder, TORCH_LIBRARY))
    except OSError:
        return []
    with _closing(descriptor):
        try:
            library = SharedLibrary(descriptor)
            # LD_LIBRARY_PATH goes before a RUNPATH, and after an RPATH.
            needed, after_path = library.needed, library.has_runpath
        except (OSError, ELFError):
            return []
    folders = (*library_path(environ), folder) if after_path else (folder,)
    found = [(name, find_library(name, environ, folders)) for name in needed if "omp" in name]
    return [(name, path) for name, path in found if path is not None]


def runtimes_of_process(pid: int | str, files: Sequence[MappedFile] | None = None) -> MappedRuntimes:
    """Return the runtimes that a process has mapped, in the order of their addresses, by the files that are mapped.

    These may be in another mount namespace, or deleted; paths are those of the process. `files` are all that it has
    mapped, where these have been read already.

    Raises:
        OSError: /proc/PID/maps cannot be read.
    """
    libraries, problems = [], []
    for mapped, family in _mapped_libraries(pid, files):
        if isinstance(family, OSError):
            problems.append(f"{mapped.path} cannot be read ({family.strerror})")
        elif family is not None:
            libraries.append(RuntimeLibrary(mapped.path, family, "loaded"))
    return MappedRuntimes(tuple(libraries), tuple(problems))


def _mapped_libraries(
    pid: int | str, files: Sequence[MappedFile] | None = None
) -> Iterator[tuple[MappedFile, str | None | OSError]]:
    """Yield what may be an OpenMP runtime by its name, and its family, or why that is not known."""
    found = mapped_files(pid, "omp") if files is None else files
    candidates = [mapped for mapped in found if "omp" in os.path.basename(mapped.path)]
    for number, mapped in enumerate(candidates):
        if number == MAX_CANDIDATES:
            yield mapped, OSError(errno.E2BIG, f"the process has mapped {len(candidates)} such files")
            return
        try:
            descriptor = open_mapped_file(pid, mapped)
        except OSError as error:
            yield mapped, error
            continue
        with _closing(descriptor):
            yield mapped, family_of_descriptor(descriptor)


def loaded_runtimes() -> tuple[RuntimeLibrary, ...]:
    """Return the runtimes that this process has loaded, the one in the global scope first.

    Each path is one under which dlopen(3) finds the library that is loaded, also where its file was replaced.
    """
    try:
        found = [(mapped, family) for mapped, family in _mapped_libraries("self") if isinstance(family, str)]
    except OSError:
        return ()
    libraries = [
        RuntimeLibrary(_loaded_name(mapped) if mapped.deleted else mapped.path, family, "loaded")
        for mapped, family in found
    ]
    first = None if len(libraries) < 2 else global_runtime_file()
    return tuple(sorted(libraries, key=lambda library: os.path.realpath(library.path) != first))


def _loaded_name(mapped: MappedFile) -> str:
    """Return the name under which the loader has a library: it compares names before it opens a file."""
    return _object_at(mapped.start) or mapped.path


def global_runtime_file() -> str | None:
    """Return the file whose ``GOMP_parallel`` the global scope finds first (a preloaded one), None for none."""
    import ctypes

    try:
        address = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:
        return None
    path = None if address is None else _object_at(address)
    return None if path is None else os.path.realpath(path)


def runtime_of_parallel_regions() -> str | None:
    """Return a file whose scope leads to the runtime that this process's parallel regions use, None for none.

    A runtime in the global scope (preloaded) goes first, then torch's, then the first that is loaded.
    """
    libraries = loaded_runtimes()
    files = [library.path for library in libraries]
    if libraries and global_runtime_file() is None:
        # dlsym(3) searches a library and what it is linked with.
        with suppress(OSError):
            files = [*(mapped.path for mapped in mapped_files("self", TORCH_LIBRARY)), *files]
    return next(iter(files), None)


def _object_at(address: int) -> str | None:
    """Return the file of the library with this address, as the loader names it (dladdr(3)); None if it has none."""
    import ctypes

    class Info(ctypes.Structure):
        """The start of Dl_info, dladdr(3)."""

        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("symbol", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    info = Info()
    try:
        found = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info))
    except AttributeError:
        return None
    return os.fsdecode(info.file) if found and info.file else None


def probe_runtimes(modules: Iterable[str], environ: Mapping[str, str] | None = None) -> tuple[RuntimeLibrary, ...]:
    """Start this interpreter in the environment, import `modules` there, and return the runtimes that it loaded.

    The only complete answer, at the price of the imports (a second or two for torch).

    Raises:
        RequestError: a module is missing or its import fails or takes more than two minutes.
    """
    import json
    import subprocess

    names = tuple(modules)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise RequestError(f"the module to probe is {name!r}; it must be a name as in an import statement")
    command = child_command(_PROBE, json.dumps(sys.path), *names)
    try:
        # The module names were checked; this interpreter, and no shell.
        done = subprocess.run(  # noqa: S603
            command, env=environ, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        raise RequestError(f"probing {', '.join(names)} took more than {PROBE_SECONDS} seconds") from None
    except (OSError, ValueError, IndexError) as error:
        raise RequestError(f"probing {', '.join(names)} failed: {error}") from None
    if answer is None:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RequestError(f"probing {', '.join(names)} failed: {reason}")
    return tuple(RuntimeLibrary(*entry) for entry in answer)


PROBE_SECONDS = 120
_PROBE = """
import importlib, json, os
from ompaffinity.openmp.detect import loaded_runtimes
sys.path[:] = json.loads(sys.argv.pop(1))
output = os.dup(1)
os.dup2(2, 1)
for name in sys.argv[1:]:
    importlib.import_module(name)
os.write(output, (json.dumps(loaded_runtimes()) + "\\n").encode())
"""
