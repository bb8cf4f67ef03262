"""The panel: its windows have the smallest hashes, and its activations are those of sequences run alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from indexer_kernels.panel import WINDOW, Panel, Windows, window_hashes
from transformers import AutoModel, AutoTokenizer

import indexer
from indexer.building import run
from indexer.building.panel import Chosen, Filled
from indexer.building.run import build
from indexer.config.build import BuildConfig
from indexer.engines import merge
from indexer.errors import IndexerError
from indexer.index.codecs.panel import PANELS
from indexer.index.manifest import read_manifest
from indexer.index.verify import verify_index
from indexer.names import MLP, Key
from indexer.tokens import Batches
from tests.real_model import minilm, standard_library
from tests.test_bands import hash_of_the_page
from tests.test_brute_force import ABSOLUTE, RELATIVE
from tests.test_pipeline import tables
from tests.test_resume import stopped_after
from tests.tiny_models import saved, words

FORMAT = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
W, CONTEXT, SEED = 7, 90, 5
# document, sequence, start, and token ids; with the whole sequence that they are of
Window = tuple[int, int, int, list[int], list[int]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two architectures with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return {name: saved(folder / name, name, max_position_embeddings=256) for name in ("llama", "bert")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of many lengths, with tokens in them that are not counted, and one that has no others."""
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    chosen = random.Random(0)
    with open(path, "w") as file:
        for length in (3, 64, 65, 200, 88, 1, 130, 40, 300, 7, 90, 176) * 2:
            text = [*chosen.choices(words()[4:], k=length), *["[EOS]"] * (length // 20)]
            chosen.shuffle(text)
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
        file.write(json.dumps({"text": "[EOS] [EOS]"}) + "\n")
    return path


def options(output: Path, model: Path, corpus: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {
        "context": CONTEXT, "panel": W, "seed": SEED, "top": 2, "bottom": 2, "threads": 1,
        "piece_bytes": 1500,
    }  # fmt: skip
    return BuildConfig(model=str(model), corpus=(str(corpus),), output=output, **{**plain, **changes})


def windows_of(texts: list[str], model: Path, most: int, seed: int, context: int) -> list[Window]:
    """The panel of some documents, number by number."""
    tokenizer, hash_of = AutoTokenizer.from_pretrained(model), hash_of_the_page()
    special, body = set(tokenizer.all_special_ids), context - tokenizer.num_special_tokens_to_add()
    # both tokenizers put one token before and one behind
    first, *_, last = tokenizer("a")["input_ids"]
    found = []
    for document, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for sequence in range(-(-len(ids) // body)):
            piece = ids[sequence * body : (sequence + 1) * body]
            whole = [first, *piece, last]
            counted = [token for token in piece if token not in special]
            for start in range(0, len(counted), 64):
                hashed = hash_of(seed, "panel", start // 64, document, sequence)
                window = (document, sequence, start, counted[start : start + 64], whole)
                found.append((hashed, window))
    return [window for _, window in sorted(found)[:most]]


def told(output: Path) -> list[tuple[int, int, int, list[int]]]:
    """The windows that an index has."""
    with indexer.open_index(output) as index:
        rows = index.sql('FROM panel ORDER BY "window"').to_pylist()
    assert [row["window"] for row in rows] == list(range(len(rows)))
    return [tuple(row[name] for name in ("document", "sequence", "start", "token_ids")) for row in rows]  # type: ignore[misc]


def texts_of(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


def alone(
    model: Path, windows: list[Window], dtype: torch.dtype, place: str, returned: bool = False
) -> np.ndarray:
    """float32 [tokens, units] of plain transformers, each sequence by itself.

    place: of a module, whose first input it is, or what it returns.
    """
    plain = AutoModel.from_pretrained(model, dtype=dtype).eval()
    special = set(AutoTokenizer.from_pretrained(model).all_special_ids)
    caught: list[torch.Tensor] = []
    module = plain.get_submodule(place)
    if returned:
        module.register_forward_hook(lambda module, inputs, output: caught.append(output[0]))
    else:
        module.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0][0]))
    for _, _, start, ids, whole in windows:
        with torch.inference_mode():
            plain(input_ids=torch.tensor([whole]))
        counted = [place for place, token in enumerate(whole) if token not in special]
        caught[-1] = caught[-1][counted[start : start + len(ids)]]
    return torch.cat(caught).float().numpy()


def test_the_page_tells_the_hash_of_a_window() -> None:
    found = window_hashes(0, *(np.array([number]) for number in (3 << 40 | 17, 2, 128)))
    assert f"0x{int(found[0]):X}" in FORMAT
    assert int(found[0]) == hash_of_the_page()(0, "panel", 2, 3 << 40 | 17, 2)


@pytest.mark.parametrize("most", [1, W, 10_000])
def test_windows_are_those_of_the_smallest_hashes(
    most: int, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    output = build(options(tmp_path / "a.index", models["llama"], corpus, panel=most))
    expected = windows_of(texts_of(corpus), models["llama"], most, SEED, CONTEXT)
    assert told(output) == [window[:4] for window in expected]
    assert most > W or len(expected) == most
    verify_index(output, full=True)


def test_two_models_of_one_tokenizer_have_the_same_panel(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    one, other = (build(options(tmp_path / name, model, corpus)) for name, model in models.items())
    assert told(one) == told(other)
    assert told(one) != told(build(options(tmp_path / "c", models["llama"], corpus, seed=SEED + 1)))


@pytest.fixture
def products_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 16-bit numbers, as on a processor with instructions for them."""
    monkeypatch.setattr("indexer.models.matmul._by_itself", lambda dtype: dtype != torch.float32)


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.usefixtures("products_of_torch")
def test_activations_are_those_of_the_plain_model(
    name: str, dtype: str, hooks: bool, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    model = models[name]
    output = build(options(tmp_path / "a.index", model, corpus, dtype=dtype, hooks=hooks))
    windows = windows_of(texts_of(corpus), model, W, SEED, CONTEXT)
    place = {"llama": "layers.{}.mlp.down_proj", "bert": "encoder.layer.{}.output.dense"}[name]
    with indexer.open_index(output) as index:
        for layer in (entry.key.layer for entry in index.manifest.layers):
            expected = alone(model, windows, getattr(torch, dtype), place.format(layer))
            found = index.panel(f"mlp.{layer}").activations
            if hooks and dtype == "bfloat16":
                # the very operations of transformers
                np.testing.assert_array_equal(found, expected)
            # the model's rounding differs from processor to processor, and ours is no worse
            exact = alone(model, windows, torch.float64, place.format(layer))
            assert np.abs(found - exact).max() <= 2 * np.abs(expected - exact).max()
            if dtype == "bfloat16":
                assert (torch.from_numpy(found.copy()).bfloat16().float().numpy() == found).all()


@pytest.mark.usefixtures("products_of_torch")
def test_every_site_has_the_same_panel(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    model, sites = models["llama"], ("mlp", "attn", "heads", "resid")
    output = build(options(tmp_path / "a.index", model, corpus, dtype="bfloat16", hooks=True, sites=sites))
    verify_index(output, full=True)
    windows = windows_of(texts_of(corpus), model, W, SEED, CONTEXT)
    with indexer.open_index(output) as index:
        for name, place, returned in (
            ("mlp.1", "layers.1.mlp.down_proj", False),
            ("attn.0", "layers.0.self_attn.o_proj", False),
            ("resid.1", "layers.1", True),
        ):
            expected = alone(model, windows, torch.bfloat16, place, returned)
            np.testing.assert_array_equal(index.panel(name).activations, expected)
        heads = index.panel("heads.2").activations
        assert heads.shape == (len(expected), 4)
        assert (heads > 0).all()


def test_minilm_is_as_brute_force_has_it(tmp_path: Path) -> None:
    texts = [Path(path).read_text()[:12_000] for path in standard_library("ast.py", "argparse.py")]
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = options(tmp_path / "a.index", minilm(), corpus, panel=12, context=256, layers="0,4")
    build(config)
    windows = windows_of(texts, minilm(), 12, SEED, 256)
    assert told(config.output) == [window[:4] for window in windows]
    with indexer.open_index(config.output) as index:
        for layer in (0, 4):
            expected = alone(minilm(), windows, torch.float32, f"encoder.layer.{layer}.output.dense")
            activations = index.panel(layer).activations
            # of a million values some are further off than any example's
            np.testing.assert_allclose(activations, expected, rtol=8 * RELATIVE, atol=8 * ABSOLUTE)


@pytest.mark.parametrize("batch_tokens", [100, 5000])
def test_neither_batches_nor_their_order_change_it(
    batch_tokens: int, models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed(Batches):
        def __iter__(self) -> Any:
            batches = []
            while (batch := next(self, None)) is not None:
                batches.append(batch)
            return iter(batches[::-1])

    def panel_of(name: str, **changes: Any) -> dict[str, Any]:
        found = tables(build(options(tmp_path / name, models["bert"], corpus, **changes)))
        return {name: rows for name, rows in found.items() if name.startswith("panel")}

    expected = panel_of("a.index")
    assert len(expected) == 4
    assert panel_of("b.index", batch_tokens=batch_tokens) == expected
    monkeypatch.setattr(run, "Batches", Reversed)
    assert panel_of("c.index", batch_tokens=batch_tokens) == expected


@pytest.mark.slow
def test_shards_merge_in_any_tree_and_a_build_goes_on(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"numerics": "reproducible", "batch_tokens": 300}
    config = options(tmp_path / "a.index", models["llama"], corpus, checkpoint_minutes=0, **plain)
    stopped_after(config, 3, monkeypatch)
    (checkpoint,) = (tmp_path / "a.index.build").glob("checkpoint-*/index")
    assert "panel" not in read_manifest(checkpoint).sites[0].statistics
    expected = tables(build(config))
    # more shards than there is text for: some have no window
    parts = [
        build(config.model_copy(update={"shard": (shard, 9), "output": tmp_path / f"{shard}.index"}))
        for shard in range(9)
    ]
    verify_index(parts[-1], full=True)
    left = merge([parts[7], *parts[1:4]], tmp_path / "left.index")
    right = merge([parts[0], parts[8], *parts[4:7][::-1]], tmp_path / "right.index")
    whole = merge([right, left], tmp_path / "whole.index")
    verify_index(whole, full=True)
    assert tables(whole) == expected


def test_stopped_while_it_is_filled_it_is_filled_anew(
    models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tables(build(options(tmp_path / "a.index", models["llama"], corpus)))
    config = options(tmp_path / "b.index", models["llama"], corpus)
    filled = Chosen.filled

    def stopping(chosen: Chosen, runner: Any, kernels: str, file: Any, between: Any, watch: Any) -> Any:
        def after_the_third(share: float) -> None:
            run.signal_sent = share > 2 / W  # type: ignore[attr-defined]
            between(share)

        return filled(chosen, runner, kernels, file, after_the_third, watch)

    class Requested(run.StopRequest):
        @property
        def requested(self) -> bool:
            return getattr(run, "signal_sent", False)

        @requested.setter
        def requested(self, value: bool) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr(run, "signal_sent", False, raising=False)
        patched.setattr(run, "StopRequest", Requested)
        patched.setattr(Chosen, "filled", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(config)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("b")] == ["b.index.build"]
    assert tables(build(config)) == expected


def test_parts_of_different_panels_do_not_merge(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    def part(shard: int, **changes: Any) -> Path:
        output = tmp_path / f"{shard}{'-'.join(changes)}.index"
        return build(options(output, models["llama"], corpus, shard=(shard, 2), **changes))

    one, smaller, other = part(0), part(1, panel=W - 1), part(1, seed=SEED + 1)
    with pytest.raises(IndexerError, match=rf"--panel is {W} and {W - 1}"):
        merge([one, smaller], tmp_path / "c.index")
    with pytest.raises(IndexerError, match=rf"--seed is {SEED} and {SEED + 1}"):
        merge([one, other], tmp_path / "c.index")


def test_none_is_kept_where_none_is_asked_for(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    output = build(options(tmp_path / "a.index", models["llama"], corpus, panel=0))
    assert not (output / "panel").exists()
    verify_index(output, full=True)
    with indexer.open_index(output) as index:
        assert index.info()["panel_windows"] == 0
        for ask in (lambda: index.panel(0), lambda: index.panel_row("mlp.0.1")):
            with pytest.raises(IndexerError, match="built without a panel; build it with --panel"):
                ask()


def test_a_unit_is_a_column_in_python_and_rows_in_sql(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    output = build(options(tmp_path / "a.index", models["llama"], corpus, panel=24))
    with indexer.open_index(output) as index:
        windows, activations = index.panel("mlp.1")
        assert windows.equals(index.sql('FROM panel ORDER BY "window"'))
        rows = index.sql('FROM panel_activations WHERE layer = 1 ORDER BY unit, "window"').to_pylist()
        lengths = [len(ids) for ids in windows["token_ids"].to_pylist()]
        assert 0 < min(lengths) < max(lengths) == WINDOW
        assert len(activations) == sum(lengths)
        for unit in range(activations.shape[1]):
            of_unit = rows[unit * 24 : (unit + 1) * 24]
            assert [(row["site"], row["unit"], row["window"]) for row in of_unit] == [
                (MLP, unit, window) for window in range(24)
            ]
            assert [len(row["activations"]) for row in of_unit] == lengths
            found = np.concatenate([row["activations"] for row in of_unit]).astype(np.float32)
            np.testing.assert_array_equal(found, activations[:, unit])
            np.testing.assert_array_equal(index.panel_row(f"mlp.1.{unit}"), activations[:, unit])
        for name in ("mlp.7", "heads.0", "mlp", "mlp.1.x"):
            with pytest.raises(IndexerError, match=name.split(".")[0]):
                index.panel(name)


def test_pages_hold_whole_units(tmp_path: Path) -> None:
    from benchmarks.synthetic import Size, write_synthetic

    index = write_synthetic(tmp_path / "a", Size(layers=1, units=300, top=1, bottom=1, window=4, panel=9))
    path = index / PANELS[0].file(Key(MLP, 0))
    tokens = 5 * WINDOW + 4 * WINDOW // 2
    with indexer.open_index(index) as opened:
        file, _, found = opened._panel(Key(MLP, 0), "")
        assert found == tokens
        first = np.concatenate(
            [file._pages._read_index(group)["activations"].first_row for group in range(len(file.group_rows))]
        )
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    assert set(np.diff(first)[np.diff(first) > 0]) == {16_384 // tokens}


def test_a_panel_of_parts_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    count, units, most = 60, 3, 20
    length = rng.integers(1, WINDOW + 1, count)
    # few hashes, so that many are equal
    hashes = rng.integers(0, 9, count).astype(np.uint64)
    document, sequence = rng.integers(0, 4, count), np.arange(count) // 3
    ids = rng.integers(0, 99, length.sum()).astype(np.int32)
    windows = Windows(hashes, document, sequence, WINDOW * (np.arange(count) % 3), length, ids)
    values = rng.random((units, len(ids)), np.float32)

    def panel(chosen: Any) -> Panel:
        return Panel(most, 0, windows.taken(chosen), values[:, windows.places(chosen)])

    key = [windows.start, windows.sequence, windows.document, windows.hash]
    expected = panel(np.lexsort(key)[:most])
    for _ in range(10):
        parts = [panel(part) for part in np.array_split(rng.permutation(count), rng.integers(1, 7))]
        found = Panel.empty(units, most, 0)
        for part in parts:
            alone = Panel.empty(units, most, 0)
            alone.merge(part)
            found.merge(alone)
        for name, array in vars(expected.windows).items():
            np.testing.assert_array_equal(getattr(found.windows, name), array)
        np.testing.assert_array_equal(found.activations, expected.activations)


@pytest.mark.parametrize("tokens", [0, 1, 256, 600])
def test_what_is_read_of_the_scratch_file_is_what_was_written(tokens: int, tmp_path: Path) -> None:
    """Of a shard without a text there are no tokens."""
    written = np.random.default_rng(0).standard_normal((tokens, 9)).astype(np.float32)
    path = tmp_path / "scratch"
    path.write_bytes(bytes(20) + written.tobytes())
    with path.open("rb") as file:
        filled = Filled(file, 20, 9, tokens)
        np.testing.assert_array_equal(filled[2:7], written.T[2:7])
        np.testing.assert_array_equal(filled[slice(None)], written.T)
