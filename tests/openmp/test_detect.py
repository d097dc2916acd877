from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.errors import RequestError
from ompaffinity.openmp.detect import (
    RuntimeLibrary,
    expected_runtimes,
    family_of_file,
    loaded_runtimes,
    probe_runtimes,
)
from ompaffinity.openmp.library_path import find_library, preloaded_files
from ompaffinity.openmp.variables import environment_messages
from tests.conftest import needs_program
from tests.openmp.elf_files import DT_RPATH, DT_RUNPATH, crafted, old_table
from tests.openmp.libraries import (
    GOMP,
    INTEL,
    LLVM,
    NEWER_LLVM,
    needs_gcc,
    needs_gomp,
    needs_intel,
    needs_llvm,
    needs_newer_llvm,
    needs_torch,
)
from tests.placement.machines import plan_for


def found(library: str) -> str:
    path = find_library(library, {})
    assert path is not None
    return path


@needs_gomp
def test_detects_gnus_runtime_by_its_symbols(tmp_path: Path) -> None:
    assert family_of_file(found(GOMP)) == "gomp"
    disguised = tmp_path / "libiomp5.so"
    shutil.copy(found(GOMP), disguised)
    assert family_of_file(disguised) == "gomp"


@needs_llvm
def test_llvms_runtime_under_gnus_name_is_llvms(tmp_path: Path) -> None:
    link = tmp_path / "libgomp.so.1"
    link.symlink_to(found(LLVM))
    assert family_of_file(link) == "iomp"
    (library,) = [entry for entry in expected_runtimes({"LD_PRELOAD": str(link)}) if entry.reason == "preloaded"]
    assert library == RuntimeLibrary(os.path.realpath(found(LLVM)), "iomp", "preloaded")


@needs_newer_llvm
def test_a_newer_llvm() -> None:
    assert family_of_file(NEWER_LLVM) == "iomp"


@needs_intel
def test_intels_runtime() -> None:
    assert family_of_file(str(INTEL)) == "iomp"


def test_files_that_are_no_runtime(tmp_path: Path) -> None:
    text = tmp_path / "libomp.so"
    text.write_text("INPUT(-lomp)\n")
    assert [family_of_file(path) for path in (text, tmp_path, tmp_path / "missing", "/dev/null", "a\0b")] == [None] * 5
    assert family_of_file(sys.executable) is None


@needs_gomp
@given(st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=8), st.integers(0, 10**6))
def test_broken_files_are_no_runtime(changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(Path(found(GOMP)).read_bytes())
    for place, value in changes:
        content[place] = value
    with tempfile.NamedTemporaryFile() as file:
        file.write(content[:length])
        file.flush()
        assert family_of_file(file.name) in (None, "gomp")


def test_libraries_are_found_as_the_loader_finds_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "libthing.so").write_bytes(b"")
    path = f"{tmp_path}/none:{first}:{second}"
    assert find_library("libthing.so", {"LD_LIBRARY_PATH": path}) == str(first / "libthing.so")
    assert find_library("libthing.so", {"LD_LIBRARY_PATH": path}, [str(second)]) == str(second / "libthing.so")
    assert find_library("libthing.so", {}) is None
    assert find_library(str(first / "libthing.so"), {}) == str(first / "libthing.so")
    assert find_library(str(first / "missing.so"), {}) is None
    assert os.path.exists(found("libc.so.6"))
    listed = f"{first}/libthing.so:missing.so  {second}/libthing.so"
    assert preloaded_files({"LD_PRELOAD": listed})[:2] == [str(first / "libthing.so"), str(second / "libthing.so")]


@needs_torch
def test_torch_brings_its_own() -> None:
    (library,) = expected_runtimes({})
    assert (library.family, library.reason) == ("gomp", "torch's")
    assert "torch" in library.path
    assert "torch" not in sys.modules


@needs_torch
@needs_gomp
def test_a_preloaded_library_of_the_same_name_takes_torchs_place() -> None:
    (library,) = expected_runtimes({"LD_PRELOAD": GOMP})
    assert library == RuntimeLibrary(os.path.realpath(found(GOMP)), "gomp", "preloaded")
    (probed,) = probe_runtimes(["torch"], {**os.environ, "LD_PRELOAD": GOMP})
    assert probed == library._replace(reason="loaded")


