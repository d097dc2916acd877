"""Feed random input to every reader for some minutes: ``python -m tests.fuzz --minutes 10`` (``tox -e fuzz``).

Runs the properties whose name begins with ``test_any_`` again and again with new examples; each states that a
reader either reads what it is given or raises its own error. With ``--target NAME`` atheris guides one of them by the
coverage of the package (``pip install atheris``); arguments behind ``--`` go to atheris.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = (
    *("bind.test_pages", "cli.test_parse", "devices.test_visibility", "launch.test_ranks", "openmp.test_elf"),
    *("placement.test_document", "test_ids", "test_proc"),
    *("topology.test_hwloc", "topology.test_lscpu", "topology.test_lscpu_summary", "topology.test_snapshot"),
    *("topology.test_sysfs", "topology.test_tree"),
)
ROUND = settings(
    max_examples=500,
    derandomize=False,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Folders:
    """The part of pytest's ``tmp_path_factory`` that the properties use."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def getbasetemp(self) -> Path:
        """Return the folder of this run."""
        return self._path


def properties(folder: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, property) of every property of a reader, for each of its parameters."""
    for module in MODULES:
        for name, function in vars(importlib.import_module(f"tests.{module}")).items():
            if name.startswith("test_any_"):
                check = ROUND(function)
                for parameters in _parameters(function):
                    given = dict(parameters)
                    if "tmp_path_factory" in inspect.signature(function).parameters:
                        given["tmp_path_factory"] = Folders(folder)
                    yield f"{module}.{name}", functools.partial(check, **given)


def _parameters(function: Any) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each case of ``pytest.mark.parametrize`` with one name; one without for no such mark."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    if not marks:
        yield {}
    for mark in marks:
        for value in mark.args[1]:
            yield {mark.args[0]: value}


def fuzz_one(target: str, arguments: list[str]) -> None:
    """Let atheris feed one property without fixtures until it fails or gets a signal."""
    import atheris

    module, _, name = target.rpartition(".")
    with atheris.instrument_imports(include=["ompaffinity"]):
        function = getattr(importlib.import_module(f"tests.{module}"), name)
    atheris.Setup([sys.argv[0], *arguments], function.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main() -> int:
    """Run until the time is spent or a property fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--target", help="with atheris: one property, as in topology.test_lscpu.test_any_text_is_read")
    parser.add_argument("rest", nargs="*", help="arguments of atheris")
    options = parser.parse_args()
    if options.target:
        fuzz_one(options.target, options.rest)
    end = time.monotonic() + 60 * options.minutes
    runs: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        checks = list(properties(folder))
        while time.monotonic() < end:
            for name, check in checks:
                check()
                runs[name] = runs.get(name, 0) + ROUND.max_examples
                if time.monotonic() >= end:
                    break
    for name, count in runs.items():
        print(f"{name}: {count} inputs")
    print(f"{sum(runs.values())} inputs, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
