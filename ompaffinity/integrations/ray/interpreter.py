"""The command that starts an actor's interpreter bound: the value of Ray's `py_executable`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from ompaffinity.ids import format_id_list
from ompaffinity.launch import bind_exec
from ompaffinity.launch.ranks import rank_variables
from ompaffinity.openmp.variables import BINDING_VARIABLES
from ompaffinity.placement.document import PLACEMENT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ompaffinity.integrations.ray.cluster import ClusterNode
    from ompaffinity.placement.model import RankPlacement

HELPER_SECONDS = 30
RANK_VARIABLES = tuple(rank_variables(0, 1, 0, 1))
ACTOR_VARIABLES = (*BINDING_VARIABLES, PLACEMENT_VARIABLE, "OMP_NUM_THREADS", *RANK_VARIABLES)
SAFE_START = f"""\
import os, runpy, sys
node, names = sys.argv[1], []
del sys.argv[:2]
command = sys.argv[sys.argv.index("--") + 1 :]
if any(word.startswith("--node-id=") and word != "--node-id=" + node for word in command):
    names = {ACTOR_VARIABLES!r}
else:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException as error:
        os.environ["{bind_exec.UNBOUND_VARIABLE}"] = "the helper failed: " + str(error)
        names = {BINDING_VARIABLES!r}
for name in names:
    os.environ.pop(name, None)
os.execvp(command[0], command)
"""
"""The first program of an actor's interpreter: it runs the helper; if the helper fails, the actor starts unbound.

Tasks that an actor starts inherit its runtime environment. On another node the binding does not apply: the program
removes the actor's variables and skips the helper.
"""


def bound_interpreter(node: ClusterNode, placement: RankPlacement, unset: Sequence[str]) -> str:
    """Return the command that starts the interpreter bound, quoted because Ray inserts it into a shell command."""
    words = [*_helper_words(node.python, node.helper, node.node_id), "--cpus", format_id_list(placement.affinity)]
    if placement.memory_policy != "none" and placement.nodes:
        words += [f"--{placement.memory_policy}", format_id_list(placement.nodes)]
    for name in unset:
        words += ["--unset", name]
    return shlex.join([*words, "--", node.python])


def helper_problem() -> str | None:
    """Run the helper as for an actor; return the reason if it fails, None if it works."""
    program = f"import os; print(os.environ.get({bind_exec.UNBOUND_VARIABLE!r}, ''))"
    words = [*_helper_words(sys.executable, bind_exec.__file__, ""), "--", sys.executable, "-I", "-S", "-c", program]
    try:
        # The argv list runs this interpreter with a file of this package, without a shell.
        done = subprocess.run(words, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return done.stdout.strip() or None


def _helper_words(python: str, helper: str, node_id: str) -> list[str]:
    return [python, "-I", "-S", "-c", SAFE_START, node_id, helper]
