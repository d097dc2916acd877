"""Start-up: what ``import ompaffinity`` and whole commands cost, against what users would use instead.

Goals, as ratios of medians: the import at most 1.1 of ``import json, argparse``; ``plan --tp 2 --json`` at most 1.5 of
an interpreter that imports argparse, json and dataclasses plus ``lscpu -J``, and its table at most 1.8; ``run --tp 2``
at most 3.0 of a Python program that starts two ``true``; ``exec`` at most 1.5 of one that executes ``true``.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.conditions import Conditions
from benchmarks.measure import ratio_table, ratios, table, time_commands

STARTS_TWO = "import subprocess; [p.wait() for p in [subprocess.Popen(['true']) for _ in range(2)]]"
EXECUTES = "import os; os.execvp('true', ['true'])"
COMMANDS = {
    "lscpu -J": ["lscpu", "-J"],
    "lscpu -J, again": ["lscpu", "-J"],
    "import json, argparse": [sys.executable, "-c", "import json, argparse"],
    "import ompaffinity": [sys.executable, "-c", "import json, argparse, ompaffinity"],
    "import argparse, json, dataclasses": [sys.executable, "-c", "import argparse, json, dataclasses"],
    "plan --tp 2 --json": [sys.executable, "-m", "ompaffinity", "plan", "--tp", "2", "--json"],
    "plan --tp 2": [sys.executable, "-m", "ompaffinity", "plan", "--tp", "2"],
    "Python that starts two": [sys.executable, "-c", STARTS_TWO],
    "run --tp 2 -- true": [sys.executable, "-m", "ompaffinity", "run", "--tp", "2", "--", "true"],
    "Python that executes": [sys.executable, "-c", EXECUTES],
    "exec -- true": [sys.executable, "-m", "ompaffinity", "exec", "--", "true"],
}


def main() -> None:
    """Measure, print, and write ``benchmarks/results/startup.json`` and ``.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    conditions = Conditions()
    times = time_commands(COMMANDS, rounds)
    peer = [sum(pair) for pair in zip(times["import argparse, json, dataclasses"], times["lscpu -J"])]
    ours, base = times["import ompaffinity"], times["import json, argparse"]
    rows = {
        "import / import json, argparse (goal 1.10)": ratios(ours, base),
        "plan --json / Python + lscpu -J (goal 1.5)": ratios(times["plan --tp 2 --json"], peer),
        "plan / Python + lscpu -J (goal 1.8)": ratios(times["plan --tp 2"], peer),
        "run / Python that starts two (goal 3.0)": ratios(times["run --tp 2 -- true"], times["Python that starts two"]),
        "exec / Python that executes (goal 1.5)": ratios(times["exec -- true"], times["Python that executes"]),
        "A/A: lscpu -J": ratios(times["lscpu -J"], times["lscpu -J, again"]),
    }
    text = "\n\n".join([f"{rounds} interleaved rounds.", table(times), ratio_table(rows)])
    conditions.write("startup", text, {"seconds": times, "ratios": rows})


if __name__ == "__main__":
    main()
