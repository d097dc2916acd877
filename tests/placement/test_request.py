from __future__ import annotations

import pytest

from ompaffinity.errors import PlacementError, RequestError
from ompaffinity.placement.check import check_for_machine, check_request
from ompaffinity.placement.environment import options_text, request_from_environment, requested, split_options
from ompaffinity.placement.options import PLAN_OPTIONS
from ompaffinity.placement.request import SIZES, HeldCPUs, PlacementRequest, parse_bind, product_of_sizes
from tests.placement.machines import synthetic, without_nodes


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
        ({"tensor_parallel_size": True}, "--tp .* is True; it must be a whole number"),
        ({"pipeline_parallel_size": None}, "--pp"),
        ({"data_parallel_size": None}, "--dp"),
        ({"tensor_parallel_size": 65537}, "65537 ranks"),
        ({"tensor_parallel_size": 3, "bind": ((0,), (1,), (0, 1))}, "CPU 0-1 to rank 0 and to rank 2"),
        ({"nodes": [-1]}, "--nodes"),
        ({"avoid": ("x.json",)}, "--avoid .* must be what held_by_plans returns"),
        ({"avoid": [HeldCPUs("x.json", (0,))]}, "--avoid .* must be what held_by_plans returns"),
        ({"utilization": 0}, "--utilization .* is 0; it must be above 0 and at most 1"),
        ({"utilization": 1.01}, "--utilization"),
        ({"utilization": True}, "--utilization"),
        ({"utilization": "0.9"}, "--utilization"),
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
    assert check_request(PlacementRequest(cpus=[3, 1])).cpus == (3, 1)  # type: ignore[arg-type]
    assert check_request(PlacementRequest(cpus={8, 1}, nodes=range(2))) == PlacementRequest(cpus=(1, 8), nodes=(0, 1))  # type: ignore[arg-type]


def test_each_value_may_be_at_its_limit() -> None:
    least = PlacementRequest(1, 1, 1, cpus=(0,), nodes=(0,), threads_per_core=1, reserve=0, utilization=1)
    assert check_request(least) == least
    other = PlacementRequest(tensor_parallel_size=65536, reserve_per_rank=0, utilization=0.001)
    assert check_request(other) == other


def test_an_invalid_value_behind_options_that_are_left_out_is_refused() -> None:
    with pytest.raises(RequestError, match="--reserve-per-rank"):
        check_request(PlacementRequest(threads_per_core=None, reserve=None, reserve_per_rank=-1))


def test_names_what_this_machine_has_where_a_request_names_something_else() -> None:
    machine = synthetic("numa:2 core:2 pu:1")
    forbidden = tuple(cpu._replace(allowed=False) for cpu in machine.cpus)
    for topology, request, words in (
        (machine, PlacementRequest(nodes=(0, 7)), "names node 7, which this machine does not have; its nodes are 0-1"),
        (without_nodes(machine), PlacementRequest(nodes=(0,)), "its nodes are none"),
        (machine, PlacementRequest(cpus=(0, 4)), "--cpus names CPU 4, which this process may not use; it may use 0-3"),
        (machine._replace(cpus=forbidden), PlacementRequest(bind=((0,),)), "--bind names CPU 0.* it may use none"),
        (machine, PlacementRequest(bind="none", nodes=(7,)), ""),
    ):
        if not words:
            check_for_machine(topology, request, {})
            continue
        with pytest.raises(PlacementError, match=words):
            check_for_machine(topology, request, {})


