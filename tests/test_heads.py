"""What attention heads look at: scores against plain attention weights, merged, verified, shown."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from indexer_kernels.hashes import unit_keys
from indexer_kernels.heads import ON_WINDOWS, REPEATED, HeadScores
from indexer_kernels.panel import Windows
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

import indexer
from indexer.commands import app
from indexer.engines import merge
from indexer.errors import IndexerError
from indexer.index.codecs.heads import shown_of
from indexer.index.manifest import file_entry, sealed
from indexer.models import adapt
from indexer.names import HEADS, parse_unit
from indexer.sites import find
from indexer.sites.patterns import Patterns
from tests.real_model import minilm, standard_library
from tests.test_sites import build
from tests.tiny_models import FUSED, fresh, saved, tiny, word_files

CONTEXT = 24


def plain_weights(model: Any, ids: list[int]) -> NDArray[np.float64]:
    """[layers, heads, queries, keys]"""
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    return torch.cat(found).double().numpy()


def plain_scores(
    folder: Path, index: Path, documents: list[str], context: int, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Every score as [layers, heads], from the weights that the model itself returns.

    The tokenizer puts one special token before a text and one behind it.
    """
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, *_, after = tokenizer("w1")["input_ids"]
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    length = min(64, (context - 2) // 2)
    keys = unit_keys(seed, "repeated tokens", 8 * length).tolist()
    sums: dict[str, Any] = {name: [] for name in (*REPEATED, *ON_WINDOWS)}
    for number in range(8):
        ids = [ordinary[key % len(ordinary)] for key in keys[number * length : (number + 1) * length]]
        weights = plain_weights(model, [before, *ids, *ids, after])[:, :, 1:-1, 1:-1]
        second = range(length, 2 * length)
        for name, pairs in (
            ("previous", [(query, query - 1) for query in range(1, 2 * length)]),
            ("duplicate", [(query, query - length) for query in second]),
            ("induction", [(query, query - length + 1) for query in second]),
        ):
            sums[name].append(np.mean([weights[:, :, query, key] for query, key in pairs], axis=0))
    with indexer.open_index(index) as opened:
        windows = opened.sql("SELECT * FROM panel").to_pylist()
    for window in windows:
        ids = tokenizer(documents[window["document"] >> 40], add_special_tokens=False, verbose=False)
        piece = ids["input_ids"][window["sequence"] * (context - 2) :][: context - 2]
        weights = plain_weights(model, [before, *piece, after])
        place = np.arange(weights.shape[-1])
        for query in range(1 + window["start"], 1 + window["start"] + len(window["token_ids"])):
            row = weights[:, :, query]
            sums["first_token"].append(row[:, :, 0])
            sums["entropy"].append(-(row * np.log(np.where(row > 0, row, 1))).sum(axis=2))
            sums["distance"].append((row * abs(place - query)).sum(axis=2))
    return {name: np.mean(values, axis=0) for name, values in sums.items()}


def scores_of(index: Path) -> dict[str, NDArray[np.float64]]:
    with indexer.open_index(index) as opened:
        found = opened.sql("SELECT * FROM heads ORDER BY layer, head").to_pydict()
        for place, (layer, head) in enumerate(zip(found["layer"], found["head"], strict=True)):
            site = found["site"][place]
            row = opened.head(f"{site}.{layer}.{head}").to_pylist()[0]
            assert row.pop("site") == site
            known = {name: values[place] for name, values in found.items() if name != "site"}
            assert row == pytest.approx(known, rel=1e-5)
    shape = max(found["layer"]) + 1, max(found["head"]) + 1
    return {name: np.reshape(np.array(found[name], float), shape) for name in (*REPEATED, *ON_WINDOWS)}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return word_files(tmp_path, (70, 3, 41, 22))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("bert", {"numerics": "reproducible"}),
        slow("llama", {"attention": "eager", "sites": "mlp,heads,attn"}),
        slow("gpt2", {}),
        slow("bloom", {}),
        slow("gemma2", {"attention": "eager"}),
    ],
    ids=str,
)
def test_scores_are_those_of_plain_weights(
    name: str, options: dict[str, Any], files: list[str], tmp_path: Path
) -> None:
    model = saved(tmp_path / "model", name)
    settings = {"sites": "heads", "context": CONTEXT, "panel": 5, "seed": 3, **options}
    index = build(model, files, tmp_path / "index", **settings)
    found = scores_of(index)
    documents = [Path(file).read_text() for file in files]
    expected = plain_scores(model, index, documents, CONTEXT, seed=3)
    for score, values in expected.items():
        np.testing.assert_allclose(found[score], values, rtol=1e-4, atol=1e-5, err_msg=score)
    with indexer.open_index(index) as opened:
        opened.verify(full=True)


