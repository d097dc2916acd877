"""The programs of the tests of Ray: ``python -m tests.integrations.ray.ray_programs NAME ADDRESS``.

The last line that it prints is its answer, as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

import ompaffinity
from ompaffinity.ray import actor_options, bind_actor, plan_cluster, verify_cluster, watch_cluster

SECONDS = 120
RANKS = min(2, len(os.sched_getaffinity(0)))
"""On one CPU there is but one rank: two would have to share it."""


class Worker:
    """An actor that forms an OpenMP team and reports what it has."""

    def __init__(self, *, bind: bool = False, pause: float = 0) -> None:
        self.before = _masks()
        self.binding = bind_actor() if bind else None
        time.sleep(pause)

    def team(self) -> int:
        import ctypes

        from ompaffinity.openmp.library_path import find_library
        from ompaffinity.openmp.team import in_each_thread

        path = find_library("libgomp.so.1", os.environ)
        return len(in_each_thread(ctypes.CDLL(path)))

    def state(self) -> dict[str, Any]:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        others = ("OMP_NUM_THREADS", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMPAFFINITY_UNBOUND", "MINE")
        return {
            "before": self.before,
            "masks": _masks(),
            "policies": _policies(),
            "environment": {name: os.environ.get(name) for name in (*names, *others)},
            "node": ray.get_runtime_context().get_node_id(),
            "warnings": [] if self.binding is None else [message.code for message in self.binding.messages],
            "pid": os.getpid(),
        }

    def bind_main_thread(self, cpus: list[int]) -> None:
        os.sched_setaffinity(os.getpid(), cpus)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class AsyncWorker(Worker):
    """Its methods run in another thread than the main one."""

    async def state_later(self) -> dict[str, Any]:
        return self.state()


def _masks() -> list[list[int]]:
    masks = []
    for number in os.listdir("/proc/self/task"):
        try:
            masks.append(sorted(os.sched_getaffinity(int(number))))
        except OSError:
            # The thread has ended meanwhile.
            continue
    return masks


def _policies() -> list[str]:
    """Return the memory policies of all threads: the second word of a mapping that has none of its own."""
    policies = set()
    for number in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{number}/numa_maps", encoding="ascii", errors="replace") as file:
                policies.add(file.readline().split()[1])
        except (OSError, IndexError):
            continue
    return sorted(policies)


def start(plan: Any, rank: int, kind: type = Worker, *, options: dict[str, Any] | None = None, **given: Any) -> Any:
    return ray.remote(kind).options(**{**actor_options(plan, rank), **(options or {})}).remote(**given)


def answers(references: list[Any]) -> list[Any]:
    found: list[Any] = ray.get(references, timeout=SECONDS)
    return found


def bound_before_it_starts() -> Any:
    plan = plan_cluster(RANKS, runtime="gomp", memory_policy="bind")
    actors = [start(plan, rank) for rank in range(RANKS)]
    teams = answers([actor.team.remote() for actor in actors])
    states = answers([actor.state.remote() for actor in actors])
    verdict = verify_cluster(actors, plan).to_document()
    alone = verify_cluster(actors).holds
    placements = [
        [rank.placement.affinity, rank.placement.memory_policy, rank.placement.nodes, rank.node_id]
        for rank in plan.ranks
    ]
    return [placements, teams, states, verdict, alone]


def moved_actor() -> Any:
    """One of two actors gets more CPUs than its rank has, then a CPU that no rank has."""
    cpus = sorted(os.sched_getaffinity(0))
    # The last CPU stays out of the plan, so that it is wrong for every rank, however few CPUs there are.
    plan = plan_cluster(2, runtime="gomp", cpus=tuple(cpus[:-1]), oversubscribe=True)
    actors = [start(plan, rank) for rank in range(2)]
    answers([actor.team.remote() for actor in actors])
    verdicts = [verify_cluster(actors, plan).to_document()]
    for wrong in (cpus, cpus[-1:]):
        answers([actors[0].bind_main_thread.remote(wrong)])
        verdicts.append(verify_cluster(actors, plan).to_document())
    return verdicts


def watched_actors() -> Any:
    """Watch two nodes; the main thread of one of the actors gets a CPU that no rank has, and is bound again."""
    cpus = sorted(os.sched_getaffinity(0))
    plan = plan_cluster(2, runtime="gomp", cpus=tuple(cpus[:-1]), oversubscribe=True)
    actors = [start(plan, rank) for rank in range(2)]
    states = answers([actor.state.remote() for actor in actors])
    found: dict[int, str] = {}
    changes: list[Any] = []
    nodes: set[str] = set()
    with watch_cluster(0.5, repair=True) as watch:
        deadline, has_moved = time.monotonic() + SECONDS, False
        while time.monotonic() < deadline and "repaired" not in [change["kind"] for change in changes]:
            time.sleep(0.5)
            for node in watch.gather():
                assert node.problem is None, node.problem
                changes += [change.to_document() for change in node.changes]
                for rank in node.status.ranks if node.status else ():
                    nodes.add(node.node_id)
                    found[rank.pid or 0] = rank.verdict
            if len(found) == 2 and not has_moved:
                answers([actors[0].bind_main_thread.remote(cpus[-1:])])
                has_moved = True
    after = answers([actors[0].state.remote()])[0]
    return [sorted(found), sorted(state["pid"] for state in states), len(nodes), changes, after["masks"], cpus]


def kinds_of_actors() -> Any:
    """Threaded and asynchronous actors, and one in a placement group."""
    plan = plan_cluster(1, runtime="gomp")
    states = []
    for kind, options in ((Worker, {"max_concurrency": 4}), (AsyncWorker, {})):
        actor = start(plan, 0, kind, options=options)
        asked = [(actor.state_later if kind is AsyncWorker else actor.state).remote() for _ in range(4)]
        states += answers(asked)
        ray.kill(actor)
    group = placement_group([{"CPU": plan.ranks[0].slots}])
    answers([group.ready()])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    merged = actor_options(plan, 0, scheduling_strategy=strategy, runtime_env={"env_vars": {"MINE": "yes"}})
    actor = ray.remote(Worker).options(**merged).remote()
    states += answers([actor.state.remote()])
    ray.kill(actor)
    remove_placement_group(group)
    return [plan.ranks[0].placement.affinity, states]


def other_machines() -> Any:
    """One node is planned as a machine that it is not: what cannot be bound runs, with a message."""
    nodes = sorted(node["NodeID"] for node in ray.nodes())
    # Its CPU numbers begin where this machine's end, for the ranks are to have none of these.
    text = f"package:2 numa:2 core:{max(os.sched_getaffinity(0)) + 8} pu:1"
    machine = ompaffinity.load_topology(synthetic=text, architecture="x86_64")
    here = len(os.sched_getaffinity(0))
    first = ",".join(str(cpu.id) for cpu in machine.cpus if cpu.id > max(os.sched_getaffinity(0)))
    cpus = tuple(int(number) for number in first.split(","))
    limited = machine._replace(cpus=tuple(cpu._replace(allowed=cpu.id in cpus) for cpu in machine.cpus))
    plan = plan_cluster(4, machines={nodes[0]: limited}, runtime="gomp")
    counts = [sum(rank.node_id == node for rank in plan.ranks) for node in nodes]
    lost = next(rank.rank for rank in plan.ranks if rank.node_id == nodes[0])
    actor = start(plan, lost)
    team = answers([actor.team.remote()])
    state = answers([actor.state.remote()])[0]
    verdict = verify_cluster([actor]).to_document()
    return [here, counts, list(plan.ranks[lost].placement.affinity), team, state, verdict]


def both(first: str, second: str) -> Any:
    """Plan the two nodes as two recorded machines."""
    nodes = sorted(node["NodeID"] for node in ray.nodes())
    plan = plan_cluster(tensor_parallel_size=2, data_parallel_size=4, machines=dict(zip(nodes, (first, second))))
    from ompaffinity.integrations.ray.document import cluster_document

    return [nodes, cluster_document(plan)]


def many_actors() -> Any:
    """Twenty actors with the helper, and twenty whose helper is not there."""
    plan = plan_cluster(1, runtime="gomp")
    hosts = tuple(
        host._replace(nodes=tuple(node._replace(helper="/nowhere/bind exec.py") for node in host.nodes))
        for host in plan.hosts
    )
    found = []
    for chosen in (plan, plan._replace(hosts=hosts)):
        actors = [start(chosen, 0, options={"num_cpus": 0}) for _ in range(20)]
        found.append(answers([actor.state.remote() for actor in actors]))
        for actor in actors:
            ray.kill(actor)
    return [list(plan.ranks[0].placement.affinity), *found]


def bound_inside() -> Any:
    """An actor whose interpreter is its own binds itself."""
    plan = plan_cluster(1, runtime="gomp", memory_policy="bind")
    actor = start(plan, 0, options={"runtime_env": _without_helper(plan)}, bind=True)
    state = answers([actor.state.remote()])[0]
    team = answers([actor.team.remote()])[0]
    verdict = verify_cluster([actor], plan).to_document()
    ray.kill(actor)
    options = actor_options(plan, 0, runtime_env={"py_executable": sys.executable})
    return [list(plan.ranks[0].placement.affinity), state, team, verdict, options["runtime_env"]["py_executable"]]


def _without_helper(plan: Any) -> dict[str, Any]:
    environment: dict[str, Any] = actor_options(plan, 0)["runtime_env"]
    del environment["py_executable"]
    return environment


class Late(Worker):
    """Its module has imported torch, or another user of OpenMP, and the runtime has bound the calling thread."""

    def bind(self) -> Any:
        placement = ompaffinity.current_placement()
        assert placement is not None
        os.sched_setaffinity(0, placement.places[0])
        binding = bind_actor()
        again = bind_actor() is binding
        return [len(binding.bound), len(binding.not_bound), [m.code for m in binding.messages], _masks(), again]


def bound_late() -> Any:
    plan = plan_cluster(1, runtime="gomp", reserve=0)
    actor = start(plan, 0, Late, options={"runtime_env": _without_helper(plan)})
    bound, unbound, warnings, masks, again = answers([actor.bind.remote()])[0]
    return [bound, unbound, warnings, list(plan.ranks[0].placement.affinity), masks, again]


class Starter(Worker):
    """It plans, and starts tasks, from inside of an actor."""

    def cpus_of_nodes(self) -> list[list[int]]:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        plan = plan_cluster(len(nodes), runtime="gomp", oversubscribe=True)
        topologies = {node.node_id: node.topology for host in plan.hosts for node in host.nodes}
        return [list(topologies[node].allowed_cpus) for node in nodes]

    def state_on(self, node_id: str) -> dict[str, Any]:
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(num_cpus=0)(look_around).options(scheduling_strategy=strategy)
        found: dict[str, Any] = ray.get(task.remote())
        return found


def look_around() -> dict[str, Any]:
    return Worker().state()


def inherited() -> Any:
    # As if it had the first CPU only, so that what is inherited shows.
    plan = plan_cluster(1, runtime="gomp", cpus=(min(os.sched_getaffinity(0)),))
    actor = start(plan, 0, Starter, options={"num_cpus": 0})
    here = plan.ranks[0].node_id
    there = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
    states = [answers([actor.state_on.remote(node)])[0] for node in (here, there)]
    return [answers([actor.cpus_of_nodes.remote()])[0], *states, list(plan.ranks[0].placement.affinity)]


def gpu_actors() -> Any:
    """Actors with a GPU each, which Ray chooses; one with two of them; one without a plan; and one with none."""
    plan = plan_cluster(tensor_parallel_size=RANKS, numa_bind=True)
    actors = [start(plan, rank, GpuWorker) for rank in range(RANKS)]
    states = answers([actor.gpu_state.remote() for actor in actors])
    answers([actor.team.remote() for actor in actors])
    verdict = verify_cluster(actors, plan).to_document()
    for actor in actors:
        ray.kill(actor)
    both = start(plan, 0, GpuWorker, options={"num_gpus": 2})
    states += answers([both.gpu_state.remote()])
    ray.kill(both)
    alone = ray.remote(GpuWorker).options(num_gpus=1, num_cpus=0).remote()
    states += answers([alone.gpu_state.remote()])
    ray.kill(alone)
    without = ray.remote(Worker).options(num_cpus=0).remote(bind=True)
    try:
        answers([without.state.remote()])
        refused = ""
    except ray.exceptions.ActorDiedError as error:
        refused = str(error)
    table = [[rank.placement.gpu, rank.placement.affinity] for rank in plan.ranks]
    return [table, [message.code for message in plan.all_messages], states, verdict, refused]


class GpuWorker(Worker):
    """An actor that binds itself first thing, as actors with a GPU must."""

    def __init__(self) -> None:
        super().__init__(bind=True)

    def gpu_state(self) -> Any:
        placement = ompaffinity.current_placement()
        assert placement is not None
        state = self.state()
        state |= {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "affinity": placement.affinity}
        return state | {"device": placement.gpu, "devices": placement.gpus, "rank": placement.rank}


def interpreter_of_the_job() -> Any:
    """Called with a connection of its own, for the environment is the job's."""
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    environment = {"py_executable": sys.executable}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    plan = plan_cluster(1, runtime="gomp")
    given = actor_options(plan, 0)["runtime_env"]
    return [given.get("py_executable"), given["env_vars"]]


