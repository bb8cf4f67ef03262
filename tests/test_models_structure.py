"""MLPs are found by what they compute; what is not recognised is told, never guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from indexer_kernels import activate
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models import adapt
from indexer.models.sample import sample_ids
from indexer.names import MLP
from indexer.sites.mlp.functions import recognise
from indexer.sites.mlp.fused import FusedMlp
from tests.tiny_batches import mlps
from tests.tiny_models import (
    BIDIRECTIONAL,
    FUSED,
    HOOKED,
    LAYERS,
    POSITIONS,
    UNITS,
    UNRECOGNISED,
    fresh,
    tiny,
)

FUNCTION = {
    "bert": "gelu", "roberta": "gelu", "gpt2": "gelu_tanh", "gpt_neox": "gelu", "gptj": "gelu_tanh",
    "opt": "relu", "opt_post_norm": "relu", "bloom": "gelu_tanh", "falcon": "gelu", "falcon_alibi": "gelu",
    "llama": "silu",
    "mistral": "silu", "qwen2": "silu", "qwen3": "silu", "olmo2": "silu", "gemma2": "gelu_tanh",
    "gemma3": "gelu_tanh", "phi3": "silu", "modernbert": "gelu", "nemotron": "relu2", "gpt_neo": "gelu_tanh",
}  # fmt: skip
GATED = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3", "phi3", "modernbert"}
PROJECTION = {
    "bert": "encoder.layer.1.output.dense", "gpt2": "h.1.mlp.c_proj",
    "gpt_neox": "layers.1.mlp.dense_4h_to_h", "gptj": "h.1.mlp.fc_out", "opt": "decoder.layers.1.fc2",
    "bloom": "h.1.mlp.dense_4h_to_h",
    "llama": "layers.1.mlp.down_proj", "phi3": "layers.1.mlp.down_proj", "modernbert": "layers.1.mlp.Wo",
}  # fmt: skip
UNBOUNDED = {"bloom", "falcon_alibi"}


@pytest.mark.parametrize("name", FUSED)
def test_every_architecture_is_recognised(name: str) -> None:
    loaded = adapt(tiny(name), name=name)
    probes = mlps(loaded)
    assert [layer.key for layer in probes] == [(MLP, number) for number in range(LAYERS)]
    for layer in probes:
        assert layer.provenance["path"] == "fused", layer.provenance["reason"]
        assert layer.provenance["reason"] == ""
        assert layer.units == (128 if name == "bloom" else UNITS)
        assert layer.provenance["function"] == FUNCTION[name]
        assert layer.provenance["gated"] == (name in GATED)
    assert probes[1].place == PROJECTION.get(name, probes[1].place)
    assert loaded.causal == (name not in BIDIRECTIONAL)
    assert loaded.context == (None if name in UNBOUNDED else POSITIONS)


@pytest.mark.parametrize("name", HOOKED)
def test_other_activations_are_read_by_hook_and_say_why(name: str) -> None:
    layers = mlps(adapt(tiny(name), name=name))
    assert [layer.provenance["path"] for layer in layers] == ["hook"] * LAYERS
    wanted = "no module of its own" if name == "esm" else "no fused kernel for the activation"
    assert all(wanted in layer.provenance["reason"] for layer in layers)


@pytest.mark.parametrize("name", UNRECOGNISED)
def test_unrecognised_structure_tells_what_was_found(name: str) -> None:
    with pytest.raises(
        IndexerError,
        match=r"layers\.0 \(MixtralDecoderLayer\): mlp\.experts is a mixture of .*--output-projection",
    ):
        mlps(adapt(tiny(name), name=name))


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("deepseek_v3", ["layers.0.mlp", "layers.1.mlp.shared_experts", "layers.2.mlp.shared_experts"]),
        ("qwen3_moe", ["layers.0.mlp", "layers.2.mlp"]),
    ],
)
def test_of_a_mixture_of_experts_dense_and_shared_mlps_are_found(name: str, places: list[str]) -> None:
    layers = mlps(adapt(tiny(name), name=name))
    assert [layer.place for layer in layers] == [f"{place}.down_proj" for place in places]
    assert [str(layer.key.layer) for layer in layers] == [place.split(".")[1] for place in places]
    assert {layer.provenance["experts"] for layer in layers} == {"not indexed"}
    assert "experts" not in mlps(adapt(tiny("llama"), name="llama"))[0].provenance


def test_a_damaged_block_of_experts_is_not_passed_over() -> None:
    model = fresh("qwen3_moe")
    for weight in model.layers[1].parameters():  # type: ignore[index]
        weight.data.fill_(float("nan"))
    with pytest.raises(IndexerError, match=r"layers\.1 .* all it returns is NaN"):
        mlps(adapt(model))


class Unknown(nn.Module):
    """An activation function that depends on its neighbours, which makes none of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


