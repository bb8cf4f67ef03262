"""Reading stopped after any batch and continued by a new process gives what one process gives."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.building.plain import packed, unpacked
from indexer.corpus import Corpus, Piece
from indexer.tokens import Batch, Batches, Position, batch, stream
from tests.tiny_tokenizers import library_text, tiny_tokenizer

TEXT = library_text()
# lengths of documents: many short ones, some of several sequences, empty ones, one that is read in pieces
SIZES = [40, 7, 0, 300, 12, 90, 2500, 5, 33, 0, 61, 800, 18, 25, 9000, 3, 70, 44, 1, 120, 260, 15, 0, 52] * 2


def texts() -> list[str]:
    return [TEXT[137 * number : 137 * number + size] for number, size in enumerate(SIZES)]


def lines(newline: str = "\n", last: str = "\n") -> bytes:
    records = [json.dumps({"text": text}) for text in texts()]
    # blank lines are no records
    records[3] += newline + "  "
    return ("\ufeff" + newline.join(records) + last).encode()


def folder_of_texts(folder: Path) -> list[str]:
    (folder / "texts").mkdir()
    for number, text in enumerate(texts()):
        (folder / "texts" / f"{number:03}.txt").write_text(text)
    (folder / "texts" / "010b.bin").write_bytes(b"\0\1\2" * 100)
    return [str(folder / "texts")]


def file_of(name: str, content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return [str(folder / name)]

    return make


def parquet(folder: Path) -> list[str]:
    pq.write_table(pa.table({"text": texts()}), folder / "a.parquet", row_group_size=7)
    return [str(folder / "a.parquet")]


def csv(folder: Path) -> list[str]:
    rows = ['"' + text.replace('"', '""').replace("\0", "") + '"' for text in texts()]
    (folder / "a.csv").write_text("\n".join(["text", *rows]), newline="")
    return [str(folder / "a.csv")]


def bad_lines() -> bytes:
    records = lines().splitlines(True)
    records[8] = b'{"text": "bad \xff byte"}\n'
    records[20] = b'{"text": "another \xfe"}\n'
    return b"".join(records)


def arrow_file(folder: Path) -> list[str]:
    table = pa.table({"text": texts(), "other": range(len(SIZES))})
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=7)
    return [str(folder / "a.arrow")]


def saved_data_set(folder: Path) -> list[str]:
    Dataset.from_dict({"text": texts()}).save_to_disk(folder / "saved", num_shards=3)
    return [str(folder / "saved")]


def tabs_without_quotes(folder: Path) -> list[str]:
    rows = [f'{number}\t"' + " ".join(text.split()) for number, text in enumerate(texts())]
    (folder / "a.tsv").write_text("\r".join(["id\ttext", *rows]), newline="")
    return [str(folder / "a.tsv")]


def nested_lists(folder: Path) -> list[str]:
    column = [{"parts": text.split("\n")} for text in texts()]
    pq.write_table(pa.table({"data": column}), folder / "a.parquet", row_group_size=7)
    return [str(folder / "a.parquet")]


def chats() -> bytes:
    """Every text as a turn; one chat is so long that it is encoded in pieces."""
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in texts()]
    return "".join(json.dumps({"messages": turn}) + "\n" for turn in turns).encode()


def token_ids(folder: Path) -> list[str]:
    ids = [tiny_tokenizer("wordpiece").encode(text, truncation=False, padding=False) for text in texts()]
    pq.write_table(
        pa.table({"ids": pa.array(ids, pa.list_(pa.int32()))}), folder / "a.parquet", row_group_size=7
    )
    return [str(folder / "a.parquet")]


def among_files_without_the_column(folder: Path) -> list[str]:
    (folder / "all").mkdir()
    (folder / "all" / "a.json").write_text('{"name": "x"}')
    (folder / "all" / "b.jsonl").write_bytes(lines())
    (folder / "all" / "c.jsonl").write_text('\n{"name": "x"}\n' * 2000)
    (folder / "all" / "d.csv").write_text("x,y\n1,2\n")
    pq.write_table(pa.table({"name": ["x"]}), folder / "all" / "e.parquet")
    (folder / "all" / "f.jsonl").write_bytes(lines())
    return [str(folder / "all")]


def template(messages: list[dict[str, Any]]) -> str:
    """As BERT's tokenizer would wrap it, which it does again."""
    return "[CLS]" + "".join(f"{one['role']}: {one['content']}\n" for one in messages) + "[SEP]"


def mixed(folder: Path) -> list[str]:
    return [*file_of("a.jsonl", lines())(folder), *folder_of_texts(folder), *parquet(folder)]


