"""Which kinds of cores a team uses: the most (number of cores) x (speed of the slowest)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.placement.core_types import LEAST_GAIN, choose_cores
from ompaffinity.placement.plan import make_plan
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.kinds import kinds_by_speed, named_kinds
from ompaffinity.topology.model import UNKNOWN, LogicalCPUInfo, Topology
from tests.placement.machines import codes, reasons


def chip(*kinds: tuple[str, int, int]) -> list[LogicalCPUInfo]:
    """Cores of these kinds: (name, number, maximal frequency)."""
    named: dict[int, str] = {}
    frequencies: dict[int, int] = {}
    for name, count, frequency in kinds:
        for cpu in range(len(named), len(named) + count):
            named[cpu], frequencies[cpu] = name, frequency
    found = named_kinds(named, frequencies)
    return [LogicalCPUInfo(cpu, cpu, **found[cpu]._asdict()) for cpu in named]


def by_capacity(*clusters: tuple[int, int]) -> list[LogicalCPUInfo]:
    """Cores of these clusters: (number, capacity)."""
    capacities = [capacity for count, capacity in clusters for _ in range(count)]
    found = kinds_by_speed(dict(enumerate(capacities)))
    return [LogicalCPUInfo(cpu, cpu, **(found[cpu]._asdict() if found else {})) for cpu in range(len(capacities))]


def used(cpus: list[LogicalCPUInfo], core_type: str = "auto") -> int:
    return len(cpus) - len(choose_cores(cpus, core_type).left_out)


P, E, LP = "performance", "efficiency", "low-power"


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        (chip((P, 8, 5400), (E, 12, 4200)), 8),  # i7-14700
        (chip((P, 1, 5400), (E, 12, 4200)), 13),  # a pod there
        (chip((E, 12, 4200)), 12),
        (chip((P, 2, 4800), (E, 8, 3800), (LP, 2, 2400)), 10),  # Core Ultra 5 225U
        (chip((P, 8, 5700), (E, 16, 4400)), 24),  # i9-14900K
        (by_capacity((4, 1024), (4, 530)), 4),  # RK3588
        (by_capacity((2, 1024), (6, 792)), 8),  # Snapdragon 8 Elite
        (by_capacity((10, 1024), (10, 718)), 20),  # GB10
        (by_capacity((1, 1024), (3, 870), (4, 350)), 4),
    ],
)
def test_the_cores_of_known_chips(cpus: list[LogicalCPUInfo], expected: int) -> None:
    assert used(cpus) == expected


@pytest.mark.parametrize(("gain", "expected"), [(1.09, 10), (1.11, 20)])
def test_slower_cores_must_raise_the_value_by_more_than_a_tenth(gain: float, expected: int) -> None:
    cpus = [LogicalCPUInfo(cpu, cpu, kind=P, core_class=0, speed=1000.0) for cpu in range(10)]
    cpus += [LogicalCPUInfo(cpu, cpu, kind=E, core_class=1, speed=500.0 * gain) for cpu in range(10, 20)]
    assert used(cpus) == expected


@pytest.mark.parametrize("core_type", ["auto", "performance", "all"])
def test_a_single_fast_core_is_used(core_type: str) -> None:
    assert used(chip((P, 1, 5400)), core_type) == 1


def test_speeds_count_only_where_all_are_known() -> None:
    cpus = [LogicalCPUInfo(cpu, cpu, kind=P, core_class=0, speed=1.0) for cpu in range(8)]
    slow = [LogicalCPUInfo(cpu, cpu, kind=E, core_class=1, speed=0.85) for cpu in range(8, 10)]
    assert used([*cpus, *slow]) == 8
    assert used([*cpus, *(cpu._replace(speed=0.95) for cpu in slow)]) == 10
    assert used([*cpus, slow[0]._replace(speed=0.99), slow[1]._replace(speed=0.0)]) == 8


def test_cpus_of_unknown_cores_count_one_by_one() -> None:
    cpus = [LogicalCPUInfo(cpu, UNKNOWN, kind=P, core_class=0, speed=1.0) for cpu in range(8)]
    cpus += [LogicalCPUInfo(cpu, UNKNOWN, kind=E, core_class=1, speed=0.5) for cpu in range(8, 12)]
    assert used(cpus) == 8
    assert "performance: 8 cores x 1.00 = 8.00" in choose_cores(cpus, "auto").figures()


def test_figures_name_each_further_kind_once() -> None:
    cpus = [LogicalCPUInfo(cpu, cpu, kind=P, core_class=0, speed=2.0) for cpu in range(2)]
    cpus += [LogicalCPUInfo(cpu, cpu, kind=P, core_class=1, speed=1.5) for cpu in range(2, 4)]
    cpus += [LogicalCPUInfo(cpu, cpu, kind=E, core_class=2, speed=1.0) for cpu in range(4, 5)]
    assert choose_cores(cpus, "auto").figures() == (
        "performance: 2 cores x 1.00 = 2.00; with slower performance: 4 cores x 0.75 = 3.00;"
        " with efficiency: 5 cores x 0.50 = 2.50"
    )


def test_kinds_without_names_are_all_performance_cores() -> None:
    cpus = [LogicalCPUInfo(cpu, cpu, core_class=cpu // 2) for cpu in range(4)]
    assert used(cpus, "performance") == 4


def test_siblings_of_a_core_count_once() -> None:
    """Two threads of a performance core are one core: 4 x 1.0 against 8 x 0.5."""
    cpus = [LogicalCPUInfo(cpu, cpu // 2, kind=P, core_class=0, speed=1.0) for cpu in range(8)]
    cpus += [LogicalCPUInfo(cpu, cpu, kind=E, core_class=1, speed=0.5) for cpu in range(8, 12)]
    assert used(cpus) == 8


@pytest.mark.parametrize(("core_type", "expected"), [("performance", 8), ("all", 24), ("auto", 24)])
def test_the_option_overrides_the_rule(core_type: str, expected: int) -> None:
    assert used(chip((P, 8, 5700), (E, 16, 4400)), core_type) == expected


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(100, 1024)), min_size=1, max_size=4))
def test_no_other_set_is_better_by_more_than_a_tenth(clusters: list[tuple[int, int]]) -> None:
    cpus = by_capacity(*clusters)
    choice = choose_cores(cpus, "auto")
    chosen = [cpu for cpu in cpus if cpu.id not in choice.left_out]

    def value(members: list[LogicalCPUInfo]) -> float:
        return len(members) * min(cpu.speed or 1.0 for cpu in members)

    classes = sorted({cpu.core_class for cpu in cpus})
    values = [value([cpu for cpu in cpus if cpu.core_class <= last]) for last in classes]
    assert value(chosen) * LEAST_GAIN >= max(values) or len(classes) > 2
    # The fastest kind is always in use, and the chosen kinds are the fastest ones.
    assert {cpu.core_class for cpu in chosen} == set(classes[: len({cpu.core_class for cpu in chosen})])


def topology_of(cpus: list[LogicalCPUInfo]) -> Topology:
    return Topology("x86_64", "drawn", "drawn", tuple(cpus))


def test_left_out_and_joined_kinds_are_reported_with_their_figures() -> None:
    plan = make_plan(topology_of(chip((P, 8, 5400), (E, 12, 4200))), PlacementRequest())
    assert reasons(plan)["efficiency-core"] == tuple(range(8, 20))
    (message,) = [message for message in plan.messages if message.code == "core-types"]
    assert "performance: 8 cores x 1.00 = 8.00; with efficiency: 20 cores x 0.39 = 7.78" in message.message
    assert "--core-type all" in message.message
    joined = make_plan(topology_of(chip((P, 8, 5700), (E, 16, 4400))), PlacementRequest())
    (message,) = [message for message in joined.messages if message.code == "core-types"]
    assert "--core-type performance" in message.message
    assert "efficiency-core" not in reasons(joined)


def test_uses_slow_cores_with_a_note_if_no_others_are_allowed() -> None:
    cpus = [cpu._replace(allowed=cpu.kind == E) for cpu in chip((P, 8, 5400), (E, 12, 4200))]
    plan = make_plan(topology_of(cpus), PlacementRequest(reserve=0))
    assert plan.ranks[0].cpus == tuple(range(8, 20))
    assert codes(plan)["core-types"] == "note"
    assert "slower-cores-used" not in codes(plan)


def test_more_ranks_than_fast_cores_use_slow_ones_with_a_warning() -> None:
    plan = make_plan(topology_of(chip((P, 2, 5400), (E, 2, 1000))), PlacementRequest(tensor_parallel_size=3))
    assert codes(plan)["slower-cores-used"] == "warning"
    assert "efficiency-core" not in reasons(plan)


def test_equal_cores_have_no_message() -> None:
    assert "core-types" not in codes(make_plan(topology_of(by_capacity((8, 1024))), PlacementRequest()))
