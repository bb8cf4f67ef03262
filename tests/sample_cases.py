"""Samples that the tests of bands share."""

from __future__ import annotations

import numpy as np
import torch
from indexer_kernels import Keep, Sequences, Statistics
from indexer_kernels.hashes import GOLDEN, mixed, sequence_keys
from numpy.typing import NDArray

from tests.test_statistics import Batches

LAYER = "mlp.1"
KEEP = Keep(top=3, bottom=2, window=(6, 3), samples=2, seed=5)


def sampled(units: int, batches: Batches, kernels: str, keep: Keep = KEEP, threads: int = 1) -> Statistics:
    """The statistics of some batches, samples among them."""
    statistics = Statistics.empty(units, keep, layer=LAYER, kernels=kernels, threads=threads)
    for activations, sequences in batches:
        statistics.update(activations, sequences)
    statistics.settle()
    return statistics


def some_maxima(sequences: int, units: int, order: str) -> NDArray[np.float32]:
    """Of many octaves and either sign, [sequences, units]; order: "ascending", "descending" or "random"."""
    rng = np.random.default_rng(0)
    maxima = 2.0 ** rng.uniform(-20, 12, (sequences, units)) * rng.choice([1, 1, 1, -1], (sequences, units))
    if order != "random":
        maxima.sort(axis=0)
    return maxima[:: -1 if order == "descending" else 1].astype(np.float32)


def one_token_each(maxima: NDArray[np.float32], together: int) -> Batches:
    """Sequences of one token, some to a batch; maxima: [sequences, units]."""
    batches = []
    for first in range(0, len(maxima), together):
        ids = np.arange(first, min(len(maxima), first + together))
        offsets = np.arange(len(ids) + 1)
        sequences = Sequences.from_offsets(offsets, ids // 3, ids % 3, np.zeros(len(ids), np.int32))
        batches.append((torch.from_numpy(maxima[ids]), sequences))
    return batches


def of_equal_hash() -> tuple[Batches, int]:
    """Two batches of a sequence each whose hashes are equal in every unit; which document ranks first.

    It is the smaller one, though its sequence is the larger.
    """
    later, both = 40, 1 << 64

    def key(document: int) -> int:
        return int(mixed(np.array([document], np.uint64))[0])

    for document in range(later):
        ordinal = ((key(later) - key(document)) * pow(int(GOLDEN), -1, both)) % both
        if ordinal < both // 2:
            break
    places = ((later, 0), (document, ordinal))
    assert len({int(sequence_keys(np.array([one]), np.array([number]))[0]) for one, number in places}) == 1
    zero = np.zeros(1, np.int32)
    return [
        (torch.ones(1, 2), Sequences.from_offsets(np.arange(2), np.array([one]), np.array([number]), zero))
        for one, number in places
    ], document