@needs_torch
@needs_intel
def test_what_is_expected_is_what_a_worker_loads() -> None:
    environment = {**os.environ, "LD_PRELOAD": str(INTEL)}
    expected = expected_runtimes(environment)
    assert [library.family for library in expected] == ["iomp", "gomp"]
    assert [library[:2] for library in probe_runtimes(["torch"], environment)] == [library[:2] for library in expected]


def test_a_probe_ignores_what_the_interpreter_prints_before(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('started', flush=True)\n")
    assert probe_runtimes(["json"], {**os.environ, "PYTHONPATH": str(tmp_path)}) == ()


def test_reports_why_a_probe_fails() -> None:
    with pytest.raises(RequestError, match="ModuleNotFoundError: No module named 'missing_module'"):
        probe_runtimes(["missing_module"])
    with pytest.raises(RequestError, match="must be a name as in an import statement"):
        probe_runtimes(["os; import this"])
    assert probe_runtimes(["json"]) == ()


@needs_gomp
@needs_llvm
def test_what_this_process_has_loaded_the_one_in_the_global_scope_first() -> None:
    code = (
        "import ctypes, sys; [ctypes.CDLL(name) for name in sys.argv[1:]];"
        " from ompaffinity.openmp.detect import loaded_runtimes;"
        " print([library.family for library in loaded_runtimes()])"
    )

    def families(*libraries: str, **environment: str) -> str:
        command = [sys.executable, "-c", code, *libraries]
        environment = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()

    assert loaded_runtimes() == ()
    assert families() == "[]"
    assert families(GOMP) == "['gomp']"
    assert families(GOMP, LD_PRELOAD=LLVM) == "['iomp', 'gomp']"
    assert families(LLVM, LD_PRELOAD=GOMP) == "['gomp', 'iomp']"


def child_prints(code: str, *arguments: object, **environment: str) -> Any:
    """Return what a process prints that has run `code`: the value of `answer`, as JSON."""
    program = f"import ctypes, json, os, sys\n{code}\nprint(json.dumps(answer))\n"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=True)
    return json.loads(done.stdout)


PARALLEL_REGIONS = """
from ompaffinity.openmp.detect import loaded_runtimes, runtime_of_parallel_regions
for name in sys.argv[1:]:
    ctypes.CDLL(name)
answer = [runtime_of_parallel_regions(), [library.path for library in loaded_runtimes()]]
"""


@needs_gomp
@needs_llvm
def test_parallel_regions_use_the_preloaded_runtime_or_the_first() -> None:
    assert child_prints(PARALLEL_REGIONS) == [None, []]
    first, loaded = child_prints(PARALLEL_REGIONS, GOMP, LLVM)
    assert (first, len(loaded)) == (loaded[0], 2)
    for preloaded, other in ((GOMP, LLVM), (LLVM, GOMP)):
        first, _ = child_prints(PARALLEL_REGIONS, other, LD_PRELOAD=preloaded)
        assert os.path.realpath(first) == os.path.realpath(found(preloaded))


@needs_gomp
@needs_gcc
def test_parallel_regions_use_torchs_runtime_unless_one_is_preloaded(tmp_path: Path) -> None:
    torch = tmp_path / "libtorch_cpu.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", str(torch)], check=True)
    assert child_prints(PARALLEL_REGIONS, torch) == [None, []]
    assert child_prints(PARALLEL_REGIONS, torch, GOMP)[0] == str(torch)
    assert child_prints(PARALLEL_REGIONS, torch, LD_PRELOAD=GOMP)[0] != str(torch)


@needs_gomp
def test_a_loaded_runtime_whose_file_was_deleted_has_its_name_in_the_loader(tmp_path: Path) -> None:
    file, link = tmp_path / "libgomp-copy.so", tmp_path / "libgomp.so.1"
    shutil.copy(found(GOMP), file)
    link.symlink_to(file)
    code = (
        "from ompaffinity.openmp.detect import loaded_runtimes\n"
        "ctypes.CDLL(sys.argv[1])\n"
        "os.unlink(sys.argv[2])\n"
        "answer = [library.path for library in loaded_runtimes()]\n"
    )
    assert child_prints(code, link, file) == [str(link)]


