"""What the states share: memory, the rows of a batch that enter them, and how rows are cut for sums."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from indexer_kernels.sequences import Sequences

# Positions whose float32 partial sum is formed before it enters the exact one.
BLOCK_TOKENS = 256


def committed_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros whose memory is taken now, not page by page later: a state has its size from the start."""
    array = np.empty(shape, dtype)
    array.fill(0)
    return array


def sequence_rows(sequences: Sequences, index: int) -> NDArray[np.int64]:
    """Counted rows of one sequence, ascending."""
    rows = np.arange(sequences.start[index], sequences.start[index] + sequences.length[index])
    return rows[sequences.counted[rows]]


def counted_rows(sequences: Sequences) -> NDArray[np.int64]:
    """Counted rows of all sequences; rows of no sequence are left out."""
    parts = [sequence_rows(sequences, index) for index in range(len(sequences))]
    return np.concatenate([*parts, np.zeros(0, np.int64)])


def sum_blocks(sequences: Sequences) -> Iterator[NDArray[np.int64]]:
    """Counted rows of each run of 256 positions of each sequence, where there are any."""
    for index in range(len(sequences)):
        rows = sequence_rows(sequences, index)
        block = (rows - sequences.start[index]) // BLOCK_TOKENS
        for number in np.unique(block):
            yield rows[block == number]


def view_of(state: Any, units: slice) -> Any:
    """Some units of a state, whose arrays are views of its own; None for one that is not kept."""
    if state is None:
        return None
    view = copy.copy(state)
    for name, array in vars(state).items():
        if isinstance(array, np.ndarray):
            setattr(view, name, some_units(name, array, units))
    return view


def some_units(name: str, array: Any, units: slice) -> Any:
    """Some units of a state's array, in its memory; bars are the one array whose units come last."""
    return array[..., units] if name == "bars" else array[units]
