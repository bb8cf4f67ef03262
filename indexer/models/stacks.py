"""Models with two stacks: an encoder, which reads a text, and a decoder, which writes it anew.

The decoder reads the same text as in training on reconstruction, or one of its own, a target, behind a start
token, so that at each token it tells the next one. A row of the decoder is what it makes of the token that it
reads: without a target rows of both stacks belong to the same tokens, and that of the start token to none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from indexer_kernels import Sequences
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.names import STACKS


def stacks_of(model: nn.Module) -> dict[str, str]:
    """The paths of a model's encoder and decoder, by these names; empty for a model with one stack."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {}
    encoder, decoder = model.get_encoder(), model.get_decoder()  # type: ignore[operator]
    # of a model for more than text the decoder is a language model, which may have both
    while encoder is not decoder and encoder in decoder.modules():
        decoder = decoder.get_decoder()
    paths = {id(module): path for path, module in model.named_modules()}
    found = [paths.get(id(part), "") for part in (encoder, decoder)]
    return dict(zip(STACKS, found, strict=True)) if all(found) else {}


def start_token(model: nn.Module) -> int:
    """The id of the token that the decoder reads first, as transformers' generation chooses it.

    Raises IndexerError where the configuration names none.
    """
    config: Any = model.config
    configs = (config, getattr(config, "decoder", None), config.get_text_config(decoder=True))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for given in configs:
            token = getattr(given, name, None)
            if isinstance(token, int):
                return token
    raise IndexerError(
        f"model {type(model).__name__}: config.json names no token that the decoder starts with; add its id "
        "as decoder_start_token_id"
    )


def read_by_decoder(model: nn.Module, token_ids: Tensor) -> Tensor:
    """What the decoder reads: int64 [sequences, 1 + width]. token_ids: int64 [sequences, width]."""
    start = token_ids.new_full((len(token_ids), 1), start_token(model))
    return torch.cat([start, token_ids], dim=1)


def behind_start(sequences: Sequences, width: int) -> Sequences:
    """Where the sequences of a batch lie in the decoder's rows. width: of a row of the batch.

    The row of a start token comes before each sequence and belongs to none.
    """

    def wider(values: NDArray[Any]) -> NDArray[Any]:
        return np.pad(values.reshape(-1, width), ((0, 0), (1, 0))).reshape(-1)

    return Sequences(
        sequences.start + sequences.start // width + 1,
        sequences.length,
        sequences.document,
        sequences.ordinal,
        wider(sequences.token_ids),
        wider(sequences.counted),
    )
