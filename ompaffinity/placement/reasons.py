"""The reasons why no rank gets a CPU, and what the user can do about each."""

from __future__ import annotations

REASONS = (
    "offline",
    "hidden",
    "not-allowed",
    "not-requested",
    "isolated",
    "efficiency-core",
    "unused-node",
    "quota",
    "remainder",
    "smt-sibling",
    "unbound",
)
"""In the order in which they are tried and shown."""

DETAILS = {
    "offline": "switched off; write 1 to /sys/devices/system/cpu/cpuN/online to bring one back",
    "hidden": "left out of the list of online CPUs that this container sees, and not in the mask of this process",
    "not-allowed": (
        "outside the affinity mask or cpuset of this process;"
        " start it with a wider one (taskset -c, docker --cpuset-cpus, srun -c)"
    ),
    "not-requested": "outside what --cpus, --nodes, --bind or --numa-bind-cpus names",
    "isolated": "kept from the scheduler by isolcpus; --cpus LIST uses those that it names",
    "efficiency-core": "a team would wait for these slower cores; --core-type all uses them",
    "remainder": (
        "left idle so that no rank straddles an L3 cache or a cluster;"
        " --reserve takes such cores first, --bind places ranks by hand"
    ),
    "quota": "more than the CPU quota of the control group lets run; raise cpu.max (docker --cpus) to use them",
    "unbound": "nothing is bound with --bind none; --bind auto plans them",
}
