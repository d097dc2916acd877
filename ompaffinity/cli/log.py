"""The log of the package under verbs that print all messages themselves."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ompaffinity.messages import LOGGER

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def messages_not_logged() -> Iterator[None]:
    """Keep the package from logging messages inside the context, because the verb prints them once at its end."""
    logger = logging.getLogger(LOGGER)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