def test_a_block_of_experts_with_an_mlp_that_is_not_recognised_is_refused() -> None:
    model = fresh("deepseek_v3")
    model.layers[1].mlp.shared_experts.act_fn = Unknown()  # type: ignore[index,union-attr]
    with pytest.raises(IndexerError, match=r"layers\.1 .*no linear layer is fed .*shared_experts\.down_proj"):
        mlps(adapt(model))


def test_activation_functions_are_told_apart() -> None:
    from transformers.activations import ACT2FN

    names = {
        "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "silu": "silu", "swish": "silu",
        "relu": "relu", "relu2": "relu2", "gelu_10": None, "quick_gelu": None, "relu6": None, "mish": None,
        "leaky_relu": None, "prelu": None, "tanh": None, "linear": None,
    }  # fmt: skip
    assert {name: recognise(ACT2FN[name]) for name in names} == names


class Block(nn.Module):
    """A block of our own: an attention-like mixing layer, then an MLP whose form the tests choose."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x).cumsum(1)
        return mixed + self.mlp(mixed)


class Body(nn.Module):
    def __init__(self, *mlps: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(Block(mlp) for mlp in mlps)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


class Packed(nn.Module):
    """Up first, gate second, in the outputs of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down, self.act = nn.Linear(16, 48), nn.Linear(24, 16), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.both(x).chunk(2, dim=-1)
        return self.down(self.act(gate) * up)


class Inline(nn.Module):
    """Gated, with the activation called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Reused(nn.Module):
    """Adds what comes before the activation function to its result, which needs the gate unharmed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(16, 24), nn.Linear(24, 16), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(x)
        return self.down(self.act(gate)) + gate[..., :16]


class Softened(nn.Module):
    """A softmax where others have an activation: no form that is recognised."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).softmax(-1))


class Half(nn.Module):
    """Sees only every second token."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x[:, ::2]).repeat(1, 2, 1)


class Two(nn.Module):
    """Two MLPs side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Packed(), Packed()

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class Spread(nn.Module):
    """A block whose MLP is no module of its own."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(16, 24), act, nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


def body(*mlps: nn.Module) -> Body:
    torch.manual_seed(0)
    model = Body(*mlps).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    return model


def test_packed_the_other_way_round() -> None:
    layers = mlps(adapt(body(Packed(), Packed())))
    assert [layer.provenance["path"] for layer in layers] == ["fused", "fused"]
    assert isinstance(layers[0], FusedMlp)
    assert layers[0].plan.packing == "up first"


def test_gated_without_activation_module_is_read_by_hook() -> None:
    (layer,) = mlps(adapt(body(Inline())))
    assert (layer.fused, layer.provenance["gated"], layer.units) == (False, True, 24)


