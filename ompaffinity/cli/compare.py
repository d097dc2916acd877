"""``compare``: measure the gain of a plan with the user's own command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.saved_options import resolved
from ompaffinity.cli.checks import seconds_of
from ompaffinity.cli.log import messages_not_logged
from ompaffinity.cli.options import flags_of, planning_options
from ompaffinity.cli.parse import parse_command_line
from ompaffinity.errors import InterruptedBySignalError, OMPAffinityError, PlacementError, RequestError
from ompaffinity.files import require_writable, write_whole
from ompaffinity.measure.runs import metric_of
from ompaffinity.measure.session import Settings, compare_variants
from ompaffinity.measure.variants import PLAN, USUAL, VARIANTS, Variant, variant_manager, what_it_sets
from ompaffinity.messages import WARNING
from ompaffinity.placement.environment import completed, environment_options
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.measure.session import Comparison
    from ompaffinity.messages import Message

MAX_NAME_LENGTH = 40


def run_compare(values: dict[str, Any]) -> int:
    """Measure the command with each variant, and print the differences; after a signal, those measured before it."""
    if "command" not in values:
        raise RequestError("the command is missing; write ompaffinity compare -- python benchmark.py")
    if "lower" in values and "metric" not in values:
        raise RequestError("--lower requires --metric; omit --lower, fewer seconds are always better")
    settings = Settings(
        command=values["command"],
        metric=metric_of(values["metric"]) if "metric" in values else None,
        lower=bool(values.get("lower")) or "metric" not in values,
        budget_seconds=seconds_of(values, "budget", 300),
        precision=values.get("precision", 0.02),
    )
    if "save" in values:
        require_writable("--save", values["save"])
    if "svg" in values:
        from ompaffinity.cli.plot import check_plots

        check_plots(values["svg"])
    request = planning_options(values)
    managers, left_out, messages = _managers(request, values.get("variants"), values.get("probe", ()))
    try:
        with _progress() as progress:
            comparison = compare_variants(managers, settings, progress)
    except InterruptedBySignalError as error:
        print(f"ompaffinity: {error} before every variant was measured once; there are no results", file=sys.stderr)
        raise
    comparison = comparison._replace(left_out=left_out | comparison.left_out)
    status = _saved(values["save"], comparison, request) if "save" in values else 0
    if values.get("json"):
        warnings = [message._asdict() for message in messages]
        sys.stdout.write(json.dumps(comparison.to_document() | {"warnings": warnings}) + "\n")
    else:
        from ompaffinity.cli.measured import print_comparison

        print_comparison(comparison, messages)
    if "svg" in values:
        from ompaffinity.cli.plot import write_plot

        write_plot(comparison, values["svg"])
    return status if comparison.interrupted_by is None else 128 + comparison.interrupted_by


def _saved(path: str, comparison: Comparison, request: dict[str, Any]) -> int:
    """Write the advised options; return 1 where the comparison was too short for advice."""
    from ompaffinity.measure.saved import advised_document

    files = resolved(request, os.environ)
    given = completed(files.given, environment_options(files.environ))
    document = advised_document(comparison, given, load_topology(), os.getloadavg())
    if document is None:
        print(f"ompaffinity: {path} is not written: {comparison.advice.text}", file=sys.stderr)
        return 1
    write_whole(path, (json.dumps(document, indent=1) + "\n").encode())
    return 0


def variants_of(texts: Iterable[str]) -> list[Variant]:
    """Return the variants of `texts`: predefined names, or ``NAME=--option value ...`` with planning options.

    Raises:
        RequestError: a name is unknown or repeated, or an option is not a planning option.
    """
    variants: dict[str, Variant] = {}
    for text in texts:
        name, equals, flags = text.partition("=")
        if equals:
            variant = Variant(_new_name(name), flags, PLAN, _request(name, flags), flags)
        elif name in VARIANTS:
            variant = VARIANTS[name]
        else:
            raise RequestError(
                f"--variant is {text!r}; it must be one of {', '.join(VARIANTS)}, or NAME='--option value ...'"
            )
        if variant.name in variants:
            raise RequestError(f"--variant has {variant.name!r} twice; use each name once")
        variants[variant.name] = variant
    return [*variants.values()]


def _new_name(name: str) -> str:
    if not (name and name.isprintable() and len(name) <= MAX_NAME_LENGTH) or name in VARIANTS:
        raise RequestError(
            f"--variant has the name {name[:80]!r}; use a new name of 1 to {MAX_NAME_LENGTH} printable characters"
        )
    return name


def _request(name: str, flags: str) -> dict[str, Any]:
    try:
        words = shlex.split(flags)
        _, values = parse_command_line(["verify", *words])
    except (ValueError, OMPAffinityError) as error:
        raise RequestError(f"--variant {name}: {error}") from None
    except SystemExit:
        raise RequestError(f"--variant {name}: {flags!r} requests help; use planning options only") from None
    unsupported = values.keys() - set(PlacementRequest._fields)
    if unsupported:
        raise RequestError(
            f"--variant {name}: {flags_of('verify', unsupported)} is not a planning option; use those of plan --help"
        )
    return values


def _managers(
    request: dict[str, Any], named: list[str] | None, probe: Sequence[str]
) -> tuple[dict[str, tuple[Variant, OMPProcessManager]], dict[str, str], list[Message]]:
    """Return {name: variant and its manager}, {omitted variant: reason}, and the messages.

    A variant is omitted if it starts the ranks in the same way as an earlier one.
    """
    chosen = [VARIANTS[name] for name in USUAL] if named is None else variants_of(named)
    if len(chosen) == 1 and chosen[0].name != "none":
        chosen.insert(0, VARIANTS["none"])
    managers: dict[str, tuple[Variant, OMPProcessManager]] = {}
    names: dict[tuple[object, ...], str] = {}
    left_out: dict[str, str] = {}
    messages: dict[Message, None] = {}
    with messages_not_logged():
        for variant in chosen:
            try:
                manager = variant_manager(variant, request, probe)
            except (RequestError, PlacementError) as error:
                if named is not None or variant.name in ("none", "plan"):
                    raise
                left_out[variant.name] = f"not available: {error}"
                continue
            messages.update(dict.fromkeys(message for message in manager.messages if message.level == WARNING))
            first = names.setdefault(what_it_sets(manager), variant.name)
            if first != variant.name:
                left_out[variant.name] = f"starts the ranks in the same way as {first}"
            else:
                managers[variant.name] = (variant, manager)
    if len(managers) < 2:
        raise RequestError(
            f"all variants start the ranks in the same way as {next(iter(managers))} on this machine; name another"
            " --variant"
        )
    return managers, left_out, [*messages]


@contextmanager
def _progress() -> Iterator[Callable[[str, float], object]]:
    """Yield a function that shows the progress on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _text, _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("of the budget,"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, done: bar.update(task, description=text, completed=done)
