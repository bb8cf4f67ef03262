"""Quantised checkpoints: read by transformers' loaders, run with the weights that these make, recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import indexer.models.source
from indexer.errors import IndexerError
from indexer.models import load
from tests.tiny_batches import mlps
from tests.tiny_models import fresh, saved, tokenizer


def as_read(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The weights of a model once it is loaded, and what the manifest says of their form."""
    loaded = load(str(folder), dtype="float32")
    assert {probe.key.layer for probe in mlps(loaded)} == {0, 1, 2}
    return dict(loaded.model.state_dict()), str(loaded.provenance["quantisation"])


def refused(folder: Path) -> str:
    with pytest.raises(IndexerError) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_method(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))


def projections(weights: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in weights if name.endswith("_proj.weight")]


def test_fp8_with_scales(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra multi-gpu is not installed")
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    expected = dict(weights)
    for name in projections(weights):
        blocks = weights[name].unflatten(1, (-1, 16)).unflatten(0, (-1, 16))
        scale = blocks.abs().amax((1, 3)) / 448
        by = scale[:, None, :, None]
        eight = (blocks / by).to(torch.float8_e4m3fn)
        expected[name] = (eight.float() * by).flatten(2).flatten(0, 1)
        weights |= {name: eight.flatten(2).flatten(0, 1), f"{name}_scale_inv": scale}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    set_method(tmp_path, quant_method="fp8", weight_block_size=[16, 16], activation_scheme="dynamic")
    found, form = as_read(tmp_path)
    assert form == "fp8, dequantised"
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=0)


def test_mxfp4_experts(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra multi-gpu is not installed")
    saved(tmp_path, "gpt_oss", intermediate_size=64)
    weights = load_file(tmp_path / "model.safetensors")
    expected = dict(weights)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = weights.pop(name).shape
        codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), generator=generator)
        exponents = torch.randint(120, 128, (experts, outputs, inputs // 32), generator=generator)
        values = levels[codes & 7] * (1 - 2 * (codes >> 3)) * 2.0 ** (exponents[..., None] - 127)
        expected[name] = values.flatten(2).transpose(1, 2)
        packed = codes[..., ::2] | codes[..., 1::2] << 4
        weights |= {f"{name}_blocks": packed.byte(), f"{name}_scales": exponents.byte()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    set_method(tmp_path, quant_method="mxfp4", modules_to_not_convert=[])
    loaded = load(str(tmp_path), dtype="float32")
    assert loaded.provenance["quantisation"] == "mxfp4, dequantised"
    found = loaded.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_compressed_tensors(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    expected = dict(weights)
    for name in projections(weights):
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        eight = (weights[name] / scale).round()
        expected[name] = eight * scale
        weights |= {name: eight.to(torch.int8), f"{name}_scale": scale}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    set_method(
        tmp_path, quant_method="compressed-tensors", format="int-quantized", quantization_status="compressed",
        config_groups={"group_0": {"targets": ["Linear"], "weights": eight_bits}}, ignore=["lm_head"],
    )  # fmt: skip
    found, form = as_read(tmp_path)
    assert form == "compressed-tensors, dequantised"
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_bitsandbytes_runs_as_stored(tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    import transformers

    saved(tmp_path / "plain", hidden_size=64)
    options = transformers.BitsAndBytesConfig(**{bits: True})
    whole = transformers.AutoModel.from_pretrained(tmp_path / "plain", quantization_config=options)
    whole.save_pretrained(tmp_path / "small")
    tokenizer().save_pretrained(tmp_path / "small")
    loaded = load(str(tmp_path / "small"))
    assert loaded.provenance["quantisation"] == "bitsandbytes, as stored"
    probes = mlps(loaded)
    assert [probe.units for probe in probes] == [80, 80, 80]
    assert not any(probe.fused for probe in probes)
    ids = torch.tensor([[1, 5, 9, 2]])
    assert torch.equal(loaded.model(ids).last_hidden_state, whole(ids).last_hidden_state)


def gguf_of(model: Any, file: Path) -> None:
    """A llama of one attention head as llama.cpp's converter writes it."""
    import gguf

    config, names = model.config, [*"abcdefgh"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", "▁", *names]
    tokens += [f"<0x{number:02X}>" for number in range(config.vocab_size - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    kinds = [gguf.TokenType.UNKNOWN, *2 * [gguf.TokenType.CONTROL], *9 * [gguf.TokenType.NORMAL]]
    writer.add_token_types([*kinds, *(len(tokens) - 12) * [gguf.TokenType.BYTE]])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    for role, number in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{role}_token_id")(number)
    names_of = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        path, _, end = f"model.{name}".rpartition(".")
        rows = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            # the two halves that positions turn into each other alternate
            rows = rows.reshape(2, -1, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)
        eight = gguf.GGMLQuantizationType.Q8_0 if name.endswith("_proj.weight") else None
        if eight is not None:
            rows = gguf.quants.quantize(rows, eight)
        writer.add_tensor(f"{names_of.get_name(path)}.{end}", np.ascontiguousarray(rows), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    model = fresh("llama", num_attention_heads=1, num_key_value_heads=1, intermediate_size=96)
    gguf_of(model, tmp_path / "tiny.gguf")
    loaded = load(str(tmp_path))
    assert loaded.provenance["quantisation"] == "gguf, dequantised"
    ids = loaded.tokenizer("ab").input_ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert not {1, 2} & {*ids[1:-1]}
    assert [probe.units for probe in mlps(loaded)] == [96, 96, 96]
    found = load(str(tmp_path / "tiny.gguf")).model.state_dict()
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weight in model.state_dict().items():
        expected = weight
        if name.endswith("_proj.weight"):
            expected = torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
            )
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=0)
    (tmp_path / "tiny.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:200])
    assert "tiny.gguf is damaged" in refused(tmp_path)


def test_what_cannot_be_read_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr("indexer.errors.find_spec", lambda name: None)
    for method, packages in indexer.models.source.QUANTISED_BY.items():
        set_method(tmp_path, quant_method=method)
        assert refused(tmp_path).endswith(
            f"weights quantised as {method}: reading them needs {', '.join(packages)}: "
            f"pip install {' '.join(packages)}"
        )
    set_method(tmp_path, quant_method="spqr")
    assert "weights quantised as spqr are not read; those that are: fp8, mxfp4" in refused(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.gguf")
    assert "a GGUF file needs gguf, accelerate: pip install" in refused(tmp_path)


def test_what_a_form_does_not_fit_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra multi-gpu is not installed")
    folder = saved(tmp_path)
    set_method(folder, quant_method="fp8", weight_block_size=[16])
    assert "transformers does not understand its quantization_config" in refused(folder)