def test_fused_path_is_dropped_where_it_changes_the_output() -> None:
    (layer,) = mlps(adapt(body(Reused())))
    assert layer.provenance["path"] == "hook"
    assert "differs by" in layer.provenance["reason"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_fused_path_is_dropped_where_it_makes_no_numbers(
    monkeypatch: pytest.MonkeyPatch, poison: float
) -> None:
    def poisoned(*arguments: Any) -> Tensor:
        return activate(*arguments).fill_(poison)

    monkeypatch.setattr("indexer.models.probe.activate", poisoned)
    (layer,) = mlps(adapt(body(Packed())))
    assert layer.provenance["path"] == "hook"


def test_a_model_that_overflows_by_itself_is_fused_all_the_same() -> None:
    model = body(Packed())
    model.blocks[0].mlp.down.bias.data[3] = float("inf")
    assert mlps(adapt(model))[0].fused


def test_an_activation_module_that_layers_share_is_not_bypassed() -> None:
    shared, model = nn.ReLU(), body()
    model.blocks.extend([Spread(shared), Spread(shared), Spread(nn.ReLU())])
    layers = mlps(adapt(model))
    assert [layer.provenance["path"] for layer in layers] == ["hook", "hook", "fused"]
    assert layers[0].provenance["reason"] == "the activation module is shared between layers"


def test_layers_may_differ_in_path() -> None:
    assert [layer.provenance["path"] for layer in mlps(adapt(body(Packed(), Inline(), Packed())))] == [
        "fused",
        "hook",
        "fused",
    ]


@pytest.mark.parametrize(
    ("mlp", "complaint"),
    [
        (Softened, r"no linear layer is fed f\(gate\).*there is mix \(16 -> 16\), mlp.up \(16 -> 24\)"),
    ],
)
def test_what_is_not_recognised_is_an_error(mlp: type[nn.Module], complaint: str) -> None:
    with pytest.raises(IndexerError, match=complaint) as caught:
        mlps(adapt(body(mlp())))
    assert "\n" not in str(caught.value)


def test_a_model_without_blocks_is_an_error() -> None:
    model = body()
    with pytest.raises(IndexerError, match="no list of repeated blocks"):
        mlps(adapt(model))


def test_projection_by_hand() -> None:
    (layer,) = mlps(adapt(body(Softened())), output_projection="blocks.*.mlp.down")
    assert (layer.provenance["path"], layer.units, layer.place) == ("hook", 24, "blocks.0.mlp.down")
    assert "named by hand" in layer.provenance["reason"]
    layers = mlps(adapt(body(Two(), Two())), output_projection="*.mlp.right.down")
    assert [(layer.key.layer, layer.provenance["path"], layer.place) for layer in layers] == [
        (0, "fused", "blocks.0.mlp.right.down"),
        (1, "fused", "blocks.1.mlp.right.down"),
    ]


def test_projection_by_hand_of_some_layers_only() -> None:
    layers = mlps(adapt(body(Packed(), Inline(), Packed())), output_projection="blocks.*.mlp.both")
    assert [(layer.key.layer, layer.units) for layer in layers] == [(0, 16), (2, 16)]


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        (
            "blocks.*.mlp.nothing",
            r"no module of Body fits \(there is: blocks\.\*\.mix, blocks\.\*\.mlp\.both",
        ),
        ("blocks.*", "no module of Body fits"),
        ("mlp.down", r"exactly one \*"),
        ("*.*.down", r"exactly one \*"),
    ],
)
def test_patterns_that_name_nothing(pattern: str, complaint: str) -> None:
    with pytest.raises(IndexerError, match=complaint):
        mlps(adapt(body(Packed())), output_projection=pattern)


def test_projection_by_hand_has_to_see_every_token() -> None:
    with pytest.raises(IndexerError, match=r"\[2, 4\] for 2 sequences of 8 tokens"):
        mlps(adapt(body(Half())), output_projection="blocks.*.mlp.down")


def test_the_sample_is_made_on_the_cpu_whatever_the_default_device() -> None:
    model = fresh("gpt2")
    expected = sample_ids(model)
    with torch.device("meta"):
        assert torch.equal(sample_ids(model), expected)


def test_weights_in_a_dtype_that_is_not_indexed() -> None:
    with pytest.raises(
        IndexerError, match=r"torch\.float64; activations are indexed in float32, bfloat16, float16"
    ):
        adapt(fresh("gpt2").double())


def test_the_model_is_left_as_it_was() -> None:
    model = fresh("bert")
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    mlps(adapt(model))
    for name, module in model.named_modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert before[name].keys() == module.__dict__.keys()


def test_what_is_nan_throughout_is_told() -> None:
    model = body(Packed())
    with torch.no_grad():
        model.embedding.weight.fill_(float("nan"))
    with pytest.raises(IndexerError, match="all it returns is NaN"):
        mlps(adapt(model))


def test_a_model_of_something_else_than_tokens_is_refused() -> None:
    model = body(Packed())
    model.get_input_embeddings = lambda: nn.Flatten()  # type: ignore[method-assign]
    with pytest.raises(IndexerError, match="it has no embeddings of tokens"):
        mlps(adapt(model))
