"""Reading a layer back is the exact inverse of writing it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexer_kernels import Histogram, Keep
from indexer_kernels.examples import PLACE_FIELDS
from indexer_kernels.places import Places

from benchmarks.synthetic import Size, synthetic_records, write_synthetic
from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.codecs import EXAMPLES
from indexer.index.encoding import parquet_options
from indexer.index.files import GroupedFile
from indexer.index.manifest import Manifest, expected_files, read_manifest
from indexer.index.records import LayerRecord
from indexer.index.restore import LayerFiles, read_layer
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key
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


def assert_same(left: LayerRecord, right: LayerRecord) -> None:
    """Every number that a record defines."""
    assert (left.key, left.states.keys()) == (right.key, right.states.keys())
    np.testing.assert_array_equal(left.count, right.count)
    for name, one in left.states.items():
        other = right.states[name]
        if isinstance(one, Places):
            _assert_same_examples(one.ranked(), other.ranked())
        elif isinstance(one, Histogram):
            np.testing.assert_array_equal(one.counts, other.counts)
        else:
            for part in ("nan", "inf", "minimum", "maximum", "sums"):
                np.testing.assert_array_equal(getattr(one, part), getattr(other, part), err_msg=part)


def _assert_same_examples(left: Any, right: Any) -> None:
    np.testing.assert_array_equal(left.taken.sum(axis=1), right.taken.sum(axis=1))
    for unit, place in zip(*np.nonzero(left.taken), strict=True):
        for name in PLACE_FIELDS:
            one, other = (getattr(side, name)[unit, place] for side in (left, right))
            np.testing.assert_array_equal(one, other, err_msg=name)
        length = left.window_length[unit, place]
        for name in ("token_ids", "activations"):
            np.testing.assert_array_equal(
                getattr(left, name)[unit, place, :length], getattr(right, name)[unit, place, :length]
            )


def rows(index: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        str(file.relative_to(index)): pq.read_table(file).to_pylist()
        for file in sorted(index.rglob("*.parquet"))
    }


def test_what_was_written_is_read_back_and_written_again(tmp_path: Path) -> None:
    records = [ragged_record(layer, units=units, seed=layer) for layer, units in ((0, 7), (2, 40), (5, 3))]
    index = write_index(tmp_path / "first", records)
    manifest = read_manifest(index)
    restored = [read_layer(index, manifest, record.key) for record in records]
    for record, again in zip(records, restored, strict=True):
        assert_same(record, again)
        assert (again.top.k, again.bottom.k, again.top.token_ids.shape[2]) == (3, 2, 4)
    assert rows(write_index(tmp_path / "second", restored)) == rows(index)


@pytest.mark.parametrize(("top", "bottom"), [(3, 0), (0, 2), (0, 0)])
def test_layers_without_examples(top: int, bottom: int, tmp_path: Path) -> None:
    record = ragged_record()
    record = without_examples(record, *(end for end, k in (("top", top), ("bottom", bottom)) if not k))
    index = write_index(tmp_path / "i", [record])
    assert_same(record, read_layer(index, read_manifest(index), Key(MLP, 0)))


def test_blocks_are_the_layer_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch)
    records = [ragged_record(layer, units=300, seed=layer) for layer in range(2)]
    index = write_index(tmp_path / "i", records)
    manifest = read_manifest(index)
    for first, last in ((0, 300), (0, 1), (299, 300), (17, 93), (120, 120)):
        block = read_layer(index, manifest, Key(MLP, 1), slice(first, last))
        assert_same(_cut(records[1], first, last), block)


def _cut(record: LayerRecord, first: int, last: int) -> LayerRecord:
    def cut(state: Any) -> Any:
        if isinstance(state, Places):
            return state.ranked(slice(first, last))
        arrays = {name: part for name, part in state.__dict__.items() if hasattr(part, "ndim")}
        return replace(state, **{name: part[first:last] for name, part in arrays.items()})

    states = {name: cut(state) for name, state in record.states.items()}
    return replace(record, count=record.count[first:last], states=states)


def test_a_block_costs_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = write_synthetic(tmp_path / "i", Size(layers=1, units=2_000, top=10, bottom=10, window=4))
    read: list[int] = []
    right = GroupedFile.reader

    class Reader:
        def __init__(self, file: GroupedFile) -> None:
            self.file = file

        def read_row_group(self, group: int, **options: Any) -> pa.Table:
            table = right(self.file).read_row_group(group, **options)
            read.append(table.num_rows)
            return table

    monkeypatch.setattr(GroupedFile, "reader", lambda file: Reader(file))
    read_layer(index, read_manifest(index), Key(MLP, 0), slice(600, 700))
    part = sum(read)
    read.clear()
    read_layer(index, read_manifest(index), Key(MLP, 0))
    assert 0 < part < 0.25 * sum(read)


def keeping(manifest: Manifest, **keep: Any) -> Manifest:
    """The manifest with something else kept of its site."""
    (site,) = manifest.sites
    kept = msgspec.structs.replace(site, keep=replace(site.keep, **keep))
    return msgspec.structs.replace(manifest, sites=[kept])


def test_states_are_as_the_manifest_says(tmp_path: Path) -> None:
    size = Size(layers=1, units=5, top=4, bottom=2, window=8, count=100)
    index = write_synthetic(tmp_path / "i", size)
    described = keeping(read_manifest(index), top=9, bottom=3, window=(6, 5))
    record = read_layer(index, described, Key(MLP, 0))
    assert record.top.token_ids.shape == (5, 9, 12)
    assert record.bottom.token_ids.shape == (5, 3, 12)
    assert record.samples.token_ids.shape == (5, 7 * 2, 12)
    assert record.keep == Keep(9, 3, (6, 5), "sequence", samples=2)
    assert_same(next(synthetic_records(size)), record)


@pytest.mark.parametrize("keep", [{"top": 3}, {"bottom": 0}, {"samples": 1}, {"window": (3, 3)}], ids=str)
def test_examples_that_were_not_kept_are_refused(keep: dict[str, Any], tmp_path: Path) -> None:
    index = write_synthetic(tmp_path / "i", Size(layers=1, units=5, top=4, bottom=2, window=8, count=100))
    with pytest.raises(IndexerError, match="its rows are not those of"):
        read_layer(index, keeping(read_manifest(index), **keep), Key(MLP, 0))


@pytest.mark.parametrize("keep", [{"by": "word"}, {"top": -1}, {"samples": -1}, {"window": (-2, 3)}], ids=str)
def test_nothing_else_can_be_kept(keep: dict[str, Any], tmp_path: Path) -> None:
    index = write_synthetic(tmp_path / "i", Size(layers=1, units=5, top=4, bottom=2, window=8, count=100))
    with pytest.raises(ValueError, match="`keep` must be of sizes from 0 on, by one of sequence"):
        keeping(read_manifest(index), **keep)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    manifest = read_manifest(index)
    with pytest.raises(IndexerError, match=r"it has no layer mlp\.3"):
        read_layer(index, manifest, Key(MLP, 3))
    with pytest.raises(IndexerError, match=r"units 5 to 8 of mlp\.0: it has units 0 to 6"):
        read_layer(index, manifest, Key(MLP, 0), slice(5, 9))


def _rewritten(index: Path, path: str, change: Any) -> None:
    table = pq.read_table(index / path)
    wanted = expected_files(read_manifest(index))[path]
    assert wanted is not None
    with pq.ParquetWriter(index / path, wanted, **parquet_options(wanted)) as writer:
        writer.write_table(change(table).cast(wanted))


def _with(name: str, change: Any) -> Any:
    def rewrite(table: pa.Table) -> pa.Table:
        values = table[name].to_numpy(zero_copy_only=False).copy()
        change(values)
        return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))

    return rewrite


def _put(place: int, value: float) -> Any:
    def change(values: np.ndarray) -> None:
        values[place] = value

    return change


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("units.parquet", lambda table: table.slice(0, 5)),
        ("units.parquet", _with("unit", _put(3, 1))),
        ("sums/mlp.0.parquet", lambda table: table.slice(1)),
        ("sums/mlp.0.parquet", _with("unit", _put(3, 100))),
        ("sums/mlp.0.parquet", _with("overflowed2", _put(3, -1))),
        ("histograms/mlp.0.parquet", _with("count", _put(5, 0))),
        ("histograms/mlp.0.parquet", _with("lower", _put(5, 0.3))),
        ("histograms/mlp.0.parquet", _with("lower", _put(0, 0.3))),
        ("histograms/mlp.0.parquet", _with("unit", _put(-1, 1))),
        ("examples/mlp.0.parquet", _with("rank", _put(1, 5))),
        ("examples/mlp.0.parquet", _with("unit", _put(-1, 1))),
        ("examples/mlp.0.parquet", _with("unit", _put(0, 6))),
    ],
)
def test_rows_of_other_units_are_refused(path: str, change: Any, tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    manifest: Manifest = read_manifest(index)
    _rewritten(index, path, change)
    with pytest.raises(IndexerError, match=r"its rows are not those of layer mlp\.0; the index is damaged"):
        read_layer(index, manifest, Key(MLP, 0))


def test_a_unit_in_two_row_groups_is_refused(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    manifest = read_manifest(index)
    path = index / "examples/mlp.0.parquet"
    table = pq.read_table(path)
    with pq.ParquetWriter(path, EXAMPLES.columns, **parquet_options(EXAMPLES.columns)) as writer:
        for part in (table, table.slice(table.num_rows - 3)):
            writer.write_table(part.cast(EXAMPLES.columns))
    with pytest.raises(IndexerError, match="its rows are not those of"):
        read_layer(index, manifest, Key(MLP, 0))


def test_files_that_are_gone_are_told(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record()])
    manifest = read_manifest(index)
    shutil.rmtree(index / "sums")
    with LayerFiles(index, manifest, Key(MLP, 0)) as files, pytest.raises(IndexerError, match="no such file"):
        files.record()


@pytest.mark.parametrize("size", [1, 11, 97, 300])
def test_blocks_are_written_as_the_whole_layer(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_groups(monkeypatch)
    record = ragged_record(units=300)
    whole = write_index(tmp_path / "whole", [record])
    with IndexWriter(tmp_path / "blocks", TOKENS) as writer:
        blocks = (_cut(record, first, min(first + size, 300)) for first in range(0, 300, size))
        writer.add_layer_blocks(Key(MLP, 0), 300, blocks)
        index = writer.publish(SECTIONS, documents(), token_counts())
    assert rows(index) == rows(whole)
    for file in index.rglob("*.parquet"):
        assert pq.ParquetFile(file).num_row_groups <= schema.MOST_ROW_GROUPS
    assert pq.ParquetFile(index / "examples/mlp.0.parquet").num_row_groups > 40


@pytest.mark.parametrize(
    ("blocks", "layer", "said"),
    [
        ([(0, 3)], 0, r"blocks of 3 units are not the 7 of mlp\.0"),
        ([(0, 7), (0, 1)], 0, r"blocks of 8 units are not the 7 of mlp\.0"),
        ([], 0, r"blocks of 0 units are not the 7 of mlp\.0"),
        ([(0, 7)], 1, r"a block of mlp\.0 among those of mlp\.1"),
    ],
)
def test_blocks_of_another_layer_are_refused(
    blocks: list[tuple[int, int]], layer: int, said: str, tmp_path: Path
) -> None:
    record = ragged_record()
    with IndexWriter(tmp_path / "i", TOKENS) as writer, pytest.raises(IndexerError, match=said):
        writer.add_layer_blocks(Key(MLP, layer), 7, (_cut(record, *block) for block in blocks))
    assert not list(tmp_path.iterdir())
