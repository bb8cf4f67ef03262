"""What a model's files hold is what is run: what is left out, refused, or told of files of other kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexer.errors import IndexerError
from indexer.models import load
from indexer.models.weights import check_frequencies, shortened
from tests.tiny_models import CONFIGURATIONS, HIDDEN, LAYERS, UNITS, saved, tokenizer

Weights = dict[str, Tensor]


def with_head(folder: Path, name: str = "llama", **settings: Any) -> Path:
    """A checkpoint as people have it: saved by the class with a language model's head."""
    import transformers

    class_name, defaults = CONFIGURATIONS[name]
    config = getattr(transformers, class_name)(**{**defaults, **settings})
    torch.manual_seed(0)
    auto = (
        transformers.AutoModelForMaskedLM
        if name in ("bert", "roberta")
        else transformers.AutoModelForCausalLM
    )
    auto.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def change(folder: Path, of_weights: Callable[[Weights], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(of_weights(load_file(file)), file, metadata={"format": "pt"})


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def refused(folder: Path) -> str:
    with pytest.raises(IndexerError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def not_used(folder: Path) -> list[str]:
    found: list[str] = load(str(folder)).provenance["weights_not_used"]
    return found


@pytest.mark.parametrize("whole", [True, False], ids=["with head", "base model"])
def test_biases_that_the_configuration_does_not_name(tmp_path: Path, whole: bool) -> None:
    (with_head if whole else saved)(tmp_path, mlp_bias=True)
    load(str(tmp_path))
    configure(tmp_path, mlp_bias=False)
    prefix = "model." if whole else ""
    assert (
        f"its files hold {prefix}layers.*.mlp.down_proj.bias (3), {prefix}layers.*.mlp.gate_proj.bias (3), "
        f"{prefix}layers.*.mlp.up_proj.bias (3), for which LlamaModel as config.json makes it has no place"
    ) in refused(tmp_path)


def int8(weights: Weights) -> Weights:
    scaled = {}
    for name, weight in weights.items():
        scaled[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.abs().amax(1, keepdim=True) / 127
            scaled |= {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}
    return scaled


def fp8(weights: Weights) -> Weights:
    return {
        name: weight.to(torch.float8_e4m3fn if name.endswith("up_proj.weight") else torch.bfloat16)
        for name, weight in weights.items()
    }


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (int8, "model.layers.*.mlp.down_proj.weight (3), model.layers.*.mlp.gate_proj.weight (3), "),
        (fp8, "model.layers.*.mlp.up_proj.weight (3) stored as F8_E4M3; quantised weights are not supported"),
    ],
)
def test_quantised_weights_without_a_word_in_the_configuration(
    tmp_path: Path, to: Callable[[Weights], Weights], said: str
) -> None:
    # the embeddings outweigh the rest, so most of the file is floating point
    with_head(tmp_path, vocab_size=4000)
    change(tmp_path, to)
    message = refused(tmp_path)
    assert said in message
    assert "quantised weights are not supported, take the original model" in message


def test_adapters_inside_the_weights(tmp_path: Path) -> None:
    with_head(tmp_path)
    pair = {"lora_A": torch.zeros(4, HIDDEN), "lora_B": torch.zeros(UNITS, 4)}
    change(
        tmp_path,
        lambda weights: (
            weights
            | {f"model.layers.1.mlp.up_proj.{name}.default.weight": weight for name, weight in pair.items()}
        ),
    )
    message = refused(tmp_path)
    assert "model.layers.*.mlp.up_proj.lora_A.default.weight" in message
    assert "--adapter" in message


def test_further_layers(tmp_path: Path) -> None:
    with_head(tmp_path)
    configure(tmp_path, num_hidden_layers=LAYERS - 1)
    assert "model.layers.*.input_layernorm.weight" in refused(tmp_path)
    # predictions of further tokens are heads, stored as layers
    configure(tmp_path, num_nextn_predict_layers=1)
    assert load(str(tmp_path)).model.config.num_hidden_layers == LAYERS - 1


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_part_that_the_model_does_not_have(tmp_path: Path, prefix: str) -> None:
    saved(tmp_path, "gpt2")
    change(
        tmp_path,
        lambda weights: (
            {prefix + name: weight for name, weight in weights.items()}
            | {f"{prefix}embedding_norm.weight": torch.ones(HIDDEN)}
        ),
    )
    assert f"its files hold {prefix}embedding_norm.weight, for which" in refused(tmp_path)
    # files that hold the whole of a model with a head may call that head as they like
    configure(tmp_path, architectures=["GPT2LMHeadModel"])
    if prefix:
        assert "embedding_norm" in refused(tmp_path)
    else:
        assert not_used(tmp_path) == ["embedding_norm.weight"]
    change(tmp_path, lambda weights: {**weights, f"{prefix}h.0.mlp.c_fc.scale": torch.ones(1)})
    assert "h.*.mlp.c_fc.scale" in refused(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "gpt_neox", "llama", "bloom"])
def test_a_head_is_left_out_and_listed(tmp_path: Path, name: str) -> None:
    with_head(tmp_path, name, tie_word_embeddings=False)
    stored = load_file(tmp_path / "model.safetensors")
    listed = not_used(tmp_path)
    assert listed
    prefix = "bert." if name == "bert" else "roberta." if name == "roberta" else "layers"
    assert not any(entry.startswith(prefix) for entry in listed)
    assert all(entry in stored for entry in listed if "(" not in entry)


def test_an_old_gpt2_with_its_masks(tmp_path: Path) -> None:
    saved(tmp_path, "gpt2")
    masks = {}
    for layer in range(LAYERS):
        masks[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
        masks[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    change(tmp_path, lambda weights: weights | masks | {"lm_head.weight": weights["wte.weight"].clone()})
    configure(tmp_path, architectures=["GPT2LMHeadModel"])
    listed = not_used(tmp_path)
    assert {"h.*.attn.bias (3)", "lm_head.weight"} <= set(listed)


def test_old_buffers_of_positions(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    change(tmp_path, lambda weights: weights | {"embeddings.position_ids": torch.arange(64)[None]})
    assert not_used(tmp_path) == ["embeddings.position_ids"]
    saved(tmp_path, "llama")
    old = {f"layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(LAYERS)}
    change(tmp_path, lambda weights: weights | old)
    assert not_used(tmp_path) == ["layers.*.self_attn.rotary_emb.inv_freq (3)"]


def test_an_adapter_beside_whole_weights(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    message = refused(tmp_path)
    assert "an adapter of owner/base stands beside the model's weights (adapter_config.json)" in message
    assert "--adapter" in message
    (tmp_path / "config.json").unlink()
    assert "this is an adapter of owner/base, not a model" in refused(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model.fp16.safetensors"], "weights under another name (model.fp16.safetensors); rename the file"),
        (
            ["model-00001-of-00001.safetensors"],
            "but model-00001-of-00001.safetensors, which is all of it: rename",
        ),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "nor model.safetensors.index.json, which tells what the 2 shards hold (2 of them are there)",
        ),
        (
            ["consolidated.safetensors", "params.json"],
            "weights in Mistral's own naming (consolidated.safetensors)",
        ),
        (["a-Q4_K_M.gguf", "a-Q8_0.gguf"], "but several GGUF files (a-Q4_K_M.gguf, a-Q8_0.gguf); give one"),
        (["pytorch_model.bin", "tf_model.h5"], "only pytorch_model.bin, which could run code"),
        (["tf_model.h5"], "only tf_model.h5, which is for TensorFlow"),
        ([], "nor weights in any other form; download it again"),
    ],
)
def test_other_files_than_the_usual(tmp_path: Path, files: list[str], said: str) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for file in files:
        (tmp_path / file).write_bytes(b"")
    message = refused(tmp_path)
    assert f"no model.safetensors in {tmp_path}, " in message
    assert said in message


def test_names_are_shortened() -> None:
    names = ["h.0.a", "h.1.a", "lm_head", "h.1.b"]
    assert shortened(names, 3) == ["h.*.a (2)", "h.*.b", "lm_head"]
    assert shortened(names, 2) == ["h.*.a (2)", "h.*.b", "and 1 more"]


def test_weights_as_stored_are_those_that_are_run(tmp_path: Path) -> None:
    saved(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = load(str(tmp_path)).model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_positions_that_transformers_never_set(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    model = load(str(tmp_path)).model
    for value in (2.7e8, 3e-41, -1.0, torch.nan):
        model.rotary_emb.inv_freq[1] = value
        with pytest.raises(IndexerError, match=r"leaves rotary_emb.inv_freq of LlamaModel unset"):
            check_frequencies("m", model)
    model.rotary_emb.inv_freq[1] = 0.0
    check_frequencies("m", model)
