"""``completion``: what completes the command line in a shell, written by shtab (the extra ``[completion]``)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ompaffinity.cli.parse import make_parser
from ompaffinity.errors import RequestError

if TYPE_CHECKING:
    import argparse
    from typing import Any


def run_completion(values: dict[str, Any]) -> int:
    """Print the script of the shell that `values` name."""
    if "shell" not in values:
        raise RequestError("completion needs a shell; write ompaffinity completion --shell bash")
    try:
        import shtab
    except ImportError:
        raise RequestError("completion needs shtab; install it with: pip install 'ompaffinity[completion]'") from None
    parser = make_parser()
    _tell(parser, shtab.FILE)
    sys.stdout.write(shtab.complete(parser, shell=values["shell"]) + "\n")
    return 0


def _tell(parser: argparse.ArgumentParser, file: object) -> None:
    """Tell shtab what each option's value may be."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for of_verb in action.choices.values():
                _tell(of_verb, file)
            continue
        completes = vars(action).get("completes")
        if completes == "file":
            vars(action)["complete"] = file
        elif completes:
            action.choices = completes
