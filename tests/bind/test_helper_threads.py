"""Inside a worker: helper threads, and the binding of a process that already runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.helper_threads import helper_threads, move_to_helper_cpus
from ompaffinity.bind.process import bind_current_process
from ompaffinity.errors import BindingError
from ompaffinity.placement.model import RankPlacement
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.conftest import CPUS, needs_two_cpus
from tests.openmp.libraries import GOMP, INTEL, LLVM, NEWER_LLVM, needs_gomp, needs_intel, needs_llvm, needs_newer_llvm

ROOT = Path(__file__).resolve().parents[2]


def placement_with_helper() -> RankPlacement:
    cpus = (CPUS[0],)
    return RankPlacement(0, 0, cpus=cpus, helper_cpus=(CPUS[-1],), places=(tuple(CPUS),), affinity=tuple(CPUS))


def mask_of_new_thread() -> set[int]:
    masks: list[set[int]] = []
    thread = threading.Thread(target=lambda: masks.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return masks[0]


@needs_two_cpus
def test_threads_and_children_that_start_inside_run_on_the_helper_cpus() -> None:
    before = os.sched_getaffinity(0)
    with helper_threads(placement_with_helper()) as cpus:
        assert cpus == (CPUS[-1],)
        assert mask_of_new_thread() == {CPUS[-1]}
        code = "import os; print(sorted(os.sched_getaffinity(0)))"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert child.stdout.strip() == str([CPUS[-1]])
    assert os.sched_getaffinity(0) == before
    with pytest.raises(KeyError), helper_threads(placement_with_helper()):
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_a_rank_without_helper_cpus_gives_all_of_its_affinity() -> None:
    placement = placement_with_helper()._replace(helper_cpus=(), affinity=(CPUS[0],))
    with helper_threads(placement) as cpus:
        assert (cpus, mask_of_new_thread()) == ((CPUS[0],), {CPUS[0]})


def test_outside_a_worker_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMPAFFINITY_PLACEMENT", raising=False)
    before = os.sched_getaffinity(0)
    for placement in (None, placement_with_helper()._replace(bound=False)):
        with helper_threads(placement) as cpus:
            assert (cpus, os.sched_getaffinity(0)) == ((), before)
        assert move_to_helper_cpus(None, placement) == ()


@needs_two_cpus
def test_a_thread_that_runs_already_is_moved() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    with pytest.raises(BindingError, match="is not running yet"):
        move_to_helper_cpus(thread, placement_with_helper())
    thread.start()
    try:
        assert move_to_helper_cpus(thread, placement_with_helper()) == (CPUS[-1],)
        assert os.sched_getaffinity(int(thread.native_id or 0)) == {CPUS[-1]}
    finally:
        stop.set()
        thread.join()
    with pytest.raises(BindingError, match="could not be bound"):
        move_to_helper_cpus(2**22 + 1, placement_with_helper())


@needs_two_cpus
def test_the_calling_thread_is_moved_where_none_is_named() -> None:
    before = os.sched_getaffinity(0)
    try:
        assert move_to_helper_cpus(None, placement_with_helper()) == (CPUS[-1],)
        assert os.sched_getaffinity(0) == {CPUS[-1]}
    finally:
        os.sched_setaffinity(0, before)


def test_cpus_that_are_not_available() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(BindingError, match="could not be bound to CPU 60000"):
        move_to_helper_cpus(None, placement_with_helper()._replace(helper_cpus=(60000,)))
    with (
        pytest.raises(BindingError, match=r"the kernel gave only CPU \d+"),
        helper_threads(placement_with_helper()._replace(helper_cpus=(CPUS[0], 60000 % 4096))),
    ):
        pass
    assert os.sched_getaffinity(0) == before


@needs_two_cpus
def test_a_thread_that_cannot_get_its_cpus_back_is_an_error_unless_there_is_one_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = os.sched_getaffinity(0)

    def refuse(number: int, cpus: Iterable[int]) -> None:
        raise OSError(22, "Invalid argument")

    try:
        with (
            pytest.raises(BindingError, match=r"keeps CPU .*rejects its former mask"),
            helper_threads(placement_with_helper()),
        ):
            monkeypatch.setattr("os.sched_setaffinity", refuse)
        monkeypatch.undo()
        with pytest.raises(KeyError), helper_threads(placement_with_helper()):
            monkeypatch.setattr("os.sched_setaffinity", refuse)
            raise KeyError
    finally:
        monkeypatch.undo()
        os.sched_setaffinity(0, before)


IN_PROCESS = """if True:
    import ctypes, json, os, sys, threading
    from ompaffinity.placement.document import parse_placement
    from ompaffinity import bind_current_process
    from tests.openmp import team

    placement, library = parse_placement(sys.argv[1]), sys.argv[2]
    def masks():
        return {number: sorted(os.sched_getaffinity(int(number))) for number in os.listdir("/proc/self/task")}
    stop = threading.Event()
    other, bound = (threading.Thread(target=stop.wait, daemon=True) for _ in range(2))
    other.start()
    bound.start()
    os.sched_setaffinity(bound.native_id, {min(os.sched_getaffinity(0))})
    if library:
        team.form_team(library)
    before, size = masks(), library and ctypes.CDLL(library).omp_get_max_threads()
    binding = bind_current_process(placement)
    answer = {
        "during": masks(), "team": binding.team, "other": other.native_id, "bound": bound.native_id,
        "not_bound": [thread.thread_id for thread in binding.not_bound], "warnings": binding.messages,
        "masks": library and [mask for _, mask in sorted(team.form_team(library).items())],
    }
    binding.undo()
    binding.undo()
    after = masks()
    answer["restored"] = all(after[number] == mask for number, mask in before.items())
    answer["size"] = library and ctypes.CDLL(library).omp_get_max_threads() == size
    stop.set()
    print(json.dumps(answer))
