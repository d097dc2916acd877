"""Strict parsers of option values, one for each kind in the table of `options`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.placement.request import parse_bind
from ompaffinity.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ompaffinity.placement.options import Option


MAX_DIGITS = 9
"""Of the value of an option: far more than a machine has of anything."""


def option_value(option: Option, text: Any) -> Any:
    """Return the value of an option's text (a list of texts for the kinds ``"files"`` and `SEVERAL_VALUES`).

    Raises:
        RequestError: the text is not valid for the option's kind.
    """
    if option.kind in ("text", "files"):
        return text
    if option.kind == "choice":
        if text not in option.choices:
            meant = did_you_mean(text, option.choices)
            raise RequestError(f"{option.flag} is {text[:100]!r}{meant}; it must be one of {', '.join(option.choices)}")
        return text
    if option.kind == "ids":
        try:
            ids = tuple(parse_ordered_id_list(text))
        except IDListError as error:
            raise RequestError(f"{option.flag}: {error}") from None
        if not ids:
            raise RequestError(f"{option.flag} is empty; omit it to plan without this restriction")
        return ids
    if option.kind in _READERS:
        return _READERS[option.kind](option, text)
    if text == "auto" and option.kind in ("threads", "auto-number"):
        return None
    if text == "all" and option.kind == "threads":
        from ompaffinity.placement.architecture import ALL

        return ALL
    digits = text.removeprefix("-")
    if not _is_number(digits):
        words = {"threads": "auto, all or a whole number", "auto-number": "auto or a whole number"}.get(
            option.kind, "a whole number"
        )
        raise RequestError(f"{option.flag} is {text!r}; it must be {words}")
    if len(digits) > MAX_DIGITS:
        raise RequestError(f"{option.flag} has {len(digits)} digits; the largest number is {'9' * MAX_DIGITS}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _fraction(option: Option, text: str) -> float:
    # float() also accepts nan, underscores and digits of every script.
    if text.isascii() and "_" not in text:
        with suppress(ValueError):
            number = float(text)
            if 0 < number <= 1:
                return number
    raise RequestError(f"{option.flag} is {text!r}; it must be above 0 and at most 1, as in 0.9")


def _process_number(option: Option, word: str) -> int:
    if not (_is_number(word) and len(word) <= MAX_DIGITS and int(word) > 0):
        raise RequestError(f"{option.flag} has {word!r}; it must be a list of process ids")
    return int(word)


def _numbers(option: Option, words: list[str]) -> tuple[int, ...]:
    for word in words:
        if not (_is_number(word) and len(word) <= MAX_DIGITS):
            raise RequestError(f"{option.flag} has {word!r}; it must be a list of numbers, as in 0 0 1 1")
    return tuple(map(int, words))


def _gpus(option: Option, text: str) -> tuple[int, ...]:
    try:
        # Each part is parsed on its own, so that repeated GPUs are kept and rejected later.
        gpus = tuple(gpu for part in text.split(",") for gpu in parse_ordered_id_list(part))
    except IDListError as error:
        raise RequestError(f"{option.flag}: {error}") from None
    if not gpus:
        raise RequestError(f"{option.flag} is empty; omit it to use GPU 0, 1, ...")
    return gpus


_READERS: dict[str, Callable[[Option, Any], Any]] = {
    "bind": lambda _option, text: parse_bind(text),
    "fraction": _fraction,
    "numbers": _numbers,
    "gpus": _gpus,
    "lists": lambda _option, words: tuple(words),
    "pids": lambda option, words: tuple(_process_number(option, word) for word in words),
}


def option_words(option: Option, value: Any) -> list[str]:
    """Return the words of the command line that set an option to a value: the inverse of `option_value`."""
    if option.kind == "flag":
        return [option.flag] if value else []
    if option.kind == "files":
        return [word for name in value for word in (option.flag, str(name))]
    if option.kind in ("numbers", "lists"):
        return [option.flag, *(str(part) if isinstance(part, int) else format_ordered(part) for part in value)]
    if option.kind == "bind" and not isinstance(value, str):
        return [option.flag, "|".join(map(format_ordered, value))]
    if option.kind in ("ids", "gpus"):
        return [option.flag, format_ordered(value)]
    if value is None:
        return [option.flag, "auto"]
    if option.kind == "threads":
        from ompaffinity.placement.architecture import ALL

        return [option.flag, "all" if value >= ALL else str(value)]
    return [option.flag, str(value)]


def format_ordered(ids: Iterable[int] | str) -> str:
    """Return ids in their order, separated by commas; a text as it is."""
    return ids if isinstance(ids, str) else ",".join(map(str, ids))
