"""A real Ray cluster: two nodes on this machine."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ompaffinity.bind.mempolicy import can_set_mempolicy
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.integrations.ray import actors as ours
from ompaffinity.integrations.ray import nodes as ray_nodes
from ompaffinity.integrations.ray.cluster import ClusterNode, make_cluster_plan
from ompaffinity.integrations.ray.interpreter import bound_interpreter
from ompaffinity.placement.request import PlacementRequest
from ompaffinity.topology.source import load_topology
from tests.conftest import COMPETITORS, CPUS, ROOT, needs_nvml, needs_ray, needs_two_cpus, run_command

RANKS = min(2, len(CPUS))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes whose raylets have a stale variable in their environment."""
    yield from started_cluster({"KMP_AFFINITY": "disabled"})


@pytest.fixture
def gpu_cluster(driver: dict[str, Path], tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of one node with two GPUs of a stand-in driver."""
    lines = "".join(f"gpu bus=00000000:{16 + at:02X}:00.0 uuid=GPU-{at} memory=1 cpu=ff\n" for at in range(2))
    (tmp_path / "plan").write_text(lines)
    reported = {"LD_LIBRARY_PATH": str(driver["new"]), "OMPAFFINITY_NVML_PLAN": str(tmp_path / "plan")}
    yield from started_cluster(reported, "2")


def started_cluster(variables: dict[str, str], *arguments: str) -> Iterator[str]:
    environment = {**os.environ, **variables}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integrations.ray.ray_cluster", str(len(CPUS)), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            assert address
            yield address
        finally:
            process.communicate()


def program(name: str, address: str, *arguments: str) -> Any:
    """Return the answer of one of the programs."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integrations.ray.ray_programs", name, address, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def inside(masks: list[list[int]], affinity: list[int]) -> bool:
    return all(set(mask) <= set(affinity) for mask in masks)


@needs_ray
def test_every_thread_of_every_actor_is_bound_before_it_starts(cluster: str) -> None:
    placements, teams, states, verdict, alone = program("bound_before_it_starts", cluster)
    assert len({node for *_, node in placements}) == RANKS
    for number, ((affinity, policy, nodes, node), team, state) in enumerate(zip(placements, teams, states)):
        assert len(state["before"]) > 5
        assert inside(state["before"], affinity)
        assert inside(state["masks"], affinity)
        if can_set_mempolicy():
            assert policy == "bind"
            assert state["policies"] == [f"bind:{','.join(map(str, nodes))}"]
        assert state["node"] == node
        reported = state["environment"]
        assert int(reported["OMP_NUM_THREADS"]) == team
        # One of the two: libgomp ignores GOMP_CPU_AFFINITY, which names single CPUs, beside OMP_PLACES.
        assert bool(reported["OMP_PLACES"]) != bool(reported["GOMP_CPU_AFFINITY"])
        assert reported["KMP_AFFINITY"] is None
        assert reported["OMPAFFINITY_UNBOUND"] is None
        assert (reported["RANK"], reported["LOCAL_RANK"]) == (str(number), str(number))
        assert (reported["WORLD_SIZE"], reported["LOCAL_WORLD_SIZE"]) == (str(RANKS), str(RANKS))
        assert reported["MASTER_ADDR"]
        assert 0 < int(reported["MASTER_PORT"]) < 65536
    assert len({state["environment"]["MASTER_PORT"] for state in states}) == 1
    assert verdict["holds"], verdict
    assert [rank["rank"] for rank in verdict["ranks"]] == list(range(RANKS))
    assert alone


@needs_ray
@needs_two_cpus
def test_reports_an_actor_that_leaves_its_cpus(cluster: str) -> None:
    planned, widened, moved = program("moved_actor", cluster)
    assert planned["holds"], planned
    for wrong, cpus in ((widened, CPUS), (moved, CPUS[-1:])):
        assert not wrong["holds"]
        assert [rank["holds"] for rank in wrong["ranks"]] == [False, True]
        differences = [found["message"] for found in wrong["ranks"][0]["differences"]]
        assert any(f"may run on CPU {format_id_list(cpus)}, " in text for text in differences), differences


@needs_ray
@needs_two_cpus
def test_a_watcher_on_each_node_finds_and_repairs_a_drift(cluster: str) -> None:
    watched, started, nodes, changes, masks, cpus = program("watched_actors", cluster)
    assert watched == started
    assert nodes == RANKS
    ignored = ("verdict", *COMPETITORS)
    assert [change["kind"] for change in changes if change["kind"] not in ignored] == ["threads-rebound", "repaired"]
    assert inside(masks, cpus[:-1])


@needs_ray
def test_threaded_and_asynchronous_actors_and_placement_groups(cluster: str) -> None:
    affinity, states = program("kinds_of_actors", cluster)
    assert len(states) == 9
    assert all(inside(state["masks"], affinity) for state in states)
    assert [state["environment"]["MINE"] for state in states] == [None] * 8 + ["yes"]


@needs_ray
def test_runs_unbound_with_a_message_what_cannot_be_bound(cluster: str) -> None:
    here, counts, affinity, team, state, verdict = program("other_machines", cluster)
    assert sum(counts) == 4
    assert counts[0] > counts[1]
    assert not set(affinity) & set(CPUS)
    assert team
    assert state["masks"][0] == CPUS
    assert "CPUs:" in state["environment"]["OMPAFFINITY_UNBOUND"]
    assert here == len(CPUS)
    assert not verdict["holds"]
    assert "was started unbound" in verdict["ranks"][0]["differences"][0]["cause"]


@needs_ray
def test_two_recorded_machines(cluster: str, recorded_machines: Path) -> None:
    names = ("x86-epyc7451-2p8n48c96t", "ppc64le-power8-smt8-2p2n20c160t")
    paths = [next((recorded_machines / "sysfs").glob(f"{name}*")) for name in names]
    nodes, document = program("both", cluster, *map(str, paths))
    assert [rank["rank"] for rank in document["ranks"]] == list(range(8))
    for at, machine in enumerate(document["machines"]):
        count = sum(rank["node_id"] == machine["nodes"][0]["node_id"] for rank in document["ranks"])
        assert count % 2 == 0
        assert machine["plan"]["machine"] in str(paths[nodes.index(machine["nodes"][0]["node_id"])])
        alone = json.loads(
            run_command(
                "plan",
                "--tp",
                "2",
                "--dp",
                str(count // 2),
                "--json",
                "--runtime",
                machine["plan"]["runtime"],
                "--granularity",
                machine["plan"]["granularity"],
                "--machine",
                str(paths[at]),
            ).stdout
        )
        assert [rank["cpus"] for rank in alone["ranks"]] == [rank["cpus"] for rank in machine["plan"]["ranks"]]


@needs_ray
def test_no_actor_hangs_also_without_its_helper(cluster: str) -> None:
    affinity, bound, unbound = program("many_actors", cluster)
    assert len(bound) == len(unbound) == 20
    assert all(inside(state["masks"], affinity) for state in bound)
    assert all("the helper failed" in state["environment"]["OMPAFFINITY_UNBOUND"] for state in unbound)


@needs_ray
def test_an_actor_binds_itself(cluster: str) -> None:
    affinity, state, team, verdict, executable = program("bound_inside", cluster)
    assert inside(state["masks"], affinity)
    assert state["warnings"] == []
    assert team == int(state["environment"]["OMP_NUM_THREADS"])
    assert [found for found in verdict["ranks"][0]["differences"] if found["subject"] != "memory"] == []
    assert executable == sys.executable


@needs_ray
def test_an_actor_binds_itself_also_when_torch_was_imported_first(cluster: str) -> None:
    bound, unbound, warnings, affinity, masks, again = program("bound_late", cluster)
    assert bound > 10
    assert (unbound, warnings) == (0, [])
    assert inside(masks, affinity)
    assert again


@needs_ray
def test_what_an_actor_starts(cluster: str) -> None:
    planned, here, there, affinity = program("inherited", cluster)
    # It plans with what the raylet has, and not with what it was given itself.
    assert planned == [CPUS, CPUS]
    assert inside(here["masks"], affinity)
    # On another node nothing of an actor's environment holds.
    assert there["masks"][0] == CPUS
    assert there["environment"]["RANK"] is None
    assert there["environment"]["OMP_PLACES"] is None


@needs_ray
def test_the_interpreter_of_a_job_is_left_alone(cluster: str) -> None:
    executable, variables = program("interpreter_of_the_job", cluster)
    assert executable is None
    assert variables["RANK"] == "0"


@needs_ray
@needs_nvml
def test_actors_with_gpus_take_the_cpus_of_the_one_that_ray_gives(gpu_cluster: str) -> None:
    table, codes, states, verdict, refused = program("gpu_actors", gpu_cluster)
    assert [device for device, _ in table] == list(range(RANKS))
    assert "gpu-by-scheduler" in codes
    *ranks, both, alone = states
    assert sorted(state["gpus"] for state in ranks) == [str(gpu) for gpu in range(RANKS)]
    for rank, state in enumerate(ranks):
        # The CPUs are those of the GPU, whichever rank has got it; to the actor it is GPU 0.
        assert (state["rank"], state["device"]) == (rank, 0)
        assert state["affinity"] == table[int(state["gpus"])][1]
        assert inside(state["masks"], state["affinity"])
        assert state["warnings"] == []
    assert verdict["holds"], verdict
    assert both["devices"] == [0, 1]
    assert both["affinity"] == CPUS
    assert alone["gpus"] in ("0", "1")
    assert inside(alone["masks"], alone["affinity"])
    if len(CPUS) > 1:
        assert not set(ranks[0]["affinity"]) & set(ranks[1]["affinity"])
        assert set(alone["affinity"]) < set(CPUS)
    assert "has no placement" in refused


@needs_ray
def test_reports_what_goes_wrong(cluster: str) -> None:
    differences, reported = program("what_goes_wrong", cluster)
    busy, without, dead, first, second, swapped, missing = differences
    assert "does not answer within 1 seconds" in busy[0]["message"]
    assert "has no placement" in without[0]["message"]
    assert dead[0]["subject"] == "actor"
    assert first == []
    assert "another one was started as rank 0, too" in second[0]["message"]
    assert "it was started as rank 0, and stands here as rank 1" in swapped[0]["message"]
    assert "there is no actor of this rank" in missing[0]["message"]
    kinds, texts = zip(*reported)
    assert kinds == ("TopologyError", *["RequestError"] * 6)
    assert "no reply within 0 seconds" in texts[0]
    assert "which is not in the cluster" in texts[1]
    assert "the sizes make 2 ranks" in texts[2]
    assert "not one of the" in texts[3]
    assert "not one of the" in texts[4]
    assert "there are 3 actors, but the plan has 2 ranks" in texts[5]
    assert "this program is connected to the Ray cluster at" in texts[6]


@needs_ray
def test_the_plan_of_a_cluster_on_the_command_line(cluster: str) -> None:
    table = run_command("plan", "--ray", cluster, "--dp", str(RANKS))
    assert table.returncode == 0
    assert all(line.startswith("note: ") for line in table.stderr.splitlines())
    assert "helper CPUs" in table.stdout
    document = json.loads(run_command("plan", "--ray", cluster, "--dp", str(RANKS), "--json").stdout)
    assert document["schema"] == "ompaffinity.cluster/1"
    assert len(document["ranks"]) == RANKS
    alone = json.loads(run_command("plan", "--tp", str(RANKS), "--json").stdout)
    assert [rank["cpus"] for rank in document["ranks"]] == [rank["cpus"] for rank in alone["ranks"]]
    too_many = run_command("plan", "--ray", cluster, "--tp", "5000")
    assert too_many.returncode == 2
    assert too_many.stderr.startswith("ompaffinity: error: 5000 ranks were requested, but the nodes have")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("--machine", "x"),
            "--ray reads every node of the cluster, so --machine cannot be combined with it; leave one out",
        ),
        (("--source", "lscpu"), "--ray reads every node as --source auto does; leave --source out"),
        (("--format", "env"), "--format env is for one machine; a cluster's plan is a table or json"),
        (("--bind", "0|1"), "--bind with lists is for one machine; for a cluster it is auto or none"),
    ],
)
def test_what_is_for_one_machine_is_refused(arguments: tuple[str, ...], text: str) -> None:
    done = run_command("plan", "--ray", "127.0.0.1:1", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ompaffinity: error: {text}\n"


@needs_ray
@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1:1", "cannot connect to a Ray cluster at 127.0.0.1:1: Connection refused"),
        ("nonsense", "the Ray address is 'nonsense'; it must be auto, HOST:PORT or ray://HOST:PORT"),
        ("local", "the Ray address is 'local'; it must be auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_where_there_is_no_cluster(address: str, text: str) -> None:
    done = run_command("plan", "--ray", address, "--tp", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ompaffinity: error: {text}\n"


@needs_ray
def test_what_listens_there_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = run_command("plan", "--ray", address, "--tp", "2")
        thread.join()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ompaffinity: error: the server at {address} is not a Ray cluster; pass the address of one\n"


@needs_ray
def test_rejects_a_program_that_is_not_connected() -> None:
    with pytest.raises(RequestError, match="not connected to a Ray cluster"):
        ours.plan_cluster(2)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"install 'ompaffinity\[ray\]'"), ray_nodes.connected("auto"):
        pass


def test_the_command_of_an_actor_survives_the_shell_that_ray_pastes_it_into() -> None:
    topology = load_topology(synthetic="numa:2 core:4 pu:1", architecture="x86_64")
    python = "/a folder/with 'quotes' and $(true)/python"
    node = ClusterNode("id", "name", topology, 8, "host", python=python, helper='/a "b"/bind_exec.py')
    plan = make_cluster_plan([node], PlacementRequest(data_parallel_size=2, memory_policy="bind"))
    text = bound_interpreter(node, plan.ranks[1].placement, ("KMP_AFFINITY",))
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, text=True, check=True, env={"PATH": os.defpath}
    )
    words = done.stdout.split("\0")[:-1]
    assert words == shlex.split(text)
    assert words[0] == words[-1] == python
    assert words[words.index("--cpus") + 1] == "4-7"
    assert words[words.index("--bind") + 1] == "1"
    assert words[words.index("--unset") + 1] == "KMP_AFFINITY"


def test_reports_nodes_that_overlap() -> None:
    topology = load_topology(synthetic="numa:1 core:4 pu:1", architecture="x86_64")
    half = topology._replace(cpus=tuple(cpu._replace(allowed=cpu.id < 2) for cpu in topology.cpus))
    nodes = [ClusterNode("a", "a", topology, 4, "boot:0-3"), ClusterNode("b", "b", half, 4, "boot:0-1")]
    assert [message.code for message in ray_nodes._overlaps(nodes)] == ["nodes-overlap"]
    assert list(ray_nodes._overlaps([nodes[0], nodes[1]._replace(host="other:0-1")])) == []
