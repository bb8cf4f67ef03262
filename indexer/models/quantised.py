"""Checkpoints in quantised forms, read by transformers' own loaders.

Where a loader can, weights become floating-point numbers as they are read, so that a build runs them like any
other model; what would quantise activations too is not run then. Other forms run as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import check_installed
from indexer.models.source import QUANTISED, Source, blamed_on, nested
from indexer.models.weights import Stored


@dataclass(frozen=True)
class Form:
    """How weights are stored: what from_pretrained is told for it, and what the manifest says of it.

    name: None for plain weights. dense: whether they are floating-point numbers once they are read.
    """

    told: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    dense: bool = True


def method_of(config: Mapping[str, Any]) -> str | None:
    """The form that a config.json names, as "fp8"; None for plain weights."""
    found = next((value for key, value in nested(config) if key == QUANTISED and value), None)
    return None if found is None else str(found.get("quant_method"))


def form_of(source: Source, config: Any) -> Form:
    """The form of a model's weights. config: the model's, as transformers has read it."""
    if source.gguf:
        import transformers

        # versions without it know no other way
        options = getattr(transformers, "GgufConfig", None)
        told = {} if options is None else {"quantization_config": options(dequantize=True)}
        return Form({**source.gguf_file, **told}, "gguf, dequantised")
    method = method_of(config.to_dict())
    if method is None:
        return Form()
    from transformers.quantizers.auto import AutoQuantizationConfig

    parts = (config, config.get_text_config())
    named = next(part.quantization_config for part in parts if getattr(part, QUANTISED, None))
    with blamed_on(source, f"transformers does not understand its {QUANTISED}"):
        options = AutoQuantizationConfig.from_dict(dict(named))
    if hasattr(options, "dequantize"):
        options.dequantize = True
    elif hasattr(options, "run_compressed"):
        options.run_compressed = False
    else:
        return Form(name=f"{method}, as stored", dense=False)
    return Form({QUANTISED: options}, f"{method}, dequantised")


def read_gguf(source: Source, file: Path) -> tuple[dict[str, Stored], dict[str, int | None]]:
    """A GGUF file's tensors by its own names, as they are once they are read; and which ends it asks for.

    The ends are the ids of "bos" and "eos" where they stand around a text, None where they do not, left out
    where it does not say: not every version of transformers asks the file.
    """
    check_installed(f"model {source.name}: a GGUF file", "gguf", "accelerate")
    from gguf import GGUFReader

    with blamed_on(source, f"{file.name} is damaged"):
        reader = GGUFReader(file)
        stored = {
            tensor.name: Stored("F32", tuple(int(size) for size in tensor.shape[::-1]))
            for tensor in reader.tensors
        }
        ends = {}
        for role in ("bos", "eos"):
            added = reader.get_field(f"tokenizer.ggml.add_{role}_token")
            token = reader.get_field(f"tokenizer.ggml.{role}_token_id")
            if added is not None:
                ends[role] = int(token.contents()) if added.contents() and token is not None else None
        return stored, ends
