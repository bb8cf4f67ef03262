"""A unit's windows are read page by page: the same rows as by a plain read, for few bytes, or an error."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.synthetic import Size, write_synthetic
from indexer.errors import IndexerError
from indexer.index.codecs import CODECS, EXAMPLES
from indexer.index.encoding import parquet_options
from indexer.index.files import DocumentFile, UnitFile
from indexer.index.pages import Pages
from indexer.index.read import open_index
from indexer.index.schema import DOCUMENTS, column, list_of
from indexer.index.thrift import decode, encode, skip
from indexer.names import MLP, Key
from tests.index_cases import ragged_record, write_index

WANTED = pa.schema(
    [
        column("unit", pa.int32(), "dictionary"),
        column("token_ids", list_of(pa.int32())),
        column("number", pa.int64()),
        column("activations", list_of(pa.float32()), "windows"),
    ]
)


def lists(random: np.random.Generator, rows: int, longest: int) -> list[list[int]]:
    return [random.integers(0, 99, random.integers(0, longest)).tolist() for _ in range(rows)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Units with 0 to 8 rows, whose two lists are of other lengths, so that other rows begin their pages."""
    random = np.random.default_rng(0)
    path = tmp_path / "some.parquet"
    unit = np.repeat(np.arange(90), random.integers(0, 9, 90)).astype(np.int32)
    with pq.ParquetWriter(path, WANTED, **parquet_options(WANTED, 40)) as writer:
        for part in (unit[unit < 37], unit[unit >= 37]):
            columns = {"unit": part, "token_ids": lists(random, len(part), 9), "number": part * 3}
            columns |= {"activations": lists(random, len(part), 30)}
            writer.write_table(pa.table(columns, schema=WANTED))
    return path


def footer_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


def test_every_unit_is_as_by_a_plain_read(file: Path) -> None:
    plain = pq.read_table(file)
    opened = UnitFile(file, WANTED)
    for unit in range(91):
        expected = plain.filter(pa.compute.equal(plain["unit"], unit))
        for columns in (["number", "token_ids"], WANTED.names, ["activations"]):
            found = opened.rows(unit, columns)
            assert found.column_names == list(columns)
            assert found.to_pylist() == expected.select(columns).to_pylist()


def test_a_footer_is_written_as_it_was_read(file: Path) -> None:
    footer = footer_of(file)
    struct, end = decode(footer, 0)
    assert end == skip(footer, 0) == len(footer)
    assert encode(struct) == footer


def test_a_row_group_is_found_in_the_footer_as_by_going_through_it(tmp_path: Path) -> None:
    index = write_synthetic(tmp_path / "i", Size(layers=1, units=6000, window=8))
    for codec in CODECS:
        path = index / codec.file(Key(MLP, 0))
        if not path.exists():
            continue
        with contextlib.closing(UnitFile(path, codec.columns)) as file:
            pages, number = file._pages, file.metadata.num_row_groups
            found = [pages._group_at(group) for group in range(number)]
            # nothing was gone through but for the first
            assert len(pages._groups) == 1
            end = found[0]
            for begin in found:
                assert begin == end
                end = skip(pages._footer, begin)


def test_pages_begin_with_units_and_one_unit_is_a_small_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_synthetic(tmp_path / "i", Size(layers=1, units=300))
    windows = 300 * 54 * 64 * 4 * 2
    read: list[int] = []
    plain = Pages._read
    monkeypatch.setattr(Pages, "_read", lambda self, at, size: read.append(size) or plain(self, at, size))
    with open_index(index) as opened:
        opened.top("mlp.0.150")
        file: Any = opened._files.get(EXAMPLES.file(Key(MLP, 0)), UnitFile, EXAMPLES.columns)
        [chunks] = file._pages._chunks.values()
        for name in ("token_ids", "activations"):
            # Arrow gives the last row of whole pages one of its own
            assert np.array_equal(chunks[name].first_row, [*range(0, 76 * 54, 108), 76 * 54 - 1])
        opened.bottom("mlp.0.151")
    # the page index once, and two columns of each unit
    assert len(read) == 5
    assert sum(read) - max(read) < windows / 50


def test_windows_that_are_not_full_are_found(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i", [ragged_record(units=700)])
    with open_index(index) as opened:
        for unit in range(0, 700, 7):
            order = "kind DESC, band DESC, rank"
            whole = opened.sql(f"SELECT * FROM examples WHERE unit = {unit} ORDER BY {order}")
            parts = [opened.top(0, unit), opened.samples(0, unit), opened.bottom(0, unit)]
            assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()


def test_no_damaged_page_index_gives_other_rows(tmp_path: Path) -> None:
    index = write_synthetic(tmp_path / "i", Size(layers=1, units=120, window=8))
    path = index / "examples/mlp.0.parquet"
    content = path.read_bytes()
    footer = footer_of(path)
    [group, *_] = decode(footer, 0)[0][4][1][1]
    places = [(chunk[4][1], chunk[5][1]) for chunk in group[1][1][1][13:15]]
    with open_index(index) as opened:
        right = opened.top(0, 50).to_pylist()
    refused: list[str] = []
    for offset, size in places:
        for place in range(offset, offset + size):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            with open_index(index) as opened:
                try:
                    assert opened.top(0, 50).to_pylist() == right
                except IndexerError as error:
                    refused.append(str(error))
    assert all("mlp.0.parquet" in line and "damaged" in line for line in refused)
    assert len(refused) > sum(size for _, size in places) * 0.8


def test_documents_of_many_row_groups(tmp_path: Path) -> None:
    columns = {"document": range(0, 600, 3), "source": ["a", "b"] * 100, "row": range(200)}
    table = pa.table({**columns, "characters": range(200)}, schema=DOCUMENTS)
    path = tmp_path / "documents.parquet"
    pq.write_table(table, path, row_group_size=7, store_schema=False)
    opened = DocumentFile(path, DOCUMENTS)
    for wanted in ([], [597, 0, 0, 21, 22], [-1, 600, 1 << 62], range(700), [3, 1 << 63, -(1 << 70)]):
        expected = table.filter(pa.array([one in wanted for one in table["document"].to_pylist()]))
        # a second time of what was kept
        assert [opened.rows(wanted).to_pylist() for _ in range(2)] == [expected.to_pylist()] * 2
