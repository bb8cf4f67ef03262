"""Compressed files as people have them, and UTF-16: whole, in several streams, padded, cut off, damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from indexer.corpus import Corpus
from indexer.errors import IndexerError

CHANCE = random.Random(7)
LINES = b"".join(
    json.dumps({"text": " ".join(f"w{CHANCE.randrange(999)}" for _ in range(30))}).encode() + b"\n"
    for _ in range(4000)
)


def long_window(data: bytes) -> bytes:
    """As `zstd --long=31` writes a stream."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": zstandard.compress, ".zstd": long_window,
}  # fmt: skip


def read(path: Path, **options: str) -> list[str]:
    return ["".join(document.pieces) for document in Corpus([str(path)], **options).documents()]  # type: ignore[arg-type]


@pytest.fixture(params=PACKINGS)
def packing(request: pytest.FixtureRequest) -> tuple[str, Callable[[bytes], bytes]]:
    return request.param, PACKINGS[request.param]


Packing = tuple[str, Callable[[bytes], bytes]]


@pytest.mark.parametrize("padding", [0, 512, 100_000])
def test_streams_one_after_another_and_zeros_behind_them(
    packing: Packing, padding: int, tmp_path: Path
) -> None:
    suffix, pack = packing
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(LINES[:100_000]) + pack(LINES[100_000:]) + bytes(padding))
    corpus = Corpus([str(path)])
    texts = ["".join(document.pieces) for document in corpus.documents()]
    assert texts == [json.loads(line)["text"] for line in LINES.splitlines()]
    assert corpus.counts.bytes_read == corpus.bytes == corpus.digests()[0]["bytes"]


def test_a_stream_that_is_cut_off(packing: Packing, tmp_path: Path) -> None:
    suffix, pack = packing
    whole = pack(LINES)
    for cut in (1, 9, 200, len(whole) // 2, len(whole) - 5):
        for before in (b"", pack(LINES)):
            path = tmp_path / f"a.jsonl{suffix}"
            path.write_bytes(before + whole[:-cut])
            with pytest.raises(
                IndexerError, match=rf"a.jsonl\{suffix}: broken \w+ data \(truncated\); restore"
            ):
                read(path)


def test_an_empty_file_is_cut_off(packing: Packing, tmp_path: Path) -> None:
    (tmp_path / f"a.txt{packing[0]}").touch()
    with pytest.raises(IndexerError, match=r"no text|truncated"):
        read(tmp_path / f"a.txt{packing[0]}")


def test_damage_and_what_is_no_stream(packing: Packing, tmp_path: Path) -> None:
    suffix, pack = packing
    whole = bytearray(pack(LINES))
    whole[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)
    for data in (
        bytes(whole),
        pack(LINES) + b"something else",
        b"something else",
        pack(LINES) + bytes(9) + b"x",
    ):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(data)
        # gzip tells damage at the end of a stream alone
        with pytest.raises(IndexerError, match=r"broken|not JSON|not valid UTF-8") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_what_is_held_does_not_grow_with_what_comes_out(packing: Packing, tmp_path: Path) -> None:
    """A gigabyte of blanks in a few kilobytes or megabytes is handed out in blocks."""
    from indexer.corpus.compression import unpacked

    _, pack = packing
    compression = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}[packing[0]]
    data = pack(bytes(64 << 20))
    stream = io.BufferedReader(unpacked(io.FileIO(_written(tmp_path, data)), compression), 1 << 18)  # type: ignore[type-var]
    first = stream.read(1000)
    assert first == bytes(1000)
    inner = stream.raw
    if hasattr(inner, "_ready"):
        assert len(inner._ready) < 160 << 20


def _written(folder: Path, data: bytes) -> str:
    (folder / "packed").write_bytes(data)
    return str(folder / "packed")


TEXT = "Größe 東京 👩‍👧 x\r\ny\n" * 4000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("named", [True, False])
def test_utf16_by_its_mark(encoding: str, suffix: str, named: bool, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    table = 'id,text\r\n1,"' + TEXT + '"\r\n2,é\r\n'
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in (TEXT, "é"))
    array = json.dumps([{"text": TEXT}, {"text": "é"}], ensure_ascii=False)
    expected = {"a.txt": [TEXT], "b.csv": [TEXT, "é"], "c.jsonl": [TEXT, "é"], "d.json": [TEXT, "é"]}
    for name, content in (("a.txt", TEXT), ("b.csv", table), ("c.jsonl", lines), ("d.json", array)):
        data = (mark + content).encode(encoding)
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(gzip.compress(data) if suffix else data)
        if named:
            assert read(path) == expected[name]
    if not named:
        assert read(tmp_path) == [text for texts in expected.values() for text in texts]


@pytest.mark.parametrize("before", ["ab", "é東👧" * 30_000])
@pytest.mark.parametrize("bad", [b"\x00\xd8", b"\x01\xdc"])
@pytest.mark.parametrize("form", ["txt", "csv", "json", "jsonl"])
def test_bytes_of_utf16_are_counted_in_the_file(form: str, before: str, bad: bytes, tmp_path: Path) -> None:
    around = {
        "txt": ("", ""), "csv": ("text\r\n", "\r\n"), "json": ('[{"text": "', '"}]'),
        "jsonl": ('{"text": "é"}\n{"text": "', '"}\n'),
    }[form]  # fmt: skip
    head = (around[0] + before).encode("utf-16")
    path = tmp_path / f"a.{form}"
    path.write_bytes(head + bad + ("x" + around[1]).encode("utf-16-le"))
    with pytest.raises(
        IndexerError, match=rf"a.{form}.*, byte {len(head)}: not valid UTF-16\. Use --on-bad-text"
    ):
        read(path)
    others = ["é"] if form == "jsonl" else []
    assert read(path, on_bad_text="replace") == [*others, before + "\ufffdx"]
    good = tmp_path / "z.txt"
    good.write_text("good")
    found = Corpus([str(path), str(good)], on_bad_text="skip")
    assert ["".join(one.pieces) for one in found.documents()] == [*others, "good"]


def test_an_odd_byte_at_the_end_of_utf16(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ab".encode("utf-16") + b"c")
    with pytest.raises(IndexerError, match="byte 6: not valid UTF-16"):
        read(tmp_path / "a.txt")


def test_a_binary_file_that_begins_as_utf16_does_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe" + random.Random(1).randbytes(5000))
    (tmp_path / "b.txt").write_text("text")
    corpus = Corpus([str(tmp_path)])
    assert ["".join(one.pieces) for one in corpus.documents()] == ["text"]
    assert corpus.counts.binary_skipped == 1


def test_a_decoder_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"two\n"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert read(tmp_path / "a.txt") == ["one\n"]
    with pytest.raises(IndexerError, match="Zstandard takes the package zstandard: pip install zstandard"):
        read(tmp_path / "b.txt.zst")
