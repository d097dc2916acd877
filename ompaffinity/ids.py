"""Linux id lists and masks: ``"0-3,8"`` and ``"00000000,0000010f"`` to ids and back.

Sources: the kernel's Documentation/admin-guide/cputopology.rst; cpuset(7) ("List format", "Mask format").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ID = 2**16 - 1
"""The largest CPU or node number that is accepted; the limit of Linux is 8191 (NR_CPUS_RANGE_END on x86)."""

MAX_DIGITS = len(str(MAX_ID))


def parse_id_list(text: str) -> list[int]:
    """Return the ids in `text`, sorted and without duplicates.

    Accepts the format of the kernel (``"0-3,8"``, empty for no ids), spaces around numbers, and a stride
    (``"0-14:2"``).

    Raises:
        IDListError: invalid format, a descending range, or an id above `MAX_ID`.
    """
    ids = parse_ordered_id_list(text)
    ids.sort()
    return ids


def parse_ordered_id_list(text: str) -> list[int]:
    """Return the ids in `text` in the order written, without duplicates.

    Raises:
        IDListError: as `parse_id_list`.
    """
    text = text.strip()
    if not text:
        return []
    ids: list[int] = []
    is_ascii = text.isascii()
    for part in text.split(","):
        if is_ascii and part.isdigit() and len(part) < MAX_DIGITS:
            ids.append(int(part))
        else:
            ids += _span(part, text)
            if len(ids) > 2 * MAX_ID:
                raise IDListError(f"the id list {_quoted(text)} has more than {2 * MAX_ID} ids; ids are 0 to {MAX_ID}")
    return ids if len(set(ids)) == len(ids) else list(dict.fromkeys(ids))


def _span(part: str, text: str) -> Iterable[int]:
    """Return the ids of one ``7``, ``0-3`` or ``0-14:2``."""
    span, colon, stride_text = part.partition(":")
    first_text, dash, last_text = span.partition("-")
    first = _number(first_text, part, text)
    if not dash:
        if colon:
            raise IDListError(f"{_quoted(part)} has a stride without a range; write a range, as in 0-14:2")
        return (first,)
    last = _number(last_text, part, text)
    stride = _number(stride_text, part, text) if colon else 1
    if last < first:
        raise IDListError(f"the range {_quoted(part)} is descending; write it as {last}-{first}")
    if stride == 0:
        raise IDListError(f"the stride of {_quoted(part)} is 0; it must be at least 1")
    return range(first, last + 1, stride)


def parse_mask(text: str) -> list[int]:
    """Return the ids whose bits are set in a comma-separated hexadecimal mask, ascending.

    Words after the first have 32 bits; the first may be shorter.

    Raises:
        IDListError: invalid format, or an id above `MAX_ID`.
    """
    words = text.strip().split(",")
    if any(len(word) != 8 for word in words[1:]) or not 1 <= len(words[0]) <= 8:
        raise IDListError(f"{_quoted(text)} is not a mask of 32-bit words; write it as in 00000000,0000010f")
    try:
        mask = bytes.fromhex("".join(words).rjust(8 * len(words), "0"))
    except ValueError:
        raise IDListError(f"{_quoted(text)} is not a hexadecimal mask; write it as in 00000000,0000010f") from None
    bits = int.from_bytes(mask, "big")
    if bits.bit_length() > MAX_ID + 1:
        raise IDListError(f"the mask has {bits.bit_length()} bits; at most {MAX_ID + 1} are supported")
    digits = f"{bits:b}"[::-1]
    return [position for position, digit in enumerate(digits) if digit == "1"]


def format_id_list(ids: Iterable[int]) -> str:
    """Return `ids` in the list format of the kernel: ascending, with ranges, ``""`` for none."""
    parts = []
    start = previous = None
    for number in sorted(set(ids)):
        if previous is not None and number == previous + 1:
            previous = number
            continue
        if start is not None:
            parts.append(f"{start}" if start == previous else f"{start}-{previous}")
        start = previous = number
    if start is not None:
        parts.append(f"{start}" if start == previous else f"{start}-{previous}")
    return ",".join(parts)


MIN_STRIDE_IDS = 3
"""The fewest ids that are written as a range with a stride."""


def format_folded_id_list(ids: Iterable[int]) -> str:
    """Return `ids` as `format_id_list` does, with strides (``"1-63:2"``), which the kernel does not read."""
    numbers = sorted(set(ids))
    parts: list[str] = []
    start = 0
    while start < len(numbers):
        end, step = _run_end(numbers, start)
        count = end - start + 1
        if step > 1 and count < MIN_STRIDE_IDS:
            end, count = start, 1
        if count == 1:
            parts.append(f"{numbers[start]}")
        else:
            parts.append(f"{numbers[start]}-{numbers[end]}" + (f":{step}" if step > 1 else ""))
        start = end + 1
    return ",".join(parts)


def _run_end(numbers: list[int], start: int) -> tuple[int, int]:
    """Return the index of the last number that follows `start` in equal steps, and the step."""
    if start + 1 == len(numbers):
        return start, 1
    step, end = numbers[start + 1] - numbers[start], start + 1
    while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
        end += 1
    return end, step


def _number(text: str, part: str, whole: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()):
        raise IDListError(f"{_quoted(part)} in the id list {_quoted(whole)} is not a number or a range such as 0-3")
    if len(digits) > MAX_DIGITS or int(digits) > MAX_ID:
        raise IDListError(f"the id {_quoted(digits)} is too large; the largest is {MAX_ID}")
    return int(digits)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
