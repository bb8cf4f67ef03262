"""What comes out of each kind of file, whole, compressed, broken, or not UTF-8."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import random
import sysconfig
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.corpus import Corpus
from indexer.corpus.streams import BLOCK_BYTES
from indexer.errors import IndexerError

TEXTS = [
    "one",
    'two "quoted", with comma',
    "three\nlines\r\nof text",
    "",
    "Größe 東京 👩‍👧",
    "nul\0byte",
    "x" * 70_000,
]
LONG = 3 << 20


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def json_array(texts: list[str]) -> bytes:
    return json.dumps([{"id": 1, "text": text} for text in texts], indent=1, ensure_ascii=False).encode()


def json_objects(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, indent=2) for text in texts).encode()


def comma_separated(texts: list[str], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([("id", "text"), *((1, text) for text in texts)])
    return file.getvalue().encode()


def parquet(texts: list[str], kind: pa.DataType | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [1] * len(texts), "text": pa.array(texts, kind)}), file, row_group_size=3)
    return file.getvalue()


def zstandard(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


FORMS: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl": jsonl,
    "ndjson": jsonl,
    "json": json_array,
    "objects.json": json_objects,
    "lines.json": jsonl,
    "csv": comma_separated,
    "tsv": lambda texts: comma_separated(texts, "\t"),
    "parquet": parquet,
    "large.parquet": lambda texts: parquet(texts, pa.large_string()),
    "binary.parquet": lambda texts: parquet(texts, pa.binary()),
    "dictionary.parquet": lambda texts: parquet(texts, pa.dictionary(pa.int32(), pa.string())),
}


def read(*sources: Path, **options: Any) -> tuple[list[tuple[int, str]], Corpus]:
    corpus = Corpus([str(source) for source in sources], **options)
    return [(document.id, "".join(document.pieces)) for document in corpus.documents()], corpus


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("form", "packing"),
    # Parquet packs by itself
    [
        (form, packing)
        for form in FORMS
        for packing in ("", ".gz", ".zst")
        if not (packing and "parquet" in form)
    ],
)
def test_records(tmp_path: Path, form: str, packing: str) -> None:
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstandard}[packing](FORMS[form](TEXTS))
    path = written(tmp_path, f"notes.{form}{packing}", data)
    found, corpus = read(path)
    assert found == [(row, text) for row, text in enumerate(TEXTS) if text]
    assert (corpus.counts.documents, corpus.counts.empty) == (len(TEXTS) - 1, 1)
    assert corpus.counts.characters == sum(map(len, TEXTS))
    assert corpus.counts.bytes_read == corpus.bytes == len(data)
    digest = hashlib.sha256(data).hexdigest()
    assert corpus.digests() == [{"source": str(path), "bytes": len(data), "sha256": digest}]


def test_ids_are_file_ordinal_and_row(tmp_path: Path) -> None:
    first = written(tmp_path, "a.txt", b"whole file")
    second = written(tmp_path, "b.jsonl", b'{"text": "x"}\n\n  \n{"text": ""}\n{"text": "y"}')
    found, _ = read(first, second)
    assert found == [(0, "whole file"), (1 << 40, "x"), (1 << 40 | 4, "y")]
    documents = list(Corpus([str(first), str(second)]).documents())
    assert [(document.source, document.row) for document in documents] == [
        (str(first), 0), (str(second), 0), (str(second), 4),
    ]  # fmt: skip


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["book.txt", "module.py", "page.rst", "README", "odd.name"])
def test_text_files(tmp_path: Path, name: str, packing: str) -> None:
    text = "A line.\r\nGröße 東京\n" * 200_000
    data = {"": bytes, ".gz": gzip.compress, ".zst": zstandard}[packing](text.encode())
    path = written(tmp_path, name + packing, data)
    found, corpus = read(path)
    assert found == [(0, text)]
    assert corpus.digests()[0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert corpus.counts.bytes_read == len(data)


@pytest.mark.parametrize("form", ["txt", "jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, form: str) -> None:
    data = b"x" if form == "txt" else FORMS[form](["x"])
    if form == "csv":
        data = b"text\nx\n"
    found, _ = read(written(tmp_path, f"file.{form}", b"\xef\xbb\xbf" + data))
    assert found == [(0, "x")]


def test_another_column(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"body,text\nthis,that\n")
    assert read(path, text_column="body")[0] == [(0, "this")]


def test_null_is_an_empty_document(tmp_path: Path) -> None:
    lines = written(tmp_path, "a.jsonl", b'{"text": null}\n{"text": "x"}\n')
    table = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": pa.array([None, "y"])}), table)
    nulls = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": pa.nulls(2)}), nulls)
    found, corpus = read(lines, table, nulls)
    assert [text for _, text in found] == ["x", "y"]
    assert corpus.counts.empty == 4


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.jsonl", b'{"text": "x"}\n{"body": 1, "title": 2}\n',
     r'a.jsonl, line 2: no column "text" \(it has: body, title\). Name the one to index with --text-column'),
    ("a.json", b'[{"body": 1}]', r'a.json, record 1: no column "text" \(it has: body\)'),
    ("a.csv", b"body,title\nx,y\n", r'a.csv: no column "text" \(it has: body, title\)'),
    ("a.parquet", None, r'a.parquet: no column "text" \(it has: body, title\)'),
    ("a.jsonl", b'{"text": 5}\n', 'line 1: column "text" holds int, not text'),
    ("a.jsonl", b'["text"]\n', "line 1: a JSON list, not an object"),
    ("a.jsonl", b'{"text": "x"}\n{"text": "y\n', r"a.jsonl, line 2: not JSON \("),
    ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ("a.json", b'[{"text": "x"}, {"text": ]', r"record 2: not JSON \(Expecting value"),
    ("a.json", b'[{"text": "x"}', r"record 2: not JSON \(the array is cut off"),
    ("a.json", b'[{"text": "x"} {"text": "y"}]', "record 2: not JSON"),
    ("a.json", b'[{"text": "x"}] x', "record 2: not JSON"),
    ("a.csv", b"id,text\n1,x\n2\n", 'line 3: 1 fields, so no column "text"'),
    ("a.csv", b'id,text\n1,"never closed\n2,x\n', r"a.csv, line 3: not CSV \(unexpected end of data\)"),
    ("a.csv.gz", b"no gzip at all", r"a.csv.gz: broken gzip data \(.*\); restore the file or leave it out"),
    ("a.txt.gz", gzip.compress(os.urandom(100_000))[:-50], "broken gzip data .*runcated"),
    ("a.jsonl.zst", b"no zstd at all", "a.jsonl.zst: broken Zstandard data"),
    ("a.txt.zst", zstandard(os.urandom(100_000))[:-50], "broken Zstandard data .*runcated"),
    ("b.parquet", b"PAR1 no Parquet PAR1", "b.parquet: broken parquet data"),
    ("c.parquet", b"", "c.parquet: broken parquet data"),
    ("a.txt", b"", "the corpus has no text: 1 file, 1 empty document"),
    ("a.jsonl", b'\n{"text": ""}\n', "the corpus has no text"),
    ("a.csv", b"", "the corpus has no text"),
    ("a.csv", b"text\n", "the corpus has no text"),
    ("a.bin", b"\x7fELF\0\0\xff\xfe", "a.bin: binary, not text; name text, JSON"),
])  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    path = tmp_path / name
    if data is None:
        pq.write_table(pa.table({"body": ["x"], "title": ["y"]}), path)
    else:
        path.write_bytes(data)
    with pytest.raises(IndexerError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    if "no text" in message:
        # told before the model is loaded
        with pytest.raises(IndexerError, match=message):
            Corpus([str(path)]).look()


def test_text_that_a_look_does_not_reach_may_follow(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 1000 + '{"text": "x"}\n')
    Corpus([str(path)]).look()
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(IndexerError, match="the corpus has no text: 1 file, 1 empty document"):
        Corpus([str(tmp_path / "b.txt")]).look()
    Corpus([str(tmp_path / "b.txt")], allow_empty=True).look()


def test_a_damaged_parquet_page(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(number) * 9 for number in range(9999)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[1000:1400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(IndexerError, match="broken parquet data"):
        read(path)


def test_a_parquet_column_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(IndexerError, match='row 0: column "text" holds int64, not text'):
        read(path)


def test_a_file_that_vanished(tmp_path: Path) -> None:
    for name in ("a.txt", "a.parquet", "a.jsonl"):
        path = written(tmp_path, name, b"x")
        corpus = Corpus([str(path)])
        path.unlink()
        with pytest.raises(IndexerError, match=rf"{name}: cannot be read \(no such file"):
            list(corpus.documents())


BAD = "good Größe ".encode() + b"\xff bad \xe2\x82"


def bad_files(folder: Path) -> dict[str, tuple[Path, int]]:
    """By form: a file with a good and a bad document, and the offset of the first bad byte."""
    lines = b'{"text": "good"}\n{"text": "' + BAD + b'"}\n'
    array = b'[{"text": "good"}, {"text": "' + BAD + b'"}]'
    table = b"id,text\n1,good\n2," + BAD + b"\n"
    files = {"jsonl": lines, "json": array, "csv": table}
    found = {
        form: (written(folder, f"bad.{form}", data), data.index(b"\xff")) for form, data in files.items()
    }
    path = folder / "bad.parquet"
    column = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", BAD], pa.binary()).buffers())
    pq.write_table(pa.table({"text": column}), path)
    found["parquet"] = (path, BAD.index(b"\xff"))
    return found


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_bad_text_in_records(tmp_path: Path, form: str) -> None:
    path, offset = bad_files(tmp_path)[form]
    with pytest.raises(IndexerError, match=rf"bad.{form}.* byte {offset}\b.*not valid UTF-8 \(0xff\)"):
        read(path)
    found, corpus = read(path, on_bad_text="replace")
    assert [text for _, text in found] == ["good", BAD.decode("utf-8", "replace")]
    assert (corpus.counts.bad_text_replaced, corpus.counts.bad_text_skipped) == (1, 0)
    found, corpus = read(path, on_bad_text="skip")
    assert [text for _, text in found] == ["good"]
    assert (corpus.counts.bad_text_replaced, corpus.counts.bad_text_skipped) == (0, 1)
    assert corpus.counts.bytes_read == path.stat().st_size


@pytest.mark.parametrize("before", [0, 1, BLOCK_BYTES - 6, BLOCK_BYTES - 1, LONG])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_bad_text_in_text_files(tmp_path: Path, before: int, packing: str) -> None:
    data = b"a" * before + "é".encode() + b"\xc3 tail" + b"\xe2\x82"
    packed = gzip.compress(data, 1) if packing else data
    path = written(tmp_path, "bad.txt" + packing, packed)
    good = written(tmp_path, "good.txt", b"good")
    with pytest.raises(IndexerError, match=rf"bad.txt{packing}, byte {before + 2}: not valid UTF-8 \(0xc3\)"):
        read(path, good)
    found, corpus = read(path, good, on_bad_text="replace")
    assert found == [(0, data.decode("utf-8", "replace")), (1 << 40, "good")]
    assert corpus.counts.bad_text_replaced == 1
    found, corpus = read(path, good, on_bad_text="skip")
    assert found == [(1 << 40, "good")]
    assert corpus.counts.bad_text_skipped == 1
    assert corpus.counts.bytes_read == corpus.bytes


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_lone_surrogate_is_bad_text(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, f"a.{form}", b'{"text": "x\\ud800y\\udcffz"}\n{"text": "\\ud83d\\ude00"}\n')
    with pytest.raises(IndexerError, match="a lone surrogate"):
        read(path)
    found, _ = read(path, on_bad_text="replace")
    assert found == [(0, "x\ufffdy\ufffdz"), (1, "\U0001f600")]
    assert read(path, on_bad_text="skip")[0] == [(1, "\U0001f600")]


def test_binary_files_of_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    written(tmp_path, "a.pyc", b"\xa7\r\r\n\0\0\0\0")
    written(tmp_path, "b.txt", b"text")
    found, corpus = read(tmp_path)
    assert found == [(1 << 40, "text")]
    assert corpus.counts.binary_skipped == 1
    assert corpus.counts.bytes_read == corpus.bytes
    assert [digest["source"] for digest in corpus.digests()] == [str(tmp_path / "b.txt")]


def test_text_with_a_nul_byte_is_read_where_it_is_named(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.txt", b"a\0b"))[0] == [(0, "a\0b")]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_a_pass_that_is_broken_off_has_no_digest(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, f"a.{form}", FORMS[form](["x" * 1000] * 5000))
    corpus = Corpus([str(path)])
    documents = corpus.documents()
    next(documents)
    documents.close()  # type: ignore[attr-defined]
    assert corpus.digests() == [{"source": str(path), "bytes": None, "sha256": None}]


def test_a_second_pass_counts_from_zero(tmp_path: Path) -> None:
    corpus = Corpus([str(written(tmp_path, "a.txt", b"text"))])
    for _ in range(2):
        assert sum(1 for _ in corpus.documents()) == 1
        assert corpus.counts.documents == 1


def test_documents_left_unread_are_checked_and_counted_all_the_same(tmp_path: Path) -> None:
    corpus = Corpus([str(written(tmp_path, "a.txt", b"a" * LONG))])
    for document in corpus.documents():
        next(document.pieces)
    assert corpus.counts.characters == LONG
    assert corpus.digests()[0]["bytes"] == LONG


def test_memory_is_that_of_a_block_not_of_the_file(tmp_path: Path) -> None:
    text = written(tmp_path, "a.txt", b"some text " * 3_000_000)
    lines = written(tmp_path, "b.jsonl", jsonl(["some text " * 100] * 30_000))
    array = written(tmp_path, "c.json", json_array(["some text " * 100] * 30_000))
    tracemalloc.start()
    for path in (text, lines, array):
        for document in Corpus([str(path)]).documents():
            for _ in document.pieces:
                pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_json_text_in_any_blocks(block: int) -> None:
    from indexer.corpus.json_stream import values

    chance = random.Random(3)
    records = [
        {"text": 'é\\u12"[]{}, ' * chance.randint(0, 9), "number": 12.5, "list": [1, None, True]}
        for _ in range(40)
    ]
    for text in (
        json.dumps(records),
        json.dumps(records, indent=2),
        "\n".join(map(json.dumps, records)),
        " ",
    ):
        expected = [] if text == " " else records
        blocks = (text[first : first + block] for first in range(0, len(text), block))
        assert list(values(blocks)) == expected
    assert list(values(iter(["[", " ] "]))) == []


def test_the_standard_library(tmp_path: Path) -> None:
    """Real text: every Python file beside each other, and one that is not UTF-8."""
    folder = Path(sysconfig.get_path("stdlib"))
    written(tmp_path, "latin.py", (folder / "argparse.py").read_bytes() + "Größe\n".encode("latin-1"))
    paths = [*sorted(folder.glob("*.py")), tmp_path / "latin.py"]
    found, corpus = read(folder / "*.py", tmp_path, on_bad_text="replace")
    expected = [path.read_bytes().decode("utf-8", "replace").removeprefix("\ufeff") for path in paths]
    assert [text for _, text in found] == [text for text in expected if text]
    assert corpus.counts.documents + corpus.counts.empty == len(paths)
    assert corpus.counts.bad_text_replaced == 1
