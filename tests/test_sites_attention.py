"""The sites `attn`, `heads` and `resid` against plain hooks on the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import indexer
from indexer.errors import IndexerError
from indexer.models import adapt
from indexer.names import ATTN, HEADS, MLP, RESID
from indexer.sites import find
from tests.test_models_structure import body
from tests.test_sites import build, rows
from tests.tiny_models import FUSED, HOOKED, saved, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS_OF_TINY = 4
# of the models of test_models_structure
WIDTH = 16
# where the output projection of attention is; o_proj in all others
PROJECTIONS = {
    **dict.fromkeys(("bert", "roberta", "bert_quick_gelu", "esm"), "attention.output.dense"),
    **dict.fromkeys(("gptj", "opt", "opt_post_norm"), "out_proj"),
    **dict.fromkeys(("bloom", "falcon", "falcon_alibi"), "self_attention.dense"),
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "gpt_neo": "attention.out_proj",
    "modernbert": "attn.Wo",
}
CONTEXT = 24


@pytest.mark.parametrize("name", [*FUSED, *HOOKED, "mixtral", "mobilebert", "paligemma"])
def test_places_are_found_by_what_they_compute(name: str) -> None:
    model = tiny(name)
    found = find(adapt(model), (ATTN, HEADS, RESID))
    layers = [probe.key.layer for probe in found if probe.key.site == ATTN]
    assert layers == list(range(len(layers)))
    assert len(found) == 3 * len(layers) > 0
    projection = "attention.output.dense" if name == "mobilebert" else PROJECTIONS.get(name, "o_proj")
    for probe in found:
        within = probe.place.rpartition(f".{probe.key.layer}")[2]
        assert model.get_submodule(probe.place) is probe.module
        if probe.key.site == RESID:
            assert within == ""
            continue
        assert within.endswith(projection)
        channels = probe.module.weight.shape[0 if name == "gpt2" else 1]  # type: ignore[index,union-attr]
        assert probe.units == (channels if probe.key.site == ATTN else HEADS_OF_TINY)
        if probe.key.site == ATTN:
            assert probe.provenance["heads"] == HEADS_OF_TINY
        assert not probe.fused


@pytest.mark.parametrize(
    ("name", "sites", "told"),
    [
        ("fnet", (ATTN,), "no block that runs once has attention"),
        (
            "convbert",
            (HEADS,),
            "has attention whose output projection is not recognised: .* no linear layer is",
        ),
        ("nystromformer", (ATTN,), "output projection is not recognised"),
        ("reformer", (RESID,), "returns 2 tensors with a row for every token"),
    ],
)
def test_what_is_not_recognised_is_refused_in_a_line(name: str, sites: tuple[str, ...], told: str) -> None:
    with pytest.raises(IndexerError, match=told) as error:
        find(adapt(tiny(name)), sites)
    assert "\n" not in str(error.value)
    assert "out of --sites" in str(error.value)


class Attention(nn.Module):
    """Attention of two heads whose products `join` lays side by side."""

    def __init__(self, join: Any) -> None:
        super().__init__()
        self.query, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query(x).unflatten(-1, (2, -1)).transpose(1, 2)
        products = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)
        return x + self.output(self.join(products))


def side_by_side(products: Tensor) -> Tensor:
    return products.flatten(2)


def gated(products: Tensor) -> Tensor:
    return products.flatten(2) * products.sum().sigmoid().detach().clamp(0.5, 0.5)


def interleaved(products: Tensor) -> Tensor:
    return products.transpose(2, 3).flatten(2)


def normed(products: Tensor) -> Tensor:
    return nn.functional.layer_norm(products.flatten(2), [WIDTH])


@pytest.mark.parametrize("join", [side_by_side, gated])
def test_a_gate_may_lie_between_heads_and_projection(join: Any) -> None:
    found = find(adapt(body(Attention(join), Attention(join))), (ATTN,))
    assert [(probe.place, probe.units) for probe in found] == [
        ("blocks.0.mlp.output", WIDTH),
        ("blocks.1.mlp.output", WIDTH),
    ]


@pytest.mark.parametrize("join", [interleaved, normed])
def test_channels_that_are_not_those_of_heads_in_order_are_refused(join: Any) -> None:
    with pytest.raises(IndexerError, match=r"blocks\.0 \(.*\) has attention whose output projection"):
        find(adapt(body(Attention(join), Attention(join))), (HEADS,))


def plain(folder: Path, documents: list[str]) -> dict[tuple[str, int], list[NDArray[Any]]]:
    """Counted tokens' values from a plain model: for each site and layer [tokens, units] of each sequence."""
    model, tokenizer = (
        AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    found: dict[tuple[str, int], list[NDArray[Any]]] = {}

    def keep(site: str, layer: int, values: Tensor) -> None:
        found.setdefault((site, layer), []).append(values[0, 1:-1].numpy())

    def projected(layer: int, weight: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            keep(ATTN, layer, args[0])
            heads = model.config.num_attention_heads
            parts = zip(args[0].chunk(heads, -1), weight.chunk(heads, 0), strict=True)
            keep(HEADS, layer, torch.stack([(z @ w).norm(dim=-1) for z, w in parts], -1))

        return hook

    def returned(layer: int) -> Any:
        return lambda module, args, output: keep(
            RESID, layer, output if isinstance(output, Tensor) else output[0]
        )

    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for layer, block in enumerate(blocks):
        name = PROJECTIONS.get(model.config.model_type, "o_proj")
        projection = next(module for path, module in block.named_modules() if path.endswith(name))
        weight = projection.weight.detach()
        projection.register_forward_pre_hook(projected(layer, weight if name == "attn.c_proj" else weight.T))
        block.register_forward_hook(returned(layer))
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        around = tokenizer("")["input_ids"]
        for first in range(0, len(ids), CONTEXT - 2):
            with torch.inference_mode():
                model(input_ids=torch.tensor([[around[0], *ids[first : first + CONTEXT - 2], around[-1]]]))
    return found


def check(index: Path, truth: dict[tuple[str, int], list[NDArray[Any]]]) -> None:
    """Extremes and their windows, counts, means and histograms of every unit."""
    with indexer.open_index(index) as opened:
        opened.verify(full=True)
        assert {(key.site, key.layer) for key in (entry.key for entry in opened.manifest.layers)} == set(
            truth
        )
        for (site, layer), sequences in truth.items():
            values = np.concatenate(sequences)
            scale = 2e-5 * np.abs(values).max()
            found = opened.sql(
                "SELECT count, minimum, maximum, mean, positive FROM units WHERE site = ? AND layer = ? "
                "ORDER BY unit",
                [site, layer],
            ).to_pydict()
            assert set(found["count"]) == {len(values)}
            for name, expected in (
                ("minimum", values.min(0)),
                ("maximum", values.max(0)),
                ("mean", values.mean(0)),
            ):
                np.testing.assert_allclose(
                    found[name], expected, rtol=2e-5, atol=scale, err_msg=f"{site} {layer}"
                )
            near_zero = (np.abs(values) < scale).sum(0)
            assert (np.abs(np.array(found["positive"]) - (values > 0).sum(0)) <= near_zero).all()
            for unit in (0, values.shape[1] - 1):
                best = opened.top(f"{site}.{layer}.{unit}", k=1).to_pylist()[0]
                ordered = sorted((sequence[:, unit].max() for sequence in sequences), reverse=True)
                np.testing.assert_allclose(best["value"], ordered[0], rtol=2e-5, atol=scale)
                # only the sequence it names has it at that place; position 0 is the special token
                (holding,) = [
                    sequence
                    for sequence in sequences
                    if len(sequence) >= best["position"]
                    and abs(sequence[best["position"] - 1, unit] - best["value"]) <= scale
                ][:1]
                begin, end = best["window_start"], best["window_start"] + len(best["activations"])
                inside = slice(max(begin, 1), min(end, len(holding) + 1))
                window = best["activations"][inside.start - begin : inside.stop - begin]
                expected = holding[inside.start - 1 : inside.stop - 1, unit]
                # stored as halves of a float
                error = scale + 2e-3 * np.abs(holding[:, unit]).max()
                np.testing.assert_allclose(window, expected, rtol=2e-3, atol=error)


@pytest.fixture
def documents(tmp_path: Path) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(f"w{word}" for word in generator.integers(0, 90, size)) for size in (70, 3, 41, 22)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "gemma2", "bloom"])
def test_values_are_those_of_plain_hooks(name: str, documents: list[str], tmp_path: Path) -> None:
    model, files = saved(tmp_path / "model", name), []
    for number, document in enumerate(documents):
        files.append(str(tmp_path / f"{number}.txt"))
        Path(files[-1]).write_text(document)
    index = build(model, files, tmp_path / "index", sites="attn,heads,resid", context=CONTEXT)
    check(index, plain(model, documents))
    beside = build(
        model, files, tmp_path / "beside", sites="mlp,resid,heads,attn", context=CONTEXT, hooks=True
    )
    for alone, all_sites in zip(rows(index), rows(beside), strict=True):
        assert alone == [row for row in all_sites if row["site"] != MLP]
