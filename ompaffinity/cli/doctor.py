"""``doctor``: what prevents or weakens binding on this machine, and the fix."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from ompaffinity.doctor.check import diagnose

if TYPE_CHECKING:
    from typing import Any


def run_doctor(values: dict[str, Any]) -> int:
    """Print the result of each check; return 1 if there is a problem (with --strict also for a warning), else 0."""
    diagnosis = diagnose(os.environ, values.get("python"))
    if values.get("json"):
        sys.stdout.write(json.dumps(diagnosis.to_document()) + "\n")
    else:
        from ompaffinity.cli.proof_tables import print_diagnosis

        print_diagnosis(diagnosis)
    warned = any(check.level != "ok" for check in diagnosis.checks)
    return int(bool(diagnosis.problems) or (bool(values.get("strict")) and warned))
