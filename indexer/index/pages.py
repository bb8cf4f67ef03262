"""A few rows of the large columns of a Parquet file, without the rest of their row group.

Arrow writes page indexes, and its reader does not use them. So the pages that hold the rows are found here,
and given to Arrow as a small Parquet file of their own, whose footer is made for them; values, levels and
checksums are read by Arrow alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.index.thrift import I64, LIST, STRUCT, TRUE, Struct, decode, encode, find, list_at, skip

_MAGIC = b"PAR1"
# fields of parquet.thrift: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, OffsetIndex, PageHeader
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _BYTE_SIZE, _GROUP_ROWS, _OFFSET, _SIZE = 1, 2, 3, 5, 6
_FILE_OFFSET, _META_DATA, _INDEX_OFFSET, _INDEX_LENGTH = 2, 3, 4, 5
_TYPE, _ENCODINGS, _PATH, _CODEC, _NUM_VALUES, _UNCOMPRESSED, _COMPRESSED, _DATA_PAGE = 1, 2, 3, 4, 5, 6, 7, 9
_LOCATIONS = 1
# of the page index that are read at once: those of a dozen row groups, so that few reads are of it alone
_INDEX_BYTES = 1 << 16
# of a page's location: field 1 an int64, field 2 an int32, field 3 an int64, and the end
_MARKS = (0x16, 0x15, 0x16, 0)
_PAGE_UNCOMPRESSED, _PAGE_DATA, _PAGE_VALUES = 2, 5, 1


@dataclass(frozen=True)
class _Chunk:
    """One column of one row group. offset, size, first_row: of each page."""

    meta_data: Struct
    offset: np.ndarray
    size: np.ndarray
    first_row: np.ndarray

    @classmethod
    def of(cls, meta_data: Struct, index: bytes) -> _Chunk:
        """Raises ValueError where the pages are not one after the other."""
        chunk = cls(meta_data, *_locations(index))
        begin, size = meta_data[_DATA_PAGE][1], meta_data[_COMPRESSED][1]
        if (
            not np.array_equal(np.append(chunk.offset, begin + size)[1:], chunk.offset + chunk.size)
            or (chunk.offset[0], chunk.first_row[0]) != (begin, 0)
            or (np.diff(chunk.first_row) <= 0).any()
        ):
            raise ValueError("its page index has pages that are not one after the other")
        return chunk

    def pages(self, first: int, last: int) -> slice:
        """Those that hold rows first to last - 1."""
        before, end = np.searchsorted(self.first_row, first, "right"), np.searchsorted(self.first_row, last)
        return slice(int(before) - 1, int(end))


class Pages:
    """The pages of the list columns of a file, which have no dictionary. Safe for use by several threads.

    file: open, to be read at any place. metadata: its footer.
    Where the file is damaged, methods raise what Arrow does, LookupError, TypeError, ValueError or
    RecursionError.
    """

    def __init__(self, file: pa.NativeFile, metadata: pq.FileMetaData) -> None:
        self._file = file
        self._metadata = metadata
        paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
        # of each column its name, where it is a list
        self._lists = [path.split(".")[0] if "." in path else None for path in paths]
        # where the footer's row groups begin, as far as they have been looked for
        self._groups: list[int] = []
        self._chunks: dict[int, dict[str, _Chunk]] = {}
        # parts of the page index, each with its place in the file
        self._indexes: list[tuple[int, bytes]] = []
        self._templates: dict[tuple[str, ...], Struct] = {}
        self._lock = threading.Lock()

    def read(self, group: int, first: int, last: int, columns: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """Rows first to last - 1 of some columns of a row group.

        Cost: a read for each column, of one page or two; and now and then one of the page index.
        """
        with self._lock:
            if group not in self._chunks:
                self._chunks[group] = self._read_index(group)
        chunks = self._chunks[group]
        by_rows: dict[tuple[int, int], list[str]] = {}
        rows = self._metadata.row_group(group).num_rows
        for name in columns:
            ends = np.append(chunks[name].first_row, rows)
            pages = chunks[name].pages(first, last)
            by_rows.setdefault((int(ends[pages.start]), int(ends[pages.stop])), []).append(name)
        found: dict[str, pa.ChunkedArray] = {}
        for (start, end), names in by_rows.items():
            if not 0 <= start <= first < last <= end <= rows:
                raise ValueError(f"its page index has no pages for rows {first} to {last - 1}")
            pages_of = {name: (chunks[name], chunks[name].pages(first, last)) for name in names}
            table = self._table(pages_of, end - start).slice(first - start, last - first)
            found |= {name: table[name] for name in names}
        return found

    @cached_property
    def _footer(self) -> bytes:
        sink = pa.BufferOutputStream()
        self._metadata.write_metadata_file(sink)
        return bytes(sink.getvalue())

    def _group_at(self, group: int) -> int:
        """Where a row group begins in the footer."""
        footer = self._footer
        # behind the numbers that the one before ends with; going through all of them takes 0.3 ms for each
        end = _end_of(self._metadata.row_group(group - 1)) if group else b""
        found = footer.find(end)
        if end and found >= 0:
            return found + len(end)
        if not self._groups:
            self._groups.append(list_at(footer, find(footer, len(_MAGIC), _ROW_GROUPS))[2])
        while len(self._groups) <= group:
            self._groups.append(skip(footer, self._groups[-1]))
        return self._groups[group]

    def _read_index(self, group: int) -> dict[str, _Chunk]:
        """The pages of a row group, whose indexes lie together."""
        _, number, at = list_at(self._footer, find(self._footer, self._group_at(group), _COLUMNS))
        found: dict[str, Struct] = {}
        if number != len(self._lists):
            raise ValueError(f"its row group {group} has {number} columns instead of {len(self._lists)}")
        for name in self._lists:
            if name is None:
                at = skip(self._footer, at)
            else:
                found[name], at = decode(self._footer, at)
        ends = {name: (of[_INDEX_OFFSET][1], of[_INDEX_LENGTH][1]) for name, of in found.items()}
        begin, end = min(at for at, _ in ends.values()), max(at + size for at, size in ends.values())
        content = self._index(begin, end - begin)
        return {
            name: _Chunk.of(found[name][_META_DATA][1], content[at - begin : at - begin + size])
            for name, (at, size) in ends.items()
        }

    def _index(self, begin: int, size: int) -> bytes:
        """Some bytes of the page index, of which more than those are read at once."""
        for first, content in self._indexes:
            if first <= begin and begin + size <= first + len(content):
                return content[begin - first : begin - first + size]
        content = self._read(begin, min(max(size, _INDEX_BYTES), self._file.size() - begin))
        self._indexes.append((begin, content))
        return content[:size]

    def _read(self, offset: int, size: int) -> bytes:
        if offset < 0 or not 0 <= size <= self._file.size() - offset:
            raise ValueError(f"{size} bytes at {offset} are not in the file")
        return bytes(self._file.read_at(size, offset))

    def _table(self, pages_of: dict[str, tuple[_Chunk, slice]], rows: int) -> pa.Table:
        """Pages of some columns that hold the same rows."""
        content, chunks = bytearray(_MAGIC), []
        for chunk, pages in pages_of.values():
            offsets = chunk.offset[pages].tolist()
            begin, end = offsets[0], offsets[-1] + int(chunk.size[pages.stop - 1])
            data = self._read(begin, end - begin)
            headers = [decode(data, offset - begin)[0] for offset in offsets]
            values = sum(header[_PAGE_DATA][1][_PAGE_VALUES][1] for header in headers)
            meta_data = {
                **{field: chunk.meta_data[field] for field in (_TYPE, _ENCODINGS, _PATH, _CODEC)},
                _NUM_VALUES: (I64, values),
                _UNCOMPRESSED: (I64, sum(header[_PAGE_UNCOMPRESSED][1] for header in headers)),
                _COMPRESSED: (I64, len(data)),
                _DATA_PAGE: (I64, len(content)),
            }
            chunks.append({_FILE_OFFSET: (I64, 0), _META_DATA: (STRUCT, meta_data)})
            content += data
        footer = self._template(tuple(pages_of))
        size = (I64, len(content))
        group = {_COLUMNS: (LIST, (STRUCT, chunks)), _BYTE_SIZE: size, _GROUP_ROWS: (I64, rows)}
        tail = encode({**footer, _NUM_ROWS: (I64, rows), _ROW_GROUPS: (LIST, (STRUCT, [group]))})
        content += tail + len(tail).to_bytes(4, "little") + _MAGIC
        file = pq.ParquetFile(
            pa.BufferReader(content), page_checksum_verification=True, arrow_extensions_enabled=False
        )
        return file.read(use_threads=False)

    def _template(self, columns: tuple[str, ...]) -> Struct:
        """The footer of a file of some columns without rows."""
        if columns not in self._templates:
            schema = self._metadata.schema.to_arrow_schema()
            empty = pa.schema([schema.field(name) for name in columns]).empty_table()
            sink = pa.BufferOutputStream()
            pq.write_table(empty, sink, store_schema=False)
            content = bytes(sink.getvalue())
            size = int.from_bytes(content[-8:-4], "little")
            self._templates[columns] = decode(content, len(content) - 8 - size)[0]
        return self._templates[columns]


def _end_of(group: pq.RowGroupMetaData) -> bytes:
    """What of a row group follows its columns in a footer that Arrow wrote."""
    columns = [group.column(number) for number in range(group.num_columns)]
    begin = columns[0].dictionary_page_offset or columns[0].data_page_offset
    size = sum(column.total_compressed_size for column in columns)
    fields = {_BYTE_SIZE: group.total_byte_size, _GROUP_ROWS: group.num_rows, _OFFSET: begin, _SIZE: size}
    # the first one follows field 1
    struct = {_COLUMNS: (TRUE, True), **{field: (I64, value) for field, value in fields.items()}}
    return encode(struct)[1:]


def _locations(index: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offset, size and first row of each page, int64, from a page index as Arrow writes it.

    The last byte of every number is below 128, as are the marks between them: seven numbers are a page.
    """
    _, count, at = list_at(index, find(index, 0, _LOCATIONS))
    data = np.frombuffer(index, np.uint8)[at:]
    end = np.flatnonzero(data < 128)
    begin = np.concatenate([[0], end[:-1] + 1])
    place = np.arange(len(data)) - np.repeat(begin, end - begin + 1)
    bits = (data & 127).astype(np.int64) << 7 * np.minimum(place, 8)
    numbers = np.add.reduceat(bits, begin)
    pages = numbers[-7 * count - 1 : -1].reshape(count, 7)
    if not count or not np.array_equal(pages[:, ::2], np.broadcast_to(_MARKS, (count, 4))):
        raise ValueError("its page index is not as Arrow writes it")
    offset, size, first_row = pages[:, 1::2].T >> 1
    return offset, size, first_row