def test_scores_of_a_decoder_are_those_behind_its_start_token(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_itself(model: Any, ids: list[int]) -> NDArray[np.float64]:
        read = torch.tensor([[model.config.decoder_start_token_id, *ids]])
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([ids]), decoder_input_ids=read, output_attentions=True)
        return torch.cat(found.decoder_attentions).double().numpy()[:, :, 1:, 1:]

    monkeypatch.setattr("tests.test_heads.plain_weights", to_itself)
    model = saved(tmp_path / "model", "bart")
    index = build(model, files, tmp_path / "index", sites="decoder.heads", context=CONTEXT, panel=2)
    expected = plain_scores(model, index, [Path(file).read_text() for file in files], CONTEXT)
    with indexer.open_index(index) as opened:
        opened.verify(full=True)
        found = opened.sql("SELECT * FROM heads ORDER BY layer, head").to_pydict()
    assert set(found["site"]) == {"decoder.heads"}
    for score in REPEATED:
        np.testing.assert_allclose(found[score], expected[score].flatten(), rtol=1e-4, atol=1e-5)
    # what falls on the start token is no token's
    assert all(set(found[score]) == {None} for score in ON_WINDOWS)


def test_scores_of_a_real_model(tmp_path: Path) -> None:
    text = Path(standard_library("argparse.py")[0]).read_text()[:3000]
    (tmp_path / "0.txt").write_text(text)
    index = build(
        minilm(), [str(tmp_path / "0.txt")], tmp_path / "index", sites="heads", context=128, panel=3
    )
    found = scores_of(index)
    for score, values in plain_scores(minilm(), index, [text], 128).items():
        np.testing.assert_allclose(found[score], values, rtol=2e-4, atol=2e-5, err_msg=score)
    # MiniLM has a head that looks at the token before
    assert found["previous"].max() > 0.9


def sinking(**settings: Any) -> Any:
    """A model whose heads may attend to a sink, which is no token."""
    import transformers

    config = transformers.GptOssConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
        sliding_window=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config, **settings).eval()


# of falcon with alibi transformers' own sdpa and eager differ
OTHERS = {*FUSED, "mixtral"} - {"falcon_alibi", "llama", "gpt2"}


@pytest.mark.parametrize("name", ["gpt_oss", "llama", "gpt2", *map(slow, sorted(OTHERS))])
def test_weights_are_those_that_the_model_uses(name: str) -> None:
    ids = torch.arange(5, 22)[None]
    model = sinking() if name == "gpt_oss" else tiny(name)
    eager = {"attn_implementation": "eager"}
    other = sinking(**eager) if name == "gpt_oss" else fresh(name, **eager)
    seen: list[Any] = []
    with torch.inference_mode(), ExitStack() as stack:
        probes = find(adapt(model), (HEADS,))
        patterns = stack.enter_context(Patterns())
        for probe in probes:
            hook = probe.module.register_forward_pre_hook(lambda module, args: seen.append(patterns.weights))
            stack.callback(hook.remove)
        model(input_ids=ids)
        plain = other(input_ids=ids, output_attentions=True).attentions
    assert len(seen) == len(plain) > 0
    for weights, (expected,) in zip(seen, plain, strict=True):
        assert weights.shape[2] == ids.shape[1] + (name == "gpt_oss")
        torch.testing.assert_close(weights[..., : ids.shape[1]], expected, rtol=1e-4, atol=1e-5)


def test_merging_chooses_the_windows_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    number = np.arange(6)
    keys = rng.integers(0, 2**63, 6).astype(np.uint64)
    windows = Windows(keys, number, number, 0 * number, number + 1, np.arange(21, dtype=np.int32))
    on_windows = rng.random((2, 3, 6)).astype(np.float32)
    repeated = np.array([[0.5, np.nan, 0.25], [0.5, 0.125, 0.75]], np.float32)

    def part(*chosen: int) -> HeadScores:
        some = np.array(chosen)
        some = some[windows.taken(some).order()]
        return HeadScores(4, windows.taken(some), repeated, on_windows[:, :, some])

    first = windows.order()[:4]
    for parts in ([part(0, 1, 2), part(3, 4, 5)], [part(5, 2), part(1, 0, 4), part(3)]):
        merged = HeadScores.empty(2, 4)
        for one in parts:
            merged.merge(one)
        np.testing.assert_array_equal(merged.windows.hash, keys[first])
        np.testing.assert_array_equal(merged.on_windows, on_windows[:, :, first])
        np.testing.assert_array_equal(merged.repeated, repeated)


