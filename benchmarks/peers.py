"""Two algorithms in use elsewhere for the same numbers, written from their description, in plain torch.

Both read activations by hooks on a plain model. Where a detail is open, the cheaper way is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from indexer_kernels.histogram import magnitude_edges
from numpy.typing import NDArray
from torch import Tensor

BINS, ZERO = 389, 194
# sign and exponent and 3 bits of the mantissa of 2^-10, less one: the bin below it is number 0
BELOW = (117 << 3) - 1
HIGHEST = 193


@dataclass
class TopSequences:
    """The k best whole sequences of every neuron, kept as their activations and token ids.

    As Transluce's observatory does it: every batch is concatenated to what is held, [k + batch, sequence,
    neurons], torch.topk over sequences picks k of each neuron, and gather moves the winners' whole sequences.
    It holds one layer, so a model of many takes a pass for each. Cheaper here than in the description: peaks
    of sequences already held are kept, not taken again.

    sign: 1 for the largest, -1 for the smallest. peak: [held, neurons], times sign.
    activations: [held, sequence, neurons] in the model's dtype; token_ids: int32, the same shape.
    """

    k: int
    sequence: int
    sign: int
    peak: Tensor | None = None
    activations: Tensor | None = None
    token_ids: Tensor | None = None

    def update(self, activations: Tensor, token_ids: Tensor, counted: Tensor) -> None:
        """activations: [batch, width, neurons]; token_ids: int32, counted: bool, both [batch, width]."""
        batch, width, neurons = activations.shape
        competing = activations if self.sign > 0 else -activations
        peak = competing.masked_fill(~counted[..., None], -torch.inf).amax(dim=1)
        if width < self.sequence:
            activations = torch.nn.functional.pad(activations, (0, 0, 0, self.sequence - width))
            token_ids = torch.nn.functional.pad(token_ids, (0, self.sequence - width))
        ids = token_ids[..., None].expand(batch, self.sequence, neurons)
        if self.peak is not None and self.activations is not None and self.token_ids is not None:
            peak = torch.cat((self.peak, peak))
            activations = torch.cat((self.activations, activations))
            ids = torch.cat((self.token_ids, ids))
        self.peak, best = peak.topk(min(self.k, len(peak)), dim=0)
        whole = best[:, None].expand(-1, self.sequence, -1)
        self.activations = activations.gather(0, whole)
        self.token_ids = ids.gather(0, whole)

    def values(self) -> Tensor:
        """float32 [neurons, held], best first."""
        assert self.peak is not None
        return (self.sign * self.peak.float()).T.contiguous()


@dataclass
class UnitHistograms:
    """A histogram per unit by torch.scatter_add, with the bins of our own, for all layers in one pass.

    counts: int32 [389, units]: half the memory to walk of int64, and enough for what is measured here.
    """

    counts: Tensor

    @classmethod
    def empty(cls, units: int) -> UnitHistograms:
        return cls(torch.zeros(BINS, units, dtype=torch.int32))

    def update(self, activations: Tensor, counted: Tensor) -> None:
        """activations: [tokens, units]; counted: bool [tokens]. Values must be finite."""
        values = activations.float()
        magnitude = (((values.view(torch.int32) & 0x7FFFFFFF) >> 20) - BELOW).clamp_(0, HIGHEST)
        bins = ZERO + values.sign().int() * (1 + magnitude)
        weight = counted.int()[:, None].expand_as(values)
        self.counts.scatter_add_(0, bins.long(), weight)


def lower_edges() -> NDArray[np.float32]:
    """Lower edge of every bin as an index shows it, float32 [389]; zero's is that of the bin above it too."""
    edges = magnitude_edges().astype(np.float32)
    return np.concatenate([-edges[:0:-1], [np.float32(0)], edges[:-1]])
