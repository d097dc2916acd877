"""The values of options from their texts, and their texts from the values."""

from __future__ import annotations

from typing import Any

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.placement.architecture import ALL
from ompaffinity.placement.option_values import option_value, option_words
from ompaffinity.placement.options import PLAN_OPTIONS, Option

OPTIONS = {option.flag: option for option in (*PLAN_OPTIONS, Option("--pids", "pids", "pids", ""))}


@pytest.mark.parametrize(
    ("flag", "text", "value", "words"),
    [
        ("--tp", "2", 2, ["2"]),
        ("--tp", "-1", -1, ["-1"]),
        ("--tp", "999999999", 999_999_999, ["999999999"]),
        ("--reserve", "auto", None, ["auto"]),
        ("--reserve", "0", 0, ["0"]),
        ("--threads-per-core", "auto", None, ["auto"]),
        ("--threads-per-core", "all", ALL, ["all"]),
        ("--threads-per-core", "4", 4, ["4"]),
        ("--cpus", "8,0-2", (8, 0, 1, 2), ["8,0,1,2"]),
        ("--bind", "none", "none", ["none"]),
        ("--bind", "3,2|0-1", ((3, 2), (0, 1)), ["3,2|0,1"]),
        ("--span", "machine", "machine", ["machine"]),
        ("--utilization", "1", 1.0, ["1.0"]),
        ("--utilization", ".001", 0.001, ["0.001"]),
        ("--avoid", ["live", "a.json"], ["live", "a.json"], ["live", "--avoid", "a.json"]),
        ("--numa-bind-nodes", ["0", "999999999"], (0, 999_999_999), ["0", "999999999"]),
        ("--numa-bind-cpus", ["4,3", "0"], ("4,3", "0"), ["4,3", "0"]),
        ("--gpus", "3,0,3", (3, 0, 3), ["3,0,3"]),
    ],
)
def test_reads_and_writes_the_values_of_every_kind(flag: str, text: Any, value: object, words: list[str]) -> None:
    assert option_value(OPTIONS[flag], text) == value
    assert option_words(OPTIONS[flag], value) == [flag, *words]


def test_writes_a_flag_where_it_is_set_and_lists_of_numbers() -> None:
    assert option_words(OPTIONS["--share"], value=True) == ["--share"]
    assert option_words(OPTIONS["--share"], value=False) == []
    assert option_words(OPTIONS["--numa-bind-cpus"], ((4, 3), (0,))) == ["--numa-bind-cpus", "4,3", "0"]


def test_reads_process_numbers() -> None:
    assert option_value(OPTIONS["--pids"], ["1", "999999999"]) == (1, 999_999_999)


@pytest.mark.parametrize(
    ("flag", "text", "words"),
    [
        ("--tp", "auto", "is 'auto'; it must be a whole number"),
        ("--tp", "all", "is 'all'; it must be a whole number"),
        ("--tp", "--1", "is '--1'; it must be a whole number"),
        ("--tp", "\u0663", "it must be a whole number"),
        ("--tp", "1" * 10, "has 10 digits; the largest number is 999999999"),
        ("--tp", "-" + "1" * 11, "has 11 digits"),
        ("--reserve", "all", "it must be auto or a whole number"),
        ("--threads-per-core", "x", "it must be auto, all or a whole number"),
        ("--span", "s" * 150, f"is '{'s' * 100}'; it must be one of auto, node, package, machine"),
        ("--cpus", "x", "--cpus: "),
        ("--cpus", "", "is empty; omit it to plan without this restriction"),
        ("--utilization", "0", "is '0'; it must be above 0 and at most 1"),
        ("--utilization", "-0.5", "above 0 and at most 1"),
        ("--utilization", "1.001", "above 0 and at most 1"),
        ("--utilization", "nan", "above 0 and at most 1"),
        ("--utilization", "x", "above 0 and at most 1"),
        ("--utilization", "0.0_1", "above 0 and at most 1"),
        ("--utilization", "\u0661", "above 0 and at most 1"),
        ("--gpus", "", "is empty; omit it to use GPU 0, 1, ..."),
        ("--gpus", "x", "--gpus: "),
        ("--pids", ["1", "0"], "has '0'; it must be a list of process ids"),
        ("--pids", ["1" * 10], "it must be a list of process ids"),
        ("--pids", ["\u0663"], "it must be a list of process ids"),
        ("--pids", ["x"], "it must be a list of process ids"),
        ("--numa-bind-nodes", ["0", "1" * 10, "x"], "has '1111111111'; it must be a list of numbers"),
        ("--numa-bind-nodes", ["\u0663"], "it must be a list of numbers"),
    ],
)
def test_rejects_invalid_texts_with_the_option_and_what_it_takes(flag: str, text: Any, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        option_value(OPTIONS[flag], text)
    assert str(refused.value).startswith(flag)
    assert words in str(refused.value)


VALUES: dict[str, Any] = {
    "bind": "0,2|1,3",
    "threads_per_core": "all",
    "reserve": "auto",
    "cpus": "4,2,0",
    "numa_bind_nodes": ["0", "1"],
    "numa_bind_cpus": ["0-3", "4-7"],
    "gpus": "2,3",
    "utilization": "0.9",
}


@pytest.mark.parametrize("option", [option for option in PLAN_OPTIONS if option.kind != "files"], ids=lambda o: o.field)
def test_words_of_an_option_are_read_as_the_same_value(option: Any) -> None:
    text = VALUES.get(option.field, option.choices[-1] if option.choices else "2")
    value = True if option.kind == "flag" else option_value(option, text)
    flag, *words = option_words(option, value)
    assert flag == option.flag
    again = True if option.kind == "flag" else option_value(option, words if isinstance(text, list) else words[0])
    assert again == value