CORPORA: dict[str, tuple[Callable[[Path], list[str]], dict[str, Any]]] = {
    "text files": (folder_of_texts, {}),
    "jsonl": (file_of("a.jsonl", lines()), {}),
    "jsonl, CRLF, no end": (file_of("a.jsonl", lines("\r\n", "")), {}),
    "jsonl.gz": (file_of("a.jsonl.gz", gzip.compress(lines())), {}),
    "json": (file_of("a.json", json.dumps([{"text": text} for text in texts()]).encode()), {}),
    "csv": (csv, {}),
    "parquet": (parquet, {}),
    "bad text left out": (file_of("a.jsonl", bad_lines()), {"on_bad_text": "skip"}),
    "bad text replaced": (file_of("a.jsonl", bad_lines()), {"on_bad_text": "replace"}),
    "jsonl.bz2": (file_of("a.jsonl.bz2", bz2.compress(lines())), {}),
    "jsonl.xz": (file_of("a.jsonl.xz", lzma.compress(lines())), {}),
    "jsonl.zst": (file_of("a.jsonl.zst", bytes(pa.compress(lines(), "zstd", asbytes=True))), {}),
    "jsonl, UTF-16": (file_of("a.jsonl", lines().decode().encode("utf-16-le")), {}),
    "arrow": (arrow_file, {}),
    "save_to_disk": (saved_data_set, {}),
    "tsv, quotes are text": (tabs_without_quotes, {"quoting": "none"}),
    "lists within a struct": (nested_lists, {"text_column": "data.parts"}),
    "object around": (
        file_of("a.json", json.dumps({"data": [{"text": text} for text in texts()]}).encode()),
        {},
    ),
    "bare strings": (file_of("a.jsonl", "\n".join(map(json.dumps, texts())).encode()), {}),
    "chats": (file_of("a.jsonl", chats()), {"text_column": "messages"}),
    "token ids": (token_ids, {"ids_column": "ids"}),
    "some without the column": (among_files_without_the_column, {}),
    "one long text": (file_of("a.txt", TEXT[:60_000].encode()), {}),
    "mixed": (mixed, {}),
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many look-aheads in a small corpus as in a large one."""
    monkeypatch.setattr(batch, "FEWEST_WINDOW_TOKENS", 600)
    monkeypatch.setattr(batch, "WINDOW_BATCHES", 4)
    monkeypatch.setattr(batch, "FIRST_WINDOW_BATCHES", 2)
    monkeypatch.setattr(stream, "CHUNK_CHARACTERS", 900)
    monkeypatch.setattr(stream, "LONG_CHARACTERS", 4000)


class Run:
    """All that one pass over a corpus tells."""

    def __init__(self, sources: list[str], reading: dict[str, Any], options: dict[str, Any]) -> None:
        self.sources, self.reading, self.options = sources, reading, options
        self.batches: list[Batch] = []
        self.finished: list[tuple[int, int]] = []

    def go(self, stop: int | None = None, start: Position | None = None) -> Position:
        """Read on, for `stop` batches or to the end."""
        piece_bytes = self.options.get("piece_bytes", 1 << 20)
        pieces: Callable[[Sequence[Piece]], Sequence[Piece]] = self.options.get("pieces", lambda all: all)
        corpus = Corpus(self.sources, allow_empty=True, **self.reading)
        corpus.write_chat = template
        options = {key: value for key, value in self.options.items() if "piece" not in key}
        options = {"context": 32, "batch_tokens": 256} | options
        options["special_tokens"] = "ids_column" not in self.reading
        chosen = pieces(corpus.pieces(piece_bytes))
        with Batches(corpus, tiny_tokenizer("wordpiece"), pieces=chosen, start=start, **options) as batches:
            for made in batches:
                self.batches.append(made)
                self.finished += batches.finished_documents()
                if stop is not None and len(self.batches) >= stop:
                    return batches.position()
            self.finished += batches.finished_documents()
            self.told = {
                "totals": asdict(batches.totals),
                "counts": {**asdict(corpus.counts), "bytes_read": 0},
                "coverage": [asdict(part) for part in corpus.coverage()],
                "digests": corpus.digests(),
                "finished": sorted(self.finished),
            }
            return batches.position()


def assert_same(ours: Run, theirs: Run) -> None:
    assert len(ours.batches) == len(theirs.batches)
    for left, right in zip(ours.batches, theirs.batches, strict=True):
        for name in ("token_ids", "length", "document", "ordinal", "counted"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert ours.told == theirs.told


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limited": {"max_tokens": 1500},
    "fixed shapes": {"shapes": "fixed", "count_special_tokens": True},
    "pieces": {"piece_bytes": 3000},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("corpus", CORPORA)
def test_stopped_anywhere_and_continued(corpus: str, options: str, tmp_path: Path) -> None:
    make, reading = CORPORA[corpus]
    sources = make(tmp_path)
    whole = Run(sources, reading, OPTIONS[options])
    whole.go()
    count = len(whole.batches)
    assert count > 4
    for stop in sorted({1, 2, 3, count // 3, count // 2, count - 1, count}):
        parts = Run(sources, reading, OPTIONS[options])
        position = parts.go(stop)
        parts.go(start=unpacked(*packed(position)))
        assert_same(parts, whole)


@pytest.mark.parametrize("corpus", [
    "text files", "jsonl", "parquet", "one long text", "mixed", "arrow", "chats", "token ids",
    "some without the column",
])  # fmt: skip
def test_stopped_after_every_batch(corpus: str, tmp_path: Path) -> None:
    make, reading = CORPORA[corpus]
    sources = make(tmp_path)
    whole = Run(sources, reading, {"piece_bytes": 9000})
    whole.go()
    parts = Run(sources, reading, {"piece_bytes": 9000})
    position = parts.go(1)
    for stop in range(2, len(whole.batches) + 1):
        position = parts.go(stop, unpacked(*packed(position)))
    parts.go(start=position)
    assert_same(parts, whole)


def documents(
    sources: list[str], reading: dict[str, Any], pieces: Sequence[Piece] | None = None
) -> list[tuple[int, int, str]]:
    corpus = Corpus(sources, allow_empty=True, **reading)
    corpus.write_chat = template
    return [(found.id, found.piece, "".join(found.pieces)) for found in corpus.documents(pieces)]


CUT = [
    "text files", "jsonl", "jsonl, CRLF, no end", "jsonl, UTF-16", "parquet", "lists within a struct",
    "chats", "save_to_disk", "some without the column", "mixed",
]  # fmt: skip


@pytest.mark.parametrize("corpus", CUT)
def test_pieces_part_the_documents(corpus: str, tmp_path: Path) -> None:
    make, reading = CORPORA[corpus]
    sources = make(tmp_path)
    whole = [(number, text) for number, _, text in documents(sources, reading)]

    @settings(max_examples=25, deadline=None)
    @given(piece_bytes=st.integers(200, 60_000), cuts=st.lists(st.floats(0, 1), max_size=4))
    def check(piece_bytes: int, cuts: list[float]) -> None:
        pieces = Corpus(sources).pieces(piece_bytes)
        assert [piece.number for piece in pieces] == list(range(len(pieces)))
        edges = sorted({0, len(pieces), *(int(cut * len(pieces)) for cut in cuts)})
        parts = [
            found
            for first, last in pairwise(edges)
            for found in documents(sources, reading, pieces[first:last])
        ]
        assert [(number, text) for number, _, text in parts] == whole
        # a document is in the same piece, whoever reads it
        assert parts == documents(sources, reading, pieces)

    check()


@pytest.mark.parametrize("corpus", [
    "text files", "jsonl", "parquet", "mixed", "jsonl, UTF-16", "chats", "token ids",
    "some without the column",
])  # fmt: skip
def test_shards_together_make_the_batches_of_one_build(corpus: str, tmp_path: Path) -> None:
    make, reading = CORPORA[corpus]
    sources = make(tmp_path)
    whole = Run(sources, reading, {"piece_bytes": 2500})
    whole.go()
    number = len(Corpus(sources).pieces(2500))
    assert number > 4
    for shards in (2, 3, number):
        together: list[Batch] = []
        covered = left_out = 0
        for shard in range(shards):
            first, last = number * shard // shards, number * (shard + 1) // shards
            share = {"piece_bytes": 2500, "pieces": lambda all, a=first, b=last: all[a:b]}
            part = Run(sources, reading, share)
            part.go()
            together += part.batches
            covered += sum(entry["documents"] for entry in part.told["coverage"])
            left_out += part.told["counts"]["no_column_skipped"]
        assert len(together) == len(whole.batches)
        for left, right in zip(together, whole.batches, strict=True):
            np.testing.assert_array_equal(left.token_ids, right.token_ids)
            np.testing.assert_array_equal(left.document, right.document)
        assert covered == whole.told["counts"]["documents"]
        assert left_out == whole.told["counts"]["no_column_skipped"]


def test_fixed_shapes_follow_from_length_alone(tmp_path: Path) -> None:
    sources = CORPORA["text files"][0](tmp_path)
    shapes: list[dict[tuple[int, int], tuple[int, ...]]] = []
    for batch_tokens in (64, 256, 2000):
        run = Run(sources, {}, {"shapes": "fixed", "batch_tokens": batch_tokens})
        run.go()
        shapes.append(
            {
                (document, ordinal): made.token_ids.shape
                for made in run.batches
                for document, ordinal in zip(made.document.tolist(), made.ordinal.tolist(), strict=True)
            }
        )
    assert shapes[0] == shapes[1] == shapes[2]
    assert len(set(shapes[0].values())) <= 8


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.txt").write_text("more text")
    corpus = Corpus([str(tmp_path)])
    documents = corpus.documents()
    assert "".join(next(documents).pieces) == "some text"
    # what was changed when it had been read is told, also where that was before anybody asked
    (tmp_path / "a.txt").write_text("other text")
    stamps = json.loads(json.dumps(corpus.stamps()))
    assert "a.txt has changed" in str(corpus.changed_since(stamps))
    (tmp_path / "b.txt").write_text("not read yet, so that it may")
    assert Corpus([str(tmp_path / "b.txt")], first_ordinal=1).changed_since(stamps) is None
