"""Read the fields of a JSON document that comes from outside: every value is checked, every size is bounded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from reprlib import Repr
from typing import TYPE_CHECKING, Any

from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import MAX_ID, parse_id_list
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DOCUMENT_BYTES = 16 * 2**20
MAX_COMMAS = 2**21
MAX_BRACKETS = 2**18
"""These two bound the values of a document before it is decoded: 16 MiB of ``[],`` would take 400 MiB of memory."""
MAX_DIGITS = 20
MAX_LISTED_IDS = 2**21
"""The ids that all lists of a document may name together, which bounds the work on ``0-65535`` in each of them."""
MAX_WORD = 40
SHOWN_CHARACTERS = 60
MAX_SHOWN_BITS = 128

_REQUIRED: Any = object()
WHOLE = "the document"
"""What errors call the document itself, which is not a field."""


class _Shown(Repr):
    """Values as an error shows them: escaped, and not longer than a line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = SHOWN_CHARACTERS
        self.maxlevel = 2

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002
        # Python refuses to write very long numbers.
        return repr(x) if x.bit_length() <= MAX_SHOWN_BITS else f"a number of {x.bit_length()} bits"


_shown = _Shown().repr


class Source(NamedTuple):
    """Where a document comes from, in the words of its errors.

    `name` is the variable or the option with its file, `fault` what is wrong with it if any field is invalid, and
    `remedy` what the user can do.
    """

    name: str
    fault: str
    remedy: str

    def error(self, detail: str) -> RequestError:
        """Return the error for a document that is not what it must be."""
        return RequestError(f"{self.name} {self.fault}: {detail}; {self.remedy}")

    def newer(self, detail: str) -> RequestError:
        """Return the error for a document with a word that this version does not have."""
        return RequestError(
            f"{self.name} was made by a newer version of ompaffinity: {detail}; install that version here, or make it"
            " with this one"
        )


