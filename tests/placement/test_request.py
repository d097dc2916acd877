from __future__ import annotations

import pytest

from ompaffinity.errors import RequestError
from ompaffinity.placement.check import check_request
from ompaffinity.placement.environment import requested
from ompaffinity.placement.request import PlacementRequest, parse_bind


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"tensor_parallel_size": 0}, r"--tp .* is 0; it must be at least 1"),
        ({"pipeline_parallel_size": -1}, "--pp"),
        ({"data_parallel_size": 0}, "--dp"),
        ({"tensor_parallel_size": 500, "data_parallel_size": 500}, "250000 ranks"),
        ({"threads_per_core": 0}, "--threads-per-core"),
        ({"reserve": -1}, "--reserve "),
        ({"reserve_per_rank": -1}, "--reserve-per-rank"),
        ({"reserve": 1, "reserve_per_rank": 1}, "give one of them"),
        ({"core_type": "fast"}, "--core-type"),
        ({"distribute": "far"}, "--distribute"),
        ({"runtime": "tbb"}, "--runtime"),
        ({"granularity": "core"}, "--granularity"),
        ({"wait_policy": "spin"}, "--wait-policy"),
        ({"memory_policy": "local"}, "--memory-policy"),
        ({"bind": "nobind"}, "--bind"),
        ({"bind": ((0, 1),), "tensor_parallel_size": 2}, "1 CPU lists for 2 ranks"),
        ({"bind": ((0, 1), ()), "tensor_parallel_size": 2}, "rank 1 no CPU"),
        ({"bind": ((0, 1), (1, 2)), "tensor_parallel_size": 2}, "CPU 1 to rank 0 and to rank 1"),
        ({"bind": ((0, 0),)}, "names a number twice"),
        ({"bind": (("a",),)}, "list of numbers"),
        ({"bind": ((0,),), "cpus": (0,), "reserve": 1}, "--cpus, --reserve cannot be combined with it"),
        ({"tensor_parallel_size": "2"}, "--tp"),
        ({"tensor_parallel_size": 2.0}, "--tp"),
        ({"tensor_parallel_size": None}, "--tp"),
        ({"cpus": "0-1"}, "--cpus"),
        ({"nodes": [True]}, "--nodes"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        check_request(PlacementRequest(**arguments))  # type: ignore[arg-type]


def test_lists_are_as_good_as_tuples() -> None:
    request = check_request(PlacementRequest(2, bind=[[6, 4], [1, 0]]))  # type: ignore[arg-type]
    assert request.bind == ((6, 4), (1, 0))
    assert check_request(PlacementRequest(cpus={3, 1}, nodes=range(2))) == PlacementRequest(cpus=(1, 3), nodes=(0, 1))  # type: ignore[arg-type]


def test_the_ranks_are_the_product_of_the_sizes() -> None:
    request = PlacementRequest(tensor_parallel_size=2, pipeline_parallel_size=3, data_parallel_size=4)
    assert check_request(request).ranks == 24


def test_bind_keeps_the_order() -> None:
    assert parse_bind("0-6:2|9,8,7") == ((0, 2, 4, 6), (9, 8, 7))
    assert parse_bind("auto") == "auto"
    assert parse_bind("none") == "none"
    with pytest.raises(RequestError, match="list 1"):
        parse_bind("0-3|all")


def test_what_was_given_wins_over_the_environment() -> None:
    environment = {
        "OMPAFFINITY_BIND": "",
        "VLLM_CPU_OMP_THREADS_BIND": "0-3|4-7",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "2",
        "CPU_VISIBLE_MEMORY_NODES": "1,0",
    }
    request = requested({"tensor_parallel_size": 2}, environment)
    assert request.bind == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (request.reserve, request.nodes) == (None, None), "lists say it all"
    automatic = requested({"bind": "auto"}, environment)
    assert (automatic.reserve, automatic.nodes) == (2, (1, 0))
    assert requested({}, {"OMPAFFINITY_RESERVED_CPUS": "auto"}).reserve is None
    assert requested({"reserve": None, "bind": "auto", "nodes": None}, environment) == PlacementRequest()
    assert requested({"reserve_per_rank": 1}, environment).reserve is None
    assert requested({}, {"OMPAFFINITY_RESERVED_CPUS": "5", "VLLM_CPU_NUM_OF_RESERVED_CPU": "2"}).reserve == 5
    assert requested({}, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}).bind == "none"


@pytest.mark.parametrize(
    "environment",
    [{"OMPAFFINITY_RESERVED_CPUS": "some"}, {"OMPAFFINITY_BIND": "all"}, {"CPU_VISIBLE_MEMORY_NODES": "0-"}],
)
def test_a_variable_that_is_not_understood_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(RequestError, match=next(iter(environment))):
        requested({}, environment)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(RequestError, match="tensor_parallel: no such option"):
        requested({"tensor_parallel": 2}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--reserve 0 --wait-policy brief", {"reserve": 0, "wait_policy": "brief"}),
        ("--bind '0-3|4-7' --tp=2", {"bind": ((0, 1, 2, 3), (4, 5, 6, 7)), "tensor_parallel_size": 2}),
        ("--kv-transfer --numa-bind-nodes 0 1", {"kv_transfer": True, "numa_bind_nodes": (0, 1)}),
        (" ", {}),
    ],
)
def test_options_come_from_one_variable(text: str, expected: dict[str, object]) -> None:
    assert requested({}, {"OMPAFFINITY_OPTIONS": text}) == PlacementRequest(**expected)  # type: ignore[arg-type]


def test_single_variables_and_arguments_go_before_the_variable_of_options() -> None:
    environ = {"OMPAFFINITY_OPTIONS": "--reserve 3 --span machine", "OMPAFFINITY_RESERVED_CPUS": "2"}
    assert requested({}, environ) == PlacementRequest(reserve=2, span="machine")
    assert requested({"reserve": 1, "span": "node"}, environ) == PlacementRequest(reserve=1, span="node")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("--nonsense", "OMPAFFINITY_OPTIONS is '--nonsense': unrecognized arguments: --nonsense"),
        ("--reserve", "--reserve: expected one argument"),
        ("--reserve x", "--reserve is 'x'; it must be auto or a number"),
        ("--avoid plan.json", "argument --avoid: invalid choice: 'plan.json'"),
        ("--bind '0", "No closing quotation"),
        ("word", "unrecognized arguments: word"),
    ],
)
def test_rejects_other_texts_in_the_variable_of_options(text: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        requested({}, {"OMPAFFINITY_OPTIONS": text})
