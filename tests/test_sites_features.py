"""The site `sae.NAME` against encoding what the model has at every token by itself, all features at once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexer_kernels import Sequences, Statistics
from numpy.typing import NDArray
from transformers import AutoModel

import indexer
from indexer import commands
from indexer.building.run import build as run
from indexer.building.states import States
from indexer.config.build import BuildConfig
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.models import Runner, Values, adapt
from indexer.names import Key
from indexer.partials.merge import merge_indexes
from indexer.sites import Asked, find
from indexer.sites.sae import probe as probes_of
from indexer.web.live import Live, Model
from tests.kernel_cases import assert_equal
from tests.test_resume import stopped_after
from tests.tiny_batches import tiny_batch
from tests.tiny_dictionaries import FEATURES, encoded, saved_dictionary, weights
from tests.tiny_models import saved, tiny, word_files

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT, BEFORE, AFTER = 24, 5, 3
# float32 rounding of the model's own products, batched or alone
NEAR: Any = {"rtol": 1e-4, "atol": 1e-4}
SITE = "sae.small"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Documents of unequal lengths, the last one shorter than a window."""
    return word_files(tmp_path_factory.mktemp("texts"), (150, 70, 31, 4))


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one is narrower still."""
    monkeypatch.setattr(probes_of, "BLOCK_UNITS", 64)


def build(model: Path, texts: list[str], output: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {
        "context": CONTEXT, "threads": 1, "top": 3, "window": (BEFORE, AFTER), "panel": 4,
        "batch_tokens": 200, "sites": "sae", "piece_bytes": 300, **options,
    }  # fmt: skip
    return Path(indexer.build(model=str(model), corpus=texts, output=str(output), **settings))


def rows(index: Path) -> list[Any]:
    with indexer.open_index(index) as opened:
        opened.verify(full=True)
        views = ("units", "examples", "histograms", "panel_activations")
        return [opened.sql(f"SELECT * FROM {view} ORDER BY ALL").to_pylist() for view in views]


def plain(
    model: Path, texts: list[str], encode: Any = encoded
) -> dict[tuple[int, int], NDArray[np.float32]]:
    """By document and ordinal: features [tokens, FEATURES] of each sequence, run by itself."""
    body, found = AutoModel.from_pretrained(model, dtype=torch.float32).eval(), {}
    for number, file in enumerate(texts):
        words = [int(word[1:]) + 4 for word in Path(file).read_text().split()]
        for ordinal, first in enumerate(range(0, len(words), CONTEXT - 2)):
            ids = [1, *words[first : first + CONTEXT - 2], 2]
            with torch.inference_mode():
                states = body(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            # what the second block returns
            found[number << 40, ordinal] = encode(states[2][0], weights()).numpy()
    return found


def test_an_index_of_features_is_that_of_brute_force(texts: list[str], tmp_path: Path) -> None:
    model, sae = saved(tmp_path / "model", "llama"), saved_dictionary(tmp_path / "small")
    truth = plain(model, texts)
    counted = np.concatenate([values[1:-1] for values in truth.values()])
    assert 0.02 < (counted > 0).mean() < 0.5
    with indexer.open_index(build(model, texts, tmp_path / "index", sae=str(sae))) as index:
        index.verify(full=True)
        (entry,) = index.manifest.layers
        assert (entry.key, entry.units, entry.keep.bottom) == (Key(SITE, 1), FEATURES, 0)
        units = index.sql("SELECT * FROM units ORDER BY unit").to_pydict()
        assert set(units["count"]) == {len(counted)}
        for column, function in (("minimum", np.min), ("maximum", np.max), ("mean", np.mean)):
            np.testing.assert_allclose(np.array(units[column]), function(counted, axis=0), **NEAR)
        edge = ((counted > -1e-4) & (counted < 1e-4)).sum(axis=0) - (counted == 0).sum(axis=0)
        assert (np.abs(np.array(units["positive"]) - (counted > 0).sum(axis=0)) <= edge).all()
        check_examples(index, truth)
        check_panel(index, truth)


def check_examples(index: Index, truth: dict[tuple[int, int], NDArray[np.float32]]) -> None:
    for unit in (0, 63, 64, FEATURES - 1):
        best = sorted((float(values[1:-1, unit].max()) for values in truth.values()), reverse=True)
        found = index.top(f"{SITE}.1.{unit}").to_pylist()
        np.testing.assert_allclose([row["value"] for row in found], best[:3], **NEAR)
        for row in [*found, *index.samples(f"{SITE}.1.{unit}").to_pylist()]:
            values = truth[row["document"], row["sequence"]][:, unit]
            first, last = row["window_start"], row["position"] + AFTER + 1
            np.testing.assert_allclose(row["activations"], values[first:last], **NEAR)
        assert index.bottom(f"{SITE}.1.{unit}").num_rows == 0


def check_panel(index: Index, truth: dict[tuple[int, int], NDArray[np.float32]]) -> None:
    panel = index.panel(f"{SITE}.1")
    wanted = [
        truth[row["document"], row["sequence"]][1 + row["start"] :][: len(row["token_ids"])]
        for row in panel.windows.to_pylist()
    ]
    np.testing.assert_allclose(panel.activations, np.concatenate(wanted), **NEAR)


def test_the_states_are_the_references_of_what_was_encoded(tmp_path: Path) -> None:
    """And what was encoded is what one product for all features makes, in groups of sequences or not."""
    sae, loaded = saved_dictionary(tmp_path / "small"), adapt(tiny("llama"))
    probes = find(loaded, ("sae",), Asked(dictionaries=(str(sae),)))
    states = States(probes, kernels="cpp", threads=1)
    blocks: list[tuple[int, torch.Tensor, Sequences]] = []
    given: list[torch.Tensor] = []
    loaded.model.layers[1].register_forward_hook(lambda *call: given.append(call[2].flatten(0, 1).clone()))  # type: ignore[index]

    def take(key: Key, values: Values) -> None:
        states.take(key, values)
        blocks.append((values.first, values.matrix.clone(), values.sequences))

    with Runner(loaded, probes, take, chunk_tokens=12) as runner:
        runner.run(tiny_batch(9, 5, 3, 12, 7, 1, 8, 11, 2, 10))
    reference = Statistics.empty(
        FEATURES, replace(Asked().features, bottom=0), layer=f"{SITE}.1", kernels="reference"
    )
    made = []
    while blocks:
        parts = [blocks.pop(0)]
        while blocks and blocks[0][0]:
            parts.append(blocks.pop(0))
        made.append(torch.cat([matrix for _, matrix, _ in parts], dim=1))
        reference.update(made[-1], parts[0][2])
    assert len(made) > 3
    found = states.statistics[Key(SITE, 1)]
    assert (found.counts == reference.count).all()
    found.count = reference.count
    assert_equal(found, reference)
    torch.testing.assert_close(torch.cat(made), encoded(torch.cat(given), weights()), rtol=1e-5, atol=1e-5)


def test_parts_merged_added_and_beside_other_sites(texts: list[str], tmp_path: Path) -> None:
    model, sae = saved(tmp_path / "model", "llama"), str(saved_dictionary(tmp_path / "small"))
    options: dict[str, Any] = {"sae": sae, "numerics": "reproducible"}
    whole = rows(build(model, texts, tmp_path / "whole", **options))
    parts = [build(model, texts, tmp_path / f"{n}", shard=(n, 2), **options) for n in range(2)]
    assert rows(merge_indexes(parts, tmp_path / "merged"))[:3] == whole[:3]
    build(model, texts[:2], tmp_path / "added", **options)
    assert rows(build(model, texts[2:], tmp_path / "added", append=True, **options))[:3] == whole[:3]
    # beside another site, and a second dictionary at another place
    other = str(saved_dictionary(tmp_path / "other", "blocks.0.mlp.hook_in", seed=1))
    options |= {"sae": (sae, f"{other}=second.one"), "sites": "resid"}
    together = build(model, texts, tmp_path / "both", **options)
    assert [[row for row in view if row["site"] == SITE] for view in rows(together)] == whole
    with indexer.open_index(together) as index:
        assert index.info()["layers"] == {"resid": "0-2", SITE: "1", "sae.second.one": "0"}


def jumped(pre: torch.Tensor) -> torch.Tensor:
    return torch.relu(pre) * (pre > 1.5)


def largest(pre: torch.Tensor) -> torch.Tensor:
    top = pre.topk(5, dim=1)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


@pytest.mark.parametrize(
    ("settings", "function"),
    [
        ({"architecture": "jumprelu", "tensors": {"threshold": torch.full((FEATURES,), 1.5)}}, jumped),
        ({"architecture": "topk", "k": 5}, largest),
    ],
    ids=["jumprelu", "topk"],
)
def test_features_that_jump(
    settings: dict[str, Any], function: Any, texts: list[str], tmp_path: Path
) -> None:
    model, sae = saved(tmp_path / "model", "llama"), saved_dictionary(tmp_path / "small", **settings)
    tensors = weights()

    def encode(x: torch.Tensor, _: Any) -> torch.Tensor:
        return function((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])

    counted = np.concatenate([values[1:-1] for values in plain(model, texts, encode).values()])
    with indexer.open_index(build(model, texts, tmp_path / "index", sae=str(sae))) as index:
        index.verify(full=True)
        units = index.sql("SELECT * FROM units ORDER BY unit").to_pydict()
    np.testing.assert_allclose(units["maximum"], counted.max(axis=0), **NEAR)
    # rounding may move few values over a threshold
    assert np.abs(np.array(units["positive"]) - (counted > 0).sum(axis=0)).sum() <= 2
    # in bfloat16 many are moved; sequences are told apart by what is encoded
    low = build(model, texts, tmp_path / "low", sae=str(sae), dtype="bfloat16", panel=0)
    with indexer.open_index(low) as index:
        assert index.manifest.model["batches"] == "padded"
        positive = index.sql("SELECT sum(positive) AS n FROM units").to_pylist()[0]["n"]
    np.testing.assert_allclose(float(positive), (counted > 0).sum(), rtol=0.05)


def test_a_build_that_was_stopped_goes_on(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "model": str(saved(tmp_path / "model", "llama")), "corpus": tuple(texts), "sites": "sae",
        "sae": str(saved_dictionary(tmp_path / "small")), "context": CONTEXT, "threads": 1, "top": 3,
        "window": (5, 3), "panel": 4, "batch_tokens": 150, "checkpoint_minutes": 0,
    }  # fmt: skip
    whole = run(BuildConfig(output=tmp_path / "whole", **settings))
    config = BuildConfig(output=tmp_path / "index", **settings)
    stopped_after(config, 1, monkeypatch)
    assert rows(run(config)) == rows(whole)


def test_a_part_of_the_features(texts: list[str], tmp_path: Path) -> None:
    model, sae = saved(tmp_path / "model", "llama"), str(saved_dictionary(tmp_path / "small"))
    whole, first, rest = (
        rows(build(model, texts, tmp_path / f"{units}", sae=sae, sae_units=units, samples=0))[0]
        for units in (None, "0-69", "70-199")
    )
    assert [row["site"] for row in (first[0], rest[0])] == [SITE, f"{SITE}.from70"]
    for row in rest:
        row |= {"site": SITE, "unit": row["unit"] + 70}
    for row, wanted in zip(first + rest, whole, strict=True):
        assert (row["unit"], row["positive"]) == (wanted["unit"], wanted["positive"])
        np.testing.assert_allclose(row["mean"], wanted["mean"], rtol=1e-5)


def test_which_dictionary_an_index_is_of(
    texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, told = saved(tmp_path / "model", "llama"), {"context_size": 128, "prepend_bos": True}
    sae = saved_dictionary(tmp_path / "small", metadata=told)
    index = build(model, texts, tmp_path / "index", sae=str(sae), panel=0)
    with indexer.open_index(index) as opened:
        (facts,) = opened.manifest.model["layers"]
        assert facts["reads"] == "blocks.1.hook_resid_post"
        assert facts["formula"] == "pre = (x - b_dec) @ W_enc + b_enc; relu(pre)"
        assert (facts["dictionary"], facts["place"]) == ("SAELens standard", "layers.1")
        assert (facts["context_size"], facts["prepend_bos"]) == (128, True)
    commands.info(index)
    assert "sae.small" in capsys.readouterr().out
    shard = build(model, texts, tmp_path / "shard", sae=str(sae), panel=0, shard=(0, 2))
    # the same files elsewhere are the same dictionary; others under the same name are not
    moved = saved_dictionary(tmp_path / "moved" / "small", metadata=told)
    assert build(model, texts, index, sae=str(moved), panel=0) == index
    other = saved_dictionary(tmp_path / "another" / "small", seed=1, metadata=told)
    with pytest.raises(IndexerError, match="already exists, and differs: the dictionaries' digests was"):
        build(model, texts, index, sae=str(other), panel=0)
    second = build(model, texts, tmp_path / "second", sae=str(other), panel=0, shard=(1, 2))
    with pytest.raises(IndexerError, match="were built in different ways: the model's dictionaries is"):
        merge_indexes([shard, second], tmp_path / "merged")


def test_sequences_are_those_that_a_dictionary_was_trained_on(
    texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, options = saved(tmp_path / "model", "llama"), {"panel": 0, "layers": "1"}
    trained = {"context_size": 20, "prepend_bos": False}
    folders = saved_dictionary(tmp_path / "none"), saved_dictionary(tmp_path / "one", metadata=trained)
    one = tuple(map(str, folders))

    def longest(name: str, **more: Any) -> tuple[int, bool]:
        """Tokens of the longest sequence, up to its EOS, and whether it begins with BOS."""
        given = {"context": None, "sae": one, "sites": "sae", "window": (30, 0), "top": 9} | options | more
        index = build(model, texts, tmp_path / name, count_special_tokens=True, **given)
        with indexer.open_index(index) as opened:
            text = opened.sql("SELECT max(position) + 1 AS n, bool_or(token_ids[1] = 1) AS bos FROM examples")
            return tuple(text.to_pylist()[0].values())  # type: ignore[return-value]

    assert longest("by itself") == (20, False)
    assert "as the dictionary was trained, its files say: --context 20 --bos no" in capsys.readouterr().err
    assert longest("given", context=15, bos="tokenizer") == (15, True)
    with pytest.raises(IndexerError, match="--context 256: the model"):
        longest("neurons", sae=(), sites="mlp")
    other = str(saved_dictionary(tmp_path / "two", metadata={"context_size": 30}))
    with pytest.raises(IndexerError, match=r"one was trained with context_size 20, and .*two with 30; say"):
        longest("both", sae=(*one, other))
    assert longest("both", sae=(*one, other), context=30) == (30, False)
    for number, size in enumerate(("128", -5)):
        odd = str(saved_dictionary(tmp_path / f"odd{number}", metadata={"context_size": size}))
        with pytest.raises(IndexerError, match=f"the key context_size is {size!r}"):
            longest("odd", sae=odd)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "temporal"}, r'cfg\.json: the key architecture is "temporal", which is not supp'),
        ({"normalize_activations": "expected_average_only_in"}, "the key normalize_activations is"),
        ({"dtype": "float64"}, "the key dtype is"),
        ({"d_in": 7}, r"the tensor W_enc has shape \(32, 200\), expected \(7, 200\)"),
        ({"metadata": {"hook_head_index": 3}}, r"the key metadata\.hook_head_index names one head"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"fold_ln": True}}},
            r"the key metadata\.model_from_pretrained_kwargs\.fold_ln is True, which changes",
        ),
        ({"tensors": {"W_new": torch.zeros(2)}}, "what the tensor W_new does is not known"),
        ({"architecture": "jumprelu"}, "there is no tensor threshold"),
        ({"architecture": "topk"}, "the key k is missing"),
        ({"architecture": "topk", "k": 201}, "the key k is 201, of 200 units"),
        ({"metadata": {"hook_name": None}}, r"the key metadata\.hook_name is missing"),
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_in"}}, "that is not guessed"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_q"}}, "of a block is read: hook_resid_pre,"),
        ({"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, "has blocks 0 to 2"),
        ({"metadata": {"hook_name": "layers.1.nothing"}}, "has no such module"),
        ({"metadata": {"hook_name": ""}}, r"it reads '', which is no name of a place"),
        ({"metadata": {"hook_name": "a\0\nb"}}, r"it reads 'a\\x00\\nb', which is no name"),
        ({"metadata": {"hook_name": "embed_tokens", "hook_layer": -4}}, "the layer -4 is none"),
        ({"metadata": {"hook_name": "embed_tokens", "hook_layer": 10**12}}, "the layer 10{12} is none"),
        (
            {"architecture": "jumprelu", "tensors": {"threshold": torch.full((200,), math.nan)}},
            r"safetensors: threshold has NaN among its numbers",
        ),
        (
            {"tensors": {"W_enc": torch.zeros(32, 0), "W_dec": torch.zeros(0, 32), "b_enc": torch.zeros(0)}},
            r"safetensors: it has no features, or reads no channels",
        ),
    ],
)  # fmt: skip
def test_what_would_have_to_be_guessed_is_refused(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    sae = saved_dictionary(tmp_path / "small", **settings)
    with pytest.raises(IndexerError, match=said) as found:
        find(adapt(tiny("llama")), ("sae",), Asked(dictionaries=(str(sae),)))
    assert "\n" not in str(found.value)
    assert str(sae) in str(found.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"^--sites sae: there is no dictionary; give one with --sae"),
        ({"sae": "nowhere=x"}, r"^--sae nowhere: there is no such folder or file$"),
        ({"sae": "{}=a/b"}, r'the name "a/b" may have letters'),
        ({"sae": ("{}", "{}")}, r"^--sae: both .* would be sae\.small\.1; give one of them another name"),
        ({"sae": "{}/.."}, None),
        ({"sae": "{}", "sae_units": "5-200"}, r"^--sae-units 5-200: .*small has features 0 to 199$"),
    ],
)
def test_mistakes(options: dict[str, Any], said: str | None, texts: list[str], tmp_path: Path) -> None:
    model, sae = saved(tmp_path / "model", "llama"), str(saved_dictionary(tmp_path / "small"))
    given = options.get("sae", ())
    options["sae"] = given.format(sae) if isinstance(given, str) else tuple(one.format(sae) for one in given)
    if said is None:
        # a folder above one is good enough
        build(model, texts, tmp_path / "index", panel=0, **options)
        return
    with pytest.raises(IndexerError, match=said):
        build(model, texts, tmp_path / "index", **options)


def test_memory_that_is_not_there(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = saved_dictionary(tmp_path / "small")
    monkeypatch.setattr("indexer.models.memory.free_main_memory", lambda: 1000)
    with pytest.raises(IndexerError, match=r"the statistics of 200 units take .* choose fewer --sae-units, "):
        build(saved(tmp_path / "model", "llama"), texts, tmp_path / "index", sae=str(sae))


def test_texts_are_run_live(texts: list[str], tmp_path: Path) -> None:
    model, sae = saved(tmp_path / "model", "llama"), saved_dictionary(tmp_path / "small")
    with indexer.open_index(build(model, texts, tmp_path / "index", sae=str(sae))) as index:
        found = Live(index, Model.of(index, str(model))).run("w3 w50 w7 w7").values[Key(SITE, 1)]
        ids = torch.tensor([[1, 7, 54, 11, 11, 2]])
        with torch.inference_mode():
            states = AutoModel.from_pretrained(model)(ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(found, encoded(states[2][0], weights()), **NEAR)
        saved_dictionary(tmp_path / "small", seed=1)
        with pytest.raises(IndexerError, match=r"small: it is not the dictionary that sae\.small\.1 was"):
            Live(index, Model.of(index, str(model)))


def test_a_place_without_weights_of_its_own(texts: list[str], tmp_path: Path) -> None:
    """The activation module of an MLP, which is read where the MLP is not computed by us."""
    tensors = weights(inputs=80)
    sae = saved_dictionary(tmp_path / "small", "layers.2.mlp.act_fn", tensors=tensors, d_in=80)
    index = build(saved(tmp_path / "model", "llama"), texts, tmp_path / "index", sae=str(sae))
    assert {row["layer"] for row in rows(index)[0]} == {2}


def test_a_dictionary_of_another_width_is_refused(tmp_path: Path) -> None:
    sae = saved_dictionary(tmp_path / "small", tensors=weights(inputs=7))
    with pytest.raises(IndexerError, match=r"cfg\.json: it reads 7 channels, and layers\.1 has 32"):
        find(adapt(tiny("llama")), ("sae",), Asked(dictionaries=(str(sae),)))
