"""Reading few rows out of a Parquet file without decoding the rest.

The footer tells which row group holds them; of that only the rows up to the last wanted one are decoded.
Pages are checked against their checksums on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.errors import IndexerError
from indexer.index.arrow import array_of, is_in, rows_where
from indexer.index.pages import Pages

DAMAGED = "the index is damaged; build it again or restore the file"
# A row group has 1/64 of a file's rows, or a few thousand. Footers that claim more than any index has would
# have memory reserved for it.
_MOST_ROWS = 1 << 27
_MOST_GROUPS = 1 << 16
# what Arrow and pages.py raise where a file is not what it should be
_DAMAGE = (pa.ArrowException, OSError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
# of what a message repeats of a file that may be made to harm
_MOST_TOLD = 400


Source = Callable[[Path], pa.NativeFile]


def on_disk(path: Path) -> pa.NativeFile:
    """A file of the disk."""
    return pa.OSFile(str(path))


class GroupedFile:
    """An open Parquet file with its footer. Safe for use by several threads.

    The file stays open, so that an index that is replaced meanwhile can still be read.
    """

    # of how many row groups what was decoded is kept: who asks for one place mostly asks for the next
    KEPT = 1

    def __init__(self, path: Path, schema: pa.Schema, source: Source = on_disk) -> None:
        """Open a file and read its footer.

        source: what opens a path, to be read at any place.
        Raises IndexerError where it is not a Parquet file of this schema.
        """
        self.path = path
        self._far = source is not on_disk
        with in_one_line(path):
            self._file = source(path)
            opened = pq.ParquetFile(self._file, arrow_extensions_enabled=False)
            self.metadata = opened.metadata
            self.schema = opened.schema_arrow
        self._columns = lru_cache(self.KEPT)(self._decoded)
        try:
            check_schema(path, self.schema, schema)
            self.group_rows = _group_rows(path, self.metadata)
        except IndexerError:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._columns.cache_clear()
        self._file.close()

    def reader(self) -> pq.ParquetFile:
        """A reader for one use, as readers keep the settings of their last call; the footer is shared.

        Of a file that is elsewhere it asks once for columns that lie together; on the disk, the thread that
        does so would cost more than it saves.
        """
        return pq.ParquetFile(
            self._file,
            metadata=self.metadata,
            pre_buffer=self._far,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        )

    def group(self, group: int, *, columns: Sequence[str] | None = None, threads: bool = True) -> pa.Table:
        """All rows of one row group.

        columns: those that are read; all without. threads: whether Arrow decodes them side by side; False
            where several groups are read so.
        """
        with in_one_line(self.path):
            table = self.reader().read_row_group(
                group, columns=None if columns is None else list(columns), use_threads=threads
            )
            table.validate(full=True)
            return table

    def _decoded(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        return self.reader().read_row_group(group, columns=list(columns), use_threads=False)

    def _bounds(self, column: str) -> list[tuple[int, int] | None]:
        """Smallest and largest number of a column in each row group; None where the footer does not tell."""
        place = self.schema.get_field_index(column)
        with in_one_line(self.path):
            groups = [self.metadata.row_group(group) for group in range(self.metadata.num_row_groups)]
            held = [group.column(place).statistics for group in groups]
            return [(one.min, one.max) if one and one.has_min_max else None for one in held]

    def empty(self, columns: Sequence[str]) -> pa.Table:
        """No rows of these columns."""
        return pa.schema([self.schema.field(name) for name in columns]).empty_table()


class RowFile(GroupedFile):
    """A file whose rows are known by their number. Memory: of `units`, 64 MB at most."""

    KEPT = 256

    def __init__(self, path: Path, schema: pa.Schema, source: Source = on_disk) -> None:
        super().__init__(path, schema, source)
        self._before = np.concatenate([[0], np.cumsum(self.group_rows, dtype=np.int64)])

    def row(self, number: int, columns: Sequence[str]) -> pa.Table:
        """One row; none where the file ends before it."""
        group = int(np.searchsorted(self._before, number, "right")) - 1
        if group == len(self._before) - 1:
            return self.empty(columns)
        offset = number - int(self._before[group])
        with in_one_line(self.path):
            table = self._columns(group, tuple(columns)).slice(offset, 1).select(list(columns))
            table.validate(full=True)
            return table


class DocumentFile(GroupedFile):
    """A file sorted by the column `document`. Memory: 30 MB as a rule.

    The documents of one unit lie in as many row groups as there are.
    """

    KEPT = 256

    def __init__(self, path: Path, schema: pa.Schema, source: Source = on_disk) -> None:
        super().__init__(path, schema, source)
        # a row group that does not tell what it holds may hold all
        bounds = [held or (-(1 << 63), (1 << 63) - 1) for held in self._bounds("document")]
        self._held = np.array(bounds, np.int64).reshape(-1, 2)

    def rows(self, documents: Iterable[int]) -> pa.Table:
        """The rows of some documents, in the order of the file; those that it has not have none."""
        # no file has a number of more than 64 bits
        wanted = np.array(sorted({one for one in documents if abs(one) < 1 << 63}), np.int64)
        # how many of those wanted lie before each row group, and up to its end
        before = np.searchsorted(wanted, self._held[:, 0])
        up_to = np.searchsorted(wanted, self._held[:, 1], "right")
        found = [self.empty(self.schema.names)]
        with in_one_line(self.path):
            for group in np.flatnonzero(before < up_to).tolist():
                table = self._columns(group, tuple(self.schema.names))
                found.append(rows_where(table, is_in(table["document"], array_of(wanted))))
                found[-1].validate(full=True)
        return pa.concat_tables(found)


class UnitFile(GroupedFile):
    """A file of one layer, sorted by the column `unit`, whose row groups hold whole units."""

    def __init__(self, path: Path, schema: pa.Schema, source: Source = on_disk) -> None:
        super().__init__(path, schema, source)
        bounds = [held for held in self._bounds("unit") if held is not None]
        if len(bounds) < self.metadata.num_row_groups:
            raise IndexerError(f"{path}: its footer does not tell which units it holds; {DAMAGED}")
        self._first = np.array([first for first, _ in bounds], np.int64)
        self._pages = Pages(self._file, self.metadata)

    def rows(self, unit: int, columns: Sequence[str]) -> pa.Table:
        """The unit's rows in the order of the file; none where the file has none.

        Cost: its row group's columns, and of those that are lists the pages of the unit.
        """
        group = int(np.searchsorted(self._first, unit, "right")) - 1
        if group < 0:
            return self.empty(columns)
        lists = [name for name in columns if pa.types.is_list(self.schema.field(name).type)]
        others = [name for name in columns if name not in lists]
        with in_one_line(self.path):
            table = self._columns(group, ("unit", *others))
            first, last = (int(end) for end in np.searchsorted(table["unit"].to_numpy(), [unit, unit + 1]))
            if last <= first:
                return self.empty(columns)
            table = table.slice(first, last - first)
            for name, column in self._pages.read(group, first, last, lists).items() if lists else ():
                table = table.append_column(self.schema.field(name), column)
            table = table.select(list(columns))
            # what is no text, though it is stored as text, would fail where it is used
            table.validate(full=True)
            return table


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Turn what Arrow says of a damaged or unreadable file into one line."""
    try:
        yield
    except FileNotFoundError:
        raise IndexerError(f"{path}: no such file; {DAMAGED}") from None
    except _DAMAGE as error:
        reason = printable((str(error).splitlines() or ["it ends too early"])[0]).rstrip(".")
        raise IndexerError(f"{path}: cannot be read as Parquet: {reason}; {DAMAGED}") from error


