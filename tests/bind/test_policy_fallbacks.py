from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

import ompaffinity
from ompaffinity.bind import mempolicy
from ompaffinity.bind.mempolicy import (
    AcceptedPolicy,
    LibnumaMissingError,
    MemoryPolicyError,
    ThreadPolicy,
    accepted_policy,
    take_policy,
    thread_policy,
)
from tests.bind.test_mempolicy import in_thread
from tests.conftest import ROOT, needs_libnuma


def kernel_that_supports(monkeypatch: pytest.MonkeyPatch, *known: str) -> list[tuple[str, tuple[int, ...]]]:
    """Let the kernel accept these policies only; returns what it was asked for."""
    asked: list[tuple[str, tuple[int, ...]]] = []

    def set_policy(wanted: str, nodes: Any) -> None:
        asked.append((wanted, tuple(nodes)))
        if wanted not in known:
            raise MemoryPolicyError(f"{wanted} refused")

    monkeypatch.setattr(mempolicy, "set_thread_policy", set_policy)
    monkeypatch.setattr(mempolicy, "thread_policy", lambda: ThreadPolicy(0))
    return asked


@needs_libnuma
@pytest.mark.parametrize(
    ("asked", "nodes", "known", "accepted", "accepted_nodes"),
    [
        ("bind", (0,), ("bind",), "bind", (0,)),
        ("bind", (0, 1), ("preferred-many", "preferred"), "preferred-many", (0, 1)),
        ("bind", (2, 1), ("preferred",), "preferred", (1,)),
        ("bind", (0,), (), "none", ()),
        ("interleave", (0, 1), ("preferred-many",), "preferred-many", (0, 1)),
        ("weighted-interleave", (0, 1), ("weighted-interleave", "interleave"), "weighted-interleave", (0, 1)),
        ("weighted-interleave", (0, 1), ("interleave", "preferred-many"), "interleave", (0, 1)),
        ("weighted-interleave", (0, 1), ("preferred-many",), "preferred-many", (0, 1)),
        ("preferred", (1,), ("preferred",), "preferred", (1,)),
        ("preferred-many", (1,), ("preferred",), "preferred", (1,)),
    ],
)
def test_the_next_best_is_taken_and_the_first_reason_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    nodes: tuple[int, ...],
    known: tuple[str, ...],
    accepted: str,
    accepted_nodes: tuple[int, ...],
) -> None:
    kernel_that_supports(monkeypatch, *known)
    taken = take_policy(asked, nodes)
    assert (taken.policy, taken.nodes) == (accepted, accepted_nodes)
    assert (taken.refusal is None) == (accepted == asked)
    if taken.refusal is not None:
        assert str(taken.refusal) == f"{asked} refused"


def test_several_preferred_nodes_are_any_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel_that_supports(monkeypatch, "preferred-many", "preferred")
    assert take_policy("preferred", (3, 1)) == AcceptedPolicy("preferred-many", (1, 3))
    assert asked == [("preferred-many", (1, 3))]


@pytest.mark.parametrize(("asked", "nodes"), [("none", (0,)), ("bind", ())])
def test_nothing_is_set_where_nothing_is_wanted(
    monkeypatch: pytest.MonkeyPatch, asked: str, nodes: tuple[int, ...]
) -> None:
    called = kernel_that_supports(monkeypatch)
    assert take_policy(asked, nodes) == AcceptedPolicy("none", ())
    assert called == []


def test_without_libnuma_no_other_step_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel_that_supports(monkeypatch, "preferred")

    def missing(wanted: str, nodes: Any) -> None:
        asked.append((wanted, nodes))
        raise LibnumaMissingError("install libnuma1")

    monkeypatch.setattr(mempolicy, "set_thread_policy", missing)
    accepted = take_policy("bind", (0,))
    assert accepted.policy == "none"
    assert isinstance(accepted.refusal, LibnumaMissingError)
    assert len(asked) == 1


@needs_libnuma
def test_what_is_accepted_is_found_out_without_touching_the_caller() -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])
    before = thread_policy()
    assert accepted_policy("bind", nodes) == AcceptedPolicy("bind", nodes)
    assert thread_policy() == before


@needs_libnuma
def test_this_machine_may_set_a_policy() -> None:
    assert ompaffinity.can_set_mempolicy()


def test_a_machine_without_nodes_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempolicy, "allowed_memory_nodes", lambda: ())
    assert not ompaffinity.can_set_mempolicy()


