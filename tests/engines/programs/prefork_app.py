"""A WSGI application that computes with torch, for gunicorn."""

from collections.abc import Callable, Iterable

import torch

matrix = torch.rand(1000, 1000)
torch.exp(matrix @ matrix)


def application(environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
    torch.exp(matrix @ matrix)
    body = str(torch.get_num_threads()).encode()
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]
