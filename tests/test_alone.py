"""A sequence is indexed as if alone, whatever the model does with a batch; or the model is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel

import indexer
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.models import LoadedModel, Runner, adapt
from indexer.models.alone import Batching, Plain, Rows, alone, batching, difference
from indexer.names import MLP
from indexer.partials.merge import merge_indexes
from tests.tiny_batches import mlps, tiny_batch
from tests.tiny_models import POSITIONS, REQUIRED, fresh, saved, tiny, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (3, 5, 7, 9, 12, 20, 33, 50, 2, 1, 60, 17, 20, 20, 9)
# architectures whose sequences come out otherwise beside longer ones; their MLPs where they have to be named
LEAKY = {
    **dict.fromkeys(["fnet", "convbert", "nystromformer", "yoso", "paligemma", "phi3_longrope"]),
    "mobilebert": "encoder.layer.*.output.dense",
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def found(loaded: LoadedModel, **options: Any) -> Batching:
    probes = mlps(loaded)
    return batching(
        lambda some: Runner(loaded, some, Plain("cpp").take),
        loaded, probes, probes, **{"context": POSITIONS - 2, "kernels": "cpp", **options},
    )  # fmt: skip


def corpus(folder: Path, lengths: Sequence[int] = LENGTHS) -> Path:
    """A file with a text of each length, of words of the tiny tokenizer."""
    generator = np.random.default_rng(0)
    file = folder / "texts.jsonl"
    lines = [" ".join(f"w{word}" for word in generator.integers(0, 90, length)) for length in lengths]
    file.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return file


def build(model: Path, file: Path, output: Path, **options: Any) -> Path:
    settings = {"context": POSITIONS - 2, "threads": 1, "top": 3, "bottom": 3, **options}
    return Path(indexer.build(model=str(model), corpus=[str(file)], output=str(output), **settings))


def plain(model: Path, file: Path, projections: list[str]) -> list[NDArray[np.float32]]:
    """[counted tokens, units] of each layer: plain hooks on the plain model, each sequence alone."""
    transformer = AutoModel.from_pretrained(model).eval()
    caught: dict[str, torch.Tensor] = {}
    for path in projections:
        transformer.get_submodule(path).register_forward_pre_hook(
            lambda module, inputs, path=path: caught.__setitem__(path, inputs[0])
        )
    body, rows = POSITIONS - 4, {path: [] for path in projections}
    for line in file.read_text().splitlines():
        ids = tokenizer()(line[10:-2], add_special_tokens=False)["input_ids"]
        for first in range(0, len(ids), body):
            with torch.inference_mode():
                transformer(input_ids=torch.tensor([[1, *ids[first : first + body], 2]]))
            for path, x in caught.items():
                rows[path].append(x.reshape(-1, x.shape[-1])[1:-1].numpy().copy())
    return [np.concatenate(rows[path]) for path in projections]


def check_equal(index: Path, model: Path, file: Path) -> None:
    """Every neuron's count, extremes and mean are those of the plain model, each sequence alone."""
    projections = [layer["place"] for layer in read_manifest(index).model["layers"]]
    with indexer.open_index(index) as opened:
        for layer, values in enumerate(plain(model, file, projections)):
            units = opened.sql(f"SELECT * FROM units WHERE layer = {layer} ORDER BY unit").to_pydict()
            assert set(units["count"]) == {len(values)}
            near = 2e-5 * np.abs(values).max()
            for name, expected in (("maximum", values.max(0)), ("minimum", values.min(0))):
                np.testing.assert_allclose(units[name], expected, rtol=1e-4, atol=near, err_msg=name)
            np.testing.assert_allclose(units["mean"], values.mean(0), rtol=1e-4, atol=near)