def what_goes_wrong() -> Any:
    # Two ranks that share what there is.
    plan = plan_cluster(2, runtime="gomp", oversubscribe=True)
    busy, without = start(plan, 0), ray.remote(Worker).options(num_cpus=0).remote()
    answers([busy.state.remote(), without.state.remote()])
    busy.wait.remote(30)
    first = verify_cluster([busy], timeout_seconds=1).to_document()["ranks"]
    second = verify_cluster([without]).to_document()["ranks"]
    ray.kill(busy)
    dead = verify_cluster([busy]).to_document()["ranks"]
    twice = [start(plan, 0, options={"num_cpus": 0}) for _ in range(2)]
    answers([actor.team.remote() for actor in twice])
    same = verify_cluster(twice).to_document()["ranks"]
    swapped = verify_cluster(twice, plan).to_document()["ranks"][1:]
    missing = verify_cluster(twice[:1], plan).to_document()["ranks"][1:]
    reported = []
    for attempt in (
        lambda: plan_cluster(2, timeout_seconds=0),
        lambda: plan_cluster(2, machines={"none": "x"}),
        lambda: plan_cluster(3, tensor_parallel_size=2),
        lambda: actor_options(plan, 99),
        lambda: actor_options(plan, True),
        lambda: verify_cluster([*twice, twice[0]], plan),
        lambda: plan_cluster(2, address="192.0.2.99:1234"),
    ):
        try:
            attempt()
        except ompaffinity.OMPAffinityError as error:
            reported.append([type(error).__name__, str(error)])
    differences = [rank["differences"] for rank in (*first, *second, *dead, *same, *swapped, *missing)]
    return [differences, reported]


def main(name: str, address: str, *arguments: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    answer = globals()[name](*arguments)
    ray.shutdown()
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
