"""The records of the package: what holds for every one of them."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import typing
from typing import Any

import pytest

import ompaffinity
from ompaffinity.records import NamedTuple
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


class OurPoint(NamedTuple):
    """A point."""

    x: int
    y: int = 2

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.x + self.y

    @classmethod
    def origin(cls) -> OurPoint:
        return cls(0, 0)


class TypingsPoint(typing.NamedTuple):
    """A point."""

    x: int
    y: int = 2


def test_our_named_tuples_are_those_of_typing() -> None:
    ours, theirs = OurPoint(1), TypingsPoint(1)
    assert tuple(ours) == tuple(theirs)
    assert ours._asdict() == theirs._asdict()
    assert tuple(ours._replace(x=5)) == tuple(theirs._replace(x=5))
    for name in ("_fields", "_field_defaults", "__doc__", "__module__"):
        of_ours, of_theirs = (getattr(found, name) for found in (OurPoint, TypingsPoint))
        assert of_ours == of_theirs
    assert OurPoint.__mro__[1:] == TypingsPoint.__mro__[1:]
    assert typing.get_type_hints(OurPoint) == typing.get_type_hints(TypingsPoint)
    assert repr(ours) == "OurPoint(x=1, y=2)"
    assert pickle.loads(pickle.dumps(ours)) == ours
    with pytest.raises(AttributeError):
        ours.x = 3  # type: ignore[misc]


def test_named_tuples_have_the_methods_of_their_class() -> None:
    assert (OurPoint(1).total, OurPoint.origin()) == (3, (0, 0))
