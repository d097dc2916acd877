"""Command line to {field: value}.

argparse does it, built from the table in `options`. But importing argparse takes longer than the
whole plan, so a command line of the plainest form, ``verb --option value --flag``, is read
directly; whatever is not of that form goes to argparse, which then also says what is wrong.
"""

from __future__ import annotations

from ompaffinity.cli.options import SEVERAL_VALUES, VERBS, WITH_COMMAND
from ompaffinity.cli.values import option_value
from ompaffinity.errors import RequestError

FILES = ("FILE", "PATH", "DIR", "PLAN.json")
"""What the help calls an option's value that is a file."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ompaffinity.cli.options import Option


def parse_command_line(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the verb and the values of the options that were given.

    Raises:
        RequestError: the command line is not understood.
        SystemExit: help or the version was asked for, and printed.
    """
    command: tuple[str, ...] | None = None
    if arguments and arguments[0] in WITH_COMMAND and "--" in arguments:
        cut = arguments.index("--")
        arguments, command = arguments[:cut], tuple(arguments[cut + 1 :])
        if not command:
            raise RequestError(f"there is no command after --; write ompaffinity {arguments[0]} -- python worker.py")
    plain = scan(arguments)
    verb, texts = plain if plain is not None else parse_with_argparse(arguments)
    options = {option.field: option for option in VERBS[verb]}
    values = {field: True if text is True else option_value(options[field], text) for field, text in texts.items()}
    return verb, values if command is None else values | {"command": command}


def scan(arguments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return (verb, {field: text, or True for a flag}) of a plain command line, None for any other."""
    if not arguments or arguments[0] not in VERBS:
        return None
    options = {option.flag: option for option in VERBS[arguments[0]]}
    texts: dict[str, Any] = {}
    waiting: Option | None = None
    for argument in arguments[1:]:
        if waiting is not None:
            if argument.startswith("-"):
                return None
            texts[waiting.field] = [*texts.get(waiting.field, []), argument] if waiting.kind == "files" else argument
            waiting = None
            continue
        option = options.get(argument)
        if option is None or option.kind in SEVERAL_VALUES:
            return None
        if option.kind == "flag":
            texts[option.field] = True
        else:
            waiting = option
    return None if waiting is not None else (arguments[0], texts)


def parse_with_argparse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return what `scan` returns, for every command line.

    Raises:
        RequestError: the command line is not understood.
        SystemExit: help or the version was asked for, and printed.
    """
    values = vars(make_parser().parse_args(arguments))
    return values.pop("verb"), values


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of every command line, made from the table of options; its errors are RequestErrors."""
    import argparse

    from ompaffinity import __version__
    from ompaffinity.cli.help import EXAMPLES, SUMMARIES

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise RequestError(f"{message}; see {self.prog} --help")

    parser = Parser(
        prog="ompaffinity",
        description="Decide which CPUs and which memory each worker gets, and tell the OpenMP runtime.",
        epilog="Exit status: 0 done, 1 a warning under --strict, 2 bad input or a request that cannot be met.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ompaffinity {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb, options in VERBS.items():
        parser_of_verb = verbs.add_parser(
            verb,
            help=SUMMARIES[verb],
            description=f"{SUMMARIES[verb][0].upper()}{SUMMARIES[verb][1:]}.",
            epilog=EXAMPLES[verb],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for option in options:
            keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": option.help}
            if not option.flag.startswith("-"):
                parser_of_verb.add_argument(option.field, nargs="*", metavar=option.metavar, **keywords)
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
            added = parser_of_verb.add_argument(option.flag, **keywords)
            # For shtab, which completes them.
            vars(added)["completes"] = "file" if option.metavar in FILES else option.choices
    return parser
