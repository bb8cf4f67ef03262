"""Rows of units that come in parts, of which each meets some of a batch's tokens, as experts do.

On a GPU all parts of a layer are one matrix, in which a part's rows stand together. Which tokens they are of
the device alone knows, and the host does not wait to learn it: what is here has shapes that follow from the
batch, wherever its tokens are routed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Routes:
    """Which part, and which token, every row of a matrix is of.

    part: int64 [rows], ascending; `parts` for the last rows, which are of none. token: int64 [rows],
    ascending and each once within a part. row: int64 [tokens, per token], where each entry of an index is.
    """

    parts: int
    part: Tensor
    token: Tensor
    row: Tensor

    @classmethod
    def of(cls, index: Tensor, parts: int) -> Routes:
        """Those of an index: int64 [tokens, per token], the parts that each token passes.

        An entry that is no part's number, and one that repeats another of its token, has a row of no part.
        """
        none = (index < 0) | (index >= parts) | repeats(index).tril(-1).any(dim=2)
        part, entry = index.masked_fill(none, parts).reshape(-1).sort(stable=True)
        row = torch.empty_like(entry).scatter_(0, entry, torch.arange(len(entry), device=entry.device))
        return cls(parts, part, entry // index.shape[1], row.view(index.shape))

    @property
    def ends(self) -> Tensor:
        """int32 [parts], how many rows there are up to the end of each."""
        number = torch.arange(self.parts, device=self.part.device)
        return torch.searchsorted(self.part, number, right=True, out_int32=True)

    def on_host(self) -> Iterator[tuple[int, slice, NDArray[np.int64]]]:
        """Each part that meets tokens: its number, its rows, and which tokens these are of.

        Waits for the device.
        """
        token = self.token.cpu().numpy()
        for part, (first, last) in enumerate(pairwise([0, *self.ends.tolist()])):
            if first < last:
                yield part, slice(first, last), token[first:last]


def repeats(index: Tensor) -> Tensor:
    """bool [tokens, per token, per token], whether two entries of a token are the same."""
    return index[:, :, None] == index[:, None, :]
