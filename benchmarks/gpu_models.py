"""Models of real shapes with random weights, and batches of random token ids, for the GPU cases.

Nothing can be fetched on the machines that these run on, and speed does not depend on what the weights are.
Configurations are those that the models were published with; a `dry` model has the same structure, and next
to no size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from indexer.models import LoadedModel, adapt
from indexer.models.loading import quiet_transformers
from indexer.tokens import Batch


@dataclass(frozen=True)
class Shape:
    """A model and how it is run.

    configuration: class in transformers, and what it is given. sequence: tokens of a sequence. tokens: of a
    batch on a large GPU. batches: of a side in a round, so many that a round takes about a second.
    dry: what a dry run changes in the configuration.
    """

    name: str
    configuration: str
    settings: dict[str, Any]
    sequence: int
    tokens: int
    batches: int
    dry: dict[str, Any] = field(default_factory=dict)


_SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 4, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SHAPES = {
    "gpt2": Shape(
        "GPT-2 small", "GPT2Config",
        {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
        sequence=1024, tokens=65_536, batches=8,
        dry={"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_inner": 4, "n_layer": 2, "n_head": 2},
    ),
    "pythia": Shape(
        "Pythia-1.4B", "GPTNeoXConfig",
        {
            "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 16, "max_position_embeddings": 2048, "hidden_act": "gelu",
            "use_parallel_residual": True,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25,
            },
        },
        sequence=2048, tokens=65_536, batches=3, dry=_SMALL,
    ),
    "llama": Shape(
        "Llama-3.1-8B", "LlamaConfig",
        {
            "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
        sequence=2048, tokens=32_768, batches=2, dry={**_SMALL, "num_key_value_heads": 1},
    ),
}  # fmt: skip


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype, *, dry: bool) -> LoadedModel:
    """The base model of a shape, made where it runs; weights as transformers draws them, seeded."""
    import transformers

    settings = {**shape.settings, **(shape.dry if dry else {})}
    config = getattr(transformers, shape.configuration)(**settings)
    with quiet_transformers(), torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return adapt(model, name=f"{shape.name}'s shape, random weights")


def parameters(model: nn.Module) -> tuple[int, int]:
    """How many weights a model has, and how many of them stand in the matrices of its blocks."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    every = list(model.parameters())
    matrices = [weight for weight in every if weight.ndim == 2 and id(weight) not in tables]
    return sum(weight.numel() for weight in every), sum(weight.numel() for weight in matrices)


def floating_point_operations(loaded: LoadedModel, sequence: int) -> float:
    """Of one token in a sequence: two per weight of the matrices, and causal attention to those before."""
    _, matrices = parameters(loaded.model)
    config: Any = loaded.model.config
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    # scores and their sums: two products of width by half a sequence each
    return 2.0 * matrices + 2.0 * sequence * width * config.num_hidden_layers


class RandomBatches:
    """Batches of whole sequences of random token ids; no two hold the same sequence or document.

    The first token of a sequence does not count, as the special one that it would be.
    """

    def __init__(self, vocabulary: int, sequence: int, tokens: int) -> None:
        self.rows, self.width = max(1, tokens // sequence), sequence
        self.vocabulary = vocabulary
        self.documents = 0
        self._random = np.random.default_rng(0)

    @property
    def tokens(self) -> int:
        """Of one batch, those that do not count included."""
        return self.rows * self.width

    def take(self, number: int) -> list[Batch]:
        """The next batches."""
        return [self._next() for _ in range(number)]

    def _next(self) -> Batch:
        counted = np.ones((self.rows, self.width), np.bool_)
        counted[:, 0] = False
        first = self.documents
        self.documents += self.rows
        return Batch(
            token_ids=self._random.integers(0, self.vocabulary, (self.rows, self.width)),
            length=np.full(self.rows, self.width),
            document=np.arange(first, first + self.rows),
            ordinal=np.zeros(self.rows, np.int64),
            counted=counted,
        )
