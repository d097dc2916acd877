"""What ``--help`` says of each verb."""

from __future__ import annotations

SUMMARIES = {
    "plan": "dry run: what each rank would get, and why everything else is left out",
    "topology": "what was read: CPUs, nodes, limits",
    "devices": "the GPUs that this process sees, and the NUMA nodes that they are next to",
    "verify": "proof: start an OpenMP team per rank, or look at live workers, and compare what the kernel says",
    "inspect": "where the threads and the pages of live processes are, and what is wrong with that",
    "compare": "what the plan gains: run a command with and without it, interleaved, and compare",
    "doctor": "what on this machine stands in the way of binding, and the fix",
    "completion": "print what completes these commands in a shell",
    "exec": "bind this process by the rank that its launcher gave it, then become the command after --",
    "run": "start the ranks here, bound from birth: the command after -- once per rank",
}
EXAMPLES = {
    "devices": """examples:
  ompaffinity devices
  CUDA_VISIBLE_DEVICES=2,3 ompaffinity devices --json
  ompaffinity devices --machine recorded.tar.gz
""",
    "run": """examples:
  ompaffinity run --tp 2 -- python worker.py
  ompaffinity run --tp 4 --log-dir logs -- ./worker --port 8000
  ompaffinity run --tp 8 --numa-bind -- python worker.py
""",
    "exec": """examples:
  mpirun -n 4 ompaffinity exec -- ./worker
  srun ompaffinity exec --runtime gomp -- python worker.py
  torchrun --nproc-per-node 2 --no-python ompaffinity exec -- python worker.py
""",
    "compare": """examples:
  ompaffinity compare --tp 2 -- python benchmark.py
  ompaffinity compare --metric 'tokens/s: ([0-9.]+)' --budget 600 -- python benchmark.py
  ompaffinity compare --variant none --variant plan --variant all='--threads-per-core all' -- ./benchmark

variants: none (nothing set), threads (OMP_NUM_THREADS alone), mask (taskset), plan (as asked for), thread, team, smt,
no-smt, no-reserve, span, spread, memory-none, memory-bind, memory-interleave, active, brief, passive
""",
    "completion": """examples:
  eval "$(ompaffinity completion --shell bash)"
  ompaffinity completion --shell zsh > ~/.zfunc/_ompaffinity
""",
    "doctor": """examples:
  ompaffinity doctor
  ompaffinity doctor --python .venv/bin/python --json
""",
    "inspect": """examples:
  ompaffinity inspect 4711 4712
  ompaffinity inspect --all --json
""",
    "plan": """examples:
  ompaffinity plan --tp 2
  ompaffinity plan --tp 4 --runtime gomp --json
  ompaffinity plan --tp 2 --machine recorded.tar.gz
  ompaffinity plan --tp 2 --synthetic 'package:2 core:16 pu:2' --arch x86_64
  eval "$(ompaffinity plan --tp 2 --rank 0 --format env)"
  ompaffinity plan --tp 8 --numa-bind --map
  ompaffinity plan --tp 2 --format numactl
  ompaffinity plan --tp 2 --svg plan.svg
  ompaffinity plan --ray auto --tp 2 --dp 4
""",
    "topology": """examples:
  ompaffinity topology
  ompaffinity topology --json --source lscpu
  ompaffinity topology --machine recorded.tar.gz
  ompaffinity topology --capture machine.json
""",
    "verify": """examples:
  ompaffinity verify --tp 2
  ompaffinity verify --tp 2 --library libomp.so.5 --json
  ompaffinity verify --pid 4711 4712
  ompaffinity verify --pid 4711 --plan plan.json
  ompaffinity verify --tp 2 -- python worker.py
""",
}
