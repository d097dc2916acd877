from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.ids import parse_ordered_id_list
from ompaffinity.openmp.variables import BINDING_VARIABLES, MANAGED_VARIABLES, overridden_variables, rank_environment
from ompaffinity.placement.model import RankPlacement

runs = st.builds(
    lambda first, count, stride: [*range(first, first + count * stride, stride)],
    st.integers(0, 400),
    st.integers(1, 12),
    st.integers(1, 4),
)
orders = st.lists(runs, min_size=1, max_size=6).map(lambda parts: [*dict.fromkeys(chain.from_iterable(parts))])
"""CPUs in any order, with runs of equal strides, as cores and their siblings have them."""


def placement(cpus: list[int], helpers: tuple[int, ...] = ()) -> RankPlacement:
    places = ((cpus[0], *helpers), *((cpu,) for cpu in cpus[1:]))
    return RankPlacement(0, 0, True, tuple(cpus), helpers, places, tuple(sorted({*cpus, *helpers})))


def variables(
    runtime: str, cpus: list[int], helpers: tuple[int, ...] = (), wait_policy: str = "keep"
) -> dict[str, str]:
    rank = placement(cpus, helpers)
    return rank_environment(rank, runtime=runtime, granularity="thread", wait_policy=wait_policy)[0]


def read_members(text: str) -> list[int]:
    start, count, stride = (*map(int, text.split(":")), *(1, 1)[text.count(":") :])
    return [start + step * stride for step in range(count)]


def read_places(text: str) -> list[list[int]]:
    """Read OMP_PLACES as OpenMP 5.2 defines it, as far as explicit numbers go."""
    places = []
    while text:
        body, _, text = text.removeprefix("{").partition("}")
        base = [cpu for member in body.split(",") for cpu in read_members(member)]
        count, stride = 1, 1
        if text.startswith(":"):
            interval, _, text = text[1:].partition(",{")
            text = "{" + text if text else ""
            numbers = [int(number) for number in interval.split(":")]
            count, stride = numbers[0], numbers[1]
        else:
            text = text.removeprefix(",")
        places += [[cpu + step * stride for cpu in base] for step in range(count)]
    return places


@given(orders)
def test_standard_places_name_each_cpu_in_order(cpus: list[int]) -> None:
    assert read_places(variables("omp", cpus)["OMP_PLACES"]) == [[cpu] for cpu in cpus]


@given(orders)
def test_gnu_lists_name_each_cpu_in_order(cpus: list[int]) -> None:
    text = variables("gomp", cpus)["GOMP_CPU_AFFINITY"].replace(" ", ",")
    assert parse_ordered_id_list(text) == cpus


@pytest.mark.parametrize(
    ("cpus", "words"),
    [([4, 5, 6, 7], "4-7"), ([0, 2, 4, 6], "0-6:2"), ([3, 1, 2], "3 1 2"), ([9], "9"), ([0, 1, 2], "0 1 2")],
)
def test_gnu_lists_have_runs_as_intervals(cpus: list[int], words: str) -> None:
    assert variables("gomp", cpus)["GOMP_CPU_AFFINITY"] == words


@given(orders, st.lists(st.integers(500, 600), min_size=1, max_size=3, unique=True))
def test_intel_lists_have_a_set_for_a_place_of_several_cpus(cpus: list[int], more: list[int]) -> None:
    places = [*((cpu,) for cpu in cpus), tuple(more), (1000,)]
    rank = placement([0] * len(places))._replace(places=tuple(places))
    value = rank_environment(rank, runtime="iomp", granularity="thread")[0].get("KMP_AFFINITY", "")
    if len(more) > 1:
        before, _, after = value.partition("{")
        assert before.endswith(("[", ","))
        assert after == f"{','.join(map(str, more))}}},1000]"


@given(orders)
def test_intel_lists_name_each_cpu_in_order(cpus: list[int]) -> None:
    text = variables("iomp", cpus)["KMP_AFFINITY"]
    assert text.startswith("granularity=fine,explicit,proclist=[")
    assert parse_ordered_id_list(text.partition("[")[2].removesuffix("]")) == cpus


