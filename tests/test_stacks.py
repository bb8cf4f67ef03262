"""Models with an encoder and a decoder: both read the text, and are indexed by one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Sequences
from numpy.typing import NDArray
from transformers import AutoModel

import indexer
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.models import LoadedModel, Probe, Runner, Values, adapt
from indexer.models.stacks import behind_start
from indexer.names import Key
from indexer.partials.merge import merge_indexes
from indexer.sites import Asked, find
from tests.test_sites import build, rows
from tests.tiny_batches import TinyBatch, tiny_batch
from tests.tiny_models import HIDDEN, LAYERS, POSITIONS, UNITS, fresh, saved, tiny, word_files

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT, BEFORE, AFTER = 24, 5, 3
# float32 rounding, which UMT5 makes much of: its attention does not scale
NEAR = {"rtol": 1e-3, "atol": 1e-4}
# the token that each decoder reads first, as its configuration in tests/tiny_models.py has it
STARTS = {"t5": 0, "umt5": 0, "bart": 2}
PLACES = {
    "t5": "{}.block.{}.layer.{}.DenseReluDense.wo",
    "umt5": "{}.block.{}.layer.{}.DenseReluDense.wo",
    "bart": "{}.layers.{}.fc2",
}
# by sequence (document, ordinal) and layer: token ids, and [tokens, units] of the site
Truth = dict[tuple[int, int], tuple[list[int], dict[str, NDArray[np.float32]]]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return word_files(tmp_path_factory.mktemp("texts"), (70, 3, 41, 120))


def projection(name: str, stack: str, layer: int) -> str:
    """The path of the linear layer whose input the neurons are."""
    return PLACES[name].format(stack, layer, 1 + (stack == "decoder"))


def by_plain_hooks(model: Path, name: str, texts: list[str]) -> Truth:
    """Every sequence run by itself: what each projection was given, the decoder's start token left out."""
    plain = AutoModel.from_pretrained(model).eval()
    seen: dict[str, NDArray[np.float32]] = {}
    for stack, layers in (("encoder", LAYERS), ("decoder", LAYERS - 1)):
        for layer in range(layers):

            def keep(module: Any, args: Any, key: str = f"{stack}.mlp.{layer}") -> None:
                values = args[0][0].numpy().copy()
                seen[key] = values[1:] if key.startswith("decoder") else values

            plain.get_submodule(projection(name, stack, layer)).register_forward_pre_hook(keep)
    truth: Truth = {}
    for document, text in enumerate(texts):
        ids = [int(word[1:]) + 4 for word in Path(text).read_text().split()]
        for ordinal, first in enumerate(range(0, len(ids), CONTEXT - 2)):
            piece = [1, *ids[first : first + CONTEXT - 2], 2]
            with torch.inference_mode():
                plain(
                    input_ids=torch.tensor([piece]), decoder_input_ids=torch.tensor([[STARTS[name], *piece]])
                )
            truth[document << 40, ordinal] = piece, dict(seen)
    return truth


@pytest.fixture(scope="module", params=STARTS)
def built(
    request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Index, Truth]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = saved(folder / "model", request.param)
    output = build(
        model, texts, folder / "index", context=CONTEXT, window=(BEFORE, AFTER), batch_tokens=100, panel=4
    )
    with indexer.open_index(output) as index:
        yield index, by_plain_hooks(model, request.param, texts)


def test_both_stacks_are_indexed_with_layers_of_their_own(built: tuple[Index, Truth]) -> None:
    index, _ = built
    index.verify(full=True)
    assert index.info()["layers"] == {"decoder.mlp": "0-1", "encoder.mlp": "0-2"}
    layers = index.manifest.model["layers"]
    assert {layer["path"] for layer in layers} == {"fused"}
    assert [layer["site"] for layer in layers] == ["encoder.mlp"] * LAYERS + ["decoder.mlp"] * (LAYERS - 1)


def test_statistics_are_those_of_the_plain_model(built: tuple[Index, Truth]) -> None:
    index, truth = built
    units = index.sql("SELECT * FROM units ORDER BY unit").to_pylist()
    for key in ("encoder.mlp.0", "encoder.mlp.2", "decoder.mlp.0", "decoder.mlp.1"):
        counted = np.concatenate([values[key][1:-1] for _, values in truth.values()])
        mine = [row for row in units if f"{row['site']}.{row['layer']}" == key]
        assert {row["count"] for row in mine} == {len(counted)}
        for name, expected in (
            ("maximum", counted.max(0)),
            ("minimum", counted.min(0)),
            ("mean", counted.mean(0)),
        ):
            np.testing.assert_allclose([row[name] for row in mine], expected, **NEAR)
        bins = index.histogram(f"{key}.7").to_pylist()
        # an edge that no value is near
        edges = [row["lower"] for row in bins if np.abs(counted[:, 7] - row["lower"]).min() > 1e-5]
        assert edges
        for edge in edges:
            above = sum(row["count"] for row in bins if row["lower"] >= edge and row["upper"] > edge)
            assert above == (counted[:, 7] > edge).sum()


