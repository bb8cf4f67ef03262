"""Blocks that are no layer, or several: without an MLP, with two, run again and again, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModel

import indexer
from indexer.errors import IndexerError
from indexer.models import Runner, Values, adapt
from indexer.names import Key
from indexer.sites import find
from indexer.sites.mlp.functions import is_activation
from tests.test_models_structure import Body, Packed, Softened, Two, body
from tests.tiny_batches import TinyBatch, mlps, tiny_batch
from tests.tiny_models import COMMON, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
NEAR = {"rtol": 1e-4, "atol": 1e-2}


def values(model: nn.Module, batch: TinyBatch) -> dict[str, Tensor]:
    """What all probes of a model hand over, by the names of their layers."""
    kept: dict[str, list[Tensor]] = {}

    def take(key: Key, found: Values) -> None:
        kept.setdefault(str(key), []).append(found.made().clone())

    loaded = adapt(model)
    with Runner(loaded, find(loaded), take, matmul="torch") as runner:
        # once more: which call of a module a probe reads is told anew for every batch
        for _ in range(2):
            kept.clear()
            runner.run(batch)
    return {key: torch.cat(rows) for key, rows in kept.items()}


def given(model: nn.Module, module: nn.Module, batch: TinyBatch) -> list[Tensor]:
    """What a module is given in each of its calls, by a plain hook."""
    seen: list[Tensor] = []
    with (
        torch.inference_mode(),
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2).clone())),
    ):
        model(input_ids=torch.from_numpy(batch.token_ids))
    return seen


def test_two_mlps_of_a_block_are_two_sites() -> None:
    model, batch = body(Two(), Two()), tiny_batch(9, 9)
    batch.token_ids %= 50
    found = values(model, batch)
    assert list(found) == ["mlp.0", "mlp.mlp_right_down.0", "mlp.1", "mlp.mlp_right_down.1"]
    for layer, block in enumerate(model.blocks):
        for key, mlp in (("mlp", block.mlp.left), ("mlp.mlp_right_down", block.mlp.right)):
            (expected,) = given(model, mlp.down, batch)
            torch.testing.assert_close(found[f"{key}.{layer}"], expected, **NEAR)


def test_a_block_that_runs_twice_is_two_layers() -> None:
    model, batch = body(Packed()), tiny_batch(9, 9)
    batch.token_ids %= 50
    model.blocks.append(model.blocks[0])
    found, expected = values(model, batch), given(model, model.blocks[0].mlp.down, batch)
    assert list(found) == ["mlp.0", "mlp.1"]
    assert [probe.provenance["call"] for probe in mlps(adapt(model))] == [0, 1]
    assert not torch.equal(*expected)
    for layer in range(2):
        torch.testing.assert_close(found[f"mlp.{layer}"], expected[layer], **NEAR)


def test_blocks_that_share_an_mlp_are_a_layer_each() -> None:
    shared, batch = Packed(), tiny_batch(9, 9)
    model = body(shared, Packed(), shared)
    batch.token_ids %= 50
    found, expected = values(model, batch), given(model, shared.down, batch)
    assert {key: probe.fused for key, probe in zip(found, mlps(adapt(model)), strict=True)} == {
        "mlp.0": False, "mlp.1": True, "mlp.2": False,
    }  # fmt: skip
    for layer, rows in zip((0, 2), expected, strict=True):
        torch.testing.assert_close(found[f"mlp.{layer}"], rows, **NEAR)


class Skipping(Body):
    """Runs every second block, as a model without images does that has some for them."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks[::2]:
            x = block(x)
        return x


def test_a_block_that_does_not_run_is_no_layer() -> None:
    assert [probe.key.layer for probe in mlps(adapt(Skipping(Packed(), Packed(), Packed()).eval()))] == [0, 2]


class Across(Body):
    """Its blocks are given [tokens, sequences, channels], as XLNet's are."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids.t()).transpose(0, 1)


class Mixer(nn.Module):
    """A block that mixes along the first dimension; flat: whether its MLP is given rows of one dimension."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.mix, self.mlp, self.flat = nn.Linear(16, 16), Packed(), flat

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x).cumsum(0)
        return mixed + (self.mlp(mixed.flatten(0, 1)).view_as(mixed) if self.flat else self.mlp(mixed))


