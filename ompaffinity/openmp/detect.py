"""Which OpenMP runtime a worker will load, told by the files that will be loaded and not by their names.

What counts is what a file exports: ``__kmpc_fork_call`` is LLVM's libomp or Intel's libiomp5 (family
``"iomp"``; they export ``GOMP_parallel`` too), ``GOMP_parallel`` alone is GNU's libgomp (``"gomp"``). Debian's
``llvm/lib/libgomp.so`` is a libomp, for example. Sources: ld.so(8), elf(5).
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ompaffinity.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

GOMP, IOMP = "gomp", "iomp"
FAMILY_SYMBOLS = (("__kmpc_fork_call", IOMP), ("GOMP_parallel", GOMP))
TORCH_LIBRARY = "libtorch_cpu.so"


class RuntimeLibrary(NamedTuple):
    """An OpenMP runtime: its file (links resolved), its family, and why it is loaded."""

    path: str
    family: str
    reason: str = ""


def family_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the family of the OpenMP runtime in a shared library, None if it is none or cannot be read."""
    try:
        path = os.path.realpath(path)
        return _family_of_file(path, os.stat(path).st_mtime_ns)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=256)
def _family_of_file(path: str, _modified: int) -> str | None:
    with _dynamic_segment(path) as segment:
        if segment is not None:
            for symbol, family in FAMILY_SYMBOLS:
                try:
                    if _exports(segment, symbol):
                        return family
                except Exception:  # noqa: BLE001
                    # Of a broken file pyelftools raises whatever its parts raise.
                    return None
    return None


@contextmanager
def _dynamic_segment(path: str) -> Iterator[Any]:
    """Yield the dynamic segment of an ELF file, None for a file that has none."""
    from elftools.elf.elffile import ELFFile

    class SegmentsOnly(ELFFile):
        """The loader knows no sections either; reading libtorch's hash table as one takes longer than all the rest."""

        def num_sections(self) -> int:
            return 0

    if not os.path.isfile(path):
        yield None
        return
    with open(path, "rb") as file:
        try:
            segment: Any = next(SegmentsOnly(file).iter_segments("PT_DYNAMIC"), None)
            # A file that was cut short fails here, and not where its tags are used.
            if segment is not None and segment.get_table_offset("DT_STRTAB")[1] is None:
                segment = None
        except Exception:  # noqa: BLE001
            segment = None
        yield segment


def _exports(segment: Any, symbol: str) -> bool:
    """Return whether a shared library defines `symbol`, by its own hash table."""
    from elftools.elf.hash import ELFHashTable, GNUHashTable

    _, offset = segment.get_table_offset("DT_GNU_HASH")
    if offset is not None:
        return GNUHashTable(segment.elffile, offset, segment).get_symbol(symbol) is not None
    _, offset = segment.get_table_offset("DT_HASH")
    if offset is None:
        return False
    found = ELFHashTable(segment.elffile, offset, None, segment).get_symbol(symbol)
    return found is not None and found["st_shndx"] != "SHN_UNDEF"


def expected_runtimes(environ: Mapping[str, str]) -> tuple[RuntimeLibrary, ...]:
    """Return the runtimes that a Python worker with this environment will load, the one that it will use first.

    These are what LD_PRELOAD names, then what torch brings, if torch is installed for this interpreter.
    Neither is loaded here. Empty where nothing is known.
    """
    preloaded = _classified(RuntimeLibrary(path, "", "preloaded") for path in preloaded_files(environ))
    # A library that is loaded under the name that torch needs is not loaded again.
    names = {_soname(library.path) for library in preloaded}
    found = [RuntimeLibrary(path, "", "torch's") for name, path in _needed_by_torch(environ) if name not in names]
    return _classified([*preloaded, *found])


def _soname(path: str) -> str | None:
    with _dynamic_segment(path) as segment:
        tags = () if segment is None else segment.iter_tags("DT_SONAME")
        return next((str(tag.soname) for tag in tags), None)


def _classified(libraries: Iterable[RuntimeLibrary]) -> tuple[RuntimeLibrary, ...]:
    """Return those that are OpenMP runtimes, each file once, in order."""
    seen: dict[str, RuntimeLibrary] = {}
    for library in libraries:
        path = os.path.realpath(library.path)
        family = family_of_file(path)
        if family is not None and path not in seen:
            seen[path] = RuntimeLibrary(path, family, library.reason)
    return tuple(seen.values())


def preloaded_files(environ: Mapping[str, str]) -> list[str]:
    """Return the files that LD_PRELOAD stands for, as ld.so(8) finds them; what does not exist is ignored, as there."""
    names = environ.get("LD_PRELOAD", "").replace(":", " ").split()
    try:
        with open("/etc/ld.so.preload", encoding="utf-8", errors="replace") as file:
            names += [name for line in file for name in line.partition("#")[0].replace(":", " ").split()]
    except OSError:
        # There is none, or it is not for us; ld.so goes on as well.
        pass
    found = (next(filter(None, (find_library(path, environ) for path in _expanded(name))), None) for name in names)
    return [path for path in found if path is not None]


