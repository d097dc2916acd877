"""Find shared libraries as the loader does. Source: ld.so(8)."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")


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
    for folder in (*origins, *library_path(environ)):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    cached = _loader_cache().get(name)
    if cached is not None:
        return cached
    return next((path for folder in DEFAULT_FOLDERS if os.path.isfile(path := os.path.join(folder, name))), None)


def library_path(environ: Mapping[str, str]) -> list[str]:
    """Return the folders of LD_LIBRARY_PATH."""
    return [folder for folder in environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":") if folder]


@cache
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
    files: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, arrow, path = line.partition(" => ")
        if arrow:
            files.setdefault(name.split()[0], path.strip())
    return files
