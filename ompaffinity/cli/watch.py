"""``watch``: keep checking live workers, report what changes, repair it, and export metrics."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ompaffinity.bind.plan_files import saved_placements
from ompaffinity.cli import log
from ompaffinity.cli.checks import check_some_or_all, seconds_of
from ompaffinity.cli.verify import UNPROVEN_STATUS
from ompaffinity.errors import OMPAffinityError, OutputError, RequestError
from ompaffinity.files import require_writable
from ompaffinity.proof.drift import REPAIRED, REPLANNED
from ompaffinity.proof.events import Events
from ompaffinity.proof.verdict import DIFFERS, UNPROVEN
from ompaffinity.proof.watch import CHECKS_PER_MEMORY, START_SECONDS, Watcher
from ompaffinity.shown import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ompaffinity.proof.watch_status import WatchStatus

INTERVAL = 5


def run_watch(values: dict[str, Any]) -> int:
    """Watch until the servers end or a signal stops it (0); with --once return the status that verify would."""
    pids = values.get("pids", ())
    check_some_or_all(pids, values, "name the server with --pid PID, or use --all for every bound worker here")
    interval = seconds_of(values, "interval", INTERVAL)
    if values.get("once") and "listen" in values:
        raise RequestError("--listen cannot be combined with --once; use --prometheus FILE")
    watcher = Watcher(
        pids,
        saved_placements(values["plan"]) if "plan" in values else None,
        everything=bool(values.get("all")),
        repair=bool(values.get("repair")),
        memory_seconds=CHECKS_PER_MEMORY * interval,
    )
    with ExitStack() as stack:
        exports = list(_exports(values, stack))
        if values.get("once"):
            return _once(watcher, interval, values, exports)
        return _watch(watcher, interval, values, exports)


def _exports(values: dict[str, Any], stack: ExitStack) -> Iterator[Callable[[WatchStatus], None]]:
    """Yield what publishes each status: the metrics files and servers that are asked for."""
    if "prometheus" not in values and "listen" not in values:
        return
    if "prometheus" in values:
        require_writable("--prometheus", values["prometheus"])
    from ompaffinity.integrations.prometheus import Metrics

    metrics = Metrics()
    yield metrics.update
    if "listen" in values:
        stack.enter_context(metrics.served(values["listen"]))
    if "prometheus" in values:
        yield lambda _status: metrics.write(values["prometheus"])


def _once(
    watcher: Watcher, interval: float, values: dict[str, Any], exports: list[Callable[[WatchStatus], None]]
) -> int:
    seconds = min(START_SECONDS, interval)
    status = watcher.start(seconds)
    if any(change.kind in (REPAIRED, REPLANNED) for change in status.changes):
        # What was repaired must be proven.
        changes = status.changes
        status = watcher.start(seconds)
        status = status._replace(changes=(*changes, *status.changes))
    for export in exports:
        export(status)
    if values.get("json"):
        sys.stdout.write(json.dumps(status.to_document()) + "\n")
    else:
        from ompaffinity.cli.watch_tables import print_status

        print_status(status)
    return {DIFFERS: 1, UNPROVEN: UNPROVEN_STATUS}.get(status.verdict, 0)


def _watch(
    watcher: Watcher, interval: float, values: dict[str, Any], exports: list[Callable[[WatchStatus], None]]
) -> int:
    with ExitStack() as stack:
        events = stack.enter_context(Events())
        stopped = stack.enter_context(_stopped_by_signals(events))
        show = stack.enter_context(_reporter(bool(values.get("json"))))
        status = watcher.start(min(START_SECONDS, interval))
        failures: set[str] = set()
        while True:
            show(status)
            for export in exports:
                with _reported_once(failures):
                    export(status)
            if watcher.has_ended:
                return 0
            with _reported_once(failures):
                events.watch_processes(watcher.pids)
                events.watch_files(watcher.files())
            events.wait(interval)
            if stopped:
                return 0
            status = status._replace(changes=())
            with _reported_once(failures):
                status = watcher.check()


@contextmanager
def _reported_once(failures: set[str]) -> Iterator[None]:
    """Report a failure on standard error, each one once: what fails now may work at the next check."""
    try:
        yield
    except OutputError:
        raise
    except (OMPAffinityError, OSError) as error:
        text = " ".join(str(error).split())
        if text not in failures and not log.is_quiet():
            failures.add(text)
            sys.stderr.write(f"ompaffinity: warning: a check failed, and the next one follows: {shown(text)}\n")


@contextmanager
def _stopped_by_signals(events: Events) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, and wake the wait; restore their handlers at the end."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        events.wake()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _reporter(as_json: bool) -> Iterator[Callable[[WatchStatus], None]]:
    """Yield what shows a status: a live table on a terminal, else one line or JSON object per change."""
    if as_json:
        yield lambda status: _write([json.dumps(change.to_document()) for change in status.changes])
        return
    if not sys.stdout.isatty():
        yield lambda status: _write([shown(str(change)) for change in status.changes])
        return
    from ompaffinity.cli.watch_tables import live_table

    with live_table() as update:
        yield update


def _write(lines: list[str]) -> None:
    if lines:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
