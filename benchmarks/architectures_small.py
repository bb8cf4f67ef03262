"""A small model with random weights of any configuration class of transformers, saved as a checkpoint.

Sizes are told by the names of settings. A text stack gets hidden size 64 and MLPs of width 176, which is
nothing else's; a stack of images or sound is half as large. Names, and what they get wrong, stand in
architectures.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

DATA: dict[str, Any] = tomllib.loads(Path(__file__).with_name("architectures.toml").read_text("utf-8"))
VOCABULARY, WORDS, LAYERS, POSITIONS = 512, 97, 4, 256
FIRST_MEDIA_TOKEN = 200
OTHER_STACKS = re.compile(
    "vision|visual|audio|speech|image|qformer|vit|pixel|codec|vq|sam|mask|backbone|prompt_enc|detector|acoustic"
    "|semantic|timestamp|perceiver|projector|adapter|encoder_config"
)
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SPECIAL_TOKENS = {
    "pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
}  # fmt: skip


def small_config(model_type: str) -> Any:
    """A configuration of this type in small. Raises whatever the class raises for sizes that do not fit."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    try:
        whole = kind().to_dict()
    # some have no defaults that fit each other; the settings in the file are all there is then
    except Exception:
        whole = {}
    given = _small(whole, text=True, media=iter(range(FIRST_MEDIA_TOKEN, VOCABULARY)))
    _change(given, DATA["settings"].get(model_type, {}))
    config = kind(**given)
    config.architectures = None
    return config


def _small(whole: dict[str, Any], text: bool, media: Iterator[int]) -> dict[str, Any]:
    """The settings of one configuration in small, those of its parts too.

    media: token ids for images and sounds, which no text has.
    """
    made: dict[str, Any] = {}
    layers = next((whole[name] for name in LAYER_COUNTS if isinstance(whole.get(name), int)), 0)
    for name, value in whole.items():
        if name in ("transformers_version", "architectures", "per_layer_config", "id2label", "label2id"):
            continue
        if name == "rope_parameters":
            made[name] = _small_rope(value)
        elif isinstance(value, dict) and ("model_type" in value or name.endswith("_config")):
            made[name] = _small(value, text and not OTHER_STACKS.search(name), media)
        elif isinstance(value, list) and len(value) == layers > LAYERS:
            few = _some_of_each(value, LAYERS if text else 2)
            made[name] = [_size(name, one, text) if type(one) is int else one for one in few]
        elif name in SPECIAL_TOKENS:
            made[name] = SPECIAL_TOKENS[name]
        elif re.fullmatch(r".*token_(id|index)", name) and isinstance(value, int):
            made[name] = next(media)
        elif name == "head_dim" and value is None:
            made[name] = 16
        elif type(value) is int:
            made[name] = _size(name, value, text)
        else:
            made[name] = value
    heads = whole.get("num_attention_heads")
    if heads is not None and whole.get("num_key_value_heads") == heads:
        made["num_key_value_heads"] = made["num_attention_heads"]
    return made


def _small_rope(rope: Any) -> Any:
    if not isinstance(rope, dict):
        return rope
    small = {name: _small_rope(value) for name, value in rope.items()}
    if "mrope_section" in small:
        # half of a head's 16
        small["mrope_section"] = [4, 2, 2]
    if "original_max_position_embeddings" in small:
        small["original_max_position_embeddings"] = POSITIONS // 2
    return small


def _some_of_each(values: list[Any], count: int) -> list[Any]:
    """So many of a list of values per layer, in their order, each kind among them if there is room."""
    first = [place for place, value in enumerate(values) if values.index(value) == place][:count]
    others = [place for place in range(len(values)) if place not in first]
    return [values[place] for place in sorted(first + others[: count - len(first)])]


def _size(name: str, value: int, text: bool) -> int:
    for row in DATA["sizes"]:
        if any(re.fullmatch(pattern, name) for pattern in row["names"]):
            return min(value, int(row["text" if text else "other"]))
    return value


def _change(given: dict[str, Any], change: dict[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(given.get(name), dict):
            _change(given[name], value)
        elif name == "remove":
            for other in value:
                given.pop(other, None)
        else:
            given[name] = value


def head_class(config: Any) -> Any:
    """The class that the checkpoints of this type are saved from: with a head where there is one."""
    from transformers.models.auto import modeling_auto as auto

    # some families have a decoder alone as a language model, which is not what people have of them
    both = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
    others = ("MASKED_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "CAUSAL_LM")
    order = (*both, *others) if getattr(config, "is_encoder_decoder", False) else (*others, *both)
    for mapping in (*order, "PRETRAINING", ""):
        found = getattr(auto, f"MODEL_FOR_{mapping}_MAPPING" if mapping else "MODEL_MAPPING", {})
        if type(config) in found:
            kind = found[type(config)]
            return kind[0] if isinstance(kind, tuple | list) else kind
    raise LookupError(f"transformers has no model for {type(config).__name__}")


def small_model(config: Any) -> nn.Module:
    """A model with its head, weights and biases random and large enough for activations to spread."""
    torch.manual_seed(0)
    model = head_class(config)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.is_floating_point():
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(noise * 1.5 / weight.shape[-1] ** 0.5)
            else:
                weight.add_(noise * 0.1)
    return model


def tokenizer() -> Any:
    """A fast tokenizer of the words w0 to w92, which puts [BOS] before and [EOS] after a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    words = [*special, *(f"w{number}" for number in range(WORDS - len(special)))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        "[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )
