"""The memory policy of a thread and its OpenMP team: set for each of them, and given back."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

from tests.conftest import ROOT, needs_libnuma
from tests.openmp.libraries import GOMP, needs_gomp


def in_new_python(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_libnuma
@needs_gomp
def test_the_team_gets_the_policy_too_and_its_own_back() -> None:
    modes = in_new_python(f"""
        import ctypes, json, threading
        import ompaffinity
        from ompaffinity.bind.mempolicy import thread_policy
        from ompaffinity.bind.team_policy import change_team_policy
        from ompaffinity.bind.undo import Undo
        from ompaffinity.openmp.team import in_each_thread
        runtime = ctypes.CDLL({GOMP!r})
        runtime.omp_set_num_threads(3)
        def modes():
            found = []
            in_each_thread(runtime, lambda: found.append(thread_policy().mode))
            return found
        answer = [modes()]
        undo = Undo()
        accepted, before = change_team_policy("bind", tuple(ompaffinity.get_memory_affinity()[:1]), undo)
        answer += [modes(), len(before)]
        undo.run()
        answer += [modes()]
        print(json.dumps(answer))
    """)
    assert modes == [[0] * 3, [2] * 3, 3, [0] * 3]


@needs_libnuma
@needs_gomp
def test_binding_a_process_and_undoing_it_includes_the_memory_of_its_team() -> None:
    answer = in_new_python(f"""
        import ctypes, json
        import ompaffinity
        from ompaffinity.bind.mempolicy import thread_policy
        from ompaffinity.openmp.team import in_each_thread
        runtime = ctypes.CDLL({GOMP!r})
        nodes = tuple(ompaffinity.get_memory_affinity()[:1])
        placement = ompaffinity.OMPProcessManager(tensor_parallel_size=1, runtime="gomp").plan.ranks[0]
        binding = ompaffinity.bind_current_process(placement._replace(memory_policy="bind", nodes=nodes))
        during, after = [], []
        in_each_thread(runtime, lambda: during.append(thread_policy().mode), threads=len(placement.cpus))
        binding.undo()
        in_each_thread(runtime, lambda: after.append(thread_policy().mode), threads=len(placement.cpus))
        print(json.dumps([len(placement.cpus), during, after]))
    """)
    threads, during, after = answer
    assert during == [2] * threads
    assert after == [0] * threads


@needs_libnuma
@needs_gomp
def test_a_team_that_shrank_meanwhile_gets_its_policy_back() -> None:
    before, after = in_new_python(f"""
        import ctypes, json
        import ompaffinity
        from ompaffinity.bind.mempolicy import thread_policy
        from ompaffinity.bind.team_policy import change_team_policy
        from ompaffinity.bind.undo import Undo
        from ompaffinity.openmp.team import in_each_thread
        runtime = ctypes.CDLL({GOMP!r})
        runtime.omp_set_num_threads(3)
        in_each_thread(runtime)
        undo = Undo()
        accepted, before = change_team_policy("bind", tuple(ompaffinity.get_memory_affinity()[:1]), undo)
        runtime.omp_set_num_threads(1)
        undo.run()
        after = []
        in_each_thread(runtime, lambda: after.append(thread_policy().mode), threads=3)
        print(json.dumps([len(before), after]))
    """)
    assert (before, after) == (3, [0] * 3)


@needs_libnuma
@needs_gomp
def test_a_thread_of_a_team_keeps_the_policy_that_it_was_given_first() -> None:
    """Where two runtimes are loaded, the calling thread belongs to both teams."""
    modes = in_new_python(f"""
        import ctypes, json
        import ompaffinity
        from ompaffinity.bind import team_policy
        from ompaffinity.bind.mempolicy import thread_policy
        from ompaffinity.bind.undo import Undo
        from ompaffinity.openmp.team import in_each_thread
        runtime = ctypes.CDLL({GOMP!r})
        runtime.omp_set_num_threads(2)
        in_each_thread(runtime)
        runtimes = team_policy._team_runtimes()
        team_policy._team_runtimes = lambda: [*runtimes, *runtimes]
        undo = Undo()
        team_policy.change_team_policy("bind", tuple(ompaffinity.get_memory_affinity()[:1]), undo)
        undo.run()
        after = []
        in_each_thread(runtime, lambda: after.append(thread_policy().mode))
        print(json.dumps([len(runtimes), after]))
    """)
    assert modes == [1, [0, 0]]
