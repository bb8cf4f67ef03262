"""Made-up activations for the kernels: a tile [tokens, units] in cache, with new numbers every time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from indexer_kernels import Sequences
from torch import Tensor

POOL = 4


@dataclass
class Tile:
    """One place in memory that holds another sequence's values after each `refill`.

    values: [tokens, units], overwritten by `refill`.
    A few prepared tiles are drawn from and their units permuted cyclically, so that every unit sees new
    sequences, and with them the insertions that come in real runs, for the cost of a copy. The copy also
    leaves the tile in cache, as the matrix product before an activation function does.
    """

    values: Tensor
    pool: list[Tensor]
    random: np.random.Generator
    sequence: int = 0

    @classmethod
    def of(cls, tokens: int, units: int, dtype: torch.dtype, *, activated: bool, seed: int = 0) -> Tile:
        """activated: values as GELU leaves them, for `update`; else as it takes them, for `activate`."""
        generator = torch.Generator().manual_seed(seed)
        pool = []
        for _ in range(POOL):
            # mostly negative, with a tail: what MLPs feed to their activation functions looks like this
            values = torch.randn(tokens, units, generator=generator) * 1.2 - 0.6
            pool.append((torch.nn.functional.gelu(values) if activated else values).to(dtype))
        return cls(torch.empty_like(pool[0]), pool, np.random.default_rng(seed))

    def refill(self) -> Sequences:
        """Put another sequence's values in place; returns what the rows are. Its two ends do not count."""
        tokens, units = self.values.shape
        drawn = self.pool[self.random.integers(POOL)]
        shift = int(self.random.integers(units))
        self.values[:, shift:] = drawn[:, : units - shift]
        self.values[:, :shift] = drawn[:, units - shift :]
        counted = np.ones(tokens, np.bool_)
        # special tokens, where there is room for them
        counted[[0, -1]] = tokens < 3
        sequences = Sequences.from_offsets(
            np.array([0, tokens]),
            np.array([self.sequence]),
            np.array([0]),
            self.random.integers(0, 30_000, tokens, dtype=np.int32),
            counted,
        )
        self.sequence += 1
        return sequences


def awkward(seed: int, dtype: torch.dtype) -> tuple[Tensor, Sequences]:
    """A small batch with all that goes wrong: odd shapes, ties, signed zeros, NaN, infinity, padding, stride.

    Returns [300, 33] and its sequences; another seed gives other documents.
    """
    random = np.random.default_rng(seed)
    tokens, units = 300, 33
    values = random.standard_normal((tokens, units)) * 10.0 ** random.integers(-4, 4, (tokens, units))
    common = random.choice([0.0, -0.0, 1.0, -1.0, 0.125, 1e-42], values.shape)
    values = np.where(random.random(values.shape) < 0.2, common, values)
    rare = random.choice([np.nan, np.inf, -np.inf], values.shape)
    values = np.where(random.random(values.shape) < 0.002, rare, values)
    wide = torch.zeros(tokens, units + 7, dtype=dtype)
    wide[:, 3 : units + 3] = torch.from_numpy(values).to(dtype)
    start, length = np.array([0, 5, 40, 41, 170]), np.array([5, 30, 1, 100, 130])
    ordinal = np.arange(len(start))
    sequences = Sequences(
        start,
        length,
        2 * seed + ordinal // 3,
        ordinal % 3,
        random.integers(0, 30_000, tokens, dtype=np.int32),
        random.random(tokens) < 0.9,
    )
    return wide[:, 3 : units + 3], sequences
