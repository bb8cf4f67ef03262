"""The site `experts` against what each expert makes of each token by itself, on small models of all forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel

import indexer
from benchmarks.plain_experts import is_stack, neurons
from indexer import commands
from indexer.building.run import build as run
from indexer.building.states import States
from indexer.config.build import BuildConfig
from indexer.display.pages import loads
from indexer.errors import IndexerError
from indexer.index.laws import LayerLaws
from indexer.index.read import Index
from indexer.models import Runner, adapt
from indexer.names import Experts, Key, Unit, parse_unit
from indexer.partials.merge import merge_indexes
from indexer.sites import find
from tests.test_resume import stopped_after
from tests.tiny_batches import tiny_batch
from tests.tiny_models import fresh, saved, tiny, word_files

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT, BEFORE, AFTER = 24, 5, 3
# float32 rounding of the model's own products, for one token or many
NEAR: Any = {"rtol": 1e-4, "atol": 1e-4}
# of each the layers with experts, whether a kernel knows their function, and whether examples hold up
MODELS = {
    "mixtral": ([0, 1, 2], "silu", True),
    "olmoe": ([0, 1, 2], "silu", True),
    "dbrx": ([0, 1, 2], "silu", True),
    "granitemoe": ([0, 1, 2], "silu", True),
    "qwen3_moe": ([1], "silu", True),
    "deepseek_v3": ([1, 2], "silu", True),
    "gpt_oss": ([0, 1, 2], None, False),
    "nemotron_h": ([1], "relu2", False),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Documents of unequal lengths, the last one shorter than a window."""
    return word_files(tmp_path_factory.mktemp("texts"), (150, 70, 31, 4))


def build(model: Path, texts: list[str], output: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {
        "context": CONTEXT, "threads": 1, "top": 3, "bottom": 3, "window": (BEFORE, AFTER), "panel": 4,
        "batch_tokens": 200, "sites": "experts", "piece_bytes": 300, **options,
    }  # fmt: skip
    return Path(indexer.build(model=str(model), corpus=texts, output=str(output), **settings))


@dataclass
class Sequence:
    """activations: by layer, float32 [tokens, experts, neurons], NaN where the expert does not meet it."""

    document: int
    ordinal: int
    ids: list[int]
    activations: dict[int, NDArray[np.float32]]

    @property
    def counted(self) -> slice:
        return slice(1, -1)


def plain(model: nn.Module, texts: list[str], dtype: torch.dtype = torch.float32) -> list[Sequence]:
    """The model of transformers, each sequence by itself, and each token's experts one by one."""
    sequences, now = [], {}
    for path, module in model.named_modules():
        if is_stack(module):
            layer = int(re.search(r"\d+", path).group())  # type: ignore[union-attr]
            module.register_forward_pre_hook(keeping(now, layer), with_kwargs=True)
    for number, file in enumerate(texts):
        words = [int(word[1:]) + 4 for word in Path(file).read_text().split()]
        for ordinal, first in enumerate(range(0, len(words), CONTEXT - 2)):
            ids = [1, *words[first : first + CONTEXT - 2], 2]
            now.clear()
            with torch.inference_mode():
                model(input_ids=torch.tensor([ids]))
            sequences.append(Sequence(number << 40, ordinal, ids, dict(now)))
    return sequences


def keeping(now: dict[int, NDArray[np.float32]], layer: int) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now[layer] = neurons(module, (*args, *kwargs.values()))

    return hook


# those of a form that another one has, too
ALIKE = ("mixtral", "granitemoe", "qwen3_moe")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in MODELS],
)
def built(
    request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Index, list[Sequence]]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = saved(folder / "model", request.param)
    index = build(model, texts, folder / "index")
    truth = plain(AutoModel.from_pretrained(model, dtype=torch.float32).eval(), texts)
    with indexer.open_index(index) as opened:
        yield request.param, opened, truth