"""


def bound_in_process(
    placement: RankPlacement, library: str, code: str = IN_PROCESS, **environment: str
) -> dict[str, Any]:
    from ompaffinity.placement.document import placement_document

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(placement_document(placement)), library],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


LIBRARIES = {
    "none": pytest.param(""),
    "gomp": pytest.param(GOMP, marks=needs_gomp),
    "llvm": pytest.param(LLVM, marks=needs_llvm),
    "newer-llvm": pytest.param(NEWER_LLVM, marks=needs_newer_llvm),
    "intel": pytest.param(INTEL, marks=needs_intel),
}


@needs_two_cpus
@pytest.mark.parametrize("reserve", [0, 1])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_running_process_is_bound_and_unbound(library: str, reserve: int) -> None:
    (placement,) = make_plan(load_topology(), PlacementRequest(runtime="gomp", reserve=reserve)).ranks
    answer = bound_in_process(placement, library, OMP_NUM_THREADS="2")
    during = {int(number): mask for number, mask in answer["during"].items()}
    if library:
        assert answer["masks"] == [list(place) for place in placement.places]
        assert len(answer["team"]) == len(placement.cpus)
    assert during[answer["team"][0]] == list(placement.places[0])
    assert during[answer["other"]] == list(placement.affinity)
    assert during[answer["bound"]] == [CPUS[0]]
    assert answer["bound"] in answer["not_bound"]
    assert answer["warnings"] == []
    assert answer["restored"]
    assert answer["size"] or not library


RESIZED = """if True:
    import ctypes, json, sys, threading
    from ompaffinity.placement.document import parse_placement
    from ompaffinity import bind_current_process

    runtime = ctypes.CDLL(sys.argv[2])
    binding = bind_current_process(parse_placement(sys.argv[1]))
    sizes = [runtime.omp_get_max_threads()]
    runtime.omp_set_num_threads(3)
    binding.undo()
    sizes.append(runtime.omp_get_max_threads())
    binding = bind_current_process(parse_placement(sys.argv[1]))
    thread = threading.Thread(target=lambda: (binding.undo(), sizes.append(runtime.omp_get_max_threads())))
    thread.start()
    thread.join()
    sizes.append(runtime.omp_get_max_threads())
    print(json.dumps(sizes))
"""


@needs_gomp
@needs_two_cpus
def test_only_the_team_size_that_is_still_ours_is_restored() -> None:
    (placement,) = make_plan(load_topology(), PlacementRequest(reserve=0)).ranks
    sizes: Any = bound_in_process(placement, GOMP, RESIZED, OMP_NUM_THREADS="1")
    assert sizes == [len(placement.cpus), 3, 1, len(placement.cpus)]


@needs_gomp
@needs_two_cpus
def test_a_team_that_cannot_grow_leaves_all_as_it_was() -> None:
    (placement,) = make_plan(load_topology(), PlacementRequest(reserve=0)).ranks
    with pytest.raises(AssertionError, match="look at OMP_THREAD_LIMIT and OMP_DYNAMIC"):
        bound_in_process(placement, GOMP, OMP_THREAD_LIMIT="1")


def test_a_process_that_cannot_be_bound_is_left_alone() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(BindingError, match="could not be bound to CPU 60000"):
        bind_current_process(RankPlacement(0, 0, cpus=(60000,), places=((60000,),), affinity=(60000,)))
    assert os.sched_getaffinity(0) == before
    binding = bind_current_process(RankPlacement(0, 0, bound=False))
    assert (binding.team, binding.bound) == ((), {})


def test_a_second_binding_must_undo_the_first() -> None:
    placement = placement_with_helper()
    before = os.sched_getaffinity(0)
    binding = bind_current_process(placement)
    with pytest.raises(BindingError, match="is bound already"):
        bind_current_process(placement)
    binding.undo()
    bind_current_process(placement).undo()
    assert os.sched_getaffinity(0) == before


REFUSED = """if True:
    import json, os, sys, threading
    from ompaffinity.placement.document import parse_placement
    from ompaffinity import bind_current_process

    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    bind = os.sched_setaffinity
    def refuse(number, cpus):
        if number == other.native_id:
            raise PermissionError(1, "Operation not permitted")
        bind(number, cpus)
    os.sched_setaffinity = refuse
    binding = bind_current_process(parse_placement(sys.argv[1]))
    stop.set()
    print(json.dumps([[thread.thread_id == other.native_id, thread.reason] for thread in binding.not_bound]))
