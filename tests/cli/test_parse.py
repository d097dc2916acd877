from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity import __version__
from ompaffinity.cli.help import SUMMARIES
from ompaffinity.cli.options import GROUPS, VERBS, WITH_COMMAND
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
        (["plan", "--tp", "two"], "--tp is 'two'; it must be a whole number"),
        (["inspect", "--seconds", "1.5"], "--seconds is '1.5'; it must be a whole number"),
        (["plan", "--tp", "٣"], "must be a whole number"),
        (["plan", "--tp", "1000000000"], "--tp has 10 digits; the largest number is 999999999"),
        (["plan", "--reserve", "some"], "auto or a whole number"),
        (["plan", "--threads-per-core", "some"], "auto, all or a whole number"),
        (["plan", "--runtime", "tbb"], "one of auto, gomp, iomp, omp"),
        (["plan", "--cpus", "3-1"], "--cpus: the range"),
        (["plan", "--nodes", ""], "--nodes is empty; omit it"),
        (["plan", "--bind", "0-3|x"], "--bind"),
        (["topology", "--tp", "2"], "--tp is an option of plan, verify, bind, compare, exec, run, not of topology"),
        (["plna", "--tp", "2"], "there is no verb 'plna'; did you mean plan"),
        (["plan", "--runtme", "gomp"], "there is no option --runtme; did you mean --runtime"),
        (["plan", "--runtime", "gmop"], "did you mean gomp"),
        (
            ["run", "--tp", "2", "python", "worker.py"],
            "write -- in front of the command: ompaffinity run ... -- python",
        ),
        (["help", "plna"], "did you mean plan"),
        (["plan", "--synth", "core:2"], "there is no option --synth; did you mean --synthetic"),
        (["run", "--tp", "2", "--"], "no command follows --; write ompaffinity run -- python worker.py"),
        (["x" * 101], f"there is no verb '{'x' * 100}'"),
        (["plan", "--", "true"], "plan starts no command; leave -- out"),
        (["plan", "--wings=2"], "there is no option --wings;"),
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


def test_help_alone_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(["help"])
    text = capsys.readouterr().out
    assert {line.split()[0] for line in text.splitlines() if line.startswith(" " * 4) and line[4] != " "} == {*VERBS}


def test_help_of_a_verb_is_its_help_option(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for arguments in (["help", "plan"], ["plan", "--help"]):
        with pytest.raises(SystemExit):
            parse_command_line(arguments)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("columns", "least", "most"), [(70, 60, 70), (200, 100, 200)])
def test_help_is_as_wide_as_the_terminal(
    columns: int, least: int, most: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse_command_line(["compare", "--help"])
    texts = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" " * 24)]
    assert least < max(map(len, texts)) <= most


def test_help_has_the_groups_of_the_verb_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(["completion", "--help"])
    text = capsys.readouterr().out
    titles = [title for title in GROUPS if f"\n{title}:\n" in text]
    fields = {option.field for option in VERBS["completion"]}
    assert titles == [title for title in GROUPS if fields & {*GROUPS[title]}]
    assert text.index("\noutput:\n") < text.index("--shell")


@pytest.mark.parametrize(
    ("verb", "usage"),
    [
        ("plan", "[OPTION ...]"),
        ("inspect", "[OPTION ...] PID ... | --all"),
        ("watch", "[OPTION ...] --pid PID ... | --all"),
        ("bind", "[OPTION ...] --pid PID ... | --undo FILE"),
        ("verify", "[OPTION ...] [-- COMMAND ...]"),
        ("run", "[OPTION ...] -- COMMAND ..."),
    ],
)
def test_usage_names_what_a_verb_needs(verb: str, usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line([verb, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: ompaffinity {verb} {usage}\n\n")
    assert text.splitlines()[2] == f"{SUMMARIES[verb][0].upper()}{SUMMARIES[verb][1:]}."


@pytest.mark.parametrize("value", ["--runtime auto|gomp|iomp|omp", "--tp N", "--svg FILE", "--cpus LIST"])
def test_help_shows_what_an_option_takes(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(["plan", "--help"])
    assert f"  {value}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", WITH_COMMAND)
def test_usage_shows_the_command(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line([verb, "--help"])
    assert "-- COMMAND" in capsys.readouterr().out.splitlines()[0]


def test_every_option_is_in_one_group_of_the_help() -> None:
    grouped = [field for fields in GROUPS.values() for field in fields]
    assert len(grouped) == len(set(grouped))
    assert {option.field for options in VERBS.values() for option in options} == set(grouped)


def test_every_option_has_a_parser() -> None:
    for options in VERBS.values():
        for option in options:
            text = option.choices[0] if option.choices else "none" if option.kind == "bind" else "1"
            if option.kind != "flag":
                option_value(option, text)


WORDS = st.one_of(
    st.sampled_from([*VERBS, *FLAGS, "--", "-h=1", "--tp=2", "-", "0-3", "0|1", "auto", "1", "", "\x1b[31m", "\udcff"]),
    st.text(max_size=10),
)


@given(st.lists(WORDS, max_size=6).filter(lambda words: not {"-h", "--help", "--version", "help"} & set(words)))
def test_any_command_line_is_parsed_or_refused(words: list[str]) -> None:
    # The rest of a word that begins with -h asks for the help.
    with suppress(RequestError, SystemExit):
        verb, _ = parse_command_line(words)
        assert verb in VERBS