def printable(text: str) -> str:
    """One line of at most a few hundred characters, each of which shows itself and does nothing else.

    Names and values of a file that was made to harm reach the terminal within messages.
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= _MOST_TOLD else line[:_MOST_TOLD] + "..."


def check_schema(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    """Raise IndexerError naming the first column that differs from the index format's."""
    for field in wanted:
        column = found.get_field_index(field.name)
        if column < 0:
            raise IndexerError(f"{path}: it has no column {field.name}; {DAMAGED}")
        kind = found.field(column).type
        if kind != field.type:
            raise IndexerError(
                f"{path}: column {field.name} is {printable(str(kind))} instead of {field.type}; {DAMAGED}"
            )
        # readers rely on it
        if found.field(column).nullable and not field.nullable:
            raise IndexerError(f"{path}: column {field.name} may be null; {DAMAGED}")
    if found.names != wanted.names:
        raise IndexerError(
            f"{path}: columns {printable(', '.join(found.names))} instead of {', '.join(wanted.names)}; "
            f"{DAMAGED}"
        )


def _group_rows(path: Path, metadata: pq.FileMetaData) -> list[int]:
    """Rows of each row group; raises IndexerError where a footer claims what no index has."""
    groups = metadata.num_row_groups
    rows = [metadata.row_group(group).num_rows for group in range(min(groups, _MOST_GROUPS))]
    whole = len(rows) == groups and sum(rows) == metadata.num_rows
    if not whole or any(not 0 <= count <= _MOST_ROWS for count in rows):
        raise IndexerError(
            f"{path}: its footer claims {metadata.num_rows} rows in {groups} row groups; {DAMAGED}"
        )
    return rows
