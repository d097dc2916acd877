"""Feed random input to every reader for some minutes: ``python -m tests.fuzz --minutes 10`` (``tox -e fuzz``).

Runs the properties whose name begins with ``test_any_`` again and again with new examples; each says that a
reader either reads what it is given or raises its own error.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings

MODULES = ("test_idlist", "test_sysfs", "test_lscpu", "test_hwloc", "test_snapshot", "test_tree")
ROUND = settings(
    max_examples=500,
    derandomize=False,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def properties() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (name, property) of every property of the readers that needs no fixture."""
    for module in MODULES:
        for name, function in vars(importlib.import_module(f"tests.topology.{module}")).items():
            if name.startswith("test_any_") and "tmp_path_factory" not in getattr(function, "__annotations__", {}):
                yield f"{module}.{name}", ROUND(function)


def main() -> int:
    """Run until the time is spent or a property fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    runs: dict[str, int] = {}
    checks = list(properties())
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
