"""Pairs of texts: the encoder reads one, the decoder another, as in training on translation."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel

import indexer
from indexer.building.run import build as resume
from indexer.corpus import Corpus
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.models import Runner, adapt
from indexer.names import Key
from indexer.partials.merge import merge_indexes
from indexer.sites import find
from indexer.tokens import Batch, Batches, Encoder
from indexer.tokens.encode import in_target_mode
from tests.test_bands import hash_of_the_page
from tests.test_resume import options as resumed_options
from tests.test_resume import stopped_after
from tests.test_sites import build, rows
from tests.test_stacks import NEAR, STARTS, Keeper, projection, run
from tests.tiny_batches import tiny_batch
from tests.tiny_models import LAYERS, saved, tiny, tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT, BODY = 24, 22
# words of each source and its target: longer, shorter, of one length, and both or one too long
LENGTHS = [(12, 4), (3, 20), (9, 9), (1, 1), (30, 7), (5, 40), (22, 22), (60, 70), (8, 2)]


def words(length: int, seed: int) -> list[str]:
    return [f"w{word}" for word in np.random.default_rng(seed).integers(0, 90, length)]


RECORDS = [
    {"n": number, "de": " ".join(words(source, number)), "pair": {"en": " ".join(words(target, 50 + number))}}
    for number, (source, target) in enumerate(LENGTHS)
] + [{"n": 9, "de": "", "pair": {"en": "w1"}}, {"n": 10, "de": None, "pair": {"en": None}}]
COLUMNS = {"text_column": "de", "target_column": "pair.en", "context": CONTEXT, "batch_tokens": 100}


def jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def ids_of(text: str) -> list[int]:
    """What a stack reads: as much as fits, between the special tokens."""
    return [1, *(int(word[1:]) + 4 for word in text.split()[:BODY]), 2]


# by layer and document: the token ids that its stack reads, and [tokens, units]
Truth = dict[str, dict[int, tuple[list[int], NDArray[np.float32]]]]


def by_plain_hooks(model: Path, name: str) -> Truth:
    """Every pair run by itself: what each projection was given, the decoder's start token left out."""
    plain = AutoModel.from_pretrained(model).eval()
    seen: dict[str, np.ndarray] = {}
    for stack, layers in (("encoder", LAYERS), ("decoder", LAYERS - 1)):
        for layer in range(layers):

            def keep(module: Any, args: Any, key: str = f"{stack}.mlp.{layer}") -> None:
                seen[key] = args[0][0].numpy()[key.startswith("decoder") :].copy()

            plain.get_submodule(projection(name, stack, layer)).register_forward_pre_hook(keep)
    truth: Truth = {}
    for document, record in enumerate(RECORDS[: len(LENGTHS)]):
        source, target = ids_of(record["de"]), ids_of(record["pair"]["en"])
        with torch.inference_mode():
            plain(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[STARTS[name], *target]]))
        for key, values in seen.items():
            ids = target if key.startswith("decoder") else source
            truth.setdefault(key, {})[document] = ids, values
    return truth


@pytest.fixture(scope="module", params=["t5", "bart"])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Index, Truth]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = saved(folder / "model", request.param)
    corpus = [jsonl(folder / "pairs.jsonl", RECORDS)]
    output = build(model, corpus, folder / "index", **COLUMNS, window=(5, 3), panel=4, top=4)
    with indexer.open_index(output) as index:
        yield index, by_plain_hooks(model, request.param)


KEYS = ("encoder.mlp.0", "encoder.mlp.2", "decoder.mlp.0", "decoder.mlp.1")


