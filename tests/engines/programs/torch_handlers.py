"""Four request threads that call torch, as a thread pool of a web server does; each forms an OpenMP team."""

from concurrent.futures import ThreadPoolExecutor

import torch


def handle(matrix: torch.Tensor) -> None:
    while True:
        torch.relu(matrix @ matrix)


torch.exp(torch.rand(1000, 1000)).sum()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(handle, [torch.rand(300, 300) for _ in range(4)]))
