"""Named tuples that are made in half the time of typing's: a command loads about fifty, so this shows in every start.

typing.NamedTuple compiles the annotation of each field, which nothing here reads. Otherwise this is the same:
collections.namedtuple with the methods of the class. Type checkers see typing's.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    MADE_BY_CLASS_STATEMENT = {"__module__", "__qualname__", "__annotations__", "__firstlineno__"}

    class NamedTupleMeta(type):
        """Turns the body of a class into a named tuple; fields with a value have it as their default."""

        def __new__(cls, name, bases, namespace):
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = namespace["__annotations__"]
            defaults = [namespace[field] for field in fields if field in namespace]
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            made.__annotations__ = fields
            for key, value in namespace.items():
                if key not in fields and key not in MADE_BY_CLASS_STATEMENT:
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=NamedTupleMeta):
        """The base of records: see typing.NamedTuple."""