def test_an_example_shows_what_its_stack_read(built: tuple[Index, Truth]) -> None:
    index, truth = built
    for key in ("encoder.mlp.2", "decoder.mlp.0", "decoder.mlp.1"):
        for unit in (0, 7, 63):
            name = f"{key}.{unit}"
            peaks = {place: values[key][1:-1, unit].max() for place, (_, values) in truth.items()}
            found = index.top(name).to_pylist()
            np.testing.assert_allclose(
                [row["value"] for row in found], sorted(peaks.values())[: -len(found) - 1 : -1], **NEAR
            )
            for row in [*found, *index.samples(name).to_pylist(), *index.bottom(name).to_pylist()]:
                ids, values = truth[row["document"], row["sequence"]]
                window = slice(row["window_start"], row["window_start"] + len(row["token_ids"]))
                assert row["token_id"] == ids[row["position"]]
                assert row["token_ids"] == ids[window]
                expected = values[key][window, unit]
                np.testing.assert_allclose(row["activations"], expected, **NEAR)


def test_the_panel_has_both_stacks_on_the_same_tokens(built: tuple[Index, Truth]) -> None:
    index, truth = built
    for key in ("encoder.mlp.1", "decoder.mlp.1"):
        panel = index.panel(key)
        expected = [
            truth[document, sequence][1][key][1:-1]
            for document, sequence in zip(
                panel.windows["document"].to_pylist(), panel.windows["sequence"].to_pylist(), strict=True
            )
        ]
        np.testing.assert_allclose(panel.activations, np.concatenate(expected), **NEAR)


@pytest.mark.slow
def test_a_corpus_in_parts_gives_the_same(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "bart")
    options = {"numerics": "reproducible", "sites": "mlp,resid,encoder.heads", "panel": 4}
    whole = build(model, texts, tmp_path / "whole", **options)
    parts = [build(model, texts, tmp_path / f"{n}", shard=(n, 2), **options) for n in range(2)]
    merge_indexes(parts, tmp_path / "merged")
    build(model, texts[:2], tmp_path / "more", **options)
    build(model, texts[2:], tmp_path / "more", append=True, **options)
    for index in ("merged", "more"):
        assert rows(tmp_path / index) == rows(whole)
    with indexer.open_index(tmp_path / "merged") as index:
        index.verify(full=True)
        assert list(index.info()["layers"]) == [
            "decoder.mlp", "decoder.resid", "encoder.heads", "encoder.mlp", "encoder.resid",
        ]  # fmt: skip


class Keeper:
    """Keeps the values of all probes, and what their rows are, by key."""

    def __init__(self) -> None:
        self.values: dict[Key, list[torch.Tensor]] = {}
        self.sequences: dict[Key, list[Sequences]] = {}

    def take(self, key: Key, values: Values) -> None:
        self.values.setdefault(key, []).append(values.made().clone())
        self.sequences.setdefault(key, []).append(values.sequences)

    def sequence(self, key: Key, number: int) -> torch.Tensor:
        """The rows of one."""
        (found,) = (
            values[start : start + length]
            for values, rows in zip(self.values[key], self.sequences[key], strict=True)
            for document, start, length in zip(rows.document, rows.start, rows.length, strict=True)
            if document == number
        )
        return found


def run(loaded: LoadedModel, probes: Sequence[Probe], batch: TinyBatch, chunk_tokens: int = 0) -> Keeper:
    keeper = Keeper()
    Runner(loaded, probes, keeper.take, chunk_tokens=chunk_tokens).run(batch)
    return keeper


@pytest.mark.parametrize("name", STARTS)
def test_neither_batches_nor_parts_of_them_change_a_sequence(name: str) -> None:
    loaded, batch = adapt(tiny(name)), tiny_batch(3, 24, 17, 1, 11)
    probes = find(loaded)
    together, parts = run(loaded, probes, batch), run(loaded, probes, batch, chunk_tokens=30)
    read = run(loaded, [probe.read("asked for") for probe in probes], batch)
    last = Key("decoder.mlp", LAYERS - 2)
    assert len(parts.values[last]) > len(together.values[last]) == 1
    for number in range(len(batch.length)):
        alone = run(loaded, probes, batch.alone(number))
        for key, values in alone.values.items():
            expected = values[0][-int(batch.length[number]) :]
            for found in (together, parts, read):
                torch.testing.assert_close(found.sequence(key, number), expected, **NEAR)


