"""From documents to padded batches of token ids, read and encoded in the background while the model works."""

from __future__ import annotations

from indexer.tokens.batch import Batch, Layout
from indexer.tokens.batches import Batches, Position, TokenTotals
from indexer.tokens.encode import Encoder

__all__ = ["Batch", "Batches", "Encoder", "Layout", "Position", "TokenTotals"]
