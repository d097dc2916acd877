"""Command line to {field: value}: argparse, built from the table in `options`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from ompaffinity import __version__
from ompaffinity.cli.help import EXAMPLES, SUMMARIES
from ompaffinity.cli.options import GROUPS, VERBS, WITH_COMMAND
from ompaffinity.errors import RequestError
from ompaffinity.placement.option_values import option_value
from ompaffinity.placement.options import SEVERAL_VALUES
from ompaffinity.shown import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection

    from ompaffinity.placement.options import Option

MAX_SHOWN = 100
"""Letters of a wrong word that an error shows."""


def parse_command_line(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the verb and {field: value} of the options in the command line.

    Raises:
        RequestError: the command line is invalid.
        SystemExit: the help or the version was requested, and is printed.
    """
    if arguments[:1] == ["help"]:
        # `help plan` is `plan --help`.
        arguments = [*arguments[1:2], "--help"]
    command: tuple[str, ...] | None = None
    if arguments and arguments[0] in WITH_COMMAND and "--" in arguments:
        cut = arguments.index("--")
        arguments, command = arguments[:cut], tuple(arguments[cut + 1 :])
        if not command:
            raise RequestError(f"no command follows --; write ompaffinity {arguments[0]} -- python worker.py")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        raise RequestError(
            f"there is no verb {arguments[0][:MAX_SHOWN]!r}{did_you_mean(arguments[0], VERBS)}; see ompaffinity --help"
        )
    verb, texts, unknown = _texts(arguments)
    if unknown:
        raise RequestError(_unknown(verb, unknown))
    options = {option.field: option for option in VERBS[verb]}
    values = {field: True if text is True else option_value(options[field], text) for field, text in texts.items()}
    return verb, values if command is None else values | {"command": command}


def _texts(arguments: list[str]) -> tuple[str, dict[str, Any], list[str]]:
    """Return the verb, {field: text} of its options, and the words that are none."""
    # The width of a help is read from the terminal, which loads shutil.
    formatter = partial(argparse.RawDescriptionHelpFormatter, width=None if {"-h", "--help"} & {*arguments} else 80)
    if not arguments or arguments[0] not in VERBS:
        parsed, unknown = _make_parser().parse_known_args(arguments)
        return parsed.verb, {}, unknown
    verb = arguments[0]
    parser = _Parser(
        prog=f"ompaffinity {verb}",
        usage=f"ompaffinity {verb} {_usage(verb)}",
        description=f"{SUMMARIES[verb][0].upper()}{SUMMARIES[verb][1:]}.",
        epilog=EXAMPLES[verb],
        formatter_class=formatter,
        allow_abbrev=False,
    )
    _add_options(parser, VERBS[verb])
    parsed, unknown = parser.parse_known_args(arguments[1:])
    return verb, vars(parsed), unknown


def _unknown(verb: str, words: list[str]) -> str:
    """Return the error for words that are no options of a verb."""
    word = words[0][:MAX_SHOWN]
    if word == "--":
        return f"{verb} starts no command; leave -- out, or use one of {', '.join(WITH_COMMAND)}"
    if not word.startswith("-"):
        if verb in WITH_COMMAND:
            return f"{word!r} is no option; write -- in front of the command: ompaffinity {verb} ... -- {word} ..."
        return f"{verb} takes no argument {word!r}; see ompaffinity {verb} --help"
    flag = word.partition("=")[0]
    flags = [option.flag for option in VERBS[verb]]
    others = [other for other, options in VERBS.items() if any(option.flag == flag for option in options)]
    if others:
        return f"{flag} is an option of {', '.join(others)}, not of {verb}; see ompaffinity {verb} --help"
    return f"there is no option {flag}{did_you_mean(flag, flags)}; see ompaffinity {verb} --help"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise RequestError(f"{message}; see {self.prog} --help")


def _make_parser() -> argparse.ArgumentParser:
    """Return the parser of a command line without a verb in front: of the help, the version, and what is wrong."""
    parser = _Parser(
        prog="ompaffinity",
        description="Plan, bind and verify the CPUs and the memory of inference workers and their OpenMP threads.",
        epilog="'ompaffinity help VERB' lists its options. Exit status: 0 done; 1 a check failed, or a warning"
        " with --strict; 2 invalid input or a request that cannot be met; 3 verify found neither a difference nor a"
        " proof, or inspect may read no process.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ompaffinity {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        verbs.add_parser(verb, help=SUMMARIES[verb])
    return parser


def _usage(verb: str) -> str:
    """Return the usage of a verb behind its name."""
    if verb == "bind":
        return "[OPTION ...] --pid PID ... | --undo FILE"
    if verb == "watch":
        return "[OPTION ...] --pid PID ... | --all"
    if verb == "inspect":
        return "[OPTION ...] PID ... | --all"
    if verb == "verify":
        return "[OPTION ...] [-- COMMAND ...]"
    return "[OPTION ...] -- COMMAND ..." if verb in WITH_COMMAND else "[OPTION ...]"


def _add_options(parser: argparse.ArgumentParser, options: Collection[Option]) -> None:
    """Add the options of a verb, in the groups of the help."""
    by_field = {option.field: option for option in options}
    for title, fields in GROUPS.items():
        chosen = [by_field[field] for field in fields if field in by_field]
        group = parser.add_argument_group(title) if chosen else parser
        for option in chosen:
            _add_option(group, option)


def _add_option(group: Any, option: Option) -> None:
    """Add one option to a parser or a group of it."""
    keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": option.help}
    if not option.flag.startswith("-"):
        group.add_argument(option.field, nargs="*", metavar=option.metavar, **keywords)
        return
    keywords["dest"] = option.field
    if option.kind == "flag":
        keywords["action"] = "store_true"
    else:
        if option.kind in SEVERAL_VALUES:
            keywords["nargs"] = "+"
        if option.kind == "files":
            keywords["action"] = "append"
        keywords["metavar"] = option.metavar or "|".join(option.choices) or "N"
    group.add_argument(option.flag, **keywords)
