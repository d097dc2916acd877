"""Start-up: what ``import ompaffinity`` and a whole ``plan --tp 2 --json`` cost.

Goals: the import adds under 10 % to ``import json, argparse``; the plan takes at most 1.5 times
an empty Python plus ``lscpu -J``. The floor of the second is ``python -m`` of an empty module,
which is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ratio_table, ratios, table, time_commands

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Measure, print, and write ``benchmarks/results/startup.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.touch()
        times = time_commands(
            {
                "python -c pass": [python, "-c", "pass"],
                "lscpu -J": ["lscpu", "-J"],
                "import json, argparse": [python, "-c", "import json, argparse"],
                "import json, argparse, ompaffinity": [python, "-c", "import json, argparse, ompaffinity"],
                "python -m (empty module)": [
                    python,
                    "-c",
                    f"import sys, runpy; sys.path.insert(0, {folder!r}); runpy._run_module_as_main('empty')",
                ],
                "plan --tp 2 --json": [python, "-m", "ompaffinity", "plan", "--tp", "2", "--json"],
            },
            rounds,
        )
    peer = [sum(pair) for pair in zip(times["python -c pass"], times["lscpu -J"])]
    rows = {
        "import against import json, argparse (goal 1.10)": ratios(
            times["import json, argparse, ompaffinity"], times["import json, argparse"]
        ),
        "plan against python -c pass + lscpu -J (goal 1.5)": ratios(times["plan --tp 2 --json"], peer),
        "python -m of an empty module against the same (the floor)": ratios(times["python -m (empty module)"], peer),
    }
    heading = f"Python {platform.python_version()}, {platform.machine()}, {rounds} interleaved rounds"
    text = "\n\n".join([heading, table(times), ratio_table(rows)]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.md").write_text(text)
    (RESULTS / "startup.json").write_text(json.dumps({"seconds": times, "ratios": rows}, indent=1) + "\n")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
