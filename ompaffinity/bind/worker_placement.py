"""Inside a worker: the placement that the process was started with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.placement.document import PLACEMENT_VARIABLE, PUBLISHED_NAME, parse_placement

if TYPE_CHECKING:
    from ompaffinity.placement.model import RankPlacement


def current_placement() -> RankPlacement | None:
    """Return the placement that this process was started with (OMPAFFINITY_PLACEMENT), None outside a worker.

    Raises:
        RequestError: the variable does not hold a placement.
    """
    text = os.environ.get(PLACEMENT_VARIABLE)
    return None if text is None else parse_placement(text)


def publish_placement() -> None:
    """Keep the placement of this process in a memory file (memfd_create(2)), where `verify --pid` finds it.

    For processes that overwrite their environment with a title (setproctitle). Nothing happens outside of a worker or
    where the kernel has no memory files.
    """
    text = os.environ.get(PLACEMENT_VARIABLE)
    if text is None or _published or not hasattr(os, "memfd_create"):
        return
    try:
        _published.append(os.memfd_create(PUBLISHED_NAME))
        os.write(_published[0], text.encode())
    except OSError:
        # No descriptor is left, or the kernel refuses: verify then needs the plan.
        return


_published: list[int] = []
"""The descriptor of the memory file, which stays open as long as the process runs."""