def counted(sequences: list[Sequence], layer: int) -> NDArray[np.float32]:
    return np.concatenate([one.activations[layer][one.counted] for one in sequences])


def test_of_every_neuron_counts_and_extremes(built: tuple[str, Index, list[Sequence]]) -> None:
    name, index, sequences = built
    layers, function, up = MODELS[name]
    index.verify(full=True)
    assert [entry.key for entry in index.manifest.layers] == [Key("experts", layer) for layer in layers]
    for facts in index.manifest.model["layers"]:
        assert facts["function"] == function
        assert facts["path"] == ("hook" if function is None else "fused")
    for layer in layers:
        values = counted(sequences, layer)  # [tokens, experts, neurons]
        met = ~np.isnan(values[:, :, 0])
        entry = index.manifest.layer(Key("experts", layer))
        assert entry.experts.number == met.shape[1]
        assert (met.sum(axis=1) == entry.experts.per_token).all()
        units = index.sql(f"SELECT * FROM units WHERE layer = {layer} ORDER BY unit").to_pydict()
        width = values.shape[2]
        np.testing.assert_array_equal(units["count"], np.repeat(met.sum(axis=0), width))
        for column, function in (("minimum", np.nanmin), ("maximum", np.nanmax), ("mean", np.nanmean)):
            wanted = function(values, axis=0).reshape(-1)
            np.testing.assert_allclose(np.array(units[column], np.float64), wanted, **NEAR)
        wanted = (np.nan_to_num(values) > 1e-3).sum(axis=0).reshape(-1)
        # those within rounding of the least that is active
        edge = (np.abs(np.nan_to_num(values) - 2.0**-10) < 1e-4).sum(axis=0).reshape(-1)
        assert (np.abs(np.array(units["active"]) - wanted) <= edge).all()
    assert (index.sql("SELECT count(up) AS n FROM examples").to_pylist()[0]["n"] > 0) == up


