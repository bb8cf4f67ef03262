"""Models that want more than tokens, fail in their own code, or look like what they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import indexer
from indexer.errors import IndexerError
from indexer.models import Runner, Values, adapt
from indexer.models.runner import blocks
from indexer.names import Key
from indexer.sites.mlp.functions import is_activation
from tests.test_models_structure import Block, Body, Packed, Spread, body
from tests.tiny_batches import Keeper, TinyBatch, mlps, tiny_batch
from tests.tiny_models import COMMON, GROUPED, HIDDEN, LAYERS, UNITS, tokenizer

VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
RELATIVE = {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}


def made(configuration: str, **settings: Any) -> Any:
    import transformers

    config = getattr(transformers, configuration)(**settings)
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config).eval()


def siglip() -> Any:
    return made("SiglipConfig", text_config={**COMMON, "projection_size": HIDDEN}, vision_config=VISION)


def test_projections_of_something_else_than_tokens_are_passed_over() -> None:
    layers = mlps(adapt(made("DebertaV2Config", **RELATIVE, share_att_key=False)))
    assert [(layer.place, layer.provenance["path"]) for layer in layers] == [
        (f"encoder.layer.{i}.output.dense", "fused") for i in range(LAYERS)
    ]


def test_a_model_that_wants_pixels_is_indexed_by_its_language_model() -> None:
    model = siglip()
    loaded = adapt(model, name="siglip")
    assert loaded.model is model.text_model
    assert loaded.provenance["architecture"] == "SiglipModel"
    assert loaded.provenance["part"] == "text_model"
    projections = [layer.place for layer in mlps(loaded)]
    assert projections == [f"text_model.encoder.layers.{i}.mlp.fc2" for i in range(LAYERS)]
    assert all(layer.module is model.get_submodule(layer.place) for layer in mlps(loaded))
    by_hand = mlps(adapt(model), output_projection="text_model.encoder.layers.*.mlp.fc2")
    assert [layer.place for layer in by_hand] == projections


def test_a_language_model_of_a_part_is_taken_without_its_head() -> None:
    text = {**COMMON, "model_type": "opt", "ffn_dim": UNITS, "word_embed_proj_dim": HIDDEN}
    former = {**VISION, "vocab_size": 9, "encoder_hidden_size": 16}
    model = made("Blip2Config", text_config=text, vision_config=VISION, qformer_config=former)
    assert adapt(model).part == "language_model.model"


def test_an_index_of_a_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    siglip().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "t.txt").write_text("w1 w2 w3 w4")
    built = indexer.build(
        model=str(tmp_path / "model"),
        corpus=[str(tmp_path / "t.txt")],
        output=str(tmp_path / "i"),
        context=32,
    )
    with indexer.open_index(built) as index:
        assert index.manifest.model["part"] == "text_model"
        assert index.manifest.model["layers"][0]["place"] == "text_model.encoder.layers.0.mlp.fc2"
        assert index.info()["model"]["part"] == "text_model"
    assert "does not run on token ids alone; its part text_model is indexed" in capsys.readouterr().err


def test_the_blocks_of_a_part_are_compiled() -> None:
    part = siglip().text_model
    layers = part.encoder.layers
    assert blocks(part, layers[2].mlp.fc2) == [layers[0], layers[1]]
    assert blocks(part, part.embeddings) == []


@pytest.mark.parametrize(
    ("configuration", "settings", "words"),
    [
        ("BrosConfig", COMMON, r"BrosModel: .*\(ValueError: You have to specify bbox\)"),
        (
            "NystromformerConfig",
            {**COMMON, "num_landmarks": 4, "segment_means_seq_len": 64},
            r"fails in encoder\.layer\.0\.attention\.self \(RuntimeError: shape",
        ),
        ("ViltConfig", {**COMMON, "image_size": 16, "patch_size": 8}, "ViltModel: .*pixel_values"),
    ],
)
def test_a_model_that_wants_more_than_tokens_is_one_line(
    configuration: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(IndexerError, match=words) as caught:
        adapt(made(configuration, **settings), name="it")
    assert "\n" not in str(caught.value)


class Short(nn.Module):
    """An MLP that fails on more than 12 tokens, by an exception of its own choice."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.mlp, self.error = Packed(), error

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 12 and self.error is not None:
            raise self.error
        return self.mlp(x)