def test_statistics_of_each_stack_are_of_what_it_reads(built: tuple[Index, Truth]) -> None:
    index, truth = built
    index.verify(full=True)
    units = index.sql("SELECT * FROM units ORDER BY unit").to_pylist()
    tokens = {}
    for key in KEYS:
        counted = np.concatenate([values[1:-1] for _, values in truth[key].values()])
        mine = [row for row in units if f"{row['site']}.{row['layer']}" == key]
        assert {row["count"] for row in mine} == {len(counted)}
        tokens[key] = len(counted)
        for name in ("maximum", "minimum", "mean"):
            expected = getattr(counted, name.removesuffix("imum"))(0)
            np.testing.assert_allclose([row[name] for row in mine], expected, **NEAR)
        assert sum(row["count"] for row in index.histogram(f"{key}.7").to_pylist()) == len(counted)
    totals = index.info()["totals"]
    assert tokens["encoder.mlp.0"] == sum(min(BODY, source) for source, _ in LENGTHS)
    assert totals["counted_tokens"] == tokens["encoder.mlp.0"] + tokens["decoder.mlp.0"]
    assert totals["target_counted_tokens"] == tokens["decoder.mlp.0"]
    assert (totals["documents"], totals["sequences"], totals["pairs_cut_off"]) == (9, 9, 3)
    read = [token for key in KEYS[::2] for ids, _ in truth[key].values() for token in ids[1:-1]]
    known = index.sql('SELECT token_id, "count" FROM vocabulary WHERE "count" > 0').to_pylist()
    counts = {row["token_id"]: row["count"] for row in known}
    assert counts == {token: read.count(token) for token in set(read)}


def test_an_example_shows_what_its_stack_read(built: tuple[Index, Truth]) -> None:
    index, truth = built
    for key in KEYS:
        read = truth[key]
        for unit in (0, 7, 47):
            name = f"{key}.{unit}"
            peaks = sorted((values[1:-1, unit].max() for _, values in read.values()), reverse=True)
            found = index.top(name).to_pylist()
            np.testing.assert_allclose([row["value"] for row in found], peaks[: len(found)], **NEAR)
            for row in [*found, *index.samples(name).to_pylist(), *index.bottom(name).to_pylist()]:
                ids, values = read[row["document"]]
                window = slice(row["window_start"], row["window_start"] + len(row["token_ids"]))
                assert (row["sequence"], row["token_id"]) == (0, ids[row["position"]])
                assert row["token_ids"] == ids[window]
                np.testing.assert_allclose(row["activations"], values[window, unit], **NEAR)


def test_each_stack_has_a_panel_of_what_it_reads(built: tuple[Index, Truth]) -> None:
    index, truth = built
    hash_of = hash_of_the_page()
    smallest = sorted(range(len(LENGTHS)), key=lambda document: hash_of(0, "panel", 0, document, 0))[:4]
    for key, view in (("encoder.mlp.1", "panel"), ("decoder.mlp.1", "target_panel")):
        panel, read = index.panel(key), truth[key]
        assert panel.windows["document"].to_pylist() == smallest
        assert panel.windows["token_ids"].to_pylist() == [read[document][0][1:-1] for document in smallest]
        expected = np.concatenate([read[document][1][1:-1] for document in smallest])
        np.testing.assert_allclose(panel.activations, expected, **NEAR)
        np.testing.assert_array_equal(index.panel_row(f"{key}.3"), panel.activations[:, 3])
        assert index.sql(f"SELECT * FROM {view} ORDER BY ALL").to_pylist() == panel.windows.to_pylist()
        rows = f"FROM {view}_activations WHERE site = ? AND layer = 1 AND unit = 3"
        shown = index.sql(f'SELECT activations {rows} ORDER BY "window"', [key.removesuffix(".1")])
        assert [value for row in shown["activations"].to_pylist() for value in row] == panel.activations[
            :, 3
        ].tolist()
    assert index.info()["panel_windows"] == 4


def test_a_document_is_read_again_as_either_text(built: tuple[Index, Truth]) -> None:
    index, _ = built
    for row in index.sql("SELECT * FROM documents").to_pylist():
        record = RECORDS[row["row"]]
        assert row["characters"] == len(record["de"])
        assert index.document(row["document"]) == record["de"]
        assert index.document(row["document"], target=True) == record["pair"]["en"]


def test_every_format_has_the_same_pairs(tmp_path: Path) -> None:
    flat = [{"n": one["n"], "de": one["de"], "en": one["pair"]["en"]} for one in RECORDS]
    table = pa.Table.from_pylist(flat)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.json").write_text(json.dumps(flat))
    jsonl(tmp_path / "a.jsonl", flat)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["en", "n", "de"], *([one["en"], one["n"], one["de"]] for one in flat)])
    expected = [(row, one["de"], one["en"]) for row, one in enumerate(flat[: len(LENGTHS)])]
    for kind in ("jsonl", "json", "csv", "parquet", "arrow"):
        corpus = Corpus([str(tmp_path / f"a.{kind}")], text_column="de", target_column="en")
        assert [(one.row, "".join(one.pieces), one.target) for one in corpus.documents()] == expected
        assert corpus.counts.empty == 2
        assert corpus.coverage()[0].digest == coverage_of(expected)


