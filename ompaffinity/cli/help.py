"""The texts of ``--help`` for each verb."""

from __future__ import annotations

SUMMARIES = {
    "plan": "dry run: show the placement of each rank, and the CPUs left out with the reason",
    "topology": "show the CPUs, NUMA nodes, limits and devices of a machine, or record them",
    "devices": "show the visible GPUs and their NUMA nodes, with the source of each answer",
    "verify": "check a plan against the kernel's data: start an OpenMP team per rank, or check live workers",
    "inspect": "show where the threads and pages of live processes are, and report misplacements",
    "bind": "bind processes that run already, with all their threads, or restore what they had before",
    "watch": "keep checking live workers against their plan: report changes, repair them, export metrics",
    "compare": "measure the gain of the plan: run a command with and without it, interleaved",
    "doctor": "check what prevents or weakens binding on this machine, and show the fix",
    "completion": "print a completion script for a shell",
    "exec": "bind this process by the launcher's rank variables, then exec the command after --",
    "run": "start the command after -- once per rank on this machine, each rank bound before it starts",
}
EXAMPLES = {
    "bind": """examples:
  ompaffinity bind --pid 4711
  ompaffinity bind --pid 4711 4712 --tp 2 --save undo.json
  ompaffinity bind --pid 4711 --plan plan.json
  ompaffinity bind --undo undo.json
""",
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

variants: none (nothing set), threads (OMP_NUM_THREADS only), mask (affinity mask only), plan (the planning options),
and the plan with one option changed: thread, team, smt, no-smt, no-reserve, span, spread, memory-none, memory-bind,
memory-interleave, active, brief, passive
""",
    "completion": """examples:
  eval "$(ompaffinity completion --shell bash)"
  ompaffinity completion --shell zsh > ~/.zfunc/_ompaffinity
  ompaffinity completion --shell fish > ~/.config/fish/completions/ompaffinity.fish
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
    "watch": """examples:
  ompaffinity watch --pid 4711
  ompaffinity watch --pid 4711 --once
  ompaffinity watch --all --repair --json
  ompaffinity watch --all --listen 127.0.0.1:9400
""",
}
