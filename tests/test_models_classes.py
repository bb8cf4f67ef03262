"""Which class of transformers a model is loaded by, and which of its parts is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from indexer.errors import IndexerError
from indexer.models import adapt, load
from indexer.models.sample import sample_ids
from indexer.sites import find
from tests.test_models_crashes import VISION, made
from tests.tiny_models import COMMON, HEADS, HIDDEN, LAYERS, T5, UNITS, VOCABULARY, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
MARIAN: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": 2, "encoder_ffn_dim": UNITS,
    "decoder_layers": 2, "decoder_ffn_dim": UNITS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "max_position_embeddings": 32, "pad_token_id": 96,
    "decoder_start_token_id": 96,
}  # fmt: skip
TEXT = {**COMMON, "num_attention_heads": 2}


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_positions_that_are_computed_need_not_be_in_the_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = transformers.MarianMTModel(transformers.MarianConfig(**MARIAN)).eval()
    loaded = load(str(saved(whole, tmp_path)))
    assert type(loaded.model) is transformers.MarianModel
    assert loaded.context == 31
    ids = sample_ids(whole)
    with torch.inference_mode():
        found, expected = (m(input_ids=ids, decoder_input_ids=ids)[0] for m in (loaded.model, whole.model))
    torch.testing.assert_close(found, expected)


def test_a_type_without_a_base_model_is_loaded_by_the_class_that_saved_it(tmp_path: Path) -> None:
    bert = transformers.BertConfig(**COMMON)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        bert, bert, decoder_start_token_id=1, pad_token_id=0
    )
    loaded = load(str(saved(transformers.EncoderDecoderModel(config), tmp_path)))
    assert loaded.provenance["architecture"] == "EncoderDecoderModel"
    keys = [str(probe.key) for probe in find(loaded)]
    assert keys == [f"{stack}.mlp.{layer}" for stack in ("encoder", "decoder") for layer in range(LAYERS)]


@pytest.mark.parametrize("named", ["LlamaForCausalLM", "NoSuchModel", "AutoConfig"])
def test_weights_that_no_class_finds_are_told(named: str, tmp_path: Path) -> None:
    small = {**COMMON, "num_hidden_layers": 1}
    folder = saved(transformers.LlamaModel(transformers.LlamaConfig(**small)), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 2, "architectures": [named]})
    )
    with pytest.raises(IndexerError, match=r"lack \d+ of the weights of Llama"):
        load(str(folder))


def test_tokens_of_another_vocabulary_are_not_read() -> None:
    model = made("MarianConfig", **MARIAN, share_encoder_decoder_embeddings=False)
    with pytest.raises(IndexerError, match="MarianModel: its decoder has a vocabulary of its own"):
        adapt(model)


def test_a_part_that_only_its_head_makes_causal_is_run_with_it() -> None:
    config = transformers.BlipConfig(text_config={**TEXT, "encoder_hidden_size": 16}, vision_config=VISION)
    torch.manual_seed(0)
    loaded = adapt(transformers.BlipForConditionalGeneration(config))
    assert (loaded.part, loaded.causal) == ("text_decoder", True)
    assert find(loaded)[0].place == "text_decoder.bert.encoder.layer.0.output.dense"


def test_a_part_that_does_not_tell_its_embeddings() -> None:
    vision = {**VISION, "patch_size": 8}
    loaded = adapt(made("OwlViTConfig", text_config=TEXT, vision_config=vision, projection_dim=HIDDEN))
    assert loaded.part == "text_model"
    assert loaded.device == torch.device("cpu")


def test_a_part_may_have_two_stacks() -> None:
    former = {**VISION, "vocab_size": 9, "encoder_hidden_size": 16}
    text = {**T5, "model_type": "t5"}
    loaded = adapt(made("Blip2Config", text_config=text, vision_config=VISION, qformer_config=former))
    assert (loaded.part, loaded.provenance["decoder_start_token_id"]) == ("language_model", 0)
    found = {str(probe.key): probe.place for probe in find(loaded)}
    assert found["encoder.mlp.1"] == "language_model.encoder.block.1.layer.1.DenseReluDense.wo"
    assert found["decoder.mlp.1"] == "language_model.decoder.block.1.layer.2.DenseReluDense.wo"


def test_a_decoder_of_something_else_than_text_is_no_model() -> None:
    small = {"d_model": 32, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    with pytest.raises(IndexerError, match=r"Whisper\w+: it has no embeddings of tokens"):
        adapt(made("WhisperConfig", **small, **layers))
