"""The verdict on real engines and programs: no false `holds`, no false `differs`, and the true cause."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, needs_two_cpus

PROGRAMS = Path(__file__).parent / "programs"
UV = str(Path(sys.executable).with_name("uv"))
ALL_CPUS = ("--reserve", "0")
TWO_RANKS = ("--tp", "2")
pytestmark = needs_two_cpus


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (the extra [test-engines])")


def command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, arguments)]


def document_of(words: tuple[str, ...]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "ompaffinity", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    if words[0] == "verify":
        assert done.returncode == {"holds": 0, "differs": 1, "unproven": 3}[document["verdict"]]
    return document


def verified(plan: tuple[str, ...], started: list[str], seconds: int = 8) -> Any:
    return document_of(("verify", *plan, "--seconds", str(seconds), "--json", "--", *started))


def causes(document: Any) -> str:
    found = [difference for rank in document["ranks"] for difference in rank["differences"]]
    return "\n".join(f"{difference['message']}: {difference['cause']}" for difference in found)


@contextmanager
def running(plan: tuple[str, ...], started: list[str], output: Path, ready: str, count: int = 1) -> Iterator[int]:
    """Start ``run`` with a command, wait until its output has this text so many times, and yield its pid."""
    words = [sys.executable, "-m", "ompaffinity", "run", *plan, "--", *started]
    with output.open("w+") as file, subprocess.Popen(words, stdout=file, stderr=file, cwd=ROOT) as process:
        try:
            end = time.monotonic() + 60
            while output.read_text().count(ready) < count:
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < end, output.read_text()
                time.sleep(0.1)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)


@needs("torch")
@pytest.mark.parametrize("granularity", ["thread", "team"])
@pytest.mark.parametrize(("threads", "verdict"), [(2, "holds"), (1, "differs"), (8, "differs")])
def test_a_team_of_torch(threads: int, verdict: str, granularity: str) -> None:
    plan = (*ALL_CPUS, "--cpus", "0-1", "--granularity", granularity)
    document = verified(plan, command("torch_team", threads), 10)
    assert document["verdict"] == verdict, document
    assert document["ranks"][0]["level"] == "threads"
    if verdict == "differs":
        assert "the program set another number of threads" in causes(document)
        assert "two OpenMP runtimes" not in causes(document)


@needs("torch")
def test_ranks_of_one_thread_that_form_a_larger_team_after_loading() -> None:
    document = verified(TWO_RANKS, command("torch_team", 8, 3), 12)
    assert [rank["verdict"] for rank in document["ranks"]] == ["differs"] * 2, document
    assert "the plan has 1: the program set another number of threads" in causes(document)


@needs("torch")
@pytest.mark.parametrize(("threads", "verdict"), [(0, "holds"), (8, "differs")])
def test_live_ranks_of_torch(threads: int, verdict: str, tmp_path: Path) -> None:
    with running(TWO_RANKS, command("torch_team", threads), tmp_path / "output", "working", 2) as pid:
        # The process of ompaffinity above the ranks is enough.
        document = document_of(("verify", "--pid", str(pid), "--json"))
        found = document_of(("inspect", "--pid", str(pid), "--json"))
    assert [rank["verdict"] for rank in document["ranks"]] == [verdict] * 2, document
    kinds = [process["kind"] for process in found["processes"]]
    assert (kinds[0], kinds.count("rank")) == ("supervisor", 2)
    assert {finding["code"] for finding in found["findings"]} == (
        set() if verdict == "holds" else {"threads-on-one-cpu"}
    )


@needs("torch")
@pytest.mark.parametrize(
    "wrapper",
    [
        ("bash", "-c", '"$@"; true', "bash"),
        ("env", "OTHER=1"),
        pytest.param((UV, "run", "--no-project"), marks=needs("uv")),
    ],
    ids=["bash", "env", "uv"],
)
def test_the_worker_below_a_wrapper(wrapper: tuple[str, ...]) -> None:
    document = verified((*ALL_CPUS, "--cpus", "0-1"), [*wrapper, *command("torch_team")], 12)
    assert document["verdict"] == "holds", document


@needs("torch")
def test_several_threads_of_a_program_with_a_team_each() -> None:
    document = verified((*ALL_CPUS, "--cpus", "0-1"), command("torch_handlers"))
    assert document["verdict"] == "differs"
    assert "several threads of the program (4 busy ones) form an OpenMP team each" in causes(document)


@needs("torch", "gunicorn", "setproctitle")
@pytest.mark.parametrize("title", [False, True])
@pytest.mark.parametrize("preload", [False, True])
def test_workers_of_a_prefork_server(
    preload: bool, title: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With setproctitle the server overwrites its environment, and only the plan has the placement."""
    plan = (*ALL_CPUS, "--cpus", "0-1")
    if not title:
        (tmp_path / "setproctitle.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(document_of(("plan", *plan, "--json"))))
    socket = f"unix:{tmp_path}/socket"
    words = ["-m", "gunicorn", *(["--preload"] if preload else []), "-w", "2", "-b", socket, "--chdir", str(PROGRAMS)]
    started = [sys.executable, *words, "prefork_app:application"]
    with running(plan, started, tmp_path / "output", "Booting worker", 2) as pid:
        # The workers import torch after that.
        time.sleep(4)
        against = ("--plan", str(file)) if title else ()
        document = document_of(("verify", "--pid", str(pid), *against, "--seconds", "2", "--json"))
        found = document_of(("inspect", "--pid", str(pid), "--json"))
    assert [rank["verdict"] for rank in document["ranks"]] == ["differs"] * 2, document
    assert "both were forked by process" in causes(document)
    assert ("--preload" in causes(document)) == preload
    assert "fork server" not in causes(document)
    assert [finding["code"] for finding in found["findings"]] == ([] if title else ["placement-shared"])


@needs("numba")
@pytest.mark.parametrize(("threads", "verdict"), [((), "holds"), ((2,), "unproven")])
def test_numba_beside_a_helper_cpu(threads: tuple[int, ...], verdict: str) -> None:
    """The plan sets its number of threads; it counts the CPUs of its mask otherwise."""
    document = verified(("--cpus", "0-1", "--reserve", "1"), command("numba_loop", *threads), 10)
    assert document["verdict"] == verdict, document
    assert any("NUMBA_NUM_THREADS=1" in note for note in document["ranks"][0]["notes"]) == (verdict == "unproven")


@needs("numba")
@pytest.mark.parametrize(("threads", "verdict"), [((), "holds"), ((1,), "differs")])
def test_numba_on_all_cpus(threads: tuple[int, ...], verdict: str) -> None:
    # Its compiler runs for seconds in one thread, which is no smaller team.
    document = verified((*ALL_CPUS, "--cpus", "0-1"), command("numba_loop", *threads), 12)
    assert document["verdict"] == verdict, document


@needs("onnxruntime", "onnx")
def test_onnxruntime_leaves_the_mask_by_itself() -> None:
    document = verified(("--dp", "2"), command("onnxruntime_session"))
    assert document["verdict"] == "differs"
    assert "outside of the rank's 0: the program pinned its own threads to CPU 1; with onnxruntime, set" in causes(
        document
    )
    assert "no OpenMP runtime" not in causes(document)


@needs("onnxruntime", "onnx")
@pytest.mark.parametrize(("plan", "threads"), [(("--dp", "2"), 1), ((*ALL_CPUS, "--cpus", "0-1"), 2)])
def test_onnxruntime_with_the_planned_number_of_threads(plan: tuple[str, ...], threads: int) -> None:
    document = verified(plan, command("onnxruntime_session", threads))
    assert document["verdict"] == "holds", document
    assert {rank["level"] for rank in document["ranks"]} == {"mask"}
    assert {tuple(rank["engines"]) for rank in document["ranks"]} == {("onnxruntime",)}


@needs("openvino")
@pytest.mark.parametrize("plan", [TWO_RANKS, (*ALL_CPUS, "--cpus", "0-1")])
def test_openvino_counts_the_cpus_of_its_mask(plan: tuple[str, ...]) -> None:
    document = verified(plan, command("openvino_model"))
    assert document["verdict"] == "holds", document
    assert document["ranks"][0]["level"] == "mask"


@needs("polars")
@pytest.mark.parametrize("plan", [TWO_RANKS, (*ALL_CPUS, "--cpus", "0-1")])
def test_polars_counts_the_cpus_of_its_mask(plan: tuple[str, ...]) -> None:
    document = verified(plan, command("polars_groups"))
    assert document["verdict"] == "holds", document
    assert document["ranks"][0]["level"] == "mask"


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "random.gguf"
    subprocess.run(command("llama_server", path), check=True)
    return path


@needs("xllamacpp", "gguf")
@pytest.mark.parametrize(("threads", "verdict"), [(0, "differs"), (1, "holds")])
def test_llama_counts_the_cpus_of_the_machine(threads: int, verdict: str, llama_model: Path) -> None:
    document = verified(TWO_RANKS, command("llama_server", llama_model, threads))
    assert document["verdict"] == verdict, document
    if verdict == "differs":
        assert "with llama.cpp, set -t 1" in causes(document)


@needs("xllamacpp", "gguf")
def test_llama_with_the_planned_number_of_threads(llama_model: Path) -> None:
    document = verified((*ALL_CPUS, "--cpus", "0-1"), command("llama_server", llama_model, 2))
    assert document["verdict"] == "holds", document


@needs("onnxruntime", "onnx", "openvino", "xllamacpp", "gguf")
@pytest.mark.parametrize("plan", [TWO_RANKS, (*ALL_CPUS, "--cpus", "0-1")])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "llama.cpp"])
def test_an_engine_with_the_settings_of_its_placement(engine: str, plan: tuple[str, ...], llama_model: Path) -> None:
    document = verified(plan, command("bound_by_settings", engine, llama_model))
    assert document["verdict"] == "holds", document
    if plan != TWO_RANKS and engine != "openvino":
        threads = document["ranks"][0]["threads"]
        # Each thread after the first has its own CPU.
        assert threads[1]["cpus"] in ("0", "1"), document


