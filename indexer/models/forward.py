"""Calling a transformers model for its activations alone: no cache, no head, no attention maps."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from indexer.errors import IndexerError


def call_model(model: nn.Module, token_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The last hidden state, [sequences, width, hidden]; token_ids: int64 [sequences, width].

    attention_mask: int64 [sequences, width], 1 for tokens and 0 for padding; None where nothing has to be
    masked.
    """
    arguments: dict[str, Any] = {"input_ids": token_ids}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments["use_cache"] = False
    output = model(**arguments)
    if isinstance(output, Tensor):
        return output
    return output[0]


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Within the block transformers does not look for several sequences in a row of a batch.

    It looks at the positions' values, for which the host has to wait for a GPU in every forward pass, and
    only finds what is so here: each row holds one sequence.
    """
    from transformers import masking_utils

    found = getattr(masking_utils, "find_packed_sequence_indices", None)
    if found is None:
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def embedding_rows(model: nn.Module) -> int:
    """How many token ids the model has embeddings for. Raises IndexerError where it takes no tokens."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    except NotImplementedError:
        weight = None
    if weight is None or weight.ndim != 2:
        raise IndexerError(
            f"model {type(model).__name__}: it has no embeddings of tokens; only language models are indexed"
        )
    return int(weight.shape[0])
