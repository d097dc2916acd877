"""AMD GPUs: the real amdsmi, installed in its own folder, over a stand-in library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.devices.amdsmi import read_amdsmi
from ompaffinity.topology.sysfs import read_sysfs
from ompaffinity.topology.tree import DirectoryTree
from tests.conftest import ROOT
from tests.devices.amdsmi_standin import build
from tests.devices.test_devices import TWO_NODES, gpu, machine

APART = Path(sys.prefix, "amdsmi-apart")
WRAPPER = APART / "amdsmi" / "amdsmi_wrapper.py"
needs_amdsmi = pytest.mark.skipif(
    not WRAPPER.exists() or shutil.which("gcc") is None,
    reason="amdsmi is not installed apart (scripts/run-tests test,test-runtimes does that), or gcc is missing",
)
PROGRAM = """
import json, sys
from tests.devices.test_devices import seen
found = seen(sys.argv[1], json.loads(sys.argv[2]), query_drivers=True)
rows = [[d.address, list(d.nodes), d.source, d.uuid, [a.detail for a in d.answers]] for d in found.gpus]
print(json.dumps([rows, [message.code for message in found.messages], found.libraries["amd"]]))
"""
PLAN = """\
gpu bdf=0000:c1:00.0 node=1 uuid=aaaa0000-1
gpu bdf=0000:c2:00.0 node=0 uuid=bbbb0000-2
"""


@pytest.fixture(scope="module")
def rocm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rocm")
    build(WRAPPER, folder)
    return folder


def query(root: Path, rocm: Path | None, plan: str = PLAN, environ: dict[str, str] | None = None) -> Any:
    """Return the GPUs of a new process: [rows, codes of the messages, state of amdsmi]."""
    (root / "plan").write_text(plan)
    variables = {"PYTHONPATH": str(APART), "OMPAFFINITY_AMDSMI_PLAN": str(root / "plan")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), json.dumps(environ or {})],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, **variables, **({} if rocm is None else {"ROCM_PATH": str(rocm)})},
    )
    assert done.returncode == 0, done.stderr
    # The binding prints nothing to the caller's output.
    return json.loads(done.stdout)


@needs_amdsmi
def test_reads_the_node_from_amdsmi_where_sysfs_has_none(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    for address in ("0000:c1:00.0", "0000:c2:00.0"):
        gpu(tmp_path, address, -1, "0-7", vendor="0x1002")
    rows, codes, state = query(tmp_path, rocm)
    assert [row[:4] for row in rows] == [
        ["0000:c1:00.0", [1], "amdsmi", "GPU-aaaa0000-1"],
        ["0000:c2:00.0", [0], "amdsmi", "GPU-bbbb0000-2"],
    ]
    assert (codes, state) == ([], "ok")


@needs_amdsmi
def test_hip_selects_among_the_gpus_of_rocr(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    rows, _, _ = query(tmp_path, rocm, environ={"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"})
    assert [row[:2] for row in rows] == [["0000:c1:00.0", [1]]]
    rows, _, _ = query(tmp_path, rocm, environ={"HIP_VISIBLE_DEVICES": "GPU-bbbb"})
    assert [row[:2] for row in rows] == [["0000:c2:00.0", [0]]]


@needs_amdsmi
def test_numbers_gpus_in_the_order_of_hip(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    plan = "gpu bdf=0000:05:00.0 node=0 hip=1 uuid=a\ngpu bdf=0000:85:00.0 node=1 hip=0 uuid=b\n"
    rows, _, _ = query(tmp_path, rocm, plan)
    assert [row[0] for row in rows] == ["0000:85:00.0", "0000:05:00.0"]
    rows, _, _ = query(tmp_path, rocm, plan, environ={"HIP_VISIBLE_DEVICES": "0"})
    assert [row[:2] for row in rows] == [["0000:85:00.0", [1]]]


@needs_amdsmi
def test_numbers_the_partitions_of_a_gpu(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    plan = "".join(f"gpu bdf=0000:{5 + at // 2:02x}:00.0 node={at // 2} hip={at} uuid={at}\n" for at in range(4))
    rows, _, _ = query(tmp_path, rocm, plan)
    assert [row[1] for row in rows] == [[0], [0], [1], [1]]


@needs_amdsmi
def test_imports_nothing_from_the_current_directory(
    tmp_path: Path, rocm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, TWO_NODES)
    (tmp_path / "json.py").write_text("raise SystemExit('executed')\n")
    (tmp_path / "plan").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(APART))
    monkeypatch.setenv("OMPAFFINITY_AMDSMI_PLAN", str(tmp_path / "plan"))
    monkeypatch.setenv("ROCM_PATH", str(rocm))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with DirectoryTree(str(tmp_path)) as tree:
        view = read_amdsmi(tree, read_sysfs(tree, architecture="x86_64", machine="test"))
    assert view.problem is None
    assert len(view.gpus) == 2


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (r"b'\xff\xfe'", "printed no result"),
        (r"b'ompaffinity-amdsmi:{'", "invalid"),
        (r"b'ompaffinity-amdsmi:[]'", "invalid"),
        (r"b'ompaffinity-amdsmi:{\"gpus\": 3}'", "invalid"),
    ],
)
def test_rejects_an_invalid_result_of_amdsmi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, words: str
) -> None:
    machine(tmp_path, TWO_NODES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("ompaffinity.devices.amdsmi.PROGRAM", f"import sys; sys.stdout.buffer.write({printed})")
    with DirectoryTree(str(tmp_path)) as tree:
        view = read_amdsmi(tree, read_sysfs(tree, architecture="x86_64", machine="test"))
    assert words in (view.problem or "")


@needs_amdsmi
def test_an_unknown_node_leaves_other_gpus_unaffected(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    plan = (
        "gpu bdf=0000:c1:00.0 node=-1 uuid=a\ngpu bdf=0000:c2:00.0 error=2 uuid=b\ngpu bdf=0000:c3:00.0 node=1 uuid=c\n"
    )
    rows, codes, _ = query(tmp_path, rocm, plan)
    assert [row[1] for row in rows] == [[], [], [1]]
    assert codes == ["device-node-unknown"] * 2


@needs_amdsmi
def test_sysfs_overrides_amdsmi_and_the_difference_is_reported(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:c1:00.0", 0, "0-3", vendor="0x1002")
    rows, codes, _ = query(tmp_path, rocm, "gpu bdf=0000:c1:00.0 node=1 uuid=a\n")
    assert rows[0][1:3] == [[0], "sysfs"]
    assert codes == ["device-sources-disagree"]


@needs_amdsmi
def test_a_container_has_only_the_gpus_of_its_driver(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    for address in ("0000:c1:00.0", "0000:c2:00.0"):
        gpu(tmp_path, address, 1, "4-7", vendor="0x1002")
    rows, _, _ = query(tmp_path, rocm, "gpu bdf=0000:c2:00.0 node=1 uuid=b\n")
    assert [row[0] for row in rows] == ["0000:c2:00.0"]


@needs_amdsmi
def test_falls_back_to_sysfs_without_a_driver(tmp_path: Path, rocm: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:c1:00.0", 1, "4-7", vendor="0x1002")
    rows, codes, state = query(tmp_path, rocm, "init_error 34\n")
    assert [row[:3] for row in rows] == [["0000:c1:00.0", [1], "sysfs"]]
    assert codes == []
    assert "34" in state or "as the plan says" in state


@needs_amdsmi
@pytest.mark.skipif(Path("/opt/rocm").exists(), reason="AMD's own library is installed here")
def test_falls_back_to_sysfs_without_the_amd_library(tmp_path: Path) -> None:
    machine(tmp_path, TWO_NODES)
    gpu(tmp_path, "0000:c1:00.0", 1, "4-7", vendor="0x1002")
    rows, _, state = query(tmp_path, None)
    assert [row[:3] for row in rows] == [["0000:c1:00.0", [1], "sysfs"]]
    assert "libamd_smi.so" in state


def test_reports_a_missing_amdsmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, TWO_NODES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with DirectoryTree(str(tmp_path)) as tree:
        view = read_amdsmi(tree, read_sysfs(tree, architecture="x86_64", machine="test"))
    assert view.gpus == ()
    assert view.problem == "amdsmi is not installed (the extra [amd])"
