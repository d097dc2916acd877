from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ompaffinity.messages import Message
from tests.conftest import ROOT


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Message("a", "note", "b").code = "c"  # type: ignore[misc]


HEAVY = {"numpy", "rich", "psutil", "numa", "torch", "ray", "subprocess", "asyncio"}
DEPENDENCIES = HEAVY | {"amdsmi", "defusedxml", "drawsvg", "elftools", "pynvml", "resvg_py", "vllm"}
"""What the package loads only when it is used."""


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_no_dependency() -> None:
    assert not loaded_by("import ompaffinity") & DEPENDENCIES


@pytest.mark.parametrize("words", [["plan", "--json"], ["plan"], ["plan", "--synthetic", "core:2 pu:2"], ["topology"]])
def test_what_must_start_fast_loads_no_heavy_module(words: list[str]) -> None:
    assert not loaded_by(f"from ompaffinity.cli.main import main; main({words})") & HEAVY


def test_every_public_name_is_there() -> None:
    import ompaffinity

    assert all(getattr(ompaffinity, name) is not None for name in ompaffinity.__all__)
    assert set(ompaffinity.__all__) <= set(dir(ompaffinity))
    with pytest.raises(AttributeError):
        ompaffinity.no_such_name  # noqa: B018


def test_every_public_name_is_documented_under_its_public_path() -> None:
    import ompaffinity

    documented = re.findall(r"\.\. auto\w+:: ompaffinity\.(\S+)", (ROOT / "docs" / "api.md").read_text())
    of_ray = {name.removeprefix("ray.") for name in documented if name.startswith("ray.")}
    assert of_ray == set(ompaffinity.ray.__all__)
    assert {name for name in documented if "." not in name} == set(ompaffinity.__all__) - {"__version__", "ray"}
    assert all(name.startswith("ray.") for name in documented if "." in name)


def test_a_command_does_not_look_for_garbage_while_it_starts() -> None:
    code = (
        "import gc, sys; from ompaffinity.__main__ import main; sys.argv = ['ompaffinity', 'plan', '--json']\n"
        "before = [found['collections'] for found in gc.get_stats()]; main()\n"
        "print([found['collections'] for found in gc.get_stats()] == before, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "True"


def test_a_command_does_not_look_for_garbage_when_it_ends() -> None:
    code = (
        "import gc, sys; from ompaffinity.__main__ import main; sys.argv = ['ompaffinity', 'plan', '--json']\n"
        "main(); print(gc.get_objects() == [], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "True"
