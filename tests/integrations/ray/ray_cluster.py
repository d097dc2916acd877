"""Two Ray nodes on this machine, until standard input ends: ``python -m tests.integrations.ray.ray_cluster CPUS``.

With a number of GPUs besides there is one node, which has them.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

NODES = 2


def main() -> None:
    cluster = Cluster()
    cpus, gpus = int(sys.argv[1]), int((*sys.argv, "0", "0")[2])
    for _ in range(1 if gpus else NODES):
        cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=80 << 20, include_dashboard=False)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