@pytest.mark.parametrize("name", LEAKY)
def test_a_model_that_minds_its_padding_is_run_without(name: str, tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", name), corpus(tmp_path)
    index = build(model, file, tmp_path / "index", output_projection=LEAKY[name])
    manifest = read_manifest(index)
    assert manifest.model["batches"] == "equal"
    assert "differs by" in manifest.model["batches_reason"]
    assert manifest.totals["padding"] == 0
    assert manifest.totals["sequences_checked_alone"] >= 1
    assert manifest.totals["peak_difference_alone"] < 1e-4
    check_equal(index, model, file)


@pytest.mark.parametrize("name", ["chunk_size", "mamba_chunk_size"])
def test_a_model_that_minds_padding_beyond_a_chunk_alone(name: str) -> None:
    model = fresh("llama")
    setattr(model.config, name, 16)

    def mix(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        # chunks put together in a wrong way: every token depends on how many of them there are
        chunks = (args[0].shape[1] - 1) // 16
        return (args[0] * (1 + 0.1 * chunks),)

    model.layers[1].mlp.register_forward_pre_hook(mix)
    loaded = adapt(model)
    assert loaded.causal
    assert found(loaded).together == "equal"


@pytest.mark.parametrize("name", ["fnet", "phi3_longrope"])
def test_reproducible_numerics_hold_without_padding(name: str, tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", name), corpus(tmp_path)
    indexes = [
        build(model, file, tmp_path / f"{tokens}", numerics="reproducible", batch_tokens=tokens)
        for tokens in (100, 1000)
    ]
    check_equal(indexes[0], model, file)
    tables = []
    for index in indexes:
        assert read_manifest(index).model["batches"] == "single"
        with indexer.open_index(index) as opened:
            tables.append(opened.sql("SELECT * FROM examples ORDER BY layer, unit, kind, band DESC, rank"))
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*REQUIRED, "modernbert", "nemotron"])
def test_no_alarm_for_a_model_that_minds_its_masks(name: str, dtype: torch.dtype) -> None:
    assert found(adapt(tiny(name, dtype))) == Batching()


@pytest.mark.parametrize("name", ["convbert", "nystromformer", "yoso", "paligemma", "phi3_longrope"])
def test_leaks_are_seen_in_bfloat16_too(name: str) -> None:
    assert found(adapt(tiny(name, torch.bfloat16))).together == "equal"


def test_a_leak_below_rounding_is_seen_by_what_stands_in_the_padding() -> None:
    model = fresh("bert", torch.bfloat16)
    # each token sees a little of the next: of the padding, the last one of a sequence
    model.encoder.layer[0].intermediate.register_forward_pre_hook(
        lambda module, inputs: (inputs[0] + 0.01 * inputs[0].roll(-1, 1),)
    )
    said = found(adapt(model))
    assert said.together == "equal"
    assert "what stands in the padding" in said.reason


def test_a_limit_that_the_context_does_not_reach_changes_nothing() -> None:
    loaded = adapt(tiny("phi3_longrope"))
    assert found(loaded, context=30) == Batching()
    far = adapt(fresh("phi3_longrope", original_max_position_embeddings=1500))
    assert found(far, context=1400) == Batching()
    assert found(far, context=1501).together == "equal"


def test_padding_can_be_refused(tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", "bert"), corpus(tmp_path)
    index = build(model, file, tmp_path / "index", padding="never")
    manifest = read_manifest(index)
    assert (manifest.model["batches"], manifest.totals["padding"]) == ("equal", 0)
    check_equal(index, model, file)


def test_a_model_that_mixes_sequences_is_run_with_one_at_a_time() -> None:
    model = fresh("llama")
    model.layers[1].mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0] + inputs[0].flip(0),))
    said = found(adapt(model))
    assert said.together == "single"
    assert "beside another of its length" in said.reason
    assert found(adapt(model), padding=False).together == "single"


def test_a_random_model_is_refused() -> None:
    model = fresh("llama")
    model.layers[1].mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0] + torch.rand(()),))
    with pytest.raises(IndexerError, match=r"it is random: a sequence of 5 tokens differs by .* at mlp\.\d"):
        found(adapt(model))


def test_a_model_that_remembers_is_refused() -> None:
    # beyond its length, frequencies are those of the longest sequence so far
    with pytest.raises(IndexerError, match=r"remembers earlier sequences: .*; use --context 32 or less"):
        found(adapt(tiny("llama_dynamic")))
    assert found(adapt(fresh("llama_dynamic")), context=31) == Batching()