"""


@needs_two_cpus
def test_a_thread_beside_the_team_that_the_kernel_refuses_to_bind_is_listed() -> None:
    placement = RankPlacement(0, 0, cpus=(CPUS[0],), places=((CPUS[0],),), affinity=(CPUS[0],))
    listed: Any = bound_in_process(placement, "", REFUSED)
    assert listed == [[True, "Operation not permitted"]]


REFUSED_TEAM = """if True:
    import json, os, sys
    from ompaffinity.errors import BindingError
    from ompaffinity.placement.document import parse_placement
    from ompaffinity import bind_current_process
    from tests.openmp import team

    team.form_team(sys.argv[2])
    before, bind = os.sched_getaffinity(0), os.sched_setaffinity
    def refuse(number, cpus):
        if number != os.getpid():
            raise PermissionError(1, "Operation not permitted")
        bind(number, cpus)
    os.sched_setaffinity = refuse
    try:
        bind_current_process(parse_placement(sys.argv[1]))
    except BindingError as error:
        print(json.dumps([str(error).partition(": ")[2], os.sched_getaffinity(0) == before]))
"""


@needs_gomp
@needs_two_cpus
def test_a_team_of_which_a_thread_cannot_be_bound_leaves_all_as_it_was() -> None:
    (placement,) = make_plan(load_topology(), PlacementRequest(reserve=0)).ranks
    refused: Any = bound_in_process(placement, GOMP, REFUSED_TEAM, OMP_NUM_THREADS="2")
    assert refused == ["Operation not permitted", True]


PINNED_CALLER = """if True:
    import os, sys, threading
    from ompaffinity import bind_current_process
    from ompaffinity.placement.model import RankPlacement

    first, last = map(int, sys.argv[1:])
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    os.sched_setaffinity(0, {first})
    os.sched_setaffinity(threads[-1].native_id, {last})
    bind_current_process(RankPlacement(0, 0, cpus=(first,), places=((first,),), affinity=(first,)))
    print(*(min(os.sched_getaffinity(thread.native_id)) for thread in threads))
    print(*(len(os.sched_getaffinity(thread.native_id)) for thread in threads))
    stop.set()
"""


@needs_two_cpus
def test_if_the_caller_has_its_place_already_threads_with_the_mask_of_most_are_bound() -> None:
    first, last = CPUS[0], CPUS[-1]
    command = [sys.executable, "-c", PINNED_CALLER, str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout.splitlines() == [f"{first} {first} {first} {last}", "1 1 1 1"]


@needs_two_cpus
@needs_gomp
@needs_llvm
def test_the_teams_of_two_runtimes_are_both_bound() -> None:
    (placement,) = make_plan(load_topology(), PlacementRequest(reserve=0)).ranks
    code = IN_PROCESS.replace(
        "if library:\n        team.form_team(library)", "team.form_team('libgomp.so.1'), team.form_team('libomp.so.5')"
    )
    code = code.replace(
        '"masks": library and', '"gnu": sorted(team.form_team("libgomp.so.1").items()), "masks": library and'
    )
    answer = bound_in_process(placement, LLVM, code=code)
    assert answer["masks"] == [list(place) for place in placement.places]
    assert [mask for _, mask in answer["gnu"]] == answer["masks"]
    assert answer["restored"]


def test_reports_a_refused_memory_policy() -> None:
    placement = RankPlacement(
        0, 0, cpus=(CPUS[0],), places=((CPUS[0],),), affinity=(CPUS[0],), nodes=(900,), memory_policy="bind"
    )
    before = os.sched_getaffinity(0)
    binding = bind_current_process(placement)
    try:
        assert [message.code for message in binding.messages] in (["memory-policy-not-permitted"], ["libnuma-missing"])
    finally:
        binding.undo()
    assert os.sched_getaffinity(0) == before
