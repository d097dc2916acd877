"""Saved options, used by every verb, the manager and the environment."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.bind.live_plan import live_plan
from ompaffinity.bind.manager import OMPProcessManager
from ompaffinity.bind.saved_options import measured_machine, read_saved_options, resolved
from ompaffinity.errors import RequestError
from ompaffinity.topology.model import Limits
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, run_command
from tests.placement.machines import synthetic


def saved(path: Path, options: str, **machine: object) -> str:
    """Write a file as `compare --save` does, with other facts about the machine."""
    facts = measured_machine(load_topology()).to_document() | machine
    path.write_text(json.dumps({"schema": "ompaffinity.options/1", "options": options, "machine": facts}))
    return str(path)


def test_options_that_are_given_have_precedence_over_the_file(tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", "--reserve 1 --span machine")
    assert resolved({"options": file, "reserve": 0}, {}).given == {"reserve": 0, "span": "machine"}


def test_lists_that_are_given_replace_what_the_file_plans(tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", "--reserve 1 --threads-per-core 1 --runtime gomp")
    given = resolved({"options": file, "bind": ((0,),)}, {}).given
    assert given == {"bind": ((0,),), "runtime": "gomp"}


def test_the_file_has_precedence_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "best.json", "--bind none")
    monkeypatch.setenv("OMPAFFINITY_BIND", str(CPUS[0]))
    assert not live_plan({"options": file}).ranks[0].bound
    assert live_plan({}).ranks[0].bound


def test_the_environment_names_a_file_and_options_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "best.json", "--bind none --runtime gomp")
    monkeypatch.setenv("OMPAFFINITY_OPTIONS", f"--runtime iomp --options {file}")
    plan = OMPProcessManager().plan
    assert (plan.ranks[0].bound, plan.runtime) == (False, "iomp")
    monkeypatch.setenv("OMPAFFINITY_OPTIONS", f"--options={file}")
    assert OMPProcessManager().plan.runtime == "gomp"


@pytest.mark.parametrize("verb", [("plan",), ("run", "--", "true"), ("exec", "--", "true"), ("verify", "--", "true")])
def test_every_verb_that_plans_reads_the_file(verb: tuple[str, ...], tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", "--cpus 99999")
    done = run_command(verb[0], "--options", file, *verb[1:])
    assert done.returncode == 2
    assert "--cpus" in done.stderr


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"architecture": "s390x"}, "s390x, here"),
        ({"model": "Some other CPU"}, "Some other CPU, here"),
        ({"cpus": 192}, "192 CPUs online, here"),
        ({"nodes": 64}, "64 NUMA nodes, here"),
        ({"allowed": "1000-1003"}, "CPU 1000-1003 allowed, here CPU"),
        ({"quota": 250}, "2.5 CPUs as quota, here"),
        ({"quota": 0}, "0 CPUs as quota, here"),
    ],
)
def test_another_machine_or_other_limits_are_a_warning(machine: dict[str, object], words: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", "--bind none", **machine)
    (message,) = [found for found in OMPProcessManager(options=file).messages if "measured" in found.code]
    assert (message.code, message.level) == ("options-measured-elsewhere", "warning")
    assert words in message.message
    assert "[options-measured-elsewhere]" in run_command("plan", "--options", file).stderr


def test_the_same_machine_is_no_warning(tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", "--bind none")
    assert not [found for found in OMPProcessManager(options=file).messages if "measured" in found.code]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not what `ompaffinity compare --save` writes"),
        ("{}", "is not what `ompaffinity compare --save` writes"),
        ('{"schema": "ompaffinity.plan/1"}', "schema"),
        ('{"schema": "ompaffinity.options/1", "options": 5}', "options"),
        ('{"schema": "ompaffinity.options/1", "options": ""}', "machine"),
    ],
)
def test_rejects_a_file_that_holds_something_else(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    file.write_text(content)
    with pytest.raises(RequestError, match=words):
        read_saved_options(file)


@pytest.mark.parametrize("options", ["--pid 1", "--capture /tmp/x", "rm -rf", "--options other.json", "--help", "'"])
def test_rejects_a_file_with_anything_but_planning_options(options: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", options)
    with pytest.raises(RequestError, match=r"--options .*best\.json is "):
        read_saved_options(file)


@pytest.mark.parametrize("text", ["--options", "--options /nowhere/best.json", "--reserve 0 --options"])
def test_rejects_a_variable_without_a_file_that_can_be_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPAFFINITY_OPTIONS", text)
    with pytest.raises(RequestError, match="--options"):
        OMPProcessManager()


@given(st.text(max_size=40))
def test_any_text_of_options_is_read_or_rejected(text: str) -> None:
    with suppress(RequestError):
        resolved({}, {"OMPAFFINITY_OPTIONS": f"--options {text}"})


def test_a_reserve_that_is_given_replaces_that_per_rank_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "best.json", "--reserve-per-rank 1")
    assert resolved({"options": file, "reserve": 0}, {}).given == {"reserve": 0}
    assert run_command("plan", "--options", file, "--reserve", "0").returncode == 0
    monkeypatch.setenv("OMPAFFINITY_OPTIONS", f"--options {file} --reserve 0")
    assert OMPProcessManager().plan.ranks


def test_an_unknown_option_beside_a_file_is_rejected(tmp_path: Path) -> None:
    file = saved(tmp_path / "best.json", "--bind none")
    with pytest.raises(RequestError, match="other: no such option"):
        OMPProcessManager(options=file, other=1)  # type: ignore[call-arg]


def test_a_quota_is_measured_in_hundredths_of_a_cpu() -> None:
    topology = load_topology()
    quotas = [measured_machine(topology._replace(limits=Limits(cpu_quota=quota))).quota for quota in (2.5, 0.5, None)]
    assert quotas == [250, 50, -1]


def test_differences_name_machines_without_a_quota() -> None:
    topology = load_topology()
    with_quota, without = (
        measured_machine(topology._replace(limits=topology.limits._replace(cpu_quota=quota))) for quota in (2.5, None)
    )
    assert with_quota.differences_to(without) == ["2.5 CPUs as quota, here no quota"]


def test_the_model_is_that_of_this_machine_and_of_no_recorded_one() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [value.strip() for name, _, value in (line.partition(":") for line in lines) if name == "model name\t"]
    recorded = synthetic("core:2 pu:1")
    assert measured_machine(recorded).model == ""
    model = measured_machine(recorded._replace(live=True)).model
    # Not every architecture has such a line.
    assert not names or model == names[0]