def decode_document(text: str | bytes, source: Source) -> object:
    """Return the value of a JSON text of at most 16 MiB.

    Raises:
        RequestError: it is not JSON, is nested too deeply, or is too large.
    """
    if len(text) > MAX_DOCUMENT_BYTES:
        raise source.error(f"it is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if not text.strip():
            raise source.error("it is empty")
        if text.count(",") > MAX_COMMAS or text.count("[") + text.count("{") > MAX_BRACKETS:
            raise source.error("it has more values than any plan")
        return json.loads(text, parse_int=_integer, parse_constant=_no_number)
    except RecursionError:
        raise source.error("it is nested too deeply") from None
    except RequestError:
        raise
    except ValueError as error:
        raise source.error(str(error)) from None


def _integer(digits: str) -> int:
    # Some supported versions of Python convert any number of digits, in a time that grows with its square.
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


class DocumentReader:
    """What all fields of one document share: its source, and how many ids it may still name."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ids_left = MAX_LISTED_IDS
        self._lists: dict[str, tuple[int, ...]] = {}

    def invalid(self, field: str, value: object, expected: str) -> RequestError:
        """Return the error for a field that has not the value that it must have."""
        return self.source.error(f"{field} is {_shown(value)}, expected {expected}")

    def spend(self, count: int) -> None:
        """Count ids that a list names.

        Raises:
            RequestError: the document names too many.
        """
        self._ids_left -= count
        if self._ids_left < 0:
            raise self.source.error(f"its lists name more than {MAX_LISTED_IDS} ids in all")

    def id_list(self, field: str, value: object) -> tuple[int, ...]:
        """Return the ids of an id list such as ``"0-3,8"``, ascending. Equal texts give one and the same tuple."""
        if not isinstance(value, str):
            raise self.invalid(field, value, "an id list such as '0-3,8'")
        ids = self._lists.get(value)
        if ids is None:
            try:
                ids = self._lists[value] = tuple(parse_id_list(value))
            except IDListError as error:
                raise self.source.error(f"{field}: {error}") from None
        self.spend(len(ids))
        return ids

    def row(self, field: str, value: object) -> Row:
        """Return the fields of a JSON object."""
        if not isinstance(value, Mapping):
            raise self.invalid(field, value, "a JSON object")
        return Row(self, value, f"{field}." if field != WHOLE else "")


class Row:
    """The fields of one JSON object. Each method returns a valid value or raises RequestError.

    A field without a `default` must be there; names that are not asked for are ignored.
    """

    def __init__(self, reader: DocumentReader, values: Mapping[str, object], prefix: str) -> None:
        self.reader = reader
        self._values = values
        self._prefix = prefix

    def invalid(self, name: str, expected: str) -> RequestError:
        """Return the error for a field that has not the value that it must have."""
        return self.reader.invalid(self._prefix + name, self._values.get(name), expected)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._value(name)
        if not isinstance(value, bool):
            raise self.invalid(name, "true or false")
        return value

    def integer(self, name: str, lowest: int, highest: int, default: int = _REQUIRED) -> int:
        """Return a number from `lowest` to `highest`."""
        value = self._value(name, default)
        if not _is_integer(value, lowest, highest):
            raise self.invalid(name, f"a number from {lowest} to {highest}")
        return int(value)

    def optional_integer(self, name: str, lowest: int, highest: int, default: int | None = _REQUIRED) -> int | None:
        """Return a number from `lowest` to `highest`, None for null."""
        return None if self._value(name, default) is None else self.integer(name, lowest, highest)

    def word(self, name: str, known: Sequence[str]) -> str:
        """Return one of the `known` words; a word that is not among them is from a newer version."""
        value = self._value(name)
        if isinstance(value, str):
            if value in known:
                return value
            if _is_word(value):
                words = ", ".join(known)
                raise self.reader.source.newer(f"{self._prefix}{name} is {value!r}, this version has {words}")
        raise self.invalid(name, f"one of {', '.join(known)}")

    def text(self, name: str, longest: int) -> str:
        """Return a text of at most `longest` characters."""
        value = self._value(name)
        if not isinstance(value, str) or len(value) > longest:
            raise self.invalid(name, f"a text of at most {longest} characters")
        return value

    def ids(self, name: str, default: tuple[int, ...] = _REQUIRED) -> tuple[int, ...]:
        """Return a list of different ids, in its order."""
        ids = self._integers(name, 0, MAX_ID, default)
        if len(set(ids)) != len(ids):
            raise self.invalid(name, "each number once")
        return ids

    def counts(self, name: str, highest: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a list of numbers from 1 to `highest`."""
        return self._integers(name, 1, highest, default)

    def id_list(self, name: str) -> tuple[int, ...]:
        """Return the ids of an id list such as ``"0-3,8"``, ascending."""
        return self.reader.id_list(self._prefix + name, self._value(name))

    def id_lists(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Return the ids of each id list in a list; one that is repeated counts once among the ids of the document."""
        found: dict[str, tuple[int, ...]] = {}
        lists = []
        for number, value in enumerate(self._list(name)):
            ids = found.get(value) if isinstance(value, str) else None
            if ids is None:
                ids = self.reader.id_list(f"{self._prefix}{name}[{number}]", value)
                found[str(value)] = ids
            lists.append(ids)
        return tuple(lists)

    def rows(self, name: str) -> list[Row]:
        """Return the objects in a list."""
        return [
            self.reader.row(f"{self._prefix}{name}[{number}]", value) for number, value in enumerate(self._list(name))
        ]

    def row(self, name: str) -> Row:
        """Return an object."""
        return self.reader.row(f"{self._prefix}{name}", self._value(name))

    def rows_by_name(self, name: str) -> dict[str, Row]:
        """Return the objects in an object."""
        values = self._value(name)
        if not isinstance(values, Mapping):
            raise self.invalid(name, "a JSON object")
        return {str(key): self.reader.row(f"{self._prefix}{name}[{_shown(key)}]", row) for key, row in values.items()}

    def _value(self, name: str, default: object = _REQUIRED) -> Any:
        value = self._values.get(name, default)
        if value is _REQUIRED:
            raise self.reader.source.error(f"{self._prefix}{name} is missing")
        return value

    def _list(self, name: str) -> list[Any]:
        value = self._value(name)
        if not isinstance(value, list):
            raise self.invalid(name, "a list")
        return value

    def _integers(self, name: str, lowest: int, highest: int, default: tuple[int, ...]) -> tuple[int, ...]:
        if default is not _REQUIRED and name not in self._values:
            return default
        values = self._list(name)
        self.reader.spend(len(values))
        for number, value in enumerate(values):
            if not _is_integer(value, lowest, highest):
                field = f"{self._prefix}{name}[{number}]"
                raise self.reader.invalid(field, value, f"a number from {lowest} to {highest}")
        return tuple(values)


def _is_integer(value: object, lowest: int, highest: int) -> bool:
    # True is an int of Python, and no number of JSON.
    return type(value) is int and lowest <= value <= highest


def _is_word(value: str) -> bool:
    return len(value) <= MAX_WORD and value.isascii() and value.islower() and value.replace("-", "").isalnum()