RUNTIMES_OF_FILES = """
from ompaffinity.openmp.detect import runtimes_of_process
from ompaffinity.mapped import MappedFile, mapped_files
ctypes.CDLL(sys.argv[1])
missing = [MappedFile(number, number + 1, 0, number, f"/missing/libomp{number}.so", False) for number in range(64)]
count = int(sys.argv[2])
answer = runtimes_of_process(os.getpid(), [*missing[:count], *mapped_files("self")] if count else None)
"""


@needs_gomp
@pytest.mark.parametrize("missing", [0, 1, 63])
def test_reads_the_runtimes_of_a_process_beside_files_that_cannot_be_read(missing: int) -> None:
    libraries, problems = child_prints(RUNTIMES_OF_FILES, GOMP, missing)
    assert [tuple(library) for library in libraries] == [(os.path.realpath(found(GOMP)), "gomp", "loaded")]
    assert len(problems) == missing
    assert all("libomp" in problem and "cannot be read (No such file" in problem for problem in problems)


@needs_gomp
def test_reads_at_most_64_files_of_a_process_and_reports_the_rest() -> None:
    libraries, problems = child_prints(RUNTIMES_OF_FILES, GOMP, 64)
    assert (libraries, len(problems)) == ([], 65)
    assert "has mapped 65 such files" in problems[-1]


def test_finds_the_runtime_that_pip_installed_with_mkl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert expected_runtimes({}) == ()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").write_bytes(crafted(old_table(), symbol="__kmpc_fork_call"))
    assert expected_runtimes({}) == ()
    (tmp_path / "lib" / "libmkl_rt.so.3").touch()
    (library,) = expected_runtimes({})
    assert library == (str(tmp_path / "lib" / "libiomp5.so"), "iomp", "MKL's")


def standin_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, path_tag: int = DT_RUNPATH) -> Path:
    """Write and import-path a package that is linked with libgomp as torch is; return the file of that libgomp."""
    libraries = folder / "torch" / "lib"
    libraries.mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    torch = crafted(old_table(), symbol="none", needed="libgomp.so.1", path_tag=path_tag)
    (libraries / "libtorch_cpu.so").write_bytes(torch)
    (libraries / "libgomp.so.1").write_bytes(crafted(old_table()))
    monkeypatch.syspath_prepend(folder)
    return libraries / "libgomp.so.1"


@pytest.mark.parametrize("path_tag", [DT_RUNPATH, DT_RPATH])
def test_a_library_path_goes_before_a_runpath_of_torch_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_tag: int
) -> None:
    torchs, other = standin_torch(tmp_path, monkeypatch, path_tag), tmp_path / "libgomp.so.1"
    other.write_bytes(crafted(old_table()))
    expected = RuntimeLibrary(str(other if path_tag == DT_RUNPATH else torchs), "gomp", "torch's")
    assert expected_runtimes({"LD_LIBRARY_PATH": str(tmp_path)}) == (expected,)


@pytest.mark.parametrize(("soname", "reasons"), [("libgomp.so.1", ["preloaded"]), ("x.so", ["preloaded", "torch's"])])
def test_a_preloaded_runtime_replaces_torchs_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soname: str, reasons: list[str]
) -> None:
    standin_torch(tmp_path, monkeypatch)
    preloaded = tmp_path / "preloaded.so"
    preloaded.write_bytes(crafted(old_table(), soname=soname))
    found = expected_runtimes({"LD_PRELOAD": str(preloaded)})
    assert [library.reason for library in found] == reasons


def test_a_runtime_is_listed_once_and_other_preloaded_libraries_are_not(tmp_path: Path) -> None:
    path, link, other = tmp_path / "x.so", tmp_path / "link.so", tmp_path / "other.so"
    path.write_bytes(crafted(old_table()))
    link.symlink_to(path)
    other.write_bytes(crafted(old_table(), symbol="other"))
    (library,) = [
        found for found in expected_runtimes({"LD_PRELOAD": f"{other} {path} {link}"}) if found.reason == "preloaded"
    ]
    assert library.path == str(path)


