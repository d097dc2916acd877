from __future__ import annotations

import builtins
import ctypes
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ompaffinity
from ompaffinity.bind import mempolicy
from ompaffinity.bind.mempolicy import LibnumaMissingError, MemoryPolicyError, ThreadPolicy
from tests.conftest import ROOT, needs_libnuma


def in_thread(work: Any) -> Any:
    """Run in a thread of its own, whose policy goes with it."""
    results: list[Any] = []

    def body() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001
            results.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(30)
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


@needs_libnuma
@pytest.mark.parametrize(("name", "mode"), [("bind", 2), ("preferred", 1), ("interleave", 3)])
def test_what_is_set_is_read_back_and_given_back(name: str, mode: int) -> None:
    nodes = tuple(ompaffinity.get_memory_affinity()[:1])

    def work() -> tuple[ThreadPolicy, ThreadPolicy, ThreadPolicy]:
        before = mempolicy.thread_policy()
        mempolicy.set_thread_policy(name, nodes)
        during = mempolicy.thread_policy()
        mempolicy.restore_thread_policy(before)
        return before, during, mempolicy.thread_policy()

    before, during, after = in_thread(work)
    assert during == ThreadPolicy(mode, nodes)
    assert before == after


@needs_libnuma
@pytest.mark.parametrize("nodes", [(900,), (63,), (64,), (1023,)])
def test_nodes_that_are_not_there_are_refused_not_crashed_on(nodes: tuple[int, ...]) -> None:
    with pytest.raises(MemoryPolicyError, match=r"refused|not taken|has no node"):
        in_thread(lambda: mempolicy.set_thread_policy("bind", nodes))


@needs_libnuma
def test_the_policy_of_another_thread_is_its_own() -> None:
    nodes = ompaffinity.get_memory_affinity()[:1]
    before = mempolicy.thread_policy()
    in_thread(lambda: mempolicy.set_thread_policy("bind", nodes))
    assert mempolicy.thread_policy() == before


@needs_libnuma
def test_a_policy_that_the_kernel_did_not_take_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempolicy, "_set", lambda wanted: None)
    with pytest.raises(MemoryPolicyError, match="is not in effect"):
        in_thread(lambda: mempolicy.set_thread_policy("bind", ompaffinity.get_memory_affinity()[:1]))


@pytest.mark.parametrize("failure", [ImportError, AttributeError, OSError])
def test_a_missing_libnuma_names_the_package(monkeypatch: pytest.MonkeyPatch, failure: type[Exception]) -> None:
    original = builtins.__import__

    def without_numa(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "numa":
            raise failure("numa_num_possible_nodes")
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_numa)
    with pytest.raises(LibnumaMissingError, match="install libnuma1"):
        mempolicy.load_libnuma()


@given(st.sets(st.integers(0, 1023), min_size=1))
def test_a_mask_holds_exactly_its_nodes_and_the_kernel_reads_them_all(nodes: set[int]) -> None:
    mask, bits = mempolicy.node_mask(nodes)
    assert mempolicy.mask_nodes(mask) == tuple(sorted(nodes))
    # The kernel reads one bit less than it is given (set_mempolicy(2)), and rejects more words than it has nodes.
    assert bits - 1 == len(mask) * mempolicy.WORD_BITS
    assert max(nodes) < bits - 1 <= max(nodes) + mempolicy.WORD_BITS
    assert 8 * ctypes.sizeof(ctypes.c_ulong) == mempolicy.WORD_BITS


@needs_libnuma
def test_a_new_process_has_the_default_policy() -> None:
    code = (
        "from ompaffinity.bind.mempolicy import DEFAULT_POLICY, thread_policy; print(thread_policy() == DEFAULT_POLICY)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "True\n"
