"""The completion script, run by bash."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import pytest

from tests.conftest import run_command

needs_shtab = pytest.mark.skipif(
    importlib.util.find_spec("shtab") is None, reason="shtab is not installed (the extra [completion])"
)


def completed(*words: str) -> list[str]:
    """Return the completions of bash for the last of these words."""
    script = run_command("completion", "--shell", "bash").stdout
    line = " ".join(f"'{word}'" for word in words)
    program = f"""{script}
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
function=$(complete -p ompaffinity | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function ompaffinity '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, check=True)
    return done.stdout.split()


@needs_shtab
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_verbs_options_and_values() -> None:
    assert "plan" in completed("ompaffinity", "pl")
    assert {"--numa-bind", "--numa-bind-nodes"} <= set(completed("ompaffinity", "plan", "--numa"))
    assert completed("ompaffinity", "plan", "--runtime", "") == ["auto", "gomp", "iomp", "omp"]
    assert "numactl" in completed("ompaffinity", "plan", "--format", "n")


@needs_shtab
@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_prints_scripts_for_other_shells(shell: str) -> None:
    done = run_command("completion", "--shell", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--numa-bind" in done.stdout or "numa-bind" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "--shell is missing"), (("--shell", "fish"), "it must be one of bash, zsh, tcsh")],
)
def test_rejects_missing_and_unknown_shells(arguments: tuple[str, ...], words: str) -> None:
    done = run_command("completion", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
