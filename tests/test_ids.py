from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import IDListError
from ompaffinity.ids import (
    MAX_ID,
    format_folded_id_list,
    format_id_list,
    parse_id_list,
    parse_mask,
    parse_ordered_id_list,
)
from tests.machines import format_mask

ids = st.sets(st.integers(0, 5000), max_size=60)


@given(ids)
def test_lists_round_trip(numbers: set[int]) -> None:
    assert parse_id_list(format_id_list(numbers)) == sorted(numbers)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([2, 1], "1-2"), ([0, 1, 2, 8], "0-2,8"), ([0, 2, 4, 5], "0,2,4-5")]
)
def test_ids_that_follow_each_other_are_a_range(numbers: list[int], text: str) -> None:
    assert format_id_list(numbers) == text


@given(ids)
def test_lists_with_strides_round_trip(numbers: set[int]) -> None:
    assert parse_id_list(format_folded_id_list(numbers)) == sorted(numbers)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([4], "4"),
        ([0, 1], "0-1"),
        ([0, 2], "0,2"),
        ([0, 2, 4], "0-4:2"),
        ([7, 4, 1], "1-7:3"),
        ([0, 1, 2, 8], "0-2,8"),
        ([0, 2, 4, 5, 6], "0-4:2,5-6"),
        ([0, 1, 3, 5, 9], "0-1,3,5,9"),
        ([0, 2, 6, 7, 8], "0,2,6-8"),
    ],
)
def test_three_ids_with_equal_gaps_are_a_stride(numbers: list[int], text: str) -> None:
    assert format_folded_id_list(numbers) == text


@given(ids)
def test_masks_name_the_same_ids_as_lists(numbers: set[int]) -> None:
    assert parse_mask(format_mask(numbers)) == sorted(numbers)


@given(st.lists(st.integers(0, 300), unique=True, max_size=40))
def test_the_order_that_was_written_is_kept(numbers: list[int]) -> None:
    assert parse_ordered_id_list(",".join(map(str, numbers))) == numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n", []),
        ("5,2-4", [2, 3, 4, 5]),
        (" 1, 2", [1, 2]),
        ("0-14:2", [0, 2, 4, 6, 8, 10, 12, 14]),
        ("0-7:3,1", [0, 1, 3, 6]),
        ("3,3-4", [3, 4]),
        ("3-3", [3]),
        ("00007", [7]),
        (f"{MAX_ID}", [MAX_ID]),
    ],
)
def test_what_users_and_kernels_write(text: str, expected: list[int]) -> None:
    assert parse_id_list(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0-3,",
        ",",
        "3-1",
        "0x3",
        "all",
        "-1",
        "1-",
        "0-14:0",
        "4:2",
        "1.5",
        "٣",
        "1 2",
        f"{MAX_ID + 1}",
        "000007",
        "0-99999999999",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(IDListError):
        parse_id_list(text)


@pytest.mark.parametrize("text", ["", "xyz", "00000000,1", "123456789", "00000001,0000000g", "-1"])
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(IDListError):
        parse_mask(text)


def test_a_short_first_word_is_a_mask() -> None:
    assert parse_mask("3,00000000") == [32, 33]


def test_a_mask_has_the_ids_that_a_list_may_have() -> None:
    assert parse_mask(format_mask({MAX_ID})) == [MAX_ID]
    with pytest.raises(IDListError, match=f"at most {MAX_ID + 1} are supported"):
        parse_mask(f"1,{format_mask({MAX_ID})}")


def test_a_list_has_at_most_twice_as_many_ids_as_there_are() -> None:
    assert len(parse_id_list(f"0-{MAX_ID},0-{MAX_ID - 2}")) == MAX_ID + 1
    with pytest.raises(IDListError, match="more than"):
        parse_id_list(f"0-{MAX_ID},0-{MAX_ID - 1}")


@pytest.mark.parametrize(("text", "quoted"), [("x" * 60, "x" * 60), ("x" * 61, "x" * 57 + "...")])
def test_a_long_mistake_is_cut(text: str, quoted: str) -> None:
    with pytest.raises(IDListError, match=f"^'{quoted}' in the id list '{quoted}' is not a number"):
        parse_id_list(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_id_list, parse_ordered_id_list, parse_mask):
        with contextlib.suppress(IDListError):
            assert all(0 <= number <= MAX_ID for number in parse(text))


def test_the_mistake_is_an_ordinary_value_error_too() -> None:
    with pytest.raises(ValueError, match=r"'3-1' is descending; write it as 1-3"):
        parse_id_list("3-1")