@pytest.mark.parametrize("hooks", [False, True])
def test_an_mlp_with_more_rows_than_the_batch_is_refused(hooks: bool) -> None:
    # tokens are filled up to whole chunks of 16, as many as the structure is looked for with
    loaded = adapt(tiny("reformer"))
    with (
        Runner(loaded, mlps(loaded, [0], hooks=hooks), Plain("cpp").take) as runner,
        pytest.raises(IndexerError, match=r"encoder.layers.0.* gives it 64 rows for a batch of 40 tokens"),
    ):
        runner.run(tiny_batch(20, 13))


def test_a_sequence_alone_is_the_one_of_the_batch() -> None:
    batch, loaded = tiny_batch(9, 14, 5), adapt(tiny("bert"))
    keys = [(0, 0), (1, 0), (2, 0)]
    rows = Rows("cpp")
    with Runner(loaded, mlps(loaded), rows.take) as runner:
        together = rows.of(runner, batch, keys)
        for number, key in enumerate(keys):
            apart = rows.of(runner, alone(batch, number, copies=1 + number % 2), [key])[key]
            assert set(together[key]) == set(apart) == {(MLP, 0), (MLP, 1), (MLP, 2)}
            for layer, parts in together[key].items():
                assert parts[0].position.tolist() == list(range(batch.length[number]))
                assert float(difference(parts[0].values, apart[layer][0].values)) < 1e-5


def test_differences_are_relative_to_a_tokens_length() -> None:
    one = torch.tensor([[3.0, 4.0], [300.0, 400.0]])
    other = one + torch.tensor([[0.0, 0.05], [0.0, 0.05]])
    assert float(difference(one, one)) == 0
    assert float(difference(other, one)) == pytest.approx(0.01, rel=1e-4)
    broken = one.clone()
    broken[0, 0] = torch.inf
    assert float(difference(broken, broken)) == 0


def test_a_build_is_stopped_by_what_it_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = saved(tmp_path / "model", "fnet"), corpus(tmp_path)
    monkeypatch.setattr("indexer.building.plan.batching", lambda *args, **options: Batching())
    message = r"document \d+, sequence 0: its \d+ tokens differ by .* at mlp\.\d, .* with --padding never$"
    with pytest.raises(IndexerError, match=message):
        build(model, file, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_indexes_with_padding_and_without_do_not_merge(tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", "llama"), corpus(tmp_path)
    parts = [
        build(model, file, tmp_path / f"{shard}", shard=(shard, 2), padding=padding, piece_bytes=300)
        for shard, padding in enumerate(("auto", "never"))
    ]
    with pytest.raises(IndexerError, match="the model's batches is padded and equal"):
        merge_indexes(parts, tmp_path / "whole")


def test_checks_of_shards_are_added(tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", "llama"), corpus(tmp_path)
    parts = [
        build(model, file, tmp_path / f"{shard}", shard=(shard, 2), piece_bytes=300) for shard in range(2)
    ]
    merge_indexes(parts, tmp_path / "whole")
    each = [read_manifest(part).totals for part in parts]
    whole = read_manifest(tmp_path / "whole").totals
    assert whole["sequences_checked_alone"] == sum(totals["sequences_checked_alone"] for totals in each) >= 2
    assert whole["peak_difference_alone"] == max(totals["peak_difference_alone"] for totals in each)


def test_a_finished_index_of_other_batches_is_not_taken_for_this_one(tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", "llama"), corpus(tmp_path)
    build(model, file, tmp_path / "index")
    with pytest.raises(IndexerError, match="which sequences lie together in a batch was padded and is equal"):
        build(model, file, tmp_path / "index", padding="never")


def test_a_build_within_autocast_computes_in_the_models_dtype(tmp_path: Path) -> None:
    model, file = saved(tmp_path / "model", "llama"), corpus(tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        index = build(model, file, tmp_path / "index")
    check_equal(index, model, file)