def test_examples_and_their_windows(built: tuple[str, Index, list[Sequence]]) -> None:
    name, index, sequences = built
    by_place = {(one.document, one.ordinal): one for one in sequences}
    seen = 0
    for layer in MODELS[name][0]:
        values = counted(sequences, layer)
        width = values.shape[2]
        for expert, neuron in ((0, 0), (1, width // 2), (values.shape[1] - 1, width - 1)):
            best = sorted(
                (float(np.nanmax(rows)) for one in sequences
                 if not np.isnan(rows := one.activations[layer][one.counted, expert, neuron]).all()),
                reverse=True,
            )  # fmt: skip
            rows = index.top(f"experts.{layer}.{expert}:{neuron}").to_pylist()
            assert [row["unit"] for row in rows] == [expert * width + neuron] * min(3, len(best))
            np.testing.assert_allclose([row["value"] for row in rows], best[:3], **NEAR)
            for row in rows:
                one = by_place[row["document"], row["sequence"]]
                first, position = row["window_start"], row["position"]
                last = min(position + AFTER, len(one.ids) - 1)
                assert first == max(position - BEFORE, 0)
                assert row["token_ids"] == one.ids[first : last + 1]
                window = one.activations[layer][first : last + 1, expert, neuron]
                # of a token that the expert does not meet it is 0, and of others what they are
                assert not np.array(row["activations"])[np.isnan(window)].any()
                np.testing.assert_allclose(row["activations"], np.nan_to_num(window), **NEAR)
                seen += int(np.isnan(window).any())
    assert seen


def test_the_panel_has_zeros_where_an_expert_does_not_meet_a_token(
    built: tuple[str, Index, list[Sequence]],
) -> None:
    name, index, sequences = built
    by_place = {(one.document, one.ordinal): one for one in sequences}
    layer = MODELS[name][0][-1]
    panel = index.panel(f"experts.{layer}")
    wanted = [
        by_place[row["document"], row["sequence"]].activations[layer][1 + row["start"] :][
            : len(row["token_ids"])
        ]
        for row in panel.windows.to_pylist()
    ]
    values = np.nan_to_num(np.concatenate(wanted))
    np.testing.assert_allclose(panel.activations, values.reshape(len(values), -1), **NEAR)


def rows(index: Path) -> list[Any]:
    with indexer.open_index(index) as opened:
        opened.verify(full=True)
        return [
            opened.sql(f"SELECT * FROM {view} ORDER BY ALL").to_pylist() for view in ("units", "examples")
        ]


def near(found: list[Any], wanted: list[Any]) -> None:
    """The same but for rounding: it follows from how many tokens of a batch an expert meets."""
    for one, other in zip(found, wanted, strict=True):
        assert len(one) == len(other)
        for row, expected in zip(one, other, strict=True):
            floats = [name for name, value in expected.items() if isinstance(value, float | list)]
            assert {**row, **{name: expected[name] for name in floats}} == expected
            for name in floats:
                if name != "tokens":
                    np.testing.assert_allclose(row[name], expected[name], rtol=2e-3, atol=2e-3)


def test_parts_merged_added_and_beside_mlps(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "deepseek_v3")
    whole = rows(build(model, texts, tmp_path / "whole", layers="1"))
    parts = [build(model, texts, tmp_path / f"{n}", layers="1", shard=(n, 2)) for n in range(2)]
    near(rows(merge_indexes(parts, tmp_path / "merged")), whole)
    build(model, texts[:2], tmp_path / "added", layers="1")
    near(rows(build(model, texts[2:], tmp_path / "added", layers="1", append=True)), whole)
    together = build(model, texts, tmp_path / "together", layers="1", sites="mlp,experts")
    near([[row for row in table if row["site"] == "experts"] for table in rows(together)], whole)
    with indexer.open_index(together) as index:
        assert index.info()["layers"] == {"experts": "1", "mlp": "1"}
        mlps = [layer for layer in index.manifest.model["layers"] if layer["site"] == "mlp"]
        assert not any("experts" in layer for layer in mlps)


def test_a_build_that_was_stopped_goes_on(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "model": str(saved(tmp_path / "model", "olmoe")), "corpus": tuple(texts), "sites": "experts",
        "context": CONTEXT, "threads": 1, "top": 3, "bottom": 0, "window": (5, 3), "panel": 4, "layers": "1",
        "batch_tokens": 150, "checkpoint_minutes": 0,
    }  # fmt: skip
    whole = run(BuildConfig(output=tmp_path / "whole", **settings))
    config = BuildConfig(output=tmp_path / "index", **settings)
    stopped_after(config, 1, monkeypatch)
    assert rows(run(config)) == rows(whole)


def infinite(model: nn.Module) -> None:
    """The neuron 9 of expert 2 of layer 1 is infinite or no number wherever it is met."""
    model.layers[1].mlp.experts.gate_up_proj.data[2, 9] = torch.inf  # type: ignore[index,union-attr]


def test_the_first_that_is_not_finite_is_named_by_its_expert(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "qwen3_moe", infinite)
    index = build(model, texts, tmp_path / "index", panel=0)
    (first,) = (
        (one.document, one.ordinal, position)
        for one in plain(AutoModel.from_pretrained(model).eval(), texts)[:1]
        for position in np.flatnonzero(~np.isnan(one.activations[1][:, 2, 0]))[:1]
    )
    with indexer.open_index(index) as opened:
        (unit,) = opened.unit("experts.1.2:9").to_pylist()
        totals = opened.manifest.totals
        assert unit["nan"] + unit["inf"] == unit["count"] == totals["non_finite"] > 0
        met = totals["first_non_finite"]
        assert (met["unit"], met["site"]) == (2 * 24 + 9, "experts")
        assert (met["document"], met["sequence"], met["position"]) == first


def never(model: nn.Module) -> None:
    """The last expert of the last layer is chosen for no token."""
    model.layers[-1].mlp.gate.e_score_correction_bias[-1] = -100  # type: ignore[index,union-attr]


def test_an_expert_that_no_token_passes(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "deepseek_v3", never, n_group=1, topk_group=1)
    index = build(model, texts, tmp_path / "index")
    rows(index)
    with indexer.open_index(index) as opened:
        (unit,) = opened.unit("experts.2.3:5").to_pylist()
        assert (unit["count"], unit["maximum"], unit["mean"]) == (0, None, None)
        assert opened.top("experts.2.3:5").num_rows == opened.samples("experts.2.3:5").num_rows == 0
        assert opened.unit("experts.2.2:5")["count"][0].as_py() > 0


def test_the_load_of_every_expert_is_told(
    built: tuple[str, Index, list[Sequence]], capsys: pytest.CaptureFixture[str]
) -> None:
    name, index, sequences = built
    layers = MODELS[name][0]
    facts = index.info()["experts"]
    assert list(facts) == [f"experts.{layer}" for layer in layers]
    for layer in layers:
        met = ~np.isnan(counted(sequences, layer)[:, :, 0])
        np.testing.assert_allclose(facts[f"experts.{layer}"]["load"], met.mean(axis=0), atol=1e-6)
    lines = loads({"experts.3": {"number": 4, "per_token": 2, "load": [0.5, 0.0, 1.0, 0.01]}})
    told = "4, 2 a token; of the tokens least 0.00% (1), most 100.00% (2), none 1  ▄ █▁"
    assert lines == {"experts.3": told}
    commands.info(index.path)
    assert f"experts.{layers[-1]}  {met.shape[1]}, {met[0].sum()} a token" in capsys.readouterr().out


def test_in_bfloat16_each_token_is_counted_by_its_experts(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "olmoe")
    index = build(model, texts, tmp_path / "index", dtype="bfloat16", bottom=0, samples=0, panel=0)
    rows(index)
    with indexer.open_index(index) as opened:
        tokens = opened.manifest.totals["counted_tokens"]
        found = opened.sql("SELECT sum(count) / 80 AS n FROM units GROUP BY layer")["n"].to_pylist()
        assert found == [3 * tokens] * 3


def test_reading_by_the_models_own_code_gives_the_same(texts: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "mixtral")
    fused, read = (build(model, texts, tmp_path / f"{hooks}", hooks=hooks) for hooks in (False, True))
    with indexer.open_index(fused) as one, indexer.open_index(read) as other:
        assert {layer["path"] for layer in other.manifest.model["layers"]} == {"hook"}
        query = "SELECT count, maximum, minimum, mean FROM units ORDER BY layer, unit"
        for left, right in zip(one.sql(query).columns, other.sql(query).columns, strict=True):
            np.testing.assert_allclose(left.to_numpy(), right.to_numpy(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, all experts of a layer are computed at once."""
    monkeypatch.setattr("indexer.sites.experts.is_grouped", lambda module: True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in MODELS]
)
def test_all_at_once_are_what_they_are_one_by_one(
    name: str, texts: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = saved(tmp_path / "model", name)
    one_by_one = rows(build(model, texts[1:], tmp_path / "one by one", layers="1", samples=1))
    request.getfixturevalue("grouped")
    near(rows(build(model, texts[1:], tmp_path / "at once", layers="1", samples=1)), one_by_one)


def test_names_of_expert_neurons(built: tuple[str, Index, list[Sequence]]) -> None:
    name, index, _ = built
    layer = MODELS[name][0][0]
    entry = index.manifest.layer(Key("experts", layer))
    number, width = entry.experts.number, entry.units // entry.experts.number
    assert str(parse_unit(f"experts.{layer}.2:7")) == f"experts.{layer}.2:7"
    assert index.unit(f"experts.{layer}.2:7") == index.unit(Unit("experts", layer, 2 * width + 7))
    for wrong in (f"{number}:0", f"0:{width}"):
        with pytest.raises(IndexerError, match=rf"has experts 0-{number - 1} of {width} neurons each$"):
            index.unit(f"experts.{layer}.{wrong}")
    with pytest.raises(IndexerError, match='the expert "x" is not a whole number'):
        index.unit(f"experts.{layer}.x:0")


def test_what_is_refused(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match=r"no block that runs once has routed experts.*leave experts out"):
        find(adapt(tiny("llama")), ("experts",))
    model = saved(tmp_path / "model", "mixtral")
    with pytest.raises(IndexerError, match="its neurons are indexed by --sites experts"):
        build(model, texts, tmp_path / "index", sites="mlp")
    with pytest.raises(IndexerError, match=r"^--compile: experts\.0 is of routed experts"):
        build(model, texts, tmp_path / "index", compile=True)
    with pytest.raises(IndexerError, match=r"^--numerics reproducible: how many tokens .* an expert meets"):
        build(model, texts, tmp_path / "index", numerics="reproducible")


def other_counts(counts: NDArray[np.int64]) -> None:
    counts[3] += 1


def too_many(counts: NDArray[np.int64]) -> None:
    counts[:] = 900


def more_routes(counts: NDArray[np.int64]) -> None:
    counts[:] = 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_counts, r"experts\.1\.3: it counts other tokens than the first neuron of its expert"),
        (too_many, r"experts\.1\.0: it counts more tokens than the vocabulary"),
        (more_routes, r"experts\.1: its experts count more than 2 times the tokens of the vocabulary"),
    ],
)
def test_laws_of_the_counts(change: Callable[[NDArray[np.int64]], None], said: str) -> None:
    experts, count = Experts(4, 2), np.repeat([100, 200, 30, 0], 5)
    laws = LayerLaws.__new__(LayerLaws)
    laws.where = "experts.1"
    laws.integers = lambda name: count  # type: ignore[method-assign]
    laws.check_token_counts(np.array([130, 100]), experts, 0)
    change(count)
    with pytest.raises(IndexerError, match=said):
        laws.check_token_counts(np.array([130, 100]), experts, 0)


class Twice(nn.Module):
    """A router that sends every token to the first expert twice."""

    def forward(self, x: torch.Tensor) -> Any:
        tokens = x.reshape(-1, x.shape[-1])
        index = torch.zeros(len(tokens), 2, dtype=torch.long)
        return x.new_ones(len(tokens), 4), tokens[:, :2], index


@pytest.mark.parametrize("how", ["one by one", "grouped"])
def test_a_token_that_passes_an_expert_twice_is_counted_once(
    how: str, request: pytest.FixtureRequest
) -> None:
    if how == "grouped":
        request.getfixturevalue(how)
    model = fresh("mixtral")
    model.layers[1].mlp.gate = Twice()  # type: ignore[index,union-attr]
    loaded = adapt(model)
    # with them the model returns what it does without, or it would be refused
    probes = find(loaded, ("experts",))
    states = States(probes, kernels="cpp", threads=1)
    with Runner(loaded, probes, states.take) as runner:
        runner.run(tiny_batch(7, 4))
    assert states.statistics[Key("experts", 1)].counts[[0, 79, 80, 319]].tolist() == [11, 11, 0, 0]


def test_widths_that_grouped_products_do_not_take_are_refused(grouped: None) -> None:
    model = fresh("mixtral", intermediate_size=30)
    # those of transformers' own are not taken either
    model.config._experts_implementation = "eager"  # type: ignore[union-attr]
    with pytest.raises(IndexerError, match=r"rows are no multiples of 16 bytes.* --device cpu, or leave"):
        find(adapt(model), ("experts",))


def test_experts_that_are_otherwise_than_their_form_are_refused() -> None:
    model = fresh("mixtral")
    experts = model.layers[1].mlp.experts  # type: ignore[index,union-attr]
    own = experts.forward
    experts.forward = lambda *args: own(*args) * 1.5  # type: ignore[assignment,operator,method-assign]
    with pytest.raises(IndexerError, match=r"computed one by one, the model's output differs by .*leave exp"):
        find(adapt(model), ("experts",))
