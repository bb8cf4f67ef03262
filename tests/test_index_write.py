"""An index appears whole or not at all, and says what the records said."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.errors import IndexerError
from indexer.index import ids as ids_module
from indexer.index import output as output_module
from indexer.index import schema
from indexer.index.codecs import EXAMPLES
from indexer.index.read import open_index
from indexer.index.records import LayerRecord
from indexer.index.verify import verify_index
from indexer.index.write import IndexWriter
from indexer.names import Key
from tests.index_cases import (
    SECTIONS,
    TOKENS,
    documents,
    ragged_record,
    small_groups,
    token_counts,
    without_examples,
    write_index,
)


def _left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _rows(index: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        str(file.relative_to(index)): pq.read_table(file).to_pylist()
        for file in sorted(index.rglob("*.parquet"))
    }


def test_what_was_written_is_what_was_recorded(tmp_path: Path) -> None:
    records = [ragged_record(layer, seed=layer) for layer in (3, 0)]
    index = write_index(tmp_path / "my.index", records)
    assert _left(tmp_path) == ["my.index"]
    verify_index(index, full=True)
    for record in records:
        table = pq.read_table(index / EXAMPLES.file(record.key))
        found = {(row["unit"], row["kind"], row["band"], row["rank"]): row for row in table.to_pylist()}
        states = {"top": record.top, "bottom": record.bottom, "sample": record.samples.ranked()}
        assert len(found) == sum(state.taken.sum() for state in states.values())
        for kind, examples in states.items():
            for unit, place in zip(*np.nonzero(examples.taken), strict=True):
                band = _band(examples.value[unit, place]) if kind == "sample" else None
                # one sample of each band is kept
                row = found[unit, kind, band, 1 if kind == "sample" else place + 1]
                for name in ("value", "document", "sequence", "position", "window_start"):
                    assert row[name] == getattr(examples, name)[unit, place]
                factor = examples.up[unit, place]
                assert row["up"] == (None if np.isnan(factor) else factor)
                length = examples.window_length[unit, place]
                for name in ("token_ids", "activations"):
                    assert row[name] == getattr(examples, name)[unit, place, :length].tolist()


def _band(value: float) -> float:
    """The lower end of the octave of a sample."""
    return 2.0 ** (math.frexp(value)[1] - 1) if value > 0 else 0.0


def test_order_of_layers_does_not_matter(tmp_path: Path) -> None:
    records = [ragged_record(layer, seed=layer) for layer in range(3)]
    first = write_index(tmp_path / "first", records)
    second = write_index(tmp_path / "second", records[::-1])
    assert _rows(first) == _rows(second)


def test_undefined_is_null_and_minus_zero_is_zero(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    units = pq.read_table(index / "units.parquet").to_pylist()
    assert units[0]["nan"] == units[0]["count"]
    assert [units[0][name] for name in ("minimum", "maximum", "mean", "p50")] == [None] * 4
    assert units[1]["inf"] == 2
    assert not np.signbit([units[2]["minimum"], units[2]["maximum"], units[2]["p50"]]).any()
    examples = pq.read_table(index / "examples/mlp.0.parquet", columns=["unit", "value"])
    assert 0 not in examples["unit"].to_pylist()
    zeros = examples.filter(pa.compute.equal(examples["unit"], 2))["value"].to_numpy()
    assert len(zeros)
    assert not np.signbit(zeros).any()


@pytest.mark.parametrize(("top", "bottom"), [(3, 0), (0, 2), (0, 0)])
def test_no_places_no_examples(top: int, bottom: int, tmp_path: Path) -> None:
    none = [end for end, k in (("top", top), ("bottom", bottom)) if not k]
    index = write_index(tmp_path / "i", [without_examples(ragged_record(), *none)])
    verify_index(index, full=True)
    with open_index(index) as opened:
        assert opened.top("mlp.0.3").num_rows == top
        assert opened.bottom("mlp.0.3").num_rows == bottom


def test_only_documents_that_examples_point_to(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    table = pq.read_table(index / "documents.parquet")
    assert table["document"].to_pylist() == [0, 1, 2 + (1 << 40), 3 + (1 << 40)]
    assert table["characters"].to_pylist() == [7, None, 8, 5]


def test_row_groups_and_what_is_made_of_them_are_bounded_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ragged_record(units=700)
    plain = write_index(tmp_path / "plain", [record])
    made: list[int] = []
    table = EXAMPLES.table
    monkeypatch.setattr(schema, "GROUP_BYTES", 3 * EXAMPLES.unit_bytes(record))
    monkeypatch.setattr(schema, "TABLE_BYTES", EXAMPLES.unit_bytes(record))

    def counted(of: LayerRecord, units: slice, *more: Any) -> pa.Table:
        made.append(units.stop - units.start)
        return table(of, units, *more)

    monkeypatch.setattr(EXAMPLES, "table", counted)
    index = write_index(tmp_path / "bounded", [record])
    file = pq.ParquetFile(index / EXAMPLES.file(record.key))
    assert set(made) == {1}
    assert file.num_row_groups == 234 > schema.MOST_ROW_GROUPS
    assert _rows(index) == _rows(plain)
    verify_index(index, full=True)


def test_rows_of_units_are_in_the_order_of_layers_however_these_come(tmp_path: Path) -> None:
    records = [ragged_record(layer, units=3000) for layer in range(2)]
    index, other = (write_index(tmp_path / str(step), records[::step]) for step in (1, -1))
    units = pq.read_table(index / "units.parquet")
    assert units.equals(pq.read_table(other / "units.parquet"))
    assert units["layer"].to_pylist() == [0] * 3000 + [1] * 3000
    assert units["unit"].to_pylist() == 2 * list(range(3000))


def test_files_hold_to_the_format(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record(layer, units=300) for layer in range(2)])
    for file in index.rglob("*.parquet"):
        metadata = pq.ParquetFile(file).metadata
        assert metadata.num_row_groups <= schema.MOST_ROW_GROUPS
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                assert metadata.row_group(group).column(column).compression == "ZSTD"


def test_wide_layers_keep_units_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch)
    record = ragged_record(units=700)
    index = write_index(tmp_path / "i", [record])
    verify_index(index, full=True)
    for folder in ("examples", "histograms"):
        file = pq.ParquetFile(index / folder / "mlp.0.parquet")
        assert 40 < file.num_row_groups <= schema.MOST_ROW_GROUPS
        groups = [file.read_row_group(number, columns=["unit"]) for number in range(file.num_row_groups)]
        ends = [(group["unit"][0].as_py(), group["unit"][-1].as_py()) for group in groups]
        assert all(before[1] < after[0] for before, after in pairwise(ends))
    with open_index(index) as opened:
        for unit in (1, 2, 345, 699):
            assert opened.top(f"mlp.0.{unit}").num_rows == record.top.filled[unit]
            assert opened.unit(f"mlp.0.{unit}")["unit"].to_pylist() == [unit]
            assert (
                sum(opened.histogram(f"mlp.0.{unit}")["count"].to_pylist())
                == record.histogram.counts[unit].sum()
            )


@pytest.mark.parametrize("kind", ["index", "file", "folder", "link"])
def test_an_output_that_exists_is_refused(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "i"
    if kind == "index":
        write_index(output, [ragged_record()])
    elif kind == "file":
        output.write_text("precious")
    elif kind == "folder":
        output.mkdir()
    else:
        output.symlink_to(tmp_path / "nowhere")
    with pytest.raises(IndexerError, match=r"already exists; .* --overwrite"):
        IndexWriter(output, TOKENS)


def test_only_an_index_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(IndexerError, match="not an index, so it is not replaced"):
        IndexWriter(folder, TOKENS, overwrite=True)
    assert _left(folder) == ["manifest.json"]


@pytest.mark.parametrize("one_step", [True, False])
def test_overwrite_replaces(one_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not one_step:
        monkeypatch.setattr(output_module, "_exchange", lambda first, second: False)
    output = write_index(tmp_path / "i", [ragged_record(0)])
    (output / "notes.txt").write_text("of the old one")
    with open_index(output) as old:
        before = old.top("mlp.0.4")
        write_index(output, [ragged_record(0, seed=9), ragged_record(1)], overwrite=True)
        # what is open stays what it was
        assert old.top("mlp.0.4").equals(before)
    assert _left(tmp_path) == ["i"]
    assert "notes.txt" not in _left(output)
    verify_index(output, full=True)
    with open_index(output) as new:
        assert len(new.manifest.layers) == 2


def test_an_overwrite_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = write_index(tmp_path / "i", [ragged_record(0)])
    rows = _rows(output)
    renames = []

    def rename(old: Path, new: Path) -> None:
        renames.append(new)
        if len(renames) == 2:
            raise OSError(errno.EIO, "Input/output error")
        os.replace(old, new)

    monkeypatch.setattr(output_module, "_exchange", lambda first, second: False)
    monkeypatch.setattr(output_module.os, "rename", rename)
    with pytest.raises(IndexerError, match="Input/output error"):
        write_index(output, [ragged_record(1)], overwrite=True)
    assert _left(tmp_path) == ["i"]
    assert _rows(output) == rows


def test_a_folder_that_is_spelled_by_way_of_a_missing_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(IndexerError, match="exists"):
            write_index(tmp_path / "missing" / "..", [ragged_record(0)], overwrite=overwrite)
    assert _left(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff.index"), "nul\0.index"])
def test_a_name_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="not UTF-8, or holds a NUL byte"):
        write_index(tmp_path / name, [ragged_record(0)])


def test_a_corpus_file_name_of_any_bytes_is_told_in_the_manifest(tmp_path: Path) -> None:
    sections = {**SECTIONS, "configuration": {"corpus": [os.fsdecode(b"a\xff.txt")]}}
    with IndexWriter(tmp_path / "my.index", TOKENS) as writer:
        writer.add_layer(ragged_record(0))
        writer.publish(sections, documents(), token_counts())
    assert open_index(tmp_path / "my.index").manifest.configuration == {"corpus": ["a\ufffd.txt"]}


def test_a_link_is_followed(tmp_path: Path) -> None:
    write_index(tmp_path / "real", [ragged_record(0)])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_index(tmp_path / "link", [ragged_record(1)], overwrite=True)
    assert (tmp_path / "link").is_symlink()
    with open_index(tmp_path / "real") as index:
        assert index.manifest.layers[0].key.layer == 1


def test_an_error_within_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with IndexWriter(tmp_path / "i", TOKENS) as writer:
            writer.add_layer(ragged_record())
            assert len(_left(tmp_path)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert _left(tmp_path) == []


def test_a_site_that_names_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match='site "a/b"'):
        write_index(tmp_path / "i", [replace(ragged_record(), key=Key("a/b", 0))])
    assert _left(tmp_path) == []


def test_a_layer_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match=r"mlp\.0 was added twice"):
        write_index(tmp_path / "i", [ragged_record(), ragged_record()])


def test_an_index_of_no_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="no layer was added"):
        write_index(tmp_path / "i", [])
    assert _left(tmp_path) == []


def test_publish_wants_all_it_needs(tmp_path: Path) -> None:
    for sections, table, said in (
        ({}, documents(), "missing or unknown: configuration"),
        (SECTIONS, documents().slice(0, 2), "4 documents, 2 of which are described"),
        (SECTIONS, documents().drop(["row"]), "no column row"),
    ):
        with IndexWriter(tmp_path / "i", TOKENS) as writer:
            writer.add_layer(ragged_record())
            assert len(writer.documents) == 4 or not writer.documents.size
            with pytest.raises(IndexerError, match=said):
                writer.publish(sections, table, token_counts())
        assert _left(tmp_path) == []


def test_documents_may_come_table_by_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "DOCUMENT_ROWS", 2)
    whole = write_index(tmp_path / "whole", [ragged_record()])
    assert pq.ParquetFile(whole / "documents.parquet").num_row_groups == 2
    table = documents().filter(pa.compute.less(documents()["row"], 77)).sort_by("document")
    with IndexWriter(tmp_path / "parts", TOKENS) as writer:
        writer.add_layer(ragged_record())
        parts = writer.publish(SECTIONS, (table.slice(first, 1) for first in range(4)), token_counts())
    assert _rows(parts) == _rows(whole)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([0, 1, 3], "are not those that examples point to, in ascending order"),
        ([1, 0, 2, 3], "are not those that examples point to, in ascending order"),
        ([0, 1, 2], "4 documents, 3 of which are described"),
        ([0, 1, 2, 3, 3], "are not those that examples point to, in ascending order"),
    ],
)
def test_tables_of_other_documents_are_refused(chosen: list[int], said: str, tmp_path: Path) -> None:
    table = documents().filter(pa.compute.less(documents()["row"], 77)).sort_by("document")
    with IndexWriter(tmp_path / "i", TOKENS) as writer:
        writer.add_layer(ragged_record())
        with pytest.raises(IndexerError, match=said):
            writer.publish(SECTIONS, [table.take(chosen)], token_counts())
    assert _left(tmp_path) == []


def test_ids_are_distinct_and_ascending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids_module, "_FEW", 40)
    monkeypatch.setattr(ids_module, "_SLICE", 7)
    random = np.random.default_rng(0)
    ids, added = ids_module.Ids(), np.empty(0, np.int64)
    assert ids.sorted().tolist() == []
    for size in (0, 1, 9, 30, 200, 5):
        more = random.integers(-50, 50, size) * 10**12
        ids.add(more)
        added = np.concatenate([added, more])
        if size != 9:
            np.testing.assert_array_equal(ids.sorted(), np.unique(added))


def test_ids_that_come_again_take_no_more_memory() -> None:
    ids = ids_module.Ids()
    ids.add(np.arange(10))
    tracemalloc.start()
    for first in range(200):
        ids.add(np.arange(first, first + 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids.sorted()) == 100_199
    # 200 times 100,000 ids of 8 bytes would be 160 MB
    assert peak < 40e6


def test_missing_and_read_only_folders_get_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IndexerError, match="does not exist; create it"):
        IndexWriter(tmp_path / "no" / "i", TOKENS)
    monkeypatch.setattr(output_module.os, "access", lambda path, mode: False)
    with pytest.raises(IndexerError, match="is not writable; choose another --output"):
        IndexWriter(tmp_path / "i", TOKENS)


@pytest.mark.parametrize("failing", range(12))
def test_a_disk_that_fails_to_flush_leaves_nothing(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1_000))

    def fsync(handle: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output_module.os, "fsync", fsync)
    with pytest.raises(IndexerError, match=r"^[^\n]*No space left on device[^\n]*$"):
        write_index(tmp_path / "i", [ragged_record(0), ragged_record(1)])
    assert _left(tmp_path) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from indexer.errors import IndexerError
from tests.index_cases import ragged_record, token_counts, write_index
# a limit on the size of files makes the very write fail that passes it, as a full disk does
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_index(Path(sys.argv[1]), [ragged_record(layer, units=900) for layer in range(2)])
except IndexerError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files")
@pytest.mark.parametrize(
    "limit", [0, 3, 20_000, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (1_000, 5_000))]
)
def test_a_disk_that_is_full_at_any_write_leaves_nothing(limit: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "i"), str(limit)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1, done.stdout + done.stderr
    assert "cannot write into" in done.stdout
    assert _left(tmp_path) == []


def test_the_manifest_tells_of_every_file(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    manifest = json.loads((index / "manifest.json").read_text())
    listed = {file["path"] for file in manifest["files"]}
    assert listed == {str(file.relative_to(index)) for file in index.rglob("*.*")} - {"manifest.json"}
    assert manifest["version"] == 2
    assert {name: manifest[name] for name in SECTIONS} == SECTIONS