def test_names_the_plan_that_holds_the_first_of_the_named_cpus() -> None:
    held = {0: "a.json", 1: "b.json"}
    with pytest.raises(PlacementError, match=r"names CPU 0-1, whose core the plan a\.json holds"):
        check_for_machine(synthetic("core:4 pu:1"), PlacementRequest(cpus=(0, 1, 2)), held)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (HeldCPUs("x", (4,)), "holds CPU 4, which this machine does not have"),
        (HeldCPUs("x", (0,), (0, 1, 2, 3, 5)), "holds CPU 5, which this machine does not have"),
        (HeldCPUs("x", (0,), (0, 1)), "does not list CPU 2-3"),
        (HeldCPUs("x", (0,), (0, 1, 2, 3)), None),
        (HeldCPUs("x", (0,)), None),
    ],
)
def test_a_plan_to_avoid_must_be_for_this_machine(plan: HeldCPUs, words: str | None) -> None:
    request = PlacementRequest(avoid=(plan,))
    if words is None:
        check_for_machine(synthetic("core:4 pu:1"), request, {})
    else:
        with pytest.raises(PlacementError, match=words):
            check_for_machine(synthetic("core:4 pu:1"), request, {})


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
        ("--reserve x", "--reserve is 'x'; it must be auto or a whole number"),
        ("--avoid plan.json", "argument --avoid: invalid choice: 'plan.json'"),
        ("--bind '0", "No closing quotation"),
        ("word", "unrecognized arguments: word"),
    ],
)
def test_rejects_other_texts_in_the_variable_of_options(text: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        requested({}, {"OMPAFFINITY_OPTIONS": text})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("OMPAFFINITY_RESERVED_CPUS", "9999999", 9_999_999),
        ("OMPAFFINITY_RESERVED_CPUS", "auto", None),
        ("VLLM_CPU_NUM_OF_RESERVED_CPU", "-1", 0),
        ("VLLM_CPU_NUM_OF_RESERVED_CPU", "2", 2),
    ],
)
def test_the_reserve_of_a_variable(name: str, text: str, value: int | None) -> None:
    assert request_from_environment({name: text}) == {"reserve": value}


@pytest.mark.parametrize("text", ["-1", "99999999", "\u0663", "1x"])
def test_rejects_other_reserves_of_a_variable(text: str) -> None:
    with pytest.raises(RequestError, match="must be auto or a number of cores"):
        request_from_environment({"OMPAFFINITY_RESERVED_CPUS": text})


def test_the_environment_does_not_add_a_reserve_to_ranks_that_have_their_own() -> None:
    environ = {"OMPAFFINITY_OPTIONS": "--reserve-per-rank 2 --distribute spread"}
    assert requested({"reserve": 1}, environ) == PlacementRequest(reserve=1, distribute="spread")
    assert requested({}, environ) == PlacementRequest(reserve_per_rank=2, distribute="spread")


def test_options_for_an_automatic_plan_are_left_out_beside_lists() -> None:
    environ = {"OMPAFFINITY_OPTIONS": "--threads-per-core 2 --runtime gomp"}
    assert requested({"bind": ((0,),)}, environ) == PlacementRequest(bind=((0,),), runtime="gomp")
    listed = {"numa_bind_cpus": ((0,),), "reserve": 1}
    assert requested(listed, environ) == PlacementRequest(numa_bind_cpus=((0,),), reserve=1, runtime="gomp")


def test_options_are_written_as_they_are_read() -> None:
    text = (
        "--tp 2 --cpus 3,1 --avoid live --threads-per-core all --kv-transfer --span node --numa-bind-nodes 0 1"
        " --numa-bind-cpus 0,1 4"
    )
    request = requested({}, {"OMPAFFINITY_OPTIONS": text})
    given = {option.field: getattr(request, option.field) for option in PLAN_OPTIONS if f"{option.flag} " in f"{text} "}
    assert options_text(given) == text


@pytest.mark.parametrize("text", ["--he", "-h", "--help", "--thread 2"])
def test_options_of_the_variable_have_no_help_and_no_short_forms(text: str) -> None:
    with pytest.raises(RequestError, match="unrecognized arguments"):
        requested({}, {"OMPAFFINITY_OPTIONS": text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--tp 2", (None, "--tp 2")),
        ("--tp 2 --options a.json --reserve 0", ("a.json", "--tp 2 --reserve 0")),
        ("--options=a.json --tp=2", ("a.json", "--tp=2")),
        ("--options 'a b' --options last.json 'c d'", ("last.json", "'c d'")),
    ],
)
def test_splits_the_file_of_options_from_the_others(text: str, expected: tuple[str | None, str]) -> None:
    assert split_options(text) == expected


@pytest.mark.parametrize(
    ("text", "words"), [("--tp 2 --options", "--options needs a file"), ("--options 'a", "No closing quotation")]
)
def test_rejects_options_without_their_file(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        split_options(text)


def test_multiplies_the_sizes_that_are_given_as_numbers() -> None:
    assert product_of_sizes(dict(zip(SIZES, (2, 3, 5)))) == 30
    assert product_of_sizes({"tensor_parallel_size": "x", "data_parallel_size": 3, "reserve": 7}) == 3


@pytest.mark.parametrize(("sizes", "group"), [((3, 2, 4), 3), ((1, 2, 4), 2), ((1, 1, 4), 1)])
def test_a_group_is_tensor_parallel_or_a_pipeline(sizes: tuple[int, int, int], group: int) -> None:
    assert PlacementRequest(*sizes).group == group