def under_seccomp(code: str) -> list[str]:
    """Return the lines that a Python prints to which the kernel refuses memory policies, as in a container."""
    command = [sys.executable, "-m", "tests.bind.seccomp", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


BOUND = 'ompaffinity.OMPProcessManager(tensor_parallel_size=1, runtime="gomp", memory_policy="bind"{})'


@needs_libnuma
class TestWhereTheKernelRefuses:
    def test_reports_what_the_probe_found(self) -> None:
        assert under_seccomp("import ompaffinity; print(ompaffinity.can_set_mempolicy())") == ["False"]

    def test_a_worker_is_bound_to_its_cpus_all_the_same(self) -> None:
        placement, mask, codes, text = under_seccomp(f"""
            import os, ompaffinity
            manager = {BOUND.format("")}
            with manager.configure_omp_envs(0) as placement:
                print(placement.memory_policy, placement.bound)
                print(sorted(os.sched_getaffinity(0)) == sorted(placement.affinity))
            print([message.code for message in manager.messages if message.level == "warning"])
            print(manager.messages[-1].message)
        """)
        assert (placement, mask) == ("none True", "True")
        assert codes == "['memory-policy-not-permitted']"
        assert "--cap-add SYS_NICE" in text

    def test_a_strict_manager_fails(self) -> None:
        (reported,) = under_seccomp(f"""
            import ompaffinity
            manager = {BOUND.format(", strict=True")}
            try:
                with manager.configure_omp_envs(0):
                    print("started")
            except ompaffinity.BindingError as error:
                print(error.code)
        """)
        assert reported == "memory-policy-not-permitted"

    def test_a_process_that_runs_is_bound_to_its_cpus_all_the_same(self) -> None:
        bound, codes = under_seccomp("""
            import ompaffinity
            placement = ompaffinity.OMPProcessManager(tensor_parallel_size=1).plan.ranks[0]
            binding = ompaffinity.bind_current_process(placement._replace(memory_policy="bind", nodes=(0,)))
            print(bool(binding.bound))
            print([message.code for message in binding.messages])
            binding.undo()
        """)
        assert (bound, codes) == ("True", "['memory-policy-not-permitted']")

    def test_memory_of_a_process_is_left_as_it_is(self) -> None:
        policy_there, codes = under_seccomp("""
            import ompaffinity
            binding = ompaffinity.init_cpu_memory_env(ompaffinity.get_memory_affinity()[:1])
            print(binding.policy)
            print([message.code for message in binding.messages])
        """)
        assert (policy_there, codes) == ("none", "['memory-policy-not-permitted']")

    def test_the_command_line_warns_and_is_strict_on_demand(self) -> None:
        command = [sys.executable, "-m", "tests.bind.seccomp", sys.executable, "-m", "ompaffinity", "plan"]
        options = ["--memory-policy", "bind", "--format", "json"]
        for strict, status in (([], 0), (["--strict"], 1)):
            done = subprocess.run(
                [*command, *options, *strict], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
            )
            assert done.returncode == status
            assert '"memory-policy-not-permitted"' in done.stdout
            assert '"memory_policy":"none"' in done.stdout.replace(" ", "")


def test_a_thread_that_cannot_be_started_accepts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    accepted = accepted_policy("bind", (0,))
    assert accepted.policy == "none"
    assert "no thread" in str(accepted.refusal)


@needs_libnuma
def test_reports_why_a_node_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempolicy, "_known_nodes", lambda: ([0, 1, 2, 900], [0, 1, 900], (0, 900)))
    for node, reason in ((3, "has no node 3"), (2, "node 2 has no memory"), (1, "widen cpuset.mems")):
        with pytest.raises(MemoryPolicyError, match=reason):
            in_thread(lambda node=node: mempolicy.set_thread_policy("bind", [node]))


@needs_libnuma
def test_what_the_kernel_took_instead_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that leaves one of the nodes out, as it does for those outside of the cpuset."""
    node = ompaffinity.get_memory_affinity()[0]
    original = mempolicy._set

    def narrowed(wanted: ThreadPolicy) -> None:
        original(ThreadPolicy(wanted.mode, (node,) if wanted.nodes else ()))

    monkeypatch.setattr(mempolicy, "_set", narrowed)

    def work() -> Any:
        accepted = take_policy("bind", (node, node + 1))
        return accepted.policy, accepted.nodes, thread_policy()

    accepted, nodes, there = in_thread(work)
    assert (accepted, nodes) == ("preferred", (node,))
    assert there == ThreadPolicy(1, (node,))
    monkeypatch.setattr(mempolicy, "FALLBACKS", ())
    accepted, nodes, there = in_thread(work)
    assert (accepted, nodes, there) == ("none", (), ThreadPolicy(0))


def test_an_error_of_ours_is_not_taken_for_a_missing_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(policy: str, nodes: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(mempolicy, "take_policy", broken)
    with pytest.raises(ZeroDivisionError):
        accepted_policy("bind", (0,))


def test_another_module_called_numa_is_no_libnuma(tmp_path: Any) -> None:
    (tmp_path / "numa.py").write_text("x = 1\n")
    code = "import ompaffinity, sys; print(ompaffinity.can_set_mempolicy())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_one_preferred_node_is_the_first_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempolicy, "allowed_memory_nodes", lambda: (2, 3))
    asked = kernel_that_supports(monkeypatch, "preferred")
    assert take_policy("bind", (1, 2, 3)).nodes == (2,)
    assert asked == [("bind", (1, 2, 3)), ("preferred-many", (1, 2, 3)), ("preferred", (2,))]
    assert take_policy("bind", (5, 6)).nodes == (5,)


def test_the_policies_that_are_tried_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = {}
    for policy in ("bind", "interleave", "weighted-interleave", "preferred-many", "preferred"):
        asked = kernel_that_supports(monkeypatch)
        take_policy(policy, (0, 1))
        tried[policy] = [name for name, _ in asked]
    assert tried == {
        "bind": ["bind", "preferred-many", "preferred"],
        "interleave": ["interleave", "preferred-many", "preferred"],
        "weighted-interleave": ["weighted-interleave", "interleave", "preferred-many", "preferred"],
        "preferred-many": ["preferred-many", "preferred"],
        "preferred": ["preferred-many", "preferred"],
    }


def test_policies_have_the_numbers_of_the_kernel() -> None:
    # include/uapi/linux/mempolicy.h.
    assert mempolicy.MODES == {
        "preferred": 1, "bind": 2, "interleave": 3, "preferred-many": 5, "weighted-interleave": 6,
    }  # fmt: skip


def test_a_process_may_set_policies_if_its_first_node_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempolicy, "allowed_memory_nodes", lambda: (2, 3))
    asked = kernel_that_supports(monkeypatch, "bind")
    assert ompaffinity.can_set_mempolicy()
    assert asked == [("bind", (2,))]
