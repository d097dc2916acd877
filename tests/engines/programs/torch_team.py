"""torch.matmul without end: ``torch_team.py [THREADS [SECONDS OF SLEEP BEFORE]]``; other Python threads sleep."""

import sys
import threading
import time

import torch

THREADS, SLEEP = [int(word) for word in (*sys.argv[1:], "0", "0")[:2]]
for _ in range(2):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
time.sleep(SLEEP)
if THREADS:
    torch.set_num_threads(THREADS)
matrix = torch.rand(800, 800)
print("working", flush=True)
while True:
    matrix @ matrix
