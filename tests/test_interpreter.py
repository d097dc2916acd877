"""Children of this interpreter import nothing from the current directory."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ompaffinity.interpreter import child_command, install_command
from tests.conftest import ROOT
from tests.openmp.libraries import GOMP, needs_gomp

SHADOWED = ("ctypes", "importlib", "json", "mmap", "ompaffinity", "struct")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current directory')\n")
    return tmp_path


def test_a_child_imports_nothing_from_the_current_directory(hostile: Path) -> None:
    program = f"import {', '.join(SHADOWED)}\nprint(sys.argv[1:], ompaffinity.__version__)"
    done = subprocess.run(child_command(program, "a", "b"), cwd=hostile, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("['a', 'b'] "), done.stderr


@pytest.mark.parametrize(
    ("marker", "command"),
    [
        ("pipx_metadata.json", "pipx install --force 'x'"),
        ("uv-receipt.toml", "uv tool install 'x'"),
        (None, "python3 -m pip --python {prefix}/bin/python install 'x'"),
    ],
)
def test_installs_packages_by_the_tool_that_made_the_environment(
    marker: str | None, command: str, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    if marker is not None:
        (tmp_path / marker).touch()
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ompaffinity.interpreter import install_command"
    python = tmp_path / "bin" / "python"
    done = subprocess.run(
        [python, "-c", f"{program}; print(install_command('x'))"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == command.format(prefix=tmp_path)


@pytest.mark.parametrize(
    ("prefix", "is_managed", "makes_environment"),
    [("/usr", True, True), ("/usr", False, False), ("/home/x/.venv", True, False)],
)
def test_makes_an_environment_where_the_distribution_manages_the_packages(
    prefix: str, is_managed: bool, makes_environment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(tmp_path)}.__getitem__)
    if is_managed:
        (tmp_path / "EXTERNALLY-MANAGED").touch()
    assert install_command("x").startswith("python3 -m venv .venv && ") is makes_environment


@needs_gomp
@pytest.mark.parametrize(
    "arguments",
    [["verify", "--tp", "1", "--library", GOMP], ["run", "--tp", "1", "--probe", "decimal", "--", "true"]],
    ids=lambda words: words[0],
)
def test_verbs_import_nothing_from_the_current_directory(arguments: list[str], hostile: Path) -> None:
    done = subprocess.run(
        # As the installed command: the current directory is not on the path.
        child_command("from ompaffinity.cli.main import main; raise SystemExit(main(sys.argv[1:]))", *arguments),
        cwd=hostile,
        capture_output=True,
        text=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=False,
    )
    assert "imported from the current directory" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_probed_modules_are_found_where_this_process_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ompaffinity.openmp.detect import probe_runtimes

    (tmp_path / "only_here.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert probe_runtimes(["only_here"]) == ()