@needs("ctranslate2")
@pytest.mark.parametrize(("workers", "verdict"), [(1, "holds"), (2, "differs")])
def test_ctranslate2_forms_a_team_per_worker(workers: int, verdict: str, tmp_path: Path) -> None:
    subprocess.run(command("ctranslate2_generator", tmp_path / "model"), check=True)
    document = verified((*ALL_CPUS, "--cpus", "0-1"), command("ctranslate2_generator", tmp_path / "model", workers))
    assert document["verdict"] == verdict, document
    if verdict == "differs":
        assert "several threads of the program (2 busy ones) form an OpenMP team each" in causes(document)


@needs("setproctitle")
def test_a_title_that_overwrites_the_environment(tmp_path: Path) -> None:
    code = "import setproctitle; setproctitle.setproctitle('worker'); print('ready', flush=True)\nwhile True: pass"
    started = [sys.executable, "-c", code]
    with running((*ALL_CPUS, "--cpus", "0"), started, tmp_path / "output", "ready") as pid:
        words = [sys.executable, "-m", "ompaffinity", "verify", "--pid", str(pid)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
        plan = tmp_path / "plan.json"
        plan.write_text(json.dumps(document_of(("plan", *ALL_CPUS, "--cpus", "0", "--json"))))
        document = document_of(("verify", "--pid", str(pid), "--plan", str(plan), "--json"))
    assert done.returncode == 2
    assert "or the program has overwritten it" in done.stderr
    assert document["verdict"] == "holds", document
    (rank,) = document["ranks"]
    assert any("has overwritten a part of its environment" in note for note in rank["notes"])
    assert not any("not started by the manager" in note for note in rank["notes"])


@needs("torch")
def test_the_output_of_a_program_is_not_changed() -> None:
    words = ["verify", *ALL_CPUS, "--seconds", "30", "--", *command("torch_team")]
    done = subprocess.run(
        [sys.executable, "-m", "ompaffinity", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert lines == ["working"]
