"""Command line to {field: value}: argparse, built from the table in `options`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ompaffinity import __version__
from ompaffinity.cli.help import EXAMPLES, SUMMARIES
from ompaffinity.cli.options import VERBS, WITH_COMMAND
from ompaffinity.errors import RequestError
from ompaffinity.placement.option_values import option_value
from ompaffinity.placement.options import SEVERAL_VALUES

if TYPE_CHECKING:
    from collections.abc import Collection

FILES = ("FILE", "PATH", "DIR", "PLAN.json")
"""The metavars of options whose value is a path."""


def parse_command_line(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the verb and {field: value} of the options in the command line.

    Raises:
        RequestError: the command line is invalid.
        SystemExit: the help or the version was requested, and is printed.
    """
    command: tuple[str, ...] | None = None
    if arguments and arguments[0] in WITH_COMMAND and "--" in arguments:
        cut = arguments.index("--")
        arguments, command = arguments[:cut], tuple(arguments[cut + 1 :])
        if not command:
            raise RequestError(f"no command follows --; write ompaffinity {arguments[0]} -- python worker.py")
    texts = vars(make_parser(arguments[:1]).parse_args(arguments))
    verb = texts.pop("verb")
    options = {option.field: option for option in VERBS[verb]}
    values = {field: True if text is True else option_value(options[field], text) for field, text in texts.items()}
    return verb, values if command is None else values | {"command": command}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise RequestError(f"{message}; see {self.prog} --help")


def make_parser(with_options: Collection[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """Return the parser of the command line, generated from the table of options; it raises RequestError on errors.

    Only the verbs `with_options` get theirs: adding those of all verbs takes several milliseconds.
    """
    parser = _Parser(
        prog="ompaffinity",
        description="Plan, bind and verify the CPUs and the memory of inference workers and their OpenMP threads.",
        epilog="Exit status: 0 done; 1 a check failed, or a warning with --strict; 2 invalid input or a request that"
        " cannot be met; 3 verify found neither a difference nor a proof, or inspect may read no process.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ompaffinity {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb, options in VERBS.items():
        verb_parser = verbs.add_parser(
            verb,
            help=SUMMARIES[verb],
            description=f"{SUMMARIES[verb][0].upper()}{SUMMARIES[verb][1:]}.",
            epilog=EXAMPLES[verb],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for option in options if verb in with_options else ():
            keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": option.help}
            if not option.flag.startswith("-"):
                verb_parser.add_argument(option.field, nargs="*", metavar=option.metavar, **keywords)
                continue
            keywords["dest"] = option.field
            if option.kind == "flag":
                keywords["action"] = "store_true"
            else:
                if option.kind in SEVERAL_VALUES:
                    keywords["nargs"] = "+"
                if option.kind == "files":
                    keywords["action"] = "append"
                keywords["metavar"] = option.metavar or "|".join(option.choices) or "N"
            added = verb_parser.add_argument(option.flag, **keywords)
            # Read by `run_completion`.
            vars(added)["completes"] = "file" if option.metavar in FILES else option.choices
    return parser
