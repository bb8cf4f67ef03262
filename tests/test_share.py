"""A fair part of a corpus: documents by hash, the same whoever reads them, in whatever parts."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from indexer.corpus import Corpus
from indexer.corpus.pieces import share_of
from indexer.corpus.sources import ROW_BITS
from indexer.engines import build, merge
from indexer.errors import IndexerError
from indexer.index.verify import verify_index
from tests.test_pipeline import tables
from tests.test_resume import options, stopped_after

ROWS = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": f"number {row}" * (row % 7)}) for row in range(ROWS)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    for number in range(9):
        (folder / f"b{number}.txt").write_text(f"text {number}")
    return folder


def belongs(document: int, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed} document {document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_documents_are_those_of_the_hash_in_any_parts(share: float, seed: int, folder: Path) -> None:
    every = [document.id for document in Corpus([str(folder)]).documents()]
    some = Corpus([str(folder)], share=share, seed=seed)
    found = [document.id for document in some.documents()]
    assert found == [document for document in every if belongs(document, share, seed)]
    assert some.counts.documents + some.counts.not_in_share == len(every)
    assert some.counts.bytes_read == some.bytes
    parts = []
    for shard in range(3):
        part = Corpus([str(folder)], share=share, seed=seed, allow_empty=True)
        parts += [document.id for document in part.documents(share_of(part.pieces(1000), shard, 3))]
    assert sorted(parts) == found


def test_every_document_has_the_same_chance(folder: Path) -> None:
    times = dict.fromkeys((document.id for document in Corpus([str(folder)]).documents()), 0)
    seeds = 100
    for seed in range(seeds):
        for document in Corpus([str(folder)], share=0.3, seed=seed).documents():
            times[document.id] += 1
    # chi-square with as many degrees of freedom as there are documents, nearly normal
    expected, variance = 0.3 * seeds, 0.3 * 0.7 * seeds
    statistic = sum((count - expected) ** 2 / variance for count in times.values())
    assert abs(statistic - len(times)) < 4 * math.sqrt(2 * len(times))


@pytest.mark.slow
def test_an_index_of_a_part_is_that_of_its_shards_and_goes_on_after_a_stop(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", [str(folder)], share=0.4, seed=3, piece_bytes=1000)
    parts = [
        build(config.model_copy(update={"shard": (shard, 3), "output": tmp_path / f"{shard}.index"}))
        for shard in range(3)
    ]
    merged = tables(merge(parts, tmp_path / "merged.index"))
    stopped_after(config, 1, monkeypatch)
    assert tables(build(config)) == merged
    verify_index(config.output, full=True)
    corpus = json.loads((config.output / "manifest.json").read_text())["corpus"]
    kept = sum(belongs(0 << ROW_BITS | row, 0.4, 3) for row in range(ROWS) if row % 7)
    kept += sum(belongs((1 + number) << ROW_BITS, 0.4, 3) for number in range(9))
    assert corpus["documents"] == kept
    assert kept + corpus["documents_not_in_share"] + corpus["empty_documents"] == ROWS + 9


def test_parts_of_different_shares_do_not_merge(folder: Path, tmp_path: Path) -> None:
    one, other = (
        build(options(tmp_path / f"{shard}.index", [str(folder)], shard=(shard, 2), share=share))
        for shard, share in ((0, 0.4), (1, 0.5))
    )
    with pytest.raises(IndexerError, match="share"):
        merge([one, other], tmp_path / "c.index")


def test_a_part_without_a_document_is_told(folder: Path) -> None:
    with pytest.raises(IndexerError, match=r"no text: .*, 351 not in --share 1e-12"):
        list(Corpus([str(folder)], share=1e-12).documents())
