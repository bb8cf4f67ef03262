"""Dictionaries of sparsify (eai-sparsify): cfg.json and sae.safetensors in a folder named as the hookpoint.

Encoded as sparsify.SparseCoder does (1.3): x - b_dec, of a transcoder x, through a linear layer, ReLU, then
the k largest. An SAE reads what the module of its hookpoint returns, a transcoder what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from indexer.sites.sae.dictionary import Dictionary, TopK
from indexer.sites.sae.files import Settings, Tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def is_one(folder: Path) -> bool:
    """Whether a folder holds such a dictionary."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Dictionary]:
    """The dictionary of a folder. Raises IndexerError where anything about it is not known for certain."""
    settings = Settings.of_json(folder / CONFIG)
    settings.one_of("activation", ("topk",), "topk")
    settings.one_of("signed", (False,), False)
    transcodes = settings.get("transcode", bool, False)
    inputs = settings.get("d_in", int)
    units = settings.get("num_latents", int, 0) or inputs * settings.get("expansion_factor", int)
    tensors = Tensors.of_safetensors(folder / WEIGHTS)
    weight = tensors.get("encoder.weight", units, inputs)
    dictionary = Dictionary(
        files=(folder / CONFIG, folder / WEIGHTS),
        form=f"sparsify {'transcoder' if transcodes else 'SAE'}",
        point=f"{folder.resolve().name}.{'input' if transcodes else 'output'}",
        layer=None,
        weight=weight,
        bias=tensors.get("encoder.bias", units),
        activation=TopK(settings.count("k", units)),
        subtracted=None if transcodes else tensors.get("b_dec", inputs),
        rounds_between=False,
    )
    tensors.check_all_asked("W_dec", "b_dec", "W_skip")
    yield dictionary