@pytest.mark.slow
def test_shards_merge_to_the_whole(files: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    settings = {"sites": "heads,resid", "context": CONTEXT, "panel": 3, "piece_bytes": 60}
    whole = build(model, files, tmp_path / "whole", **settings)
    parts = [build(model, files, tmp_path / f"{part}", shard=f"{part}/3", **settings) for part in range(3)]
    merged = merge(parts[::-1], tmp_path / "merged")
    assert scores_of(merged).keys() == scores_of(whole).keys()
    for score, values in scores_of(whole).items():
        np.testing.assert_allclose(scores_of(merged)[score], values, rtol=1e-5, atol=1e-6, err_msg=score)
    assert any((scores_of(parts[0])[score] != scores_of(whole)[score]).any() for score in ON_WINDOWS)
    with indexer.open_index(merged) as opened:
        opened.verify(full=True)


def test_what_is_not_known_is_null(files: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    index = build(model, files, tmp_path / "index", sites="heads", context=5, panel=0)
    with indexer.open_index(index) as opened:
        opened.verify(full=True)
        columns = opened.sql("SELECT * FROM heads").to_pydict()
        assert {value for name in (*REPEATED, *ON_WINDOWS) for value in columns[name]} == {None}
        assert opened.head("heads.0.0").to_pylist()[0]["entropy"] is None
    for unit, told in (("resid.0.0", "not in index"), ("heads.0.99", "not in index")):
        with indexer.open_index(index) as opened, pytest.raises(IndexerError, match=told):
            opened.head(unit)


def test_a_heads_page_shows_its_scores(files: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    index = build(model, files, tmp_path / "index", sites="heads,resid", context=CONTEXT, panel=2)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments], prog_name="neuron-indexer")
        assert result.exit_code == 0, result.output
        return result.stdout

    page = run("unit", str(index), "heads.1.2")
    assert "previous" in page
    assert "first token" in page
    shown = json.loads(run("unit", str(index), "heads.1.2", "--format", "json"))
    with indexer.open_index(index) as opened:
        row = opened.head("heads.1.2").to_pylist()[0]
        with pytest.raises(IndexerError, match="no attention head; name one"):
            opened.head("resid.1.2")
    assert shown["induction"] == pytest.approx(row["induction"], rel=1e-4)
    assert "previous" not in run("unit", str(index), "resid.1.2")


def test_a_list_of_another_length_is_damage(files: list[str], tmp_path: Path) -> None:
    index = build(
        saved(tmp_path / "model"), files, tmp_path / "index", sites="heads", context=CONTEXT, panel=2
    )
    with indexer.open_index(index) as opened:
        path = index / "heads" / "heads.1.parquet"
        rows = pq.read_table(path)[2:3]
        place = rows.column_names.index("entropy")
        short = rows.set_column(place, "entropy", [[[0.5]]])
        for wrong in (short, rows[:0]):
            with pytest.raises(IndexerError, match=r"it has not a score of heads\.1\.2 for each window"):
                shown_of(parse_unit("heads.1.2"), wrong, path)
        assert shown_of(parse_unit("heads.1.2"), rows, path) == opened.head("heads.1.2")


def test_scores_out_of_range_are_found(files: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    index = build(model, files, tmp_path / "index", sites="heads", context=CONTEXT, panel=2)
    path = index / "heads" / "heads.0.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("induction")
    values = table["induction"].to_pylist()
    values[1] = 1.5
    wrong = table.set_column(place, table.schema.field(place), pa.array(values, pa.float32()))
    pq.write_table(wrong, path, write_page_checksum=True)
    manifest = json.loads((index / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "heads/heads.0.parquet":
            told = file_entry(index, entry["path"], entry["rows"])
            entry |= {"bytes": told.bytes, "sha256": told.sha256}
    (index / "manifest.json").write_text(sealed(manifest))
    with (
        indexer.open_index(index) as opened,
        pytest.raises(IndexerError, match=r"heads\.0\.1: its induction"),
    ):
        opened.verify(full=True)