class Quiet:
    """Takes nothing, or raises what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def take(self, key: Key, values: Values) -> None:
        if self.error is not None:
            raise self.error


def ran(error: Exception | None, quiet: Quiet) -> None:
    batch = tiny_batch(20, 5)
    batch = TinyBatch(batch.token_ids % 50, batch.length)
    loaded = adapt(body(Packed(), Short(error)))
    Runner(loaded, mlps(loaded), quiet.take).run(batch)


def test_a_model_that_fails_in_the_middle_of_a_build_is_one_line() -> None:
    with pytest.raises(
        IndexerError, match=r"^model Body: .* in blocks\.1\.mlp \(ValueError: it is too long\)"
    ):
        ran(ValueError("it is\n  too long"), Quiet())


@pytest.mark.parametrize("error", [AssertionError("ours"), KeyError("ours"), ValueError("ours")])
def test_a_fault_of_our_own_is_no_fault_of_the_model(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        ran(None, Quiet(error))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full")])
def test_want_of_memory_is_told_elsewhere(error: Exception) -> None:
    model = body(Packed(), Short(error))
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        mlps(adapt(model))


def test_parameters_of_three_dimensions_alone_make_no_experts() -> None:
    rwkv = made(
        "RwkvConfig", vocab_size=97, hidden_size=HIDDEN, intermediate_size=UNITS, num_hidden_layers=2,
        context_length=32,
    )  # fmt: skip
    assert [layer.units for layer in mlps(adapt(rwkv))] == [UNITS, UNITS]
    gemma = made("RecurrentGemmaConfig", **GROUPED, lru_width=HIDDEN, attention_window_size=16)
    assert [layer.provenance["path"] for layer in mlps(adapt(gemma))] == ["fused"] * LAYERS
    qwen = made("Qwen2MoeConfig", **GROUPED, num_experts=4, moe_intermediate_size=24)
    assert {layer.provenance["experts"] for layer in mlps(adapt(qwen))} == {"not indexed"}
    assert all("experts" not in layer.provenance for model in (rwkv, gemma) for layer in mlps(adapt(model)))


class LowRank(nn.Module):
    """Something between two linear layers, the second one as wide as the block."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Linear(16, 24), between, nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class Scaled(nn.Module):
    """A scaling of each channel, as MobileBERT has in place of normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(24)), nn.Parameter(torch.rand(24))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


BETWEEN: dict[str, Any] = {
    "LayerNorm": lambda: nn.LayerNorm(24), "RMSNorm": lambda: nn.RMSNorm(24), "scaling": Scaled,
    "softmax": lambda: nn.Softmax(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "scaling", "softmax"])
def test_what_is_no_activation_makes_no_mlp(name: str) -> None:
    with pytest.raises(IndexerError, match=r"no linear layer is fed f\(gate\)"):
        mlps(adapt(body(LowRank(BETWEEN[name]()))))
    both = nn.Sequential(LowRank(BETWEEN[name]()), Packed())
    assert mlps(adapt(body(both)))[0].place == "blocks.0.mlp.1.down"


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.Hardtanh(), nn.PReLU(), nn.Sigmoid(), nn.SiLU(inplace=True)],
)
def test_activations_are_activations(module: nn.Module) -> None:
    x = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    with torch.inference_mode():
        assert is_activation(module, x)
        assert is_activation(module.bfloat16(), x.bfloat16())
    assert torch.equal(x, before)


class Normed(nn.Module):
    """A norm between product and projection, as BitNet and Kosmos-2 have."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down, self.act = (
            nn.Linear(16, 24),
            nn.LayerNorm(24),
            nn.Linear(24, 16),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.act(self.up(x))))


