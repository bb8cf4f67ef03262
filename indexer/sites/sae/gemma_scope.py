"""Gemma Scope: params.npz of the first, params.safetensors and config.json of the second.

Encoded as SAELens and circuit-tracer do, in float32: x times W_enc plus b_enc, JumpReLU with a threshold for
each unit; b_dec is not taken off the input. Where the first reads stands in the name of its repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from indexer.errors import IndexerError
from indexer.sites.sae.dictionary import Dictionary, Jump
from indexer.sites.sae.files import Settings, Tensors

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
_REPOSITORY = re.compile(r"gemma-scope-[a-z0-9]+-[a-z]+-(res|mlp|att)(?![a-z])")
_LAYER = re.compile(r"layer_(\d+)")
HOOKS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def is_one(folder: Path) -> bool:
    """Whether a folder holds such a dictionary."""
    return (folder / FIRST).is_file() or (folder / SECOND).is_file()


def read(folder: Path) -> Iterator[Dictionary]:
    """The dictionary of a folder. Raises IndexerError where anything about it is not known for certain."""
    yield _first(folder / FIRST) if (folder / FIRST).is_file() else _second(folder)


def _first(file: Path) -> Dictionary:
    parts = file.resolve().parts
    repository = next(filter(None, map(_REPOSITORY.search, parts)), None)
    layer = next(filter(None, map(_LAYER.fullmatch, parts)), None)
    if repository is None or layer is None:
        raise IndexerError(
            f"{file}: where it reads, its path is to tell, as gemma-scope-2b-pt-res/layer_5/... (res, mlp "
            "and att are read; transcoders read between a norm and its gain)"
        )
    tensors = Tensors.of_npz(file)
    tensors.values = {re.sub("^w_", "W_", name): value for name, value in tensors.values.items()}
    point = f"blocks.{layer[1]}.{HOOKS[repository[1]]}"
    return _dictionary(tensors, "W_enc", "Gemma Scope", point, (file,))


def _second(folder: Path) -> Dictionary:
    settings = Settings.of_json(folder / CONFIG)
    settings.one_of("architecture", ("jump_relu",))
    tensors = Tensors.of_safetensors(folder / SECOND)
    files = (folder / CONFIG, folder / SECOND)
    return _dictionary(tensors, "w_enc", "Gemma Scope 2", settings.get("hf_hook_point_in", str), files)


def _dictionary(
    tensors: Tensors, encoder: str, form: str, point: str, files: tuple[Path, ...]
) -> Dictionary:
    tensors.dtype = torch.float32
    weight = tensors.get(encoder, None, None)
    units = weight.shape[1]
    threshold = tensors.get("threshold", units)
    if (threshold < 0).any():
        raise IndexerError(
            f"{tensors.file}: the tensor threshold has negative numbers, below which SAELens gives 0 and "
            "circuit-tracer does not"
        )
    dictionary = Dictionary(
        files=files, form=form, point=point, layer=None, weight=weight.t(), dtype=tensors.dtype,
        bias=tensors.get("b_enc", units), activation=Jump(threshold),
    )  # fmt: skip
    tensors.check_all_asked("W_dec", "w_dec", "b_dec", "affine_skip_connection")
    return dictionary
