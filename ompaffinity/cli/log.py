"""What verbs print on standard error besides errors, and the log of the package under verbs that print messages."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.messages import LOGGER

if TYPE_CHECKING:
    from collections.abc import Iterator

_quiet = False
_has_level = False
"""Whether the log has the level of a command that this process ran before."""


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set what verbs print on standard error besides errors: nothing (quiet), or also the log (verbose)."""
    global _quiet, _has_level  # noqa: PLW0603
    _quiet = quiet
    if not (quiet or verbose or _has_level):
        # Most commands need no logging, which takes a part of every start.
        return
    import logging

    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.NOTSET
    logging.getLogger(LOGGER).setLevel(level)
    _has_level = quiet or verbose


def is_quiet() -> bool:
    """Whether warnings and notes are left out."""
    return _quiet


@contextmanager
def messages_not_logged() -> Iterator[None]:
    """Keep the package from logging messages inside the context, because the verb prints them once at its end."""
    import logging

    logger = logging.getLogger(LOGGER)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
