"""The records of the package: what holds for every one of them."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
from typing import Any

import ompaffinity
from tests.placement.machines import plan_for, synthetic


def records() -> dict[str, Any]:
    """Return every named tuple of the package, by its name."""
    names = [module.name for module in pkgutil.walk_packages(ompaffinity.__path__, "ompaffinity.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return {
        f"{value.__module__}.{value.__name__}": value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_field_defaults")
    }


def is_mutable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False


def test_no_record_has_a_mutable_default() -> None:
    found = records()
    assert {"ompaffinity.placement.model.Plan", "ompaffinity.topology.model.MemoryNodeInfo"} <= found.keys()
    mutable = [
        f"{name}.{field}"
        for name, record in found.items()
        for field, default in record._field_defaults.items()
        if is_mutable(default)
    ]
    assert mutable == []


def test_machines_and_plans_survive_pickling() -> None:
    topology = synthetic("package:2 numa:1 core:2 pu:2")._replace(live=True)
    plan = plan_for("package:2 numa:1 core:2 pu:2", 2)
    again = pickle.loads(pickle.dumps((topology, plan)))
    assert again == (topology, plan)
    assert again[0].live