def coverage_of(pairs: list[tuple[int, str, str]]) -> str:
    digest = "0" * 64
    for row, *texts in pairs:
        both = sha256(b"".join(sha256(text.encode()).digest() for text in texts)).digest()
        digest = sha256(bytes.fromhex(digest) + row.to_bytes(8, "little") + both).hexdigest()
    return digest


@pytest.mark.slow
def test_a_corpus_in_parts_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "model", "bart")
    options = {
        **COLUMNS, "numerics": "reproducible", "sites": "mlp,heads", "layers": "1", "panel": 4,
        "piece_bytes": 300,
    }  # fmt: skip
    halves = [
        jsonl(tmp_path / f"{number}.jsonl", RECORDS[first:last])
        for number, (first, last) in enumerate([(0, 4), (4, len(LENGTHS))])
    ]
    expected = rows(build(model, halves, tmp_path / "whole", **options))
    parts = [build(model, halves, tmp_path / f"{n}", **options, shard=(n, 2)) for n in range(2)]
    merge_indexes(parts, tmp_path / "merged")
    settings = {"model": str(model), **options, "checkpoint_minutes": 0, "top": 3, "bottom": 3}
    config = resumed_options(tmp_path / "resumed", halves, **settings)
    stopped_after(config, 2, monkeypatch)
    resume(config)
    build(model, halves[:1], tmp_path / "more", **options)
    build(model, halves[1:], tmp_path / "more", **options, append=True)
    for name in ("merged", "resumed", "more"):
        assert rows(tmp_path / name) == expected
        with indexer.open_index(tmp_path / name) as index:
            index.verify(full=True)
            assert index.info()["totals"]["pairs_cut_off"] == 3
            assert index.panel("decoder.heads.1").activations.any()


def encoded(corpus: Corpus, shapes: str, start: Any = None, **options: Any) -> Batches:
    layout = {"context": CONTEXT, "batch_tokens": 60, "shapes": shapes, "targets": True, **options}
    return Batches(corpus, tokenizer(), start=start, **layout)


def pairs_of(batch: Batch) -> dict[int, tuple[list[int], list[int]]]:
    """By document: what either stack is given."""
    assert batch.target is not None
    return {
        document: (
            batch.token_ids[number, : batch.length[number]].tolist(),
            batch.target.token_ids[number, : batch.target.length[number]].tolist(),
        )
        for number, document in enumerate(batch.document.tolist())
    }


