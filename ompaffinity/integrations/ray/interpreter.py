"""How an actor's interpreter is started bound: what Ray's `py_executable` runs on the actor's node."""

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
OF_ONE_ACTOR = (*BINDING_VARIABLES, PLACEMENT_VARIABLE, "OMP_NUM_THREADS", *RANK_VARIABLES)
SAFE_START = f"""\
import os, runpy, sys
node, names = sys.argv[1], []
del sys.argv[:2]
command = sys.argv[sys.argv.index("--") + 1 :]
if any(word.startswith("--node-id=") and word != "--node-id=" + node for word in command):
    names = {OF_ONE_ACTOR!r}
else:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException as error:
        os.environ["{bind_exec.UNBOUND_VARIABLE}"] = "the helper does not run: " + str(error)
        names = {BINDING_VARIABLES!r}
for name in names:
    os.environ.pop(name, None)
os.execvp(command[0], command)
"""
"""What an actor's interpreter runs first: the helper, or where that is not to be had the actor all the same.

Tasks that an actor starts inherit its runtime environment, and may run on another node: there, nothing of it holds.
"""


def bound_interpreter(node: ClusterNode, placement: RankPlacement, unset: Sequence[str]) -> str:
    """Return the command that starts the interpreter bound; Ray pastes it into a shell's, so that it is quoted."""
    words = [*_helper_words(node.python, node.helper, node.node_id), "--cpus", format_id_list(placement.affinity)]
    if placement.memory_policy != "none" and placement.nodes:
        words += [f"--{placement.memory_policy}", format_id_list(placement.nodes)]
    for name in unset:
        words += ["--unset", name]
    return shlex.join([*words, "--", node.python])


def helper_problem() -> str | None:
    """Try the helper as an actor would be started; return why that does not work."""
    ask = f"import os; print(os.environ.get({bind_exec.UNBOUND_VARIABLE!r}, ''))"
    words = [*_helper_words(sys.executable, bind_exec.__file__, ""), "--", sys.executable, "-I", "-S", "-c", ask]
    try:
        # This interpreter and a file of ours: no shell.
        found = subprocess.run(words, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if found.returncode:
        return (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
    return found.stdout.strip() or None


def _helper_words(python: str, helper: str, node_id: str) -> list[str]:
    return [python, "-I", "-S", "-c", SAFE_START, node_id, helper]
