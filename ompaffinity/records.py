"""Frozen records without the price of `typing`, `dataclasses` or `collections.namedtuple`.

Importing either of the first two takes as long as everything that `plan` does, and namedtuple
compiles code for each class. So at run time `NamedTuple` is the small base class below, a tuple
whose fields are properties; type checkers see `typing.NamedTuple`, which it imitates.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from operator import itemgetter

    class _RecordType(type):
        def __new__(metaclass, name, bases, namespace):
            fields = tuple(namespace.get("__annotations__", ()))
            if fields:
                namespace["_field_defaults"] = {field: namespace.pop(field) for field in fields if field in namespace}
                namespace["_fields"] = namespace["__match_args__"] = fields
                namespace["__slots__"] = ()
                namespace.update({field: property(itemgetter(place)) for place, field in enumerate(fields)})
            return super().__new__(metaclass, name, bases, namespace)

    class NamedTuple(tuple, metaclass=_RecordType):
        """Base class of a record whose annotated names are its fields, as `typing.NamedTuple`."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                values = cls._completed(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _completed(cls, values, named):
            given = cls._field_defaults | dict(zip(cls._fields, values)) | named
            if (
                len(values) > len(cls._fields)
                or given.keys() != set(cls._fields)
                or named.keys() & set(cls._fields[: len(values)])
            ):
                raise TypeError(f"{cls.__name__} takes each of the fields {', '.join(cls._fields)} once")
            return [given[field] for field in cls._fields]

        # Without a check of the length: readers make thousands of records this way.
        _make = classmethod(tuple.__new__)

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **named):
            return type(self)(**(self._asdict() | named))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return (
                f"{type(self).__name__}({', '.join(f'{field}={value!r}' for field, value in self._asdict().items())})"
            )


class Message(NamedTuple):
    """Something that a user should know about a machine or a plan.

    `code` is stable and meant for programs; `level` is ``"warning"`` (something that the user
    asked for or would expect is not had) or ``"note"``; `message` says what to do about it.
    """

    code: str
    level: str
    message: str