@pytest.mark.parametrize("shapes", ["tight", "fixed", "equal", "single"])
def test_pairs_stay_together_in_batches_of_any_shape(shapes: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pairs.jsonl", RECORDS)
    wanted = {"text_column": "de", "target_column": "pair.en"}
    found: dict[int, Any] = {}
    with encoded(Corpus([source], **wanted), shapes) as batches:
        for number, batch in enumerate(batches):
            found |= pairs_of(batch)
            assert batch.target is not None
            assert len(batch.token_ids) == len(batch.target.token_ids)
            if shapes in ("equal", "single"):
                assert len({*batch.length}) == len({*batch.target.length}) == 1
            if number == 1:
                position, so_far = batches.position(), dict(found)
    whole = [(ids_of(one["de"]), ids_of(one["pair"]["en"])) for one in RECORDS[: len(LENGTHS)]]
    assert found == dict(enumerate(whole))
    assert batches.totals.pairs_cut_off == 3
    with encoded(Corpus([source], **wanted), shapes, position) as rest:
        for batch in rest:
            so_far |= pairs_of(batch)
    assert so_far == found
    assert rest.totals == batches.totals


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_neither_batches_nor_halves_of_them_part_a_pair(name: str) -> None:
    loaded = adapt(tiny(name))
    batch, target = tiny_batch(3, 24, 17, 1, 11), tiny_batch(9, 2, 15, 4, 23, seed=1)
    batch.target = target
    together, halves = Keeper(), Keeper()
    probes = find(loaded)
    Runner(loaded, probes, together.take, chunk_tokens=30).run(batch)
    runner = Runner(loaded, probes, halves.take)
    runner.most_tokens = 60
    runner.run(batch)
    last = Key("decoder.mlp", LAYERS - 2)
    assert len(halves.values[last]) > 1
    for number in range(5):
        alone = batch.alone(number)
        alone.target = target.alone(number)
        expected = run(loaded, probes, alone)
        for key, values in expected.values.items():
            length = (target if key.site == last.site else batch).length[number]
            for found in (together, halves):
                torch.testing.assert_close(found.sequence(key, number), values[0][-int(length) :], **NEAR)


def test_token_ids_and_bounds(tmp_path: Path) -> None:
    table = {"ids": [[5, 6], [7], [], [8, 9]], "more": [[10, 11, 12], [13], [], [14]]}
    pq.write_table(pa.table(table), tmp_path / "ids.parquet")
    corpus = Corpus([str(tmp_path / "ids.parquet")], ids_column="ids", target_column="more")
    with encoded(corpus, "single", special_tokens=False, max_tokens=7) as batches:
        found = [pairs_of(batch) for batch in batches]
    assert found == [{0: ([5, 6], [10, 11, 12])}, {1: ([7], [13])}]
    assert (batches.totals.counted_tokens, batches.totals.target_counted_tokens) == (7, 4)


class OfTwoLanguages:
    """A tokenizer that puts other special tokens around a target, as those of NLLB and mBART do."""

    def __init__(self) -> None:
        self.plain = tokenizer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def _switch_to_target_mode(self) -> None:
        from tokenizers.processors import TemplateProcessing

        self.plain.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A w3", special_tokens=[("w3", self.plain.convert_tokens_to_ids("w3"))]
        )

    def _switch_to_input_mode(self) -> None:
        self.plain.backend_tokenizer.post_processor = tokenizer().backend_tokenizer.post_processor


def test_a_target_is_wrapped_as_its_language_is() -> None:
    two = OfTwoLanguages()
    with in_target_mode(two):
        target = Encoder(two)
    assert target.suffix.tolist() == [two.convert_tokens_to_ids("w3")]
    assert Encoder(two).suffix.tolist() == Encoder(tokenizer()).suffix.tolist()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"de": "w1", "en": ""}, 'line 2: column "en" holds no target for the decoder to read; fill it in'),
        ({"de": "w1", "en": None}, 'line 2: column "en" holds no target for the decoder to read; fill it in'),
        ({"de": "w1"}, r'line 2: no column "en" \(it has: de\). Name the one to index with --target-column'),
        ({"de": "w1", "en": 3}, 'line 2: column "en" holds int, not text. .* with --target-column'),
        ({"en": "w1"}, r'line 2: no column "de" \(it has: en\). Name the one to index with --text-column'),
        ("w1", "line 2: a JSON str, not an object with named columns"),
    ],
)
def test_a_record_without_a_pair_is_refused(record: Any, said: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"de": "w1", "en": "w2"}, record])
    with pytest.raises(IndexerError, match=said):
        list(Corpus([source], text_column="de", target_column="en").documents())
    if isinstance(record, dict) and len(record) == 2 and record["en"] != 3:
        pq.write_table(pa.Table.from_pylist([{"de": "w1", "en": "w2"}, record]), tmp_path / "a.parquet")
        with pytest.raises(IndexerError, match=said.replace("line 2", "row 1")):
            list(Corpus([str(tmp_path / "a.parquet")], text_column="de", target_column="en").documents())


def test_what_has_no_columns_or_no_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 w2")
    model = saved(tmp_path / "bart", "bart")
    with pytest.raises(IndexerError, match="a text has no column of targets; give JSON, Parquet or Arrow"):
        build(model, [str(tmp_path / "a.txt")], tmp_path / "i", target_column="en")
    model, source = saved(tmp_path / "llama"), jsonl(tmp_path / "a.jsonl", [{"text": "w1", "en": "w2"}])
    with pytest.raises(IndexerError, match=r"^--target-column en: the model .* has no decoder beside"):
        build(model, [source], tmp_path / "i", target_column="en")
