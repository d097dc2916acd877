"""The running interpreter: programs for a child of it, and the command that installs packages for it."""

from __future__ import annotations

import os
import sys

PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def child_command(program: str, *arguments: str) -> list[str]:
    """Return the argv list that runs the source text `program` in this interpreter.

    ``python -c`` and ``python -m`` import from the current directory first, also where a module of the standard
    library has the same name (Python's documentation, ``sys.path``; ``-P`` needs Python 3.11). The child removes that
    entry before its first import of a file, and can import this package.
    """
    start = (
        "import sys\n"
        "sys.path = [folder for folder in sys.path if folder]\n"
        f"if {PACKAGE_FOLDER!r} not in sys.path: sys.path.insert(0, {PACKAGE_FOLDER!r})\n"
    )
    return [sys.executable, "-c", start + program, *arguments]


def install_command(requirement: str) -> str:
    """Return the shell command that installs a package where this interpreter finds it.

    An environment without pip is served by the pip outside of it (``pip --python``, pip 22.3), one of pipx or uv by its
    tool. Where the distribution manages the packages (PEP 668), the command makes an environment first.
    """
    # Loaded for an error only.
    from importlib.util import find_spec

    if os.path.exists(os.path.join(sys.prefix, "pipx_metadata.json")):
        return f"pipx install --force '{requirement}'"
    if os.path.exists(os.path.join(sys.prefix, "uv-receipt.toml")):
        return f"uv tool install '{requirement}'"
    if sys.prefix == sys.base_prefix and _is_externally_managed():
        return f"python3 -m venv .venv && .venv/bin/pip install '{requirement}'"
    if find_spec("pip") is None:
        return f"python3 -m pip --python {sys.executable} install '{requirement}'"
    return f"{sys.executable} -m pip install '{requirement}'"


def _is_externally_managed() -> bool:
    import sysconfig

    return os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
