"""Two Ray nodes on this machine, until standard input ends: ``python -m tests.launch.ray_cluster CPUS``."""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODES = 2


def main() -> None:
    cluster = Cluster()
    for _ in range(NODES):
        cluster.add_node(num_cpus=int(sys.argv[1]), object_store_memory=80 << 20, include_dashboard=False)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