@needs_torch
def test_the_manager_probes_the_given_modules() -> None:
    manager = OMPProcessManager(probe="torch")
    assert (manager.plan.runtime, manager.plan.granularity) == ("gomp", "thread")
    assert OMPProcessManager(probe=["json"]).plan.runtime == "omp"


def test_names_the_variables_that_workers_do_not_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for("core:4 pu:1", reserve=0)
    environment = {"KMP_AFFINITY": "disabled", "OMP_DYNAMIC": "TRUE", "OMP_NUM_THREADS": "3", "OMP_SCHEDULE": "static"}
    (message,) = environment_messages(environment, plan)
    assert (message.code, message.level) == ("environment-overridden", "note")
    assert "OMP_NUM_THREADS='3', OMP_DYNAMIC='TRUE', KMP_AFFINITY='disabled';" in message.message
    assert environment_messages({"OMP_NUM_THREADS": "4", "OMP_DYNAMIC": "False", "MKL_NUM_THREADS": "2"}, plan) == []
    (message,) = environment_messages({"GOTO_NUM_THREADS": "2", "MKL_DOMAIN_NUM_THREADS": "MKL_DOMAIN_ALL=9"}, plan)
    assert "GOTO_NUM_THREADS='2', MKL_DOMAIN_NUM_THREADS='MKL_DOMAIN_ALL=9';" in message.message
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    assert "environment-overridden" in [message.code for message in OMPProcessManager(runtime="gomp").messages]


@needs_llvm
def test_tokens_of_the_loader_are_expanded() -> None:
    path = os.path.realpath(found(LLVM))
    folder, name = os.path.split(found(LLVM))
    token = re.sub(r"/lib(64|/[^/]+-linux-gnu)?$", "/$LIB", folder)
    assert "$LIB" in token
    assert [os.path.realpath(file) for file in preloaded_files({"LD_PRELOAD": f"{token}/{name}"})][:1] == [path]
    relative = os.path.relpath(path, os.path.dirname(os.path.realpath(sys.executable)))
    names = {"LD_PRELOAD": f"$ORIGIN/{relative} ${{ORIGIN}}/{relative}"}
    assert [os.path.realpath(file) for file in preloaded_files(names)][:2] == [path, path]


@needs_torch
@needs_llvm
def test_a_library_path_goes_before_torchs_own_folder(tmp_path: Path) -> None:
    (tmp_path / "libgomp.so.1").symlink_to(found(LLVM))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    (expected,) = expected_runtimes(environment)
    (probed,) = probe_runtimes(["torch"], environment)
    assert (expected.path, expected.family) == (probed.path, probed.family) == (os.path.realpath(found(LLVM)), "iomp")


@pytest.fixture(params=["enable", "disable"], ids=["runpath", "rpath"])
def torch_package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package torch that is linked with the libgomp.so.1 beside it; the folder other has another one."""
    package = tmp_path / "torch"
    for folder in (package / "lib", tmp_path / "other"):
        folder.mkdir(parents=True)
        command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libgomp.so.1", "-x", "c", "-", "-o", str(folder / GOMP)]
        subprocess.run(command, input=b"void GOMP_parallel(void) {}", check=True)
    (package / "__init__.py").touch()
    link = f"-Wl,--no-as-needed,--{request.param}-new-dtags,-rpath,$ORIGIN"
    command = ["gcc", "-shared", link, "-x", "c", "/dev/null", "-x", "none", str(package / "lib" / GOMP)]
    subprocess.run([*command, "-o", str(package / "lib" / "libtorch_cpu.so")], check=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


@needs_program("gcc")
def test_a_library_path_goes_before_a_runpath_and_after_an_rpath(torch_package: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(torch_package.parent / "other")}
    code = (
        "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(*{line.split()[-1] for line in open('/proc/self/maps')})"
    )
    command = [sys.executable, "-c", code, str(torch_package / "lib" / "libtorch_cpu.so")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (loaded,) = [path for path in done.stdout.split() if path.endswith(GOMP)]
    assert [library.path for library in expected_runtimes(environment)] == [loaded]


def test_a_probe_sees_what_this_interpreter_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_beside.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert probe_runtimes(["module_beside"]) == ()
