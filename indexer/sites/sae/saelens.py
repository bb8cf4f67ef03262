"""Dictionaries of SAELens: cfg.json and sae_weights.safetensors, of version 6 and before.

Encoded as sae_lens.saes does (6.54): x in the dictionary's dtype, normed, less b_dec where
apply_b_dec_to_input says so, times W_enc, plus b_enc, and so on. Those before version 6 are read by its own
rules for them (sae_lens.loading.pretrained_sae_loaders.handle_pre_6_0_config).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from indexer.models.loading import DTYPES as BY_NAME
from indexer.sites.sae.dictionary import Activation, Dictionary, Gated, Jump, Relu, TopK
from indexer.sites.sae.files import Settings, Tensors

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# the transcoder of every architecture that has one encodes as it does, and reads no b_dec
ARCHITECTURES = {
    "standard": "standard", "topk": "topk", "abstopk": "abstopk", "jumprelu": "jumprelu", "gated": "gated",
    "transcoder": "standard", "skip_transcoder": "standard", "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip
DTYPES = {spelled: dtype for name, dtype in BY_NAME.items() for spelled in (name, f"torch.{name}")}
NORMS = ("none", "layer_norm", "constant_norm_rescale")
# of the model that a dictionary was trained on, as TransformerLens loads it: these change no activation
HARMLESS = {"fold_ln": False, "fold_value_biases": False, "center_unembed": False}
TOLD = ("model_name", "dataset_path", "context_size", "prepend_bos", "exclude_special_tokens")


def is_one(folder: Path) -> bool:
    """Whether a folder holds such a dictionary."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read(folder: Path) -> Iterator[Dictionary]:
    """The dictionary of a folder. Raises IndexerError where anything about it is not known for certain."""
    settings = Settings.of_json(folder / CONFIG)
    metadata = settings.within("metadata")
    version = settings.get("sae_lens_version", str, None) or metadata.get("sae_lens_version", str, "0")
    if not version.split(".")[0].isdigit():
        raise metadata.fault("sae_lens_version", f"is {version!r}, and no version")
    if int(version.split(".")[0]) < 6:
        settings = metadata = _as_of_6(settings)
    architecture = settings.one_of("architecture", ARCHITECTURES)
    kind, transcodes = ARCHITECTURES[architecture], architecture.endswith("transcoder")
    norm = settings.one_of("normalize_activations", NORMS, "none")
    settings.one_of("reshape_activations", ("none", "hook_z"), "none")
    if metadata.get("hook_head_index", int, None) is not None:
        raise metadata.fault("hook_head_index", "names one head, whose share of a place is not read")

    inputs, units = settings.get("d_in", int), settings.get("d_sae", int)
    tensors = Tensors.of_safetensors(folder / WEIGHTS)
    tensors.dtype = DTYPES[settings.one_of("dtype", DTYPES)]
    weight = tensors.get("W_enc", inputs, units)
    subtracted = None
    if not transcodes and settings.get("apply_b_dec_to_input", bool, True):
        subtracted = tensors.get("b_dec", inputs)
    bias = None if kind == "gated" else tensors.get("b_enc", units)
    scale = None
    if kind in ("topk", "abstopk") and settings.get("rescale_acts_by_decoder_norm", bool, False):
        scale = tensors.get("W_dec", units, None).to(tensors.dtype).norm(dim=-1)
    factor = tensors.get("scaling_factor", units, optional=True)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        raise settings.fault("finetuning_scaling_factor", "scales what is decoded, and is not supported")
    activation = _activation(kind, settings, tensors, units)
    tensors.check_all_asked("W_dec", "b_dec", "W_skip")
    yield Dictionary(
        files=(folder / CONFIG, folder / WEIGHTS),
        form=f"SAELens {architecture}",
        point=metadata.get("hf_hook_name", str, None) or metadata.get("hook_name", str),
        layer=metadata.get("hook_layer", int, None),
        weight=weight.t(),
        dtype=tensors.dtype,
        bias=bias,
        activation=activation,
        subtracted=subtracted,
        scale=scale,
        norm=norm,
        centred=_centred(metadata),
        facts={name: metadata.values[name] for name in TOLD if metadata.values.get(name) is not None},
    )


def _activation(kind: str, settings: Settings, tensors: Tensors, units: int) -> Activation:
    if kind == "gated":
        b_gate, r_mag, b_mag = (tensors.get(name, units) for name in ("b_gate", "r_mag", "b_mag"))
        return Gated(b_gate, r_mag.exp(), b_mag)
    if kind == "jumprelu":
        return Jump(tensors.get("threshold", units))
    if kind in ("topk", "abstopk"):
        absolute = kind == "abstopk"
        return TopK(settings.count("k", units), rectified=not absolute, absolute=absolute)
    return Relu()


def _centred(metadata: Settings) -> bool:
    """Whether the model was one whose writing weights were centred, as TransformerLens can do on loading."""
    loaded = dict(metadata.get("model_from_pretrained_kwargs", dict, {}))
    centred = loaded.pop("center_writing_weights", False)
    for name, value in loaded.items():
        if HARMLESS.get(name) != value:
            raise metadata.fault(
                f"model_from_pretrained_kwargs.{name}",
                f"is {value!r}, which changes the model that the dictionary was trained on",
            )
    return bool(centred)


def _as_of_6(settings: Settings) -> Settings:
    """An older configuration with the keys and defaults that SAELens 6 reads it with."""
    renamed = {
        "hook_point": "hook_name", "hook_point_layer": "hook_layer",
        "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn",
    }  # fmt: skip
    values: dict[str, Any] = {renamed.get(name, name): value for name, value in settings.values.items()}
    if isinstance(values.get("normalize_activations"), bool):
        values["normalize_activations"] = (
            "expected_average_only_in" if values["normalize_activations"] else "none"
        )
    values.setdefault("architecture", "standard")
    now = Settings(settings.file, values)
    function = now.one_of("activation_fn", ("relu", "topk"), "relu")
    if function == "topk":
        values |= {"architecture": "topk", "k": now.within("activation_fn_kwargs").get("k", int)}
    return now
