"""Small sparse dictionaries with random weights in the files of SAELens, and what they make of values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny_models import HIDDEN

FEATURES = 200


def weights(inputs: int = HIDDEN, features: int = FEATURES, seed: int = 0) -> dict[str, Tensor]:
    """Of a standard one, whose features are positive now and then."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "W_enc": random(inputs, features), "W_dec": random(features, inputs),
        "b_enc": random(features) - 4, "b_dec": random(inputs),
    }  # fmt: skip


def saved_dictionary(
    folder: Path, point: str = "blocks.1.hook_resid_post", *, seed: int = 0, **settings: Any
) -> Path:
    """A dictionary of SAELens 6 in a folder. settings: keys of cfg.json; `tensors` beside the usual ones."""
    tensors = weights(seed=seed) | settings.pop("tensors", {})
    metadata = {"sae_lens_version": "6.54.12", "hook_name": point} | settings.pop("metadata", {})
    config = {
        "architecture": "standard", "d_in": len(tensors["W_enc"]), "d_sae": tensors["W_enc"].shape[1],
        "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none", "metadata": metadata, **settings,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def encoded(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """What a standard dictionary makes of [tokens, inputs], all of it at once."""
    return torch.relu((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
