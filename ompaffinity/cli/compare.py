"""``compare``: what a plan gains, measured with the user's own command."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.cli.parse import parse_command_line
from ompaffinity.errors import InterruptedBySignalError, OMPAffinityError, PlacementError, RequestError
from ompaffinity.measure.runs import metric_of
from ompaffinity.measure.session import Settings, compare_variants
from ompaffinity.measure.variants import PLAN, USUAL, VARIANTS, Variant, variant_manager, what_it_sets
from ompaffinity.placement.request import PlacementRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ompaffinity.bind.manager import OMPProcessManager
    from ompaffinity.messages import Message


def run_compare(values: dict[str, Any]) -> int:
    """Measure the command under the variants, and print what differs; after a signal, what was measured before it."""
    if "command" not in values:
        raise RequestError("compare needs a command; write ompaffinity compare -- python benchmark.py")
    if "lower" in values and "metric" not in values:
        raise RequestError("--lower is about --metric; seconds are better the fewer they are anyway")
    settings = Settings(
        command=values["command"],
        metric=metric_of(values["metric"]) if "metric" in values else None,
        lower=bool(values.get("lower")) or "metric" not in values,
        budget_seconds=values.get("budget", 300),
        precision=values.get("precision", 0.02),
    )
    if settings.budget_seconds < 1:
        raise RequestError(f"--budget is {settings.budget_seconds}; it must be a number of seconds")
    if "svg" in values:
        from ompaffinity.cli.plot import check_plots

        check_plots(values["svg"])
    asked = {name: values[name] for name in PlacementRequest._fields if name in values}
    managers, left_out, messages = _managers(asked, values.get("variants"))
    try:
        with _progress() as progress:
            comparison = compare_variants(managers, settings, progress)
    except InterruptedBySignalError as error:
        print(f"ompaffinity: {error} before every variant was measured once; there are no results", file=sys.stderr)
        raise
    comparison = comparison._replace(left_out=left_out | comparison.left_out)
    if values.get("json"):
        warnings = [message._asdict() for message in messages]
        sys.stdout.write(json.dumps(comparison.to_document() | {"warnings": warnings}) + "\n")
    else:
        from ompaffinity.cli.measured import print_comparison

        print_comparison(comparison, messages)
    if "svg" in values:
        from ompaffinity.cli.plot import write_plot

        write_plot(comparison, values["svg"])
    return 0 if comparison.interrupted_by is None else 128 + comparison.interrupted_by


def variants_of(texts: Iterable[str]) -> list[Variant]:
    """Return the variants that were named: by a name of ours, or as ``NAME=--option value ...`` of a plan's options.

    Raises:
        RequestError: a name that is none, or is given twice, or options that are not a plan's.
    """
    found: dict[str, Variant] = {}
    for text in texts:
        name, equals, flags = text.partition("=")
        if equals:
            variant = Variant(_named(name), flags, PLAN, _request(name, flags), flags)
        elif name in VARIANTS:
            variant = VARIANTS[name]
        else:
            raise RequestError(
                f"--variant is {text!r}; it must be one of {', '.join(VARIANTS)}, or NAME='--option value ...'"
            )
        if variant.name in found:
            raise RequestError(f"--variant names {variant.name!r} twice")
        found[variant.name] = variant
    return [*found.values()]


def _named(name: str) -> str:
    if not (name and name.isprintable() and len(name) <= 40) or name in VARIANTS:
        raise RequestError(f"--variant {name!r}=...: give it a name of its own, of at most 40 letters")
    return name


def _request(name: str, flags: str) -> dict[str, Any]:
    try:
        words = shlex.split(flags)
        _, values = parse_command_line(["verify", *words])
    except (ValueError, OMPAffinityError) as error:
        raise RequestError(f"--variant {name}: {error}") from None
    except SystemExit:
        raise RequestError(f"--variant {name}: {flags!r} asks for help; give options of a plan") from None
    strange = values.keys() - set(PlacementRequest._fields)
    if strange:
        raise RequestError(f"--variant {name}: {', '.join(sorted(strange))} is no option of a plan")
    return values


def _managers(
    asked: dict[str, Any], named: list[str] | None
) -> tuple[dict[str, tuple[Variant, OMPProcessManager]], dict[str, str], list[Message]]:
    """Return what starts each variant, which of the usual ones would start the same as another, and the messages."""
    chosen = [VARIANTS[name] for name in USUAL] if named is None else variants_of(named)
    if len(chosen) == 1 and chosen[0].name != "none":
        chosen.insert(0, VARIANTS["none"])
    found: dict[str, tuple[Variant, OMPProcessManager]] = {}
    sets: dict[tuple[object, ...], str] = {}
    left_out: dict[str, str] = {}
    messages: dict[Message, None] = {}
    logger = logging.getLogger("ompaffinity")
    before = logger.disabled
    # Each message would be told once per variant; here they are told once.
    logger.disabled = True
    try:
        for variant in chosen:
            try:
                manager = variant_manager(variant, asked)
            except (RequestError, PlacementError) as error:
                if named is not None or variant.name in ("none", "plan"):
                    raise
                left_out[variant.name] = f"it cannot be had: {error}"
                continue
            messages.update(dict.fromkeys(message for message in manager.messages if message.level == "warning"))
            same = sets.setdefault(what_it_sets(manager), variant.name)
            if same != variant.name:
                left_out[variant.name] = f"it starts the ranks as {same} does"
            else:
                found[variant.name] = (variant, manager)
    finally:
        logger.disabled = before
    if len(found) < 2:
        raise RequestError(f"there is nothing to compare {next(iter(found))} with: what was named starts the same here")
    return found, left_out, [*messages]


@contextmanager
def _progress() -> Iterator[Callable[[str, float], object]]:
    """Yield what shows the progress: on a terminal only, and on standard error."""
    if not sys.stderr.isatty():
        yield lambda _text, _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("of the budget,"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, done: bar.update(task, description=text, completed=done)
