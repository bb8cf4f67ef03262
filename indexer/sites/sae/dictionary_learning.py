"""Dictionaries of dictionary_learning: ae.pt and config.json.

Encoded as dictionary_learning does (0.1) after load_dictionary, which rescales an AutoEncoder's features by
the norms of its decoder. ae.pt is a pickle; of it nothing but tensors is read, and no code is run.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from indexer.errors import IndexerError
from indexer.sites.sae.dictionary import Activation, Dictionary, Gated, Jump, Relu, TopK
from indexer.sites.sae.files import Settings, Tensors

CONFIG, WEIGHTS = "config.json", "ae.pt"
# by class: the tensors of the encoder, its bias, and what is taken off the input
CLASSES: dict[str, tuple[str, str | None, str | None]] = {
    "AutoEncoder": ("encoder.weight", "encoder.bias", "bias"),
    "AutoEncoderNew": ("encoder.weight", "encoder.bias", None),
    "GatedAutoEncoder": ("encoder.weight", None, "decoder_bias"),
    "AutoEncoderTopK": ("encoder.weight", "encoder.bias", "b_dec"),
    "BatchTopKSAE": ("encoder.weight", "encoder.bias", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "b_enc", "b_dec"),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", None),
}
# what decodes, and what is needed in training alone
OTHERS = ("decoder.weight", "decoder.bias", "W_dec", "b_dec", "k", "threshold", "group_sizes")
_STREAM = re.compile(r"resid_post_layer_(\d+)")


def is_one(folder: Path) -> bool:
    """Whether a folder holds such a dictionary."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Dictionary]:
    """The dictionary of a folder. Raises IndexerError where anything about it is not known for certain."""
    config = Settings.of_json(folder / CONFIG)
    trainer = config.within("trainer")
    kind = trainer.one_of("dict_class", CLASSES)
    encoder, bias_name, subtracted = CLASSES[kind]
    tensors = _tensors(folder / WEIGHTS)
    inputs, units = trainer.get("activation_dim", int), trainer.get("dict_size", int)
    if encoder == "W_enc":
        weight = tensors.get(encoder, inputs, units).t()
    else:
        weight = tensors.get(encoder, units, inputs)
    bias = tensors.get(bias_name, units) if bias_name else None
    activation = _activation(kind, trainer, tensors, units)
    if kind == "AutoEncoder" and bias is not None:
        weight, bias = _rescaled(weight, bias, tensors.get("decoder.weight", inputs, units))
    dictionary = Dictionary(
        files=(folder / CONFIG, folder / WEIGHTS),
        form=f"dictionary_learning {kind}",
        point=_point(config, trainer),
        layer=trainer.get("layer", int, None),
        weight=weight,
        dtype=tensors.dtype,
        bias=bias,
        activation=activation,
        subtracted=tensors.get(subtracted, inputs) if subtracted else None,
        rounds_between=False,
        facts={"context_size": found} if (found := config.within("buffer").get("ctx_len", int, None)) else {},
    )
    tensors.check_all_asked(*OTHERS)
    yield dictionary


def _tensors(file: Path) -> Tensors:
    try:
        # older pickles are no archives, and are read whole
        in_place = zipfile.is_zipfile(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=in_place)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise IndexerError(f"{file}: cannot be read as tensors alone ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise IndexerError(f"{file}: holds something else than tensors by name")
    return Tensors(file, content, torch.float32)


def _activation(kind: str, trainer: Settings, tensors: Tensors, units: int) -> Activation:
    if kind == "GatedAutoEncoder":
        b_gate, r_mag, b_mag = (tensors.get(name, units) for name in ("gate_bias", "r_mag", "mag_bias"))
        return Gated(b_gate, r_mag.exp(), b_mag)
    if kind == "AutoEncoderTopK":
        return TopK(trainer.count("k", units))
    if kind == "JumpReluAutoEncoder":
        return Jump(tensors.get("threshold", units))
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = tensors.get("threshold")
        if threshold < 0:
            raise IndexerError(
                f"{tensors.file}: the tensor threshold is {float(threshold)}: training never set it, and "
                "without it which features are active depends on the batch"
            )
        return Jump(threshold)
    return Relu()


def _rescaled(weight: Tensor, bias: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
    """As AutoEncoder.normalize_decoder does: so that columns of the decoder have norm 1."""
    norms = decoder.to(bias.dtype).norm(dim=0)
    if torch.allclose(norms, torch.ones_like(norms)):
        return weight, bias
    return weight.to(bias.dtype) * norms[:, None], bias * norms


def _point(config: Settings, trainer: Settings) -> str:
    """The read point: `resid_post_layer_5`, or the path of a module and which of its ends is read."""
    name = trainer.get("submodule_name", str)
    end = config.within("buffer").one_of("io", ("in", "out", None), None)
    stream = _STREAM.fullmatch(name)
    if stream is not None and end in ("out", None):
        return f"blocks.{stream[1]}.hook_resid_post"
    if "." not in name or end is None:
        raise trainer.fault(
            "submodule_name",
            f"is {name!r}: read are resid_post_layer_N, and a module's path where buffer.io tells its end",
        )
    return f"{name}.{'input' if end == 'in' else 'output'}"