def _expanded(name: str) -> list[str]:
    """Return what a name with the loader's tokens may stand for (ld.so(8), "Dynamic string tokens")."""
    from sysconfig import get_config_var

    origin, triplet = os.path.dirname(os.path.realpath(sys.executable)), get_config_var("MULTIARCH")
    name = re.sub(r"\$(ORIGIN|\{ORIGIN\})", lambda _: origin, name)
    name = re.sub(r"\$(PLATFORM|\{PLATFORM\})", lambda _: os.uname().machine, name)
    folders = [*([f"lib/{triplet}"] if triplet else []), "lib64", "lib"]
    return [re.sub(r"\$(LIB|\{LIB\})", lambda _, lib=lib: lib, name) for lib in folders]  # type: ignore[misc]


def find_library(name: str, environ: Mapping[str, str], origins: Iterable[str] = ()) -> str | None:
    """Return the file that the loader takes for `name`: a path, or a soname to be searched; None for none.

    `origins` are searched first (an RPATH), then LD_LIBRARY_PATH, the loader's cache, and the default folders.
    """
    if "/" in name:
        return name if os.path.isfile(name) else None
    for folder in (*origins, *_library_path(environ)):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    cached = _loader_cache().get(name)
    if cached is not None:
        return cached
    return next((path for folder in DEFAULT_FOLDERS if os.path.isfile(path := os.path.join(folder, name))), None)


def _library_path(environ: Mapping[str, str]) -> list[str]:
    return [folder for folder in environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":") if folder]


@lru_cache(maxsize=1)
def _loader_cache() -> dict[str, str]:
    """Return {soname: path} of the loader's cache, as ldconfig(8) prints it; the first entry of a name counts."""
    import subprocess

    program = next((path for path in ("/sbin/ldconfig", "/usr/sbin/ldconfig") if os.path.exists(path)), None)
    if program is None:
        return {}
    try:
        # An argument list of constants, and no shell.
        done = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return {}
    cache: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, arrow, path = line.partition(" => ")
        if arrow:
            cache.setdefault(name.split()[0], path.strip())
    return cache


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
        with _dynamic_segment(os.path.join(folder, TORCH_LIBRARY)) as segment:
            needed = [] if segment is None else [str(tag.needed) for tag in segment.iter_tags("DT_NEEDED")]
            # LD_LIBRARY_PATH goes before a RUNPATH, and after an RPATH.
            after_path = segment is not None and next(segment.iter_tags("DT_RUNPATH"), None) is not None
    except OSError:
        return []
    folders = (*_library_path(environ), folder) if after_path else (folder,)
    found = [(name, find_library(name, environ, folders)) for name in needed if "omp" in name]
    return [(name, path) for name, path in found if path is not None]


def runtimes_of_process(pid: int | str) -> tuple[RuntimeLibrary, ...]:
    """Return the runtimes that a process has loaded, by /proc/PID/maps, in the order of their addresses.

    Raises:
        OSError: the file cannot be read.
    """
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        fields = [line.rstrip("\n").split(None, 5) for line in maps if "omp" in line]
    paths = dict.fromkeys(line[5] for line in fields if len(line) == 6 and "omp" in os.path.basename(line[5]))
    return _classified(RuntimeLibrary(path, "", "loaded") for path in paths)


def loaded_runtimes() -> tuple[RuntimeLibrary, ...]:
    """Return the runtimes that this process has loaded, the one in the global scope first."""
    try:
        libraries = runtimes_of_process("self")
    except OSError:
        return ()
    first = None if len(libraries) < 2 else global_runtime_file()
    return tuple(sorted(libraries, key=lambda library: library.path != first))


def global_runtime_file() -> str | None:
    """Return the file whose ``GOMP_parallel`` the global scope finds first (a preloaded one), None for none."""
    import ctypes

    class Info(ctypes.Structure):
        """The start of Dl_info, dladdr(3)."""

        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("symbol", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    scope = ctypes.CDLL(None)
    info = Info()
    try:
        address = ctypes.cast(scope.GOMP_parallel, ctypes.c_void_p)
        found = scope.dladdr(address, ctypes.byref(info))
    except AttributeError:
        return None
    return os.path.realpath(os.fsdecode(info.file)) if found and info.file else None


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
    command = [sys.executable, "-c", _PROBE, json.dumps(sys.path), *names]
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
DEFAULT_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")
_PROBE = """
import importlib, json, os, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from ompaffinity.openmp.detect import loaded_runtimes
output = os.dup(1)
os.dup2(2, 1)
for name in sys.argv[1:]:
    importlib.import_module(name)
os.write(output, (json.dumps(loaded_runtimes()) + "\\n").encode())
"""
