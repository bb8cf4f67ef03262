"""Calling a transformers model for its activations alone: no cache, no head, no attention maps."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models.stacks import read_by_decoder, stacks_of

# An exception that passed through code of these is no fault of the model.
OURS = ("indexer", "indexer_kernels")


class TokensAloneError(IndexerError):
    """A model does not run on token ids alone, or takes none."""


def call_model(
    model: nn.Module,
    token_ids: Tensor,
    attention_mask: Tensor | None = None,
    target_ids: Tensor | None = None,
) -> Tensor:
    """The last hidden state, [sequences, width, hidden]; token_ids: int64 [sequences, width].

    A model with two stacks reads them with both; the state is the decoder's, [sequences, 1 + width, hidden].

    attention_mask: int64 [sequences, width], 1 for tokens and 0 for padding; None where nothing has to be
    masked. target_ids: what the decoder reads in their place, int64 [sequences, its width].
    Raises TokensAloneError for whatever the model's own code raises, but for want of memory.
    It runs in the model's own dtype, also within torch.autocast.
    """
    arguments: dict[str, Any] = {"input_ids": token_ids}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask
    if stacks_of(model):
        read = token_ids if target_ids is None else target_ids
        arguments["decoder_input_ids"] = read_by_decoder(model, read)
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments["use_cache"] = False
    try:
        with torch.autocast(token_ids.device.type, enabled=False):
            output = model(**arguments)
    except (IndexerError, torch.OutOfMemoryError, MemoryError):
        raise
    # a model is code of others: there is no telling what it raises
    except Exception as error:
        place = _failed_in(model, error)
        if place is None:
            raise
        raise TokensAloneError(
            f"model {type(model).__name__}: on token ids alone its forward pass fails{place} "
            f"({reason_of(error)})"
        ) from error
    if isinstance(output, Tensor):
        return output
    return output[0]


def _failed_in(model: nn.Module, error: Exception) -> str | None:
    """Where in a model's own code an exception was raised, for people; None where it was in ours.

    A function of its own: frames that it looks at, and all that these hold, must not be held by one of them.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)][1:]
    if any(frame.f_globals.get("__name__", "").partition(".")[0] in OURS for frame in frames):
        return None
    paths = {id(module): path for path, module in model.named_modules()}
    ran = [paths.get(id(frame.f_locals.get("self"))) for frame in frames]
    return next((f" in {path}" for path in reversed(ran) if path), "")


def reason_of(error: Exception) -> str:
    """An exception's kind and the first words of its text, in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 200 else text[:197] + "..."


def text_parts(model: nn.Module) -> list[str]:
    """The paths of a model's language model, where it is a part of it: without a head, and with one.

    None where the model has no part for text, or is itself one.
    """
    config, find = getattr(model, "config", None), getattr(model, "get_decoder", None)
    if config is None or find is None:
        return []
    whole = find()
    part = getattr(whole, "base_model", whole)
    own = getattr(part, "config", None)
    if type(own) is not type(config.get_text_config()):
        return []
    # a decoder without its encoder is no model of text
    if getattr(own, "is_encoder_decoder", False) and not stacks_of(part):
        return []
    paths = {id(module): path for path, module in model.named_modules()}
    return [path for path in dict.fromkeys(paths.get(id(module)) for module in (part, whole)) if path]


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


def embeddings(model: nn.Module) -> Tensor:
    """The model's embeddings of tokens, [tokens of its vocabulary, width].

    Where it does not tell which they are, they are its only table with a row for every token.
    Raises TokensAloneError where it takes no tokens.
    """
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        weight = None
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return weight
    config: Any = getattr(model, "config", None)
    rows = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == rows]
    if len(tables) != 1:
        raise TokensAloneError(
            f"model {type(model).__name__}: it has no embeddings of tokens; only language models are indexed"
        )
    return tables[0]


def embedding_rows(model: nn.Module) -> int:
    """How many token ids the model has embeddings for. Raises TokensAloneError where it takes none."""
    return int(embeddings(model).shape[0])
