from __future__ import annotations

import json
import pickle
import subprocess
import sys
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.jsontext import to_json
from ompaffinity.records import Message, NamedTuple

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(values)
def test_json_is_what_the_library_writes(value: object) -> None:
    assert to_json(value) == json.dumps(value)


@pytest.mark.parametrize("value", [{1: 2}, object(), {"a": {1}}, b"x"])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        to_json(value)


class Ours(NamedTuple):
    first: int
    second: str = "x"
    third: tuple[int, ...] = ()


class Theirs(typing.NamedTuple):
    first: int
    second: str = "x"
    third: tuple[int, ...] = ()


def test_records_behave_as_the_standard_ones() -> None:
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}),
        ((1, "y"), {"third": (1, 2)}),
        ((), {"first": 3}),
    ]
    for arguments, named in cases:
        ours, theirs = Ours(*arguments, **named), Theirs(*arguments, **named)
        assert tuple(ours) == tuple(theirs)
        assert ours._asdict() == theirs._asdict()
        assert repr(ours).replace("Ours", "Theirs") == repr(theirs)
        assert tuple(ours._replace(second="z")) == tuple(theirs._replace(second="z"))
        assert pickle.loads(pickle.dumps(ours)) == ours
        assert hash(ours) == hash(theirs)
    assert Ours._fields == Theirs._fields
    assert Ours._make([1, "a", ()]) == Ours(1, "a")


@pytest.mark.parametrize(
    ("arguments", "named"), [((), {}), ((1,), {"first": 2}), ((1,), {"fourth": 2}), ((1, 2, 3, 4), {})]
)
def test_wrong_arguments_are_refused(arguments: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Ours(*arguments, **named)  # type: ignore[arg-type]


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Message("a", "note", "b").code = "c"  # type: ignore[misc]


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_import_costs_nothing() -> None:
    assert loaded_by("import ompaffinity") <= {"ompaffinity", "__future__"}


def test_a_plan_loads_nothing_heavy() -> None:
    loaded = loaded_by("from ompaffinity.cli.main import main; main(['plan', '--json'])")
    heavy = {
        "numpy",
        "rich",
        "psutil",
        "numa",
        "torch",
        "argparse",
        "json",
        "re",
        "typing",
        "dataclasses",
        "ctypes",
        "subprocess",
    }
    assert not loaded & heavy


def test_every_public_name_is_there() -> None:
    import ompaffinity

    assert all(getattr(ompaffinity, name) is not None for name in ompaffinity.__all__)
    assert set(ompaffinity.__all__) <= set(dir(ompaffinity))
    with pytest.raises(AttributeError):
        ompaffinity.no_such_name  # noqa: B018
