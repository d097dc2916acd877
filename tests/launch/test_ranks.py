from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompaffinity.errors import RequestError
from ompaffinity.launch import ranks
from ompaffinity.launch.ranks import LauncherRank, find_rank, local_world, tasks_per_node
from ompaffinity.placement.request import MAX_RANKS

OPEN_MPI = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
}
HYDRA = {"MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4", "PMI_RANK": "6", "PMI_SIZE": "8"}
TORCHRUN = {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "RANK": "7", "WORLD_SIZE": "8"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_PROCID": "6",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (TORCHRUN, ("torchrun", 3, 4, 7, 8)),
        (OPEN_MPI, ("Open MPI", 1, 4, 5, 8)),
        (HYDRA, ("MPICH or Intel MPI (hydra)", 2, 4, 6, 8)),
        (SLURM, ("Slurm", 0, 1, 6, 7)),
        ({"PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "2", "PALS_RANKID": "3"}, ("PALS", 1, 2, 3, None)),
        ({"JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "9"}, ("JSM (jsrun)", 0, None, None, 9)),
        ({"MV2_COMM_WORLD_LOCAL_RANK": "0", "MV2_COMM_WORLD_LOCAL_SIZE": "1"}, ("MVAPICH2", 0, 1, None, None)),
        ({"PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2", "PMI_RANK": "1"}, ("Cray PMI", 1, 2, 1, None)),
        (
            {"FLUX_TASK_LOCAL_ID": "1", "FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "4", "FLUX_JOB_NNODES": "2"},
            ("Flux", 1, 2, 3, 4),
        ),
        (
            {"FLUX_TASK_LOCAL_ID": "1", "FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "5", "FLUX_JOB_NNODES": "2"},
            ("Flux", 1, None, 3, 5),
        ),
        ({"FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_SIZE": "4"}, ("Flux", 1, None, None, 4)),
        ({"FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_NNODES": "2"}, ("Flux", 1, None, None, None)),
        # Slurm lists fewer nodes than this one's number.
        (SLURM | {"SLURM_NODEID": "4"}, ("Slurm", 0, None, 6, 7)),
        ({"PMIX_LOCAL_RANK": "0", "PMIX_RANK": "4"}, ("PMIx", 0, None, 4, None)),
        # A process that a batch script starts directly is not a task of a step.
        ({"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, None),
        ({"LOCAL_RANK": " "}, None),
    ],
)
def test_reads_the_variables_of_each_launcher(environ: dict[str, str], expected: tuple[object, ...] | None) -> None:
    assert find_rank(environ) == (None if expected is None else LauncherRank(*expected))  # type: ignore[arg-type]


def test_the_innermost_launcher_has_precedence() -> None:
    assert find_rank(SLURM | OPEN_MPI | TORCHRUN) == LauncherRank("torchrun", 3, 4, 7, 8)
    assert find_rank(SLURM | OPEN_MPI) == LauncherRank("Open MPI", 1, 4, 5, 8)


def test_rejects_contradictory_mpi_launchers() -> None:
    with pytest.raises(RequestError, match=r"Open MPI sets local rank 1 of 4, MPICH or Intel MPI .* sets 2 of 4"):
        find_rank(OPEN_MPI | HYDRA)
    agreeing = HYDRA | {"MPI_LOCALRANKID": "1"}
    assert find_rank(OPEN_MPI | agreeing) == LauncherRank("Open MPI", 1, 4, 5, 8)
    # Both numbers in options override the launchers.
    assert local_world(OPEN_MPI | HYDRA, 0, 2) == LauncherRank("the options", 0, 2, 0, None)


@pytest.mark.parametrize("value", ["x", "-2", "1.0", "٣", "1000000000"])
def test_rejects_variables_that_are_no_numbers(value: str) -> None:
    with pytest.raises(RequestError, match="LOCAL_RANK is"):
        find_rank({"LOCAL_RANK": value})


def test_arguments_override_launchers() -> None:
    assert local_world(TORCHRUN, local_rank=0) == LauncherRank("torchrun", 0, 4, 7, 8)
    assert local_world(TORCHRUN, local_world_size=5) == LauncherRank("torchrun", 3, 5, 7, 8)
    assert local_world({}, 1, 2) == LauncherRank("the options", 1, 2, 1, None)
    assert local_world({}) is None


@pytest.mark.parametrize(
    ("local_rank", "local_world_size", "match"),
    [
        (2, 2, "local rank 2 is not one of 2 local ranks"),
        (0, 0, "not one of 0"),
        (None, 2, "--local-world-size is 2, but the local rank is unknown; set --local-rank"),
        (1, None, "local ranks is unknown; set --local-world-size"),
    ],
)
def test_rejects_contradictory_rank_numbers(local_rank: int, local_world_size: int, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        local_world({}, local_rank, local_world_size)


@pytest.mark.parametrize(
    ("text", "counts"), [("", []), ("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("16(x2),4,16", [16, 16, 4, 16])]
)
def test_reads_the_task_counts_of_slurm(text: str, counts: list[int]) -> None:
    assert tasks_per_node(text) == counts


@pytest.mark.parametrize("text", ["x", "2(3)", "2(x)", "2,", "1(x99999999)", "2(x3)4"])
def test_rejects_invalid_task_counts(text: str) -> None:
    with pytest.raises(RequestError, match="SLURM_STEP_TASKS_PER_NODE"):
        tasks_per_node(text)


@pytest.mark.parametrize(
    ("node", "local_world_size"), [({"SLURM_NODEID": "3"}, 1), ({"SLURM_NODEID": "4"}, None), ({}, None)]
)
def test_the_node_of_a_slurm_step_gives_the_number_of_local_ranks(
    node: dict[str, str], local_world_size: int | None
) -> None:
    step = {name: text for name, text in SLURM.items() if name != "SLURM_NODEID"}
    found = find_rank(step | node)
    assert found is not None
    assert (found.launcher, found.local_rank, found.local_world_size) == ("Slurm", 0, local_world_size)


def test_local_rank_minus_one_means_no_launcher() -> None:
    assert find_rank({"LOCAL_RANK": "-1", "RANK": "-1"}) is None


def test_accepts_the_local_rank_of_a_launcher_in_local_rank() -> None:
    hydra = {"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_RANK": "3", "PMI_SIZE": "4"}
    found = find_rank(hydra | {"LOCAL_RANK": "1"})
    assert found is not None
    assert (found.launcher, found.local_world_size) == ("MPICH or Intel MPI (hydra)", 2)
    other = find_rank(hydra | {"LOCAL_RANK": "0"})
    assert other is not None
    assert (other.launcher, other.local_world_size) == ("torchrun", None)


def test_more_local_ranks_than_a_machine_runs_are_refused() -> None:
    environ = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "999999999", "RANK": "0", "WORLD_SIZE": "999999999"}
    with pytest.raises(RequestError, match="gives 999999999 local ranks; a machine runs at most 65536"):
        local_world(environ)


def test_a_long_list_of_tasks_is_shown_in_part() -> None:
    with pytest.raises(RequestError) as error:
        tasks_per_node("9" * 10_000)
    assert len(str(error.value)) < 200


TEXTS = st.one_of(
    st.integers(-2, 5).map(str),
    st.sampled_from(
        ["", " ", "x", "9" * 5000, "999999999", "2(x3),1", "1(x999999999)", "(", "\x1b[31m", "\u0663", "1.5"]
    ),
    st.text(max_size=20),
)


@given(
    environ=st.dictionaries(
        st.sampled_from([*TORCHRUN, *OPEN_MPI, *HYDRA, *SLURM, "PMIX_RANK", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_NNODES"]),
        TEXTS,
    )
)
def test_any_variables_of_launchers_are_read_or_refused(environ: dict[str, str]) -> None:
    with suppress(RequestError):
        rank = find_rank(environ)
        assert rank is None or rank.local_rank >= 0


def test_without_a_number_of_local_ranks_there_is_one() -> None:
    assert LauncherRank("torchrun", 0).local_size == 1
    assert LauncherRank("torchrun", 0, 3).local_size == 3


def test_numbers_have_limits() -> None:
    assert find_rank({"LOCAL_RANK": "999999999"}) == LauncherRank("torchrun", 999999999)
    assert local_world({}, 0, MAX_RANKS) == LauncherRank("the options", 0, MAX_RANKS, 0)
    with pytest.raises(RequestError, match=f"a machine runs at most {MAX_RANKS}"):
        local_world({}, 0, MAX_RANKS + 1)
    with pytest.raises(RequestError, match="local rank -1 is not one of 2"):
        local_world({}, -1, 2)


def test_the_tasks_of_too_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "MAX_TASKS", 8)
    assert tasks_per_node("1(x7),1") == [1] * 8
    with pytest.raises(RequestError, match="must have the form"):
        tasks_per_node("1(x8),1")