def test_rows_of_the_decoder_are_those_of_the_encoder_behind_a_start_token() -> None:
    batch = TinyBatch(np.array([[5, 6, 7], [8, 9, 0]]), np.array([3, 2]))
    found = behind_start(batch.sequences(), 3)
    assert found.token_ids.reshape(2, 4)[:, 1:].tolist() == batch.token_ids.tolist()
    assert found.counted.reshape(2, 4).tolist() == [[False, True, True, True], [False, True, True, False]]
    assert (found.start.tolist(), found.length.tolist()) == ([1, 5], [3, 2])
    # each row is in one part or another, whatever the rows before the first sequence
    first, second = found.rows(0, 1), found.rows(1, 2)
    assert (first.tokens, first.start.tolist()) == (5, [1])
    assert (second.tokens, second.start.tolist()) == (3, [0])


def test_one_stack_alone(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "t5")
    output = build(model, texts, tmp_path / "i", sites="encoder.mlp,encoder.attn", layers="1-2")
    with indexer.open_index(output) as index:
        assert index.info()["layers"] == {"encoder.attn": "1-2", "encoder.mlp": "1-2"}
    loaded, ran = adapt(tiny("t5")), []
    loaded.model.get_submodule("decoder").register_forward_pre_hook(lambda *_: ran.append(1))
    probes = find(loaded, ("encoder.mlp",))
    ran.clear()
    Runner(loaded, probes, Keeper().take).run(tiny_batch(3, 5))
    assert not ran


def test_a_projection_named_by_hand_is_that_of_both_stacks() -> None:
    found = find(adapt(tiny("bart")), asked=Asked(output_projection="layers.*.fc2"))
    assert [str(probe.key) for probe in found] == [
        "encoder.mlp.0", "encoder.mlp.1", "encoder.mlp.2", "decoder.mlp.0", "decoder.mlp.1",
    ]  # fmt: skip
    assert {probe.units for probe in found} == {UNITS, UNITS - 16}


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        (("encoder.height",), '^--sites: no site "encoder.height"; there is: mlp, .* as encoder.mlp$'),
        (("pooler.mlp",), '^--sites: no site "pooler.mlp"'),
    ],
)
def test_what_a_stack_has_not(sites: tuple[str, ...], said: str) -> None:
    with pytest.raises(IndexerError, match=said):
        find(adapt(tiny("bart")), sites)


def test_a_model_with_one_stack_has_no_site_of_another() -> None:
    with pytest.raises(IndexerError, match=r"^--sites decoder.mlp: model LlamaModel has one stack; leave"):
        find(adapt(tiny("llama")), ("decoder.mlp",))


def test_the_decoder_needs_a_token_to_start_with_and_room_for_it() -> None:
    assert adapt(tiny("bart")).context == POSITIONS - 1
    assert adapt(tiny("bart")).provenance["decoder_start_token_id"] == 2
    with pytest.raises(IndexerError, match="no token that the decoder starts with; add its id as decoder_st"):
        adapt(fresh("t5", decoder_start_token_id=None))


def test_the_residual_stream_of_both_stacks() -> None:
    found = find(adapt(tiny("t5")), ("resid",))
    assert [str(probe.key) for probe in found] == [
        "encoder.resid.0", "encoder.resid.1", "encoder.resid.2", "decoder.resid.0", "decoder.resid.1",
    ]  # fmt: skip
    assert {probe.units for probe in found} == {HIDDEN}


@pytest.mark.parametrize("name", STARTS)
def test_attention_of_a_decoder_is_that_to_itself(name: str) -> None:
    loaded, batch = adapt(tiny(name)), tiny_batch(9, 9)
    probes = find(loaded, ("attn", "heads"))
    facts = {(probe.key.site, probe.key.layer): probe.provenance.get("cross_attention") for probe in probes}
    assert len(facts) == len(probes) == 2 * (2 * LAYERS - 1)
    assert {site for (site, _), told in facts.items() if told} == {"decoder.attn", "decoder.heads"}
    given: dict[str, torch.Tensor] = {}
    key = Key("decoder.attn", 1)
    for path, module in loaded.model.decoder.named_modules():
        if re.fullmatch(r"(layers|block)\.1\.(self_attn.out_proj|layer\.0\.SelfAttention\.o)", path):
            module.register_forward_pre_hook(lambda _, args: given.update(x=args[0].clone()))
    keeper = run(loaded, probes, batch)
    for number in range(2):
        assert torch.equal(keeper.sequence(key, number), given["x"][number, 1:])
