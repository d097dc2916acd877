"""The limits on documents from outside, and how errors show a value."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.placement.fields import DocumentReader, Row, Source, decode_document

SOURCE = Source("--plan x.json", "is not a plan", "pass a plan")


def row(**values: object) -> Row:
    return DocumentReader(SOURCE).row("the document", values)


@pytest.mark.parametrize(
    ("allowed", "refused", "sentence"),
    [
        ("0" + " " * (2**24 - 1), "0" + " " * 2**24, "it is larger than 16 MiB"),
        ("[" + "0," * 2**21 + "0]", "[" + "0," * (2**21 + 1) + "0]", "it has more values than any plan"),
        ("[" + "[]," * (2**18 - 2) + "{}]", "[" + "[]," * (2**18 - 1) + "{}]", "it has more values than any plan"),
        ("9" * 20, "9" * 21, "it has a number of 21 digits"),
    ],
    ids=["bytes", "commas", "brackets", "digits"],
)
def test_reads_documents_up_to_each_limit(allowed: str, refused: str, sentence: str) -> None:
    assert decode_document(allowed, SOURCE) is not None
    with pytest.raises(RequestError, match=sentence):
        decode_document(refused, SOURCE)


def test_reads_a_document_in_bytes_with_a_byte_order_mark() -> None:
    assert decode_document(b"\xef\xbb\xbf[1]", SOURCE) == [1]


def test_a_document_names_two_million_ids_at_most() -> None:
    reader = DocumentReader(SOURCE)
    reader.spend(2**21)
    with pytest.raises(RequestError, match="its lists name more than 2097152 ids in all"):
        reader.spend(1)


def test_each_list_counts_among_the_ids_of_a_document() -> None:
    values = row(texts=["0-65535"] * 2, ids=list(range(65536)))
    values.reader.spend(2**21 - 2 * 65536)
    assert len(values.id_lists("texts")) == 2
    assert len(values.ids("ids")) == 65536
    with pytest.raises(RequestError, match="more than 2097152 ids"):
        values.ids("ids")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 58, repr("x" * 58)),
        ("x" * 59, f"'{'x' * 27}...{'x' * 28}'"),
        (2**128 - 1, str(2**128 - 1)),
        (2**128, "a number of 129 bits"),
        ([[0]], "[[0]]"),
        ([[[0]]], "[[[...]]]"),
    ],
)
def test_an_error_shows_at_most_a_line_of_a_value(value: object, shown: str) -> None:
    with pytest.raises(RequestError) as refused:
        row(name=value).flag("name")
    assert str(refused.value) == f"--plan x.json is not a plan: name is {shown}, expected true or false; pass a plan"


@pytest.mark.parametrize(
    ("word", "is_newer"),
    [
        ("x" * 40, True),
        ("x" * 41, False),
        ("on-the-moon-2", True),
        ("Moon", False),
        ("\u00e9", False),
        ("a b", False),
        ("", False),
    ],
)
def test_a_short_plain_word_is_from_a_newer_version(word: str, is_newer: bool) -> None:
    with pytest.raises(RequestError, match="was made by a newer version" if is_newer else "expected one of a, b"):
        row(name=word).word("name", ("a", "b"))


@pytest.mark.parametrize(
    ("method", "arguments", "value", "limits"),
    [
        ("integer", (2, 5), 2, [1, 6, True, 2.0, "2", None]),
        ("integer", (2, 5), 5, []),
        ("optional_integer", (2, 5), None, [1, 6]),
        ("text", (3,), "abc", ["abcd", 1, None]),
        ("counts", (3, ()), [1, 3], [[0], [4], 1]),
        ("ids", (), [0, 65535], [[-1], [65536], [1, 1], "0"]),
    ],
)
def test_reads_values_up_to_their_limits(
    method: str, arguments: tuple[Any, ...], value: Any, limits: list[object]
) -> None:
    found = getattr(row(name=value), method)("name", *arguments)
    assert found == (tuple(value) if isinstance(value, list) else value)
    for refused in limits:
        with pytest.raises(RequestError, match="name"):
            getattr(row(name=refused), method)("name", *arguments)


def test_a_missing_field_has_its_default() -> None:
    empty = row()
    assert empty.integer("name", 0, 9, 7) == 7
    assert empty.optional_integer("name", 0, 9, None) is None
    assert (empty.ids("name", (3,)), empty.counts("name", 9, (4,))) == ((3,), (4,))
    for method in ("flag", "id_list", "ids", "rows", "row", "rows_by_name"):
        with pytest.raises(RequestError, match="name is missing"):
            getattr(empty, method)("name")


def test_an_error_names_the_field_within_its_row() -> None:
    with pytest.raises(RequestError, match=r"rows\[1\].flag is 1, expected true or false"):
        row(rows=[{"flag": True}, {"flag": 1}]).rows("rows")[1].flag("flag")
    with pytest.raises(RequestError, match=r"by_name\['a'\].ids\[1\] is 'x', expected a number from 0"):
        row(by_name={"a": {"ids": [0, "x"]}}).rows_by_name("by_name")["a"].ids("ids")
    with pytest.raises(RequestError, match=r"one\.list is 1, expected an id list"):
        row(one={"list": 1}).row("one").id_list("list")
