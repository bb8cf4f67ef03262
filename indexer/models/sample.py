"""A small batch, always the same, by which a model shows whether it runs, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models.forward import TokensAloneError, call_model, embedding_rows, text_parts
from indexer.models.stacks import stacks_of

SEQUENCES, TOKENS = 2, 8


@dataclass(frozen=True)
class Sample:
    """token_ids: int64 [2, 8]. output: the last hidden state, [2, 8, hidden]; see forward.call_model.

    causal: whether a token's part of it depends on no token after it.
    """

    token_ids: Tensor
    output: Tensor
    causal: bool


def sampled(model: nn.Module) -> tuple[str, Sample]:
    """What a model in evaluation mode makes of the sample, or its language model where that needs more.

    Returns the path of the part that was run, empty where all of it was, and the sample.
    Raises IndexerError where neither runs. Cost: two forward passes over 16 tokens.
    """
    with torch.inference_mode():
        try:
            return "", _sample(model)
        except TokensAloneError as error:
            parts = text_parts(model)
            if not parts:
                raise
            wanted = error
        try:
            part = _runs_as_with_head(model, parts)
            return part, _sample(model.get_submodule(part))
        except TokensAloneError:
            raise wanted from None


def _runs_as_with_head(model: nn.Module, parts: list[str]) -> str:
    """The path of the language model without its head, or with it where only so it is what the model runs.

    A head may tell what is below it to be causal, say.
    """
    if len(parts) == 1:
        return parts[0]
    without, whole = model.get_submodule(parts[0]), model.get_submodule(parts[-1])
    seen: list[Any] = []
    with without.register_forward_hook(lambda module, args, output: seen.append(output[0])):
        call_model(whole, sample_ids(whole))
    alone = call_model(without, sample_ids(without))
    # some heads call what is within the model without one
    same = all(torch.allclose(output, alone, rtol=1e-3, atol=1e-3, equal_nan=True) for output in seen)
    return parts[0] if same else parts[-1]


def _sample(model: nn.Module) -> Sample:
    _check_vocabulary(model)
    ids = sample_ids(model)
    output = call_model(model, ids)
    return Sample(ids, output, _is_causal(model, ids, output))


def _check_vocabulary(model: nn.Module) -> None:
    """Raises IndexerError where a decoder has other tokens than its encoder."""
    config: Any = getattr(model, "config", None)
    rows = {embedding_rows(model.get_submodule(path)) for path in stacks_of(model).values()}
    if len(rows) > 1 or not getattr(config, "share_encoder_decoder_embeddings", True):
        raise IndexerError(
            f"model {type(model).__name__}: its decoder has a vocabulary of its own, so it cannot read the "
            "text that the encoder reads"
        )


def sample_ids(model: nn.Module) -> Tensor:
    """int64 [2, 8] token ids, without the padding token, which some models treat apart."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    # wherever new tensors are made by default
    ids = torch.randint(0, embedding_rows(model), (SEQUENCES, TOKENS), generator=generator, device="cpu")
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    if isinstance(padding, int):
        ids[ids == padding] = padding - 1 if padding else 1
    return ids.to(device)


def _is_causal(model: nn.Module, ids: Tensor, output: Tensor) -> bool:
    """Whether the first half of each sequence comes out the same, bit for bit, when the second is changed."""
    half = TOKENS // 2
    other = ids.clone()
    other[:, half:] = ids[:, half:].flip(1).roll(1, 0)
    return torch.equal(call_model(model, other)[:, :half], output[:, :half])
