"""The probe of a dictionary: what the model has at its read point, encoded block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from indexer.errors import IndexerError
from indexer.models.matmul import linear
from indexer.models.probe import Take, Values, Workspace
from indexer.sites.hook import Hook
from indexer.sites.sae.dictionary import Dictionary, Product

# units that are encoded together: with the rows of a group of sequences they stay in cache
BLOCK_UNITS = 1024
# On a GPU: as many as keep all of it busy, two programs of 64 units for each of 128 multiprocessors
GPU_BLOCK_UNITS = 16_384


@dataclass(frozen=True, eq=False, kw_only=True)
class Features(Hook):
    """Hands over the features of what a module is given or returns; see models.probe.Probe."""

    dictionary: Dictionary = field(repr=False)

    @property
    def device(self) -> torch.device:
        """Where they are encoded."""
        return self.dictionary.weight.device

    @property
    def width(self) -> int:
        """Units that are encoded together."""
        return BLOCK_UNITS if self.device.type == "cpu" else GPU_BLOCK_UNITS

    @property
    def provenance(self) -> dict[str, Any]:
        """For the manifest and `info`."""
        return {**super().provenance, "path": "encoded"}

    def hand_over(self, rows: Tensor, take: Take, workspace: Workspace) -> None:
        """Encode [tokens, channels] rows, group after group of sequences, and of each block after block.

        Raises IndexerError where the dictionary is of another width.
        """
        dictionary = self.dictionary
        if rows.shape[1] != dictionary.inputs:
            raise IndexerError(
                f"{dictionary.files[0]}: it reads {dictionary.inputs} channels, and {self.place} has "
                f"{rows.shape[1]}; it is not for this model, or not for this place"
            )
        activation, product = dictionary.activation, _product(workspace)
        for group in workspace.groups:
            source = dictionary.source(rows[group.first_row : group.last_row])
            follow = group is not workspace.groups[-1]
            for first, values in dictionary.blocks(source, self.width, product):
                more = first + self.width < self.units
                take(
                    Values(
                        values, group.sequences, activation.function, first=first, rows_follow=follow,
                        parts_follow=more, source=source,
                    )
                )  # fmt: skip


def _product(workspace: Workspace) -> Product:
    """x @ weight.T + bias, in memory that the next one takes again."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if workspace.onednn:
            return linear(x, weight, bias)
        out = workspace.take(2, len(x), len(weight), x)
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)

    return product
