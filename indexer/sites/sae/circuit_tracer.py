"""Sets of transcoders and cross-layer transcoders of circuit-tracer: config.yaml and a file for each layer.

Encoded as circuit_tracer.transcoder does (0.5), in float32, in which it loads them: x times W_enc plus b_enc,
then ReLU, or with a threshold pre * (pre > threshold), which may be negative. Of what a cross-layer
transcoder writes, later layers know; its features are those of the layer that it reads in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from indexer.errors import IndexerError
from indexer.sites.sae.dictionary import Dictionary, Jump, Relu
from indexer.sites.sae.files import Settings, Tensors

CONFIG = "config.yaml"
# by kind: the files, and what a tensor is called in that of a layer
KINDS = {
    "transcoder_set": ("layer_{}.safetensors", "{}"),
    "cross_layer_transcoder": ("W_enc_{}.safetensors", "{}_{}"),
}
THRESHOLDS = {"transcoder_set": "activation_function.threshold", "cross_layer_transcoder": "threshold"}


def is_one(folder: Path) -> bool:
    """Whether a folder holds such dictionaries."""
    return (folder / CONFIG).is_file()


def read(folder: Path) -> Iterator[Dictionary]:
    """One dictionary for each layer. Raises IndexerError where anything about them is not certain."""
    settings = _settings(folder / CONFIG)
    kind = settings.one_of("model_kind", KINDS)
    hook = settings.get("feature_input_hook", str)
    if settings.values.get("transcoders"):
        raise settings.fault("transcoders", "names files elsewhere; give each of them with --sae")
    settings.one_of("activation", ("relu", "jump_relu"), "relu")
    pattern, called = KINDS[kind]
    files = list(folder.glob(pattern.format("*")))
    if not files:
        raise IndexerError(f"{folder}: {CONFIG} is of a {kind}, and there is no {pattern.format(0)}")
    for layer in range(len(files)):
        file = folder / pattern.format(layer)
        tensors = Tensors.of_safetensors(file)
        tensors.dtype = torch.float32
        weight = tensors.get(called.format("W_enc", layer), None, None)
        bias = tensors.get(called.format("b_enc", layer), len(weight))
        threshold = tensors.get(called.format(THRESHOLDS[kind], layer), len(weight), optional=True)
        others = (called.format(name, layer) for name in ("W_dec", "b_dec", "W_skip"))
        tensors.check_all_asked(*others)
        yield Dictionary(
            files=(folder / CONFIG, file),
            form=f"circuit-tracer {kind}",
            point=hook if re.match(r"blocks\.", hook) else f"blocks.{layer}.{hook}",
            layer=layer,
            weight=weight,
            dtype=tensors.dtype,
            bias=bias,
            activation=Relu() if threshold is None else Jump(threshold, rectified=False),
        )


def _settings(file: Path) -> Settings:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise IndexerError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise IndexerError(f"{file}: holds {type(content).__name__}, not an object of settings")
    return Settings(file, content)