def test_the_first_place_with_helper_cpus() -> None:
    assert variables("omp", [1, 2, 3], (7,))["OMP_PLACES"] == "{1,7},{2},{3}"
    assert variables("gomp", [1, 2, 3], (7,))["OMP_PLACES"] == "{1,7},{2},{3}"
    assert "GOMP_CPU_AFFINITY" not in variables("gomp", [1, 2, 3], (7,))
    assert variables("iomp", [1, 2, 3], (7,))["KMP_AFFINITY"].endswith("proclist=[{1,7},2,3]")


def test_long_lists_stay_below_four_kilobytes() -> None:
    for cpus in (list(range(8192)), list(range(0, 8192, 2))):
        for runtime in ("gomp", "iomp", "omp"):
            assert all(len(value) < 4000 for value in variables(runtime, cpus, (9000,)).values())


@given(st.lists(orders.map(lambda cpus: tuple(sorted(cpus))), min_size=1, max_size=5))
def test_places_of_several_cpus_name_each_of_them(places: list[tuple[int, ...]]) -> None:
    rank = placement([0] * len(places))._replace(places=tuple(places))
    environment, _ = rank_environment(rank, runtime="omp", granularity="thread")
    assert read_places(environment["OMP_PLACES"]) == [list(place) for place in places]


@pytest.mark.parametrize(("last", "length", "name"), [(500, 4000, "KMP_AFFINITY"), (5000, 4001, "OMP_PLACES")])
def test_intel_lists_of_more_than_4000_characters_are_places(last: int, length: int, name: str) -> None:
    # Descending numbers have no intervals.
    cpus = [*range(9999, 9207, -1), last]
    assert len(f"granularity=fine,explicit,proclist=[{','.join(map(str, cpus))}]") == length
    assert name in variables("iomp", cpus)


def test_large_sets_stay_below_four_kilobytes() -> None:
    everything = tuple(range(2048))
    for places in ((everything,), (everything, *((cpu,) for cpu in range(1, 1024)))):
        rank = placement(list(range(len(places))))._replace(places=places)
        for runtime in ("gomp", "iomp", "omp"):
            environment, unset = rank_environment(rank, runtime=runtime, granularity="thread")
            assert all(len(value) < 4000 for value in environment.values())
            assert read_places(environment["OMP_PLACES"]) == [list(place) for place in places]
            assert "KMP_AFFINITY" in unset


@pytest.mark.parametrize("runtime", ["gomp", "iomp", "omp"])
def test_a_team_whose_first_thread_has_more_room_has_a_place_for_each(runtime: str) -> None:
    team = placement([1, 3])._replace(places=((0, 1, 2, 3), (1, 3)))
    environment, _ = rank_environment(team, runtime=runtime, granularity="team")
    expected = (
        {"KMP_AFFINITY": "granularity=fine,explicit,proclist=[{0,1,2,3},{1,3}]"}
        if runtime == "iomp"
        else {"OMP_PLACES": "{0:4},{1,3}"}
    )
    assert expected.items() <= environment.items()


@pytest.mark.parametrize("runtime", ["gomp", "iomp", "omp"])
def test_a_team_is_one_place(runtime: str) -> None:
    team = placement([1, 3])._replace(places=((1, 3, 5), (1, 3, 5)))
    environment, _ = rank_environment(team, runtime=runtime, granularity="team")
    expected = (
        {"KMP_AFFINITY": "granularity=fine,explicit,proclist=[{1,3,5}]"}
        if runtime == "iomp"
        else {"OMP_PLACES": "{1,3,5}"}
    )
    assert expected.items() <= environment.items()
    assert environment["OMP_NUM_THREADS"] == "2"


@given(orders, st.sampled_from(("gomp", "iomp", "omp")))
def test_one_family_is_set_and_every_other_name_is_removed(cpus: list[int], runtime: str) -> None:
    environment, unset = rank_environment(placement(cpus), runtime=runtime, granularity="thread")
    assert set(environment) | set(unset) == set(MANAGED_VARIABLES)
    assert not set(environment) & set(unset)
    families = {
        "gomp": ({"GOMP_CPU_AFFINITY"}, {"OMP_PLACES", "OMP_PROC_BIND"}),
        "iomp": ({"KMP_AFFINITY"},),
        "omp": ({"OMP_PLACES", "OMP_PROC_BIND"},),
    }
    assert set(environment) & set(BINDING_VARIABLES) in families[runtime]
    assert environment["OMP_NUM_THREADS"] == str(len(cpus))
    assert environment["OMP_DYNAMIC"] == "false"


