"""A decoder layer as engines compute it, in torch: attention over a KV cache, and a gated network."""

from __future__ import annotations

from typing import Any

LAYERS, WIDTH, INNER, HEADS, CACHE, BATCH = 4, 512, 2048, 8, 256, 8


class DecoderLayer:
    """One layer, or one rank's part of it, with random weights of the type `number`."""

    def __init__(self, torch: Any, number: Any, parts: int = 1) -> None:
        def weights(rows: int, columns: int) -> Any:
            return (torch.randn(rows, columns) / rows**0.5).to(number)

        self._torch = torch
        self._heads, self._size = HEADS // parts, WIDTH // HEADS
        self._qkv = weights(WIDTH, 3 * WIDTH // parts)
        self._out = weights(WIDTH // parts, WIDTH)
        self._up = weights(WIDTH, 2 * INNER // parts)
        self._down = weights(INNER // parts, WIDTH)
        self._keys = torch.randn(BATCH, self._heads, CACHE, self._size).to(number)
        self._values = torch.randn(BATCH, self._heads, CACHE, self._size).to(number)

    def step(self, hidden: Any, position: int, dist: Any = None) -> Any:
        """Return the states of one token after this layer; `dist` adds up the parts of all ranks."""
        functional = self._torch.nn.functional
        query, key, value = functional.rms_norm(hidden, (WIDTH,)).matmul(self._qkv).chunk(3, dim=-1)
        shape = (BATCH, self._heads, 1, self._size)
        self._keys[:, :, position] = key.reshape(BATCH, self._heads, self._size)
        self._values[:, :, position] = value.reshape(BATCH, self._heads, self._size)
        seen = functional.scaled_dot_product_attention(query.reshape(shape), self._keys, self._values)
        part = seen.reshape(BATCH, -1).matmul(self._out)
        if dist is not None:
            dist.all_reduce(part)
        hidden = hidden + part
        gate, up = functional.rms_norm(hidden, (WIDTH,)).matmul(self._up).chunk(2, dim=-1)
        part = (functional.silu(gate) * up).matmul(self._down)
        if dist is not None:
            dist.all_reduce(part)
        return hidden + part
