"""The site `heads`: how much each attention head writes into the residual stream, one unit a head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from indexer.errors import IndexerError
from indexer.models import LoadedModel
from indexer.names import HEADS, Key
from indexer.sites import attn
from indexer.sites.asked import Asked
from indexer.sites.hook import Hook
from indexer.sites.linear import Affine


def find(loaded: LoadedModel, asked: Asked) -> list[Hook]:
    """The heads of every block that has attention. Raises IndexerError as attn.find does."""
    return [_Norms.of(probe) for probe in attn.find(loaded, asked)]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Norms(Hook):
    """Takes the norm of what each head adds to the residual stream: |z_h W_O,h|, float32, without the bias.

    W_O,h is Q R with columns of Q that are orthonormal: the norm is that of R z_h, whose width is the head's
    and not the model's.
    """

    @classmethod
    def of(cls, channels: Hook) -> _Norms:
        if Affine.of(channels.module) is None:
            raise IndexerError(
                f"{channels.place}: its weights are no plain floating-point numbers, from which the norm of "
                "what a head writes is computed; leave heads out of --sites"
            )
        return cls(
            key=Key(HEADS, channels.key.layer), units=channels.facts["heads"], keep=channels.keep,
            place=channels.place, module=channels.module,
            facts={name: fact for name, fact in channels.facts.items() if name != "heads"},
        )  # fmt: skip

    @cached_property
    def _factors(self) -> Tensor:
        """R of every head, transposed: float32 [heads, width of a head, as many or the model's width]."""
        affine = Affine.of(self.module)
        assert affine is not None
        written = affine.weight.float().unflatten(0, (self.units, -1))
        return torch.linalg.qr(written.mT, mode="r").R.mT.contiguous()

    def values(self, rows: Tensor) -> Tensor:
        """[tokens, heads] of [tokens, channels]."""
        heads = rows.float().unflatten(1, (self.units, -1)).transpose(0, 1)
        return torch.bmm(heads, self._factors).norm(dim=2).t()