COUNTS = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


def test_sets_the_number_of_threads_of_every_pool() -> None:
    assert {name: variables("gomp", [0, 1, 2])[name] for name in COUNTS} == dict.fromkeys(COUNTS, "3")
    _, unset = rank_environment(placement([0, 1, 2]), runtime="gomp", granularity="thread")
    assert {"BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS"} < set(unset)
    assert {"GOTO_NUM_THREADS", "OPENBLAS_DEFAULT_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS"} < set(unset)


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [
        ({"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "3"}),
        ({"OPENBLAS_NUM_THREADS": "9"}, {"OPENBLAS_NUM_THREADS": "3"}),
        ({"GOTO_NUM_THREADS": "2"}, {"OPENBLAS_NUM_THREADS": "2"}),
        ({"GOTO_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "2"}, {"OPENBLAS_NUM_THREADS": "2"}),
        ({"NUMEXPR_NUM_THREADS": "2"}, {"NUMEXPR_NUM_THREADS": "2"}),
        ({"MKL_NUM_THREADS": "0"}, {"MKL_NUM_THREADS": "3"}),
        ({"MKL_NUM_THREADS": "-1"}, {"MKL_NUM_THREADS": "3"}),
        ({"MKL_NUM_THREADS": "²"}, {"MKL_NUM_THREADS": "3"}),
        ({"MKL_NUM_THREADS": "1" * 5000}, {"MKL_NUM_THREADS": "3"}),
        ({"MKL_NUM_THREADS": "0002"}, {"MKL_NUM_THREADS": "2"}),
        ({"RAYON_NUM_THREADS": " 2 "}, {"RAYON_NUM_THREADS": "2"}),
    ],
)
def test_keeps_a_smaller_number_of_threads_of_the_user(inherited: dict[str, str], expected: dict[str, str]) -> None:
    found, unset = rank_environment(placement([0, 1, 2]), runtime="gomp", granularity="thread", inherited=inherited)
    assert expected.items() <= found.items()
    assert not set(found) & set(unset)
    assert "GOTO_NUM_THREADS" in unset


def test_leaves_the_planned_number_of_threads_to_libraries_that_follow_openmp() -> None:
    inherited = {"BLIS_NUM_THREADS": "3"}
    found, unset = rank_environment(placement([0, 1, 2]), runtime="gomp", granularity="thread", inherited=inherited)
    assert "BLIS_NUM_THREADS" not in found
    assert "BLIS_NUM_THREADS" in unset


def test_variables_that_override_a_binding() -> None:
    overriding = {"KMP_AFFINITY": "none", "OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": " True "}
    assert overridden_variables({**overriding, "OMP_NUM_THREADS": "2", "OMP_SCHEDULE": "static"}) == overriding
    assert overridden_variables({"OMP_DYNAMIC": "false"}) == {}


def test_waiting_is_left_alone_unless_asked() -> None:
    assert not {"OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"} & set(variables("iomp", [0]))
    assert (
        variables("iomp", [0], wait_policy="passive").items()
        >= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}.items()
    )
    assert variables("gomp", [0], wait_policy="active")["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(
    ("runtime", "names"),
    [("gomp", {"GOMP_SPINCOUNT"}), ("iomp", {"KMP_BLOCKTIME"}), ("omp", {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"})],
)
def test_sets_the_brief_wait_of_a_known_runtime(runtime: str, names: set[str]) -> None:
    found = variables(runtime, [0], wait_policy="brief")
    assert {name for name in found if name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")} == names


def test_a_rank_without_binding_gets_no_variables() -> None:
    unbound = RankPlacement(0, 0, bound=False)
    assert rank_environment(unbound, runtime="omp", granularity="thread") == ({}, ())