def test_tokens_may_come_before_sequences() -> None:
    model, batch = Across().eval(), tiny_batch(9, 9)
    model.blocks.append(Mixer(flat=False))
    batch.token_ids %= 50
    seen: list[Tensor] = []
    model.blocks[0].mlp.down.register_forward_pre_hook(lambda _, args: seen.append(args[0].transpose(0, 1)))
    found = values(model, batch)
    torch.testing.assert_close(found["mlp.0"], seen[-1].flatten(0, 1), **NEAR)


def test_tokens_before_sequences_in_rows_of_one_dimension_are_refused() -> None:
    model = Across().eval()
    model.blocks.append(Mixer(flat=True))
    with pytest.raises(IndexerError, match=r"no MLP recognised in blocks\.0 \(Mixer\)"):
        mlps(adapt(model))


class Mixing(nn.Module):
    """A recurrence with a gate, as wide as an MLP is, and projected back; beside it, perhaps, an MLP."""

    def __init__(self, beside: bool = False) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 48), nn.Linear(48 if beside else 24, 16)
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        state, gate = self.into(x).chunk(2, dim=-1)
        mixed = state.cumsum(1) * gate.sigmoid()
        return x + self.out(torch.cat([mixed, gate.tanh()], dim=-1) if self.beside else mixed)


def with_block(block: nn.Module) -> Body:
    model = body(Packed(), Packed())
    model.blocks.insert(1, block)
    return model


def test_a_block_that_only_mixes_tokens_has_no_mlp() -> None:
    assert [probe.key.layer for probe in mlps(adapt(with_block(Mixing())))] == [0, 2]


class Alone(nn.Module):
    """An MLP of no form that is recognised, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Softened()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


@pytest.mark.parametrize("block", [Alone(), Mixing(beside=True), Body(Softened()).blocks[0]])
def test_a_block_that_may_have_an_mlp_is_not_left_out(block: nn.Module) -> None:
    with pytest.raises(IndexerError, match=r"no MLP recognised in blocks\.1 \("):
        mlps(adapt(with_block(block)))


def test_a_model_without_any_mlp_is_refused() -> None:
    model = body()
    model.blocks.extend([Mixing(), Mixing()])
    with pytest.raises(IndexerError, match=r"no MLP recognised in blocks\.0 \(Mixing\)"):
        mlps(adapt(model))


class Affine(nn.Module):
    """MobileBERT's normalisation, which is none."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7 * x + torch.linspace(-0.01, 0.01, x.shape[-1])


@pytest.mark.parametrize("size", [1.0, 1e5])
def test_a_straight_line_is_no_activation_however_large_its_values(size: float) -> None:
    x = size * torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(0))
    assert not is_activation(Affine(), x)


def test_albert_is_indexed_with_a_layer_for_each_application(tmp_path: Path) -> None:
    settings = {**COMMON, "embedding_size": 16}
    torch.manual_seed(0)
    AutoModel.from_config(AlbertConfig(**settings)).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    words = np.random.default_rng(0).integers(0, 90, 200)
    (tmp_path / "t.txt").write_text(" ".join(f"w{word}" for word in words))
    built = indexer.build(
        model=tmp_path / "model", corpus=tmp_path / "t.txt", output=tmp_path / "i", context=32,
        batch_tokens=64, layers="0-1", top=1, bottom=1, panel=2,
    )  # fmt: skip
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    layer = model.encoder.albert_layer_groups[0].albert_layers[0]
    peaks = []
    for first in range(0, 200, 30):
        ids = np.array([[1, *(words[first : first + 30] + 4), 2]])
        calls = given(model, layer.ffn_output, TinyBatch(ids, np.array([ids.shape[1]])))
        peaks.append(torch.stack([rows[1:-1].max(0).values for rows in calls]))
    expected = torch.stack(peaks).max(0).values
    with indexer.open_index(built) as index:
        index.verify(full=True)
        assert index.info()["layers"] == {"mlp": "0-1"}
        for number in range(2):
            found = index.sql(f"SELECT maximum FROM units WHERE layer = {number} ORDER BY unit")
            np.testing.assert_allclose(found["maximum"].to_numpy(), expected[number], rtol=1e-4, atol=1e-5)
