from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ompaffinity.doctor import software
from ompaffinity.doctor.record import Check
from ompaffinity.doctor.software import software_checks
from ompaffinity.errors import RequestError
from tests.conftest import run_command
from tests.doctor.checks import checked
from tests.openmp.libraries import GOMP, NEWER_LLVM, needs_gomp, needs_newer_llvm


@needs_gomp
@needs_newer_llvm
def test_finds_two_runtimes_in_an_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=60)
    python = str(tmp_path / "env" / "bin" / "python")
    assert checked(software_checks({}, python))["OpenMP runtimes"].level == "ok"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "one").mkdir()
    (site / "one" / "libiomp5.so").symlink_to(NEWER_LLVM)
    assert "(iomp)" in checked(software_checks({}, python))["OpenMP runtimes"].message
    # The same file under another name is not a second runtime.
    (site / "libomp.so").symlink_to(NEWER_LLVM)
    assert checked(software_checks({}, python))["OpenMP runtimes"].level == "ok"
    from ompaffinity.openmp.library_path import find_library

    gnu = find_library(GOMP, {})
    assert gnu is not None
    (site / "libgomp-a34b3233.so.1").symlink_to(gnu)
    check = checked(software_checks({}, python))["OpenMP runtimes"]
    assert (check.level, "(gomp)" in check.message) == ("warning", True)
    preloaded = checked(software_checks({"LD_PRELOAD": f"{gnu}:{NEWER_LLVM}"}, python))["LD_PRELOAD"]
    assert preloaded.level == "warning"


@needs_newer_llvm
def test_names_the_runtimes_on_the_library_path_of_an_environment_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=60)
    python = str(tmp_path / "env" / "bin" / "python")
    (tmp_path / "libomp.so.5").symlink_to(NEWER_LLVM)
    # It has the name of a runtime, and is none.
    (tmp_path / "libiomp5.so").touch()
    environ = {"LD_LIBRARY_PATH": str(tmp_path)}
    message = checked(software_checks(environ, python))["OpenMP runtimes"].message
    assert f"{tmp_path / 'libomp.so.5'} (iomp)" in message
    assert "libiomp5" not in message
    monkeypatch.setattr(software, "system_runtimes", lambda environ: ())
    message = checked(software_checks({}, python))["OpenMP runtimes"].message
    assert message == f"none in the environment of {python}; none on the library path either"


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true", ""])
def test_rejects_python_options_that_are_no_interpreter(python: str) -> None:
    with pytest.raises(RequestError, match="--python"):
        list(software_checks({}, python))
    done = run_command("doctor", "--python", python)
    assert done.returncode == 2
    assert done.stderr.startswith("ompaffinity: error: --python")
    assert done.stderr.count("\n") == 1


def test_names_the_variables_that_break_a_binding() -> None:
    check = checked(software_checks({"OMP_PLACES": "cores", "KMP_AFFINITY": "none"}))["OpenMP variables"]
    assert (check.level, check.message) == ("warning", "OMP_PLACES=cores, KMP_AFFINITY=none")
    assert str(check.fix).endswith("unset OMP_PLACES KMP_AFFINITY")
    check = checked(software_checks({}))["OpenMP variables"]
    assert check == Check("OpenMP variables", "ok", "none that break a binding")


@needs_newer_llvm
def test_names_the_runtime_that_is_preloaded() -> None:
    check = checked(software_checks({"LD_PRELOAD": str(NEWER_LLVM)}))["LD_PRELOAD"]
    assert check == Check("LD_PRELOAD", "ok", str(NEWER_LLVM))
    assert checked(software_checks({}))["LD_PRELOAD"] == Check("LD_PRELOAD", "ok", "no OpenMP runtime")


@needs_newer_llvm
@pytest.mark.parametrize(
    ("place", "is_found"),
    [
        ("lib/libomp.so.5", True),
        ("lib/below/libomp.so.5", False),
        ("lib/python{version}/site-packages/a/b/libomp.so", True),
        ("lib/omp.so", False),
        ("lib/libopen.so", False),
        ("lib/libomp.a", False),
    ],
)
def test_finds_runtimes_in_packages_and_in_lib_itself(place: str, is_found: bool, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True, timeout=60)
    path = tmp_path / "env" / place.format(version=f"{sys.version_info[0]}.{sys.version_info[1]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(NEWER_LLVM)
    check = checked(software_checks({}, str(tmp_path / "env" / "bin" / "python")))["OpenMP runtimes"]
    assert check.level == "ok"
    assert check.message.startswith("none in the environment") is not is_found


def test_names_the_gpu_libraries(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    (tmp_path / "libze_loader.so.1").touch()
    message = checked(software_checks({"LD_LIBRARY_PATH": str(tmp_path)}))["GPU libraries"].message
    assert f"NVIDIA ({tmp_path / 'libnvidia-ml.so.1'})" in message
    assert f"Intel ({tmp_path / 'libze_loader.so.1'})" in message
    assert "AMD" not in message


def test_without_gpu_libraries_sysfs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "GPU_LIBRARIES", {"NVIDIA": "libnone-of-that-name.so.1"})
    message = checked(software_checks({}))["GPU libraries"].message
    assert message == "none; GPUs are detected from sysfs only"