class Sparse(nn.Module):
    """A gate of which the largest channels alone are kept, as Gemma 3n has."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.act = (
            nn.Linear(16, 24),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return self.down(self.act((gate - gate.mean(-1, keepdim=True)).relu()) * self.up(x))


@pytest.mark.parametrize(
    ("mlp", "gated", "reason"),
    [(Normed, False, "LayerNorm lies between"), (Sparse, True, "the gate is changed")],
)
def test_what_stands_in_the_way_of_a_kernel_is_read_by_hook(
    mlp: type[nn.Module], gated: bool, reason: str
) -> None:
    (layer,) = mlps(adapt(body(mlp())))
    assert (layer.provenance["path"], layer.units, layer.provenance["gated"], layer.place) == (
        "hook",
        24,
        gated,
        "blocks.0.mlp.down",
    )
    assert reason in layer.provenance["reason"]
    assert layer.provenance.get("up") == ("not seen" if gated else None)


class Listed(Block):
    """A block that returns a list, as GPT-1's do."""

    def forward(self, x: Any) -> Any:
        return [super().forward(x[0] if isinstance(x, list) else x)]


class Turned(Spread):
    """A block that runs on [position, sequence, hidden], as XLNet's do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


def test_blocks_that_return_lists() -> None:
    model = body()
    model.blocks.extend([Listed(Packed()), Listed(Packed())])
    model.forward = lambda input_ids: _through(model, input_ids)[0]  # type: ignore[method-assign]
    assert [layer.provenance["path"] for layer in mlps(adapt(model))] == ["fused", "fused"]


def _through(model: Body, ids: Tensor) -> Any:
    x: Any = model.embedding(ids)
    for block in model.blocks:
        x = block(x)
    return x


def test_rows_that_are_not_tokens_in_order_are_refused() -> None:
    model = body()
    model.blocks.append(Turned(nn.ReLU()))
    with pytest.raises(IndexerError, match=r"no linear layer is fed"):
        mlps(adapt(model))
    with pytest.raises(IndexerError, match=r"rows of shape \[8, 2\] for 2 sequences of 8 tokens"):
        mlps(adapt(model), output_projection="blocks.*.down")


class Twice(Body):
    """Two lists of blocks, one after the other."""

    def __init__(self) -> None:
        super().__init__(Packed(), Packed())
        self.more = nn.ModuleList([nn.ModuleList([Block(Packed())])])

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.more[0][0](super().forward(input_ids))  # type: ignore[index]


def test_mlps_in_more_than_one_list_are_refused() -> None:
    with pytest.raises(IndexerError, match=r"more than one list of blocks \(blocks \(2\), more\.0 \(1\)\)"):
        mlps(adapt(Twice().eval()))
    assert len(mlps(adapt(Twice().eval()), output_projection="more.0.*.mlp.down")) == 1


def test_a_list_of_embeddings_is_no_list_of_blocks() -> None:
    model = body(Packed())
    model.tables = nn.ModuleList(nn.Embedding(9000, 16) for _ in range(3))
    model.forward = lambda input_ids: _through(model, input_ids) + sum(t(input_ids) for t in model.tables)  # type: ignore
    assert [layer.place for layer in mlps(adapt(model))] == ["blocks.0.mlp.down"]


def test_a_projection_by_hand_that_is_given_more_than_a_tensor() -> None:
    model = made("IBertConfig", **COMMON)
    loaded = adapt(model)
    probes = mlps(loaded, output_projection="encoder.layer.*.output.dense")
    batch, keeper, given = tiny_batch(9), Keeper(), []
    Runner(loaded, probes, keeper.take).run(batch)
    handle = model.encoder.layer[1].output.dense.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(batch.token_ids))
    handle.remove()
    torch.testing.assert_close(torch.cat(keeper.kept[1]), given[0][0])
