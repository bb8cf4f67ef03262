"""Where dictionaries read: names of TransformerLens, found by values, against the modules that they are."""

from __future__ import annotations

import pytest
import torch

from indexer.errors import IndexerError
from indexer.models import adapt
from indexer.models.forward import call_model
from indexer.sites.sae.points import Points
from tests.tiny_models import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = {
    "hook_resid_pre": ("layers.1", False), "hook_resid_post": ("layers.1", True),
    "hook_resid_mid": ("layers.1.post_attention_layernorm", False),
    "mlp.hook_in": ("layers.1.post_attention_layernorm", True), "hook_mlp_out": ("layers.1.mlp", True),
    "hook_attn_out": ("layers.1.self_attn", True), "attn.hook_z": ("layers.1.self_attn.o_proj", False),
}  # fmt: skip
# norms behind attention and MLP are part of what these add
GEMMA = LLAMA | {
    "hook_resid_mid": ("layers.1.pre_feedforward_layernorm", False),
    "mlp.hook_in": ("layers.1.pre_feedforward_layernorm", True),
    "hook_mlp_out": ("layers.1.post_feedforward_layernorm", True),
    "hook_attn_out": ("layers.1.post_attention_layernorm", True),
}
GPT2 = {
    "hook_resid_pre": ("h.1", False), "hook_resid_post": ("h.1", True), "hook_resid_mid": ("h.1.ln_2", False),
    "mlp.hook_in": ("h.1.ln_2", True), "hook_mlp_out": ("h.1.mlp", True), "hook_attn_out": ("h.1.attn", True),
    "attn.hook_z": ("h.1.attn.c_proj", False),
}  # fmt: skip
WITHOUT = {"hook_resid_mid": None, "mlp.hook_in": None}
PLACES: dict[str, dict[str, tuple[str, bool] | None]] = {
    "llama": {**LLAMA}, "qwen3": {**LLAMA}, "mistral": {**LLAMA}, "phi3": {**LLAMA}, "mixtral": {**LLAMA},
    "gemma2": {**GEMMA}, "gemma3": {**GEMMA}, "gpt2": {**GPT2},
    "gpt_neo": {**GPT2, "attn.hook_z": ("h.1.attn.attention.out_proj", False)},
    # what the MLP reads is the stream itself
    "olmo2": {
        **LLAMA, "hook_mlp_out": ("layers.1.post_feedforward_layernorm", True),
        "hook_attn_out": ("layers.1.post_attention_layernorm", True),
        "hook_resid_mid": ("layers.1.mlp", False), "mlp.hook_in": ("layers.1.mlp", False),
    },
    "gpt_neox": {
        "hook_resid_pre": ("layers.1", False), "hook_resid_post": ("layers.1", True),
        "hook_mlp_out": ("layers.1.mlp", True), "hook_attn_out": ("layers.1.attention", True),
        "attn.hook_z": ("layers.1.attention.dense", False), **WITHOUT,
    },
    "gptj": {
        "hook_resid_pre": ("h.1", False), "hook_resid_post": ("h.1", True), "hook_mlp_out": ("h.1.mlp", True),
        "hook_attn_out": ("h.1.attn", True), "attn.hook_z": ("h.1.attn.out_proj", False), **WITHOUT,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_names_of_a_block(name: str) -> None:
    points = Points(adapt(tiny(name)))
    found = {}
    for hook in LLAMA:
        if PLACES[name][hook] is None:
            with pytest.raises(IndexerError, match=rf"^cfg\.json: it reads blocks\.1\.{hook}; .* the same"):
                points.find(f"blocks.1.{hook}", "cfg.json")
            continue
        place = points.find(f"blocks.1.{hook}", "cfg.json")
        assert place.layer == 1
        assert place.written == (hook not in ("mlp.hook_in", "attn.hook_z"))
        found[hook] = place.path, place.returned
    assert found == {hook: place for hook, place in PLACES[name].items() if place}


@pytest.mark.parametrize("name", ["bert", "opt_post_norm"])
def test_blocks_that_end_with_a_norm_have_no_one_stream(name: str) -> None:
    points = Points(adapt(tiny(name)))
    for hook in LLAMA:
        if hook == "attn.hook_z":
            assert points.find(f"blocks.1.{hook}", "cfg.json").written is False
            continue
        with pytest.raises(IndexerError, match=r"ends with .*; name the module instead, as "):
            points.find(f"blocks.1.{hook}", "cfg.json")


@pytest.mark.parametrize(
    ("name", "point", "place"),
    [
        ("llama", "layers.2", ("layers.2", True, 2)),
        ("llama", "model.layers.2.mlp.input", ("layers.2.mlp", False, 2)),
        ("llama", "model.layers.0.mlp.output", ("layers.0.mlp", True, 0)),
        ("gpt2", "transformer.h.1.attn", ("h.1.attn", True, 1)),
        ("bert", "encoder.layer.1", ("encoder.layer.1", True, 1)),
        ("bert", "layer.1.output.dense.input", ("encoder.layer.1.output.dense", False, 1)),
        ("llama", "model.norm", ("norm", True, None)),
    ],
)
def test_paths_of_modules(name: str, point: str, place: tuple[str, bool, int | None]) -> None:
    found = Points(adapt(tiny(name))).find(point, "cfg.json")
    assert (found.path, found.returned, found.layer, found.written) == (*place, None)


def test_a_path_that_is_of_several_modules_is_refused() -> None:
    points = Points(adapt(tiny("llama")))
    with pytest.raises(IndexerError, match=r"has several modules that end in it: layers\.0\.mlp, "):
        points.find("mlp", "cfg.json")


def test_what_adds_up_to_the_stream() -> None:
    """The values at the points, in a model with norms behind attention and MLP."""
    loaded, values = adapt(tiny("gemma2")), {}
    points = Points(loaded)

    def keeping(hook: str, returned: bool) -> object:
        def keep(module: object, given: object, output: object = None) -> None:
            value = output if returned else given
            values[hook] = (value[0] if isinstance(value, tuple) else value).clone()  # type: ignore[union-attr]

        return keep

    for hook in LLAMA:
        place = points.find(f"blocks.1.{hook}", "cfg.json")
        if place.returned:
            place.module.register_forward_hook(keeping(hook, True))  # type: ignore[arg-type]
        elif hook != "hook_resid_pre":
            place.module.register_forward_pre_hook(keeping(hook, False))  # type: ignore[arg-type]
    with torch.inference_mode():
        call_model(loaded.model, loaded.sample.token_ids)
    assert torch.equal(values["hook_resid_mid"] + values["hook_mlp_out"], values["hook_resid_post"])
