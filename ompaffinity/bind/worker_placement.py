"""Inside a worker: the placement that the process was started with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.placement.document import PLACEMENT_VARIABLE, parse_placement

if TYPE_CHECKING:
    from ompaffinity.placement.model import RankPlacement


def current_placement() -> RankPlacement | None:
    """Return the placement that this process was started with (OMPAFFINITY_PLACEMENT), None outside a worker.

    Raises:
        RequestError: the variable does not hold a placement.
    """
    text = os.environ.get(PLACEMENT_VARIABLE)
    return None if text is None else parse_placement(text)
