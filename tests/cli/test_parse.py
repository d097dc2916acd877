from __future__ import annotations

import pytest

from ompaffinity import __version__
from ompaffinity.cli.options import VERBS
from ompaffinity.cli.parse import parse_command_line
from ompaffinity.errors import RequestError
from ompaffinity.placement.option_values import option_value

FLAGS = sorted({option.flag for options in VERBS.values() for option in options})


def test_accepts_options_with_space_and_with_equals_sign() -> None:
    plain = [
        "plan",
        "--tp",
        "2",
        "--cpus",
        "0-3,8",
        "--bind",
        "auto",
        "--json",
        "--reserve",
        "auto",
        "--threads-per-core",
        "all",
    ]
    joined = ["plan", "--tp=2", "--cpus=0-3,8", "--bind=auto", "--json", "--reserve=auto", "--threads-per-core=all"]
    verb, values = parse_command_line(plain)
    assert (verb, values) == parse_command_line(joined)
    assert values["tensor_parallel_size"] == 2
    assert values["cpus"] == (0, 1, 2, 3, 8)
    assert values["reserve"] is None
    assert values["threads_per_core"] > 1000


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "VERB"),
        (["fly"], "fly"),
        (["plan", "--wings", "2"], "--wings"),
        (["plan", "extra"], "extra"),
        (["plan", "--tp"], "expected one argument"),
        (["plan", "--tp", "two"], "--tp is 'two'; it must be a number"),
        (["plan", "--tp", "٣"], "must be a number"),
        (["plan", "--reserve", "some"], "auto or a number"),
        (["plan", "--threads-per-core", "some"], "auto, all or a number"),
        (["plan", "--runtime", "tbb"], "one of auto, gomp, iomp, omp"),
        (["plan", "--cpus", "3-1"], "--cpus: the range"),
        (["plan", "--nodes", ""], "--nodes is empty; omit it"),
        (["plan", "--bind", "0-3|x"], "--bind"),
        (["topology", "--tp", "2"], "--tp"),
    ],
)
def test_rejects_invalid_command_lines_with_one_line(arguments: list[str], match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        parse_command_line(arguments)
    assert "\n" not in str(caught.value)


def test_prints_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["topology", "-h"], *([verb, "--help"] for verb in VERBS)):
        with pytest.raises(SystemExit) as caught:
            parse_command_line(arguments)
        assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in FLAGS)
    assert "eval" in text
    with pytest.raises(SystemExit):
        parse_command_line(["--version"])
    assert capsys.readouterr().out == f"ompaffinity {__version__}\n"


def test_every_option_has_a_parser() -> None:
    for options in VERBS.values():
        for option in options:
            text = option.choices[0] if option.choices else "none" if option.kind == "bind" else "1"
            if option.kind != "flag":
                option_value(option, text)
