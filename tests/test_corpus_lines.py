"""JSON Lines cut anywhere: the parts are the whole, and no part reads what belongs to the others."""

from __future__ import annotations

import codecs
import json
import random
from pathlib import Path
from typing import Any

import pytest

from indexer.corpus import Corpus, CorpusFile, Piece
from indexer.corpus.pieces import share_of
from indexer.corpus.streams import BLOCK_BYTES, HashedFile

BLANK = ("", "  ", "\r")


def lines(chosen: random.Random, count: int) -> str:
    """Records, blank lines among them, of many lengths, with an end or without."""
    found = []
    for number in range(count):
        text = f"{number} é " + "x" * chosen.choice((0, 1, 30, 700))
        found.append(
            chosen.choice(BLANK) if chosen.random() < 0.2 else json.dumps({"text": text}, ensure_ascii=False)
        )
    return "\n".join(found) + chosen.choice(("", "\n", "\n\n"))


def read(corpus: Corpus, pieces: list[Piece] | None = None) -> list[tuple[int, str]]:
    return [(document.row, "".join(document.pieces)) for document in corpus.documents(pieces)]


def cut(path: Path, piece_bytes: int, shards: int, **options: Any) -> tuple[list[Any], list[Corpus]]:
    """What the shards read of a file, and their corpora."""
    found, corpora = [], []
    for shard in range(shards):
        corpus = Corpus([str(path)], allow_empty=True, **options)
        found += read(corpus, share_of(corpus.pieces(piece_bytes), shard, shards))
        corpora.append(corpus)
    return found, corpora


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le"])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_the_parts_are_the_whole(seed: int, encoding: str, tmp_path: Path) -> None:
    chosen = random.Random(seed)
    path = tmp_path / "a.jsonl"
    mark = codecs.BOM_UTF16_LE if encoding == "utf-16-le" else b""
    path.write_bytes(mark + lines(chosen, 60).encode(encoding))
    whole = Corpus([str(path)])
    expected = read(whole)
    assert len(expected) > 30
    for shards in (2, 3, 7, 50):
        found, corpora = cut(path, chosen.choice((1, 40, 300)), shards)
        assert sorted(found) == expected
        assert sum(corpus.counts.documents for corpus in corpora) == whole.counts.documents
        rows = [part for corpus in corpora for part in corpus.coverage()]
        assert sum(part.documents for part in rows) == len(expected)
        # what all have read together is the file
        assert sum(corpus.counts.bytes_read for corpus in corpora) >= path.stat().st_size
        if encoding != "utf-16-le":
            # a digest of the file would be that of a part
            assert all(entry["sha256"] is None for corpus in corpora for entry in corpus.digests())


def test_each_part_hashes_and_splits_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number} " + "x" * 900}) + "\n" for number in range(9000)))
    read_of: list[int] = []
    original = HashedFile.readinto

    def counting(self: HashedFile, buffer: Any) -> int:
        count = original(self, buffer)
        read_of.append(count)
        return count

    monkeypatch.setattr(HashedFile, "readinto", counting)
    size, shards = path.stat().st_size, 12
    found, _ = cut(path, size // 30, shards)
    assert [row for row, _ in found] == list(range(9000))
    assert sum(read_of) <= size + shards * 2 * BLOCK_BYTES


def test_a_file_that_lacks_the_column_is_left_out_by_every_part(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n" + "".join(json.dumps({"body": "x" * 90}) + "\n" for _ in range(50))
    )
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "some"}) + "\n")
    corpora = []
    for shard in range(3):
        corpus = Corpus([str(tmp_path)], allow_empty=True)
        corpora.append(corpus)
        texts = read(corpus, share_of(corpus.pieces(400), shard, 3))
        assert texts in ([], [(0, "some")])
        assert [Path(entry["source"]).name for entry in corpus.digests()] in ([], ["b.jsonl"])
    assert sum(corpus.counts.no_column_skipped for corpus in corpora) == 1
    assert sum(corpus.counts.documents for corpus in corpora) == 1


def test_a_part_of_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 90}) + "\n" for _ in range(50)))
    corpus = Corpus([str(path)], allow_empty=True)
    pieces = share_of(corpus.pieces(400), 2, 3)
    (file,) = corpus.files
    assert isinstance(file, CorpusFile)
    path.write_text(json.dumps({"text": "x"}) + "\n")
    assert read(corpus, pieces) == []
