"""Checks of the software: variables and libraries that break a binding."""

from __future__ import annotations

import os
import subprocess
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ompaffinity.doctor.record import OK, WARNING, Check
from ompaffinity.errors import RequestError
from ompaffinity.openmp.detect import family_of_file, system_runtimes
from ompaffinity.openmp.library_path import find_library, preloaded_files
from ompaffinity.openmp.variables import overridden_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TIMEOUT_SECONDS = 30
FOLDERS = (
    "import sys, sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), sys.prefix, sep='\\n')"
)
GPU_LIBRARIES = {"NVIDIA": "libnvidia-ml.so.1", "AMD": "libamd_smi.so", "Intel": "libze_loader.so.1"}


def software_checks(environ: Mapping[str, str], python: str | None = None) -> Iterator[Check]:
    """Yield the checks of the environment and of the libraries that workers load.

    Raises:
        RequestError: `python` is not a Python interpreter.
    """
    yield _variables(environ)
    yield _preloaded(environ)
    yield _runtimes(environ, sys.executable if python is None else python)
    yield _gpus(environ)


def _variables(environ: Mapping[str, str]) -> Check:
    stale = overridden_variables(environ)
    if stale:
        text = ", ".join(f"{name}={value}" for name, value in stale.items())
        fix = f"ompaffinity removes them from its workers; for other programs: unset {' '.join(stale)}"
        return Check("OpenMP variables", WARNING, text, fix)
    return Check("OpenMP variables", OK, "none that break a binding")


def _preloaded(environ: Mapping[str, str]) -> Check:
    families = {path: family for path in preloaded_files(environ) if (family := family_of_file(path))}
    if len(families) > 1:
        text = f"LD_PRELOAD loads {' and '.join(families)}: the first to start narrows the mask that the other reads"
        return Check("LD_PRELOAD", WARNING, text, "preload one OpenMP runtime only")
    return Check("LD_PRELOAD", OK, next(iter(families), "no OpenMP runtime"))


def _runtimes(environ: Mapping[str, str], python: str) -> Check:
    found: dict[str, str] = {}
    folders, lib = _library_folders(python)
    for folder in (*folders, lib):
        # The folders below the system's lib hold libraries of other programs.
        for path in _openmp_files(folder, deep=folder != lib):
            real = os.path.realpath(path)
            family = family_of_file(real)
            if family is not None:
                found.setdefault(real, family)
    names = ", ".join(f"{path} ({family})" for path, family in sorted(found.items()))
    if len(found) > 1:
        fix = (
            "a process that loads two runtimes binds its threads twice; check which ones a worker loads with"
            " ompaffinity verify -- COMMAND, and name the one that computes with --runtime"
        )
        return Check("OpenMP runtimes", WARNING, f"{len(found)} in the environment of {python}: {names}", fix)
    return Check("OpenMP runtimes", OK, names or f"none in the environment of {python}; {_on_library_path(environ)}")


def _on_library_path(environ: Mapping[str, str]) -> str:
    found = [f"{library.path} ({library.family})" for library in system_runtimes(environ)]
    return f"on the library path: {', '.join(found)}" if found else "none on the library path either"


def _library_folders(python: str) -> tuple[list[str], str]:
    """Return the package folders of a Python interpreter, and its ``lib``, where some packages install libraries."""
    try:
        # The argv list runs the interpreter that the user names, without a shell.
        done = subprocess.run(  # noqa: S603
            [python, "-I", "-c", FOLDERS], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"--python {python} cannot be run ({reason}); name a Python interpreter") from None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != 3:
        raise RequestError(f"--python {python} is not a Python interpreter; name one, as in .venv/bin/python")
    purelib, platlib, prefix = lines
    return list(dict.fromkeys((purelib, platlib))), os.path.join(prefix, "lib")


def _openmp_files(folder: str, *, deep: bool) -> Iterator[str]:
    """Yield the shared libraries in a folder whose names match OpenMP runtimes; `deep` includes the folders below."""
    for directory, below, names in os.walk(folder):
        if not deep:
            below.clear()
        for name in names:
            if fnmatchcase(name, "lib*omp*.so*"):
                yield os.path.join(directory, name)


def _gpus(environ: Mapping[str, str]) -> Check:
    paths = {vendor: find_library(name, environ) for vendor, name in GPU_LIBRARIES.items()}
    found = [f"{vendor} ({path})" for vendor, path in paths.items() if path is not None]
    return Check("GPU libraries", OK, ", ".join(found) or "none; GPUs are detected from sysfs only")
