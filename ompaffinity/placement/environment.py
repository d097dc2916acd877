"""The planning options that come from the environment, and the request of what is given and what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.errors import IDListError, RequestError
from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.placement.option_values import option_value, option_words
from ompaffinity.placement.options import OPTIONS_FLAG, OPTIONS_VARIABLE, PLAN_OPTIONS, SEVERAL_VALUES
from ompaffinity.placement.request import AUTO, CONFLICTS_WITH_LISTS, PlacementRequest, parse_bind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

ENVIRONMENT = {
    "bind": ("OMPAFFINITY_BIND", "VLLM_CPU_OMP_THREADS_BIND"),
    "reserve": ("OMPAFFINITY_RESERVED_CPUS", "VLLM_CPU_NUM_OF_RESERVED_CPU"),
    "nodes": ("CPU_VISIBLE_MEMORY_NODES",),
}
"""The variables that an option comes from where it is not given; the first one that is set counts."""


def request_from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `PlacementRequest` that `environ` names; empty variables count as not set.

    Raises:
        RequestError: a variable's value is not understood.
    """
    arguments: dict[str, Any] = {}
    for field, names in ENVIRONMENT.items():
        name = next((name for name in names if environ.get(name, "").strip()), None)
        if name is not None:
            arguments[field] = _from_variable(field, name, environ[name].strip())
    return arguments


def requested(given: Mapping[str, Any], environ: Mapping[str, str]) -> PlacementRequest:
    """Return the request of what was given, completed from the environment: single variables, OMPAFFINITY_OPTIONS.

    Raises:
        RequestError: a variable's value is not understood, or `given` names no such option.
    """
    return PlacementRequest(**completed(given, environment_options(environ)))


def completed(given: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are `given`, completed by those `others` that they do not replace.

    Raises:
        RequestError: `given` names no such option.
    """
    unknown = given.keys() - set(PlacementRequest._fields)
    if unknown:
        known = ", ".join(PlacementRequest._fields)
        raise RequestError(f"{', '.join(sorted(unknown))}: no such option; the options are {known}")
    asked = PlacementRequest(**given)
    # The environment does not apply where what is given replaces it: its binding to GPU ranks, its reserve to ranks
    # that have their own or share all of a node.
    replaced = {
        "bind": asked.for_gpus,
        "reserve": asked.share or asked.reserve_per_rank is not None,
        "reserve_per_rank": asked.reserve is not None,
    }
    arguments = {name: value for name, value in others.items() if not replaced.get(name)} | dict(given)
    if not isinstance(arguments.get("bind", AUTO), str) or asked.numa_bind_cpus is not None:
        # Lists select all CPUs: the environment's options for automatic planning do not apply.
        arguments = {
            name: value for name, value in arguments.items() if name in given or name not in CONFLICTS_WITH_LISTS
        }
    return arguments


def _from_variable(field: str, name: str, text: str) -> object:
    try:
        if field == "bind":
            return parse_bind("none" if text == "nobind" else text)
        if field == "nodes":
            return tuple(parse_ordered_id_list(text))
    except (RequestError, IDListError) as error:
        raise RequestError(f"the environment variable {name} is {text!r}: {error}") from None
    if text == AUTO:
        return None
    if text == "-1" and name.startswith("VLLM_"):
        # vLLM reserves nothing for a negative number.
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise RequestError(f"the environment variable {name} is {text!r}; it must be auto or a number of cores")
    return int(text)


def options_from_text(text: str, origin: str = f"the environment variable {OPTIONS_VARIABLE}") -> dict[str, Any]:
    """Return {field: value} of planning options in the form of the command line: ``"--reserve 0 --span machine"``.

    `origin` is where the text comes from, for errors.

    Raises:
        RequestError: the text has anything else.
    """
    import argparse
    import shlex

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise RequestError(f"{origin} is {text!r}: {message}")

    options = {option.field: option for option in PLAN_OPTIONS}
    parser = Parser(prog=OPTIONS_VARIABLE, add_help=False, allow_abbrev=False)
    for option in options.values():
        if option.kind == "files":
            # Plan files are read on the command line only.
            parser.add_argument(
                option.flag, dest=option.field, action="append", choices=["live"], default=argparse.SUPPRESS
            )
        elif option.kind == "flag":
            parser.add_argument(option.flag, dest=option.field, action="store_true", default=argparse.SUPPRESS)
        else:
            several = "+" if option.kind in SEVERAL_VALUES else None
            parser.add_argument(option.flag, dest=option.field, nargs=several, default=argparse.SUPPRESS)
    try:
        words = shlex.split(text)
    except ValueError as error:
        parser.error(str(error))
    found = vars(parser.parse_args(words))
    return {field: True if value is True else option_value(options[field], value) for field, value in found.items()}


def options_text(values: Mapping[str, Any]) -> str:
    """Return planning options in the form of the command line: the inverse of `options_from_text`."""
    import shlex

    words = [
        word for option in PLAN_OPTIONS if option.field in values for word in option_words(option, values[option.field])
    ]
    return shlex.join(words)


def environment_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the planning options that the environment sets: single variables, then OMPAFFINITY_OPTIONS.

    Raises:
        RequestError: a variable's value is not understood.
    """
    arguments = request_from_environment(environ)
    if environ.get(OPTIONS_VARIABLE, "").strip():
        arguments = options_from_text(environ[OPTIONS_VARIABLE]) | arguments
    return arguments


def split_options(text: str) -> tuple[str | None, str]:
    """Return the file that ``--options`` names in a text of options, None for none, and the other options.

    Raises:
        RequestError: the text cannot be split, or no file follows.
    """
    import shlex

    if OPTIONS_FLAG not in text:
        return None, text
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RequestError(f"the environment variable {OPTIONS_VARIABLE} is {text!r}: {error}") from None
    path = None
    others: list[str] = []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag != OPTIONS_FLAG:
            others.append(word)
        elif equals:
            path = value
        elif words:
            path = words.pop(0)
        else:
            raise RequestError(f"the environment variable {OPTIONS_VARIABLE} is {text!r}: {OPTIONS_FLAG} needs a file")
    return path, shlex.join(others)
