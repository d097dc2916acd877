"""The completion scripts, run by the shells themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ompaffinity.cli.completion import bash_script, fish_script
from tests.conftest import needs_program, run_command

BASH_RUN = """
COMP_WORDS=({line}); COMP_CWORD={last}
function=$(complete -p ompaffinity | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed_by_bash(*words: str) -> list[str]:
    """Return the completions of bash for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    program = bash_script() + BASH_RUN.format(line=line, last=len(words) - 1)
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def completed_by_fish(line: str) -> list[str]:
    """Return the completions of fish for a line."""
    program = f"{fish_script()}\ncomplete -C '{line}'"
    done = subprocess.run(["fish", "--no-config"], input=program, capture_output=True, text=True, check=True)
    return [word.split("\t")[0] for word in done.stdout.splitlines()]


@needs_program("bash")
def test_bash_completes_verbs_options_and_values() -> None:
    assert completed_by_bash("ompaffinity", "pl") == ["plan"]
    assert {"--numa-bind", "--numa-bind-nodes"} <= set(completed_by_bash("ompaffinity", "plan", "--numa"))
    assert completed_by_bash("ompaffinity", "plan", "--runtime", "") == ["auto", "gomp", "iomp", "omp"]
    assert completed_by_bash("ompaffinity", "plan", "--format", "n") == ["numactl"]
    assert "plan" in completed_by_bash("ompaffinity", "help", "")


@needs_program("bash")
def test_bash_completes_files_after_options_that_take_one_and_in_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "machine.json").touch()
    assert completed_by_bash("ompaffinity", "plan", "--machine", "mach") == ["machine.json"]
    assert completed_by_bash("ompaffinity", "run", "--", "mach") == ["machine.json"]


@needs_program("fish")
def test_fish_completes_verbs_options_and_values() -> None:
    assert completed_by_fish("ompaffinity pl") == ["plan"]
    assert "--numa-bind-nodes" in completed_by_fish("ompaffinity plan --numa")
    assert completed_by_fish("ompaffinity plan --runtime ") == ["auto", "gomp", "iomp", "omp"]


@needs_program("zsh")
def test_zsh_loads_its_script() -> None:
    done = run_command("completion", "--shell", "zsh")
    assert (done.returncode, done.stderr) == (0, "")
    program = f"autoload -U compinit && compinit -u -D\n{done.stdout}\necho $_comps[ompaffinity]"
    loaded = subprocess.run(["zsh", "-f"], input=program, capture_output=True, text=True, check=True)
    assert "_bash_complete" in loaded.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "--shell is missing"), (("--shell", "tcsh"), "it must be one of bash, zsh, fish")],
)
def test_rejects_missing_and_unknown_shells(arguments: tuple[str, ...], words: str) -> None:
    done = run_command("completion", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
