"""The panel: what every unit does on the same windows of text, which lie in one file for all layers.

Where a decoder reads targets, its units have a panel of these, which differs in its names alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from indexer_kernels.panel import WINDOW, Panel, Windows, window_hashes

from indexer.errors import IndexerError
from indexer.index import schema, sql
from indexer.index.codecs.codec import Codec, as_table, constants
from indexer.index.files import DAMAGED
from indexer.index.laws import LayerLaws
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.schema import column, list_of
from indexer.index.vocabulary import Vocabulary
from indexer.names import PANEL, TARGET_PANEL, Key

# a page of fewer takes longer to read as a part of the whole than it saves where one unit is read
_VALUES_OF_A_PAGE = 16_384
WINDOWS = pa.schema(
    [
        column("window", pa.int32()),
        column("hash", pa.uint64()),
        column("document", pa.int64()),
        column("sequence", pa.int64()),
        column("start", pa.int32()),
        column("token_ids", list_of(pa.int32())),
    ]
)
SHOWN = pa.schema(
    [
        *(WINDOWS.field(name) for name in ("window", "document", "sequence", "start", "token_ids")),
        column("tokens", list_of(pa.string())),
    ]
)


class PanelActivations(Codec):
    """A row for each unit: its activations at all tokens of the windows, one window after the other."""

    columns = pa.schema([*schema.UNIT, column("activations", list_of(pa.float32()), "windows")])

    def __init__(self, name: str) -> None:
        """name: of the panel, see indexer.names.panel_of."""
        self.name = self.folder = name
        self.view, self.other_views, self.states = f"{name}_activations", (name,), (name,)
        self.windows_file = f"{name}/windows.parquet"
        self.common = MappingProxyType({self.windows_file: WINDOWS})

    def _panel(self, record: LayerRecord) -> Panel:
        return record.states[self.name]

    def unit_bytes(self, record: LayerRecord) -> int:
        # as they are made, and as they are encoded
        return 2 * 4 * max(len(self._panel(record).windows.token_ids), 1)

    def table_units(self, record: LayerRecord, units: int) -> int:
        # what is read of a scratch file is read token by token, and many units of each are as fast as few
        return self.group_units(record, units)

    def page_values(self, record: LayerRecord) -> int:
        """Those of whole units."""
        of_a_unit = max(len(self._panel(record).windows.token_ids), 1)
        return max(_VALUES_OF_A_PAGE // of_a_unit, 1) * of_a_unit

    def documents(self, record: LayerRecord) -> np.ndarray:
        return self._panel(record).windows.document

    def common_tables(self, record: LayerRecord) -> dict[str, pa.Table]:
        windows = self._panel(record).windows
        offsets = np.append(windows.first, len(windows.token_ids)).astype(np.int32)
        ids = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(windows.token_ids), type=WINDOWS.field("token_ids").type
        )
        columns = {
            "window": pa.array(np.arange(len(windows), dtype=np.int32)),
            "hash": pa.array(windows.hash),
            "document": pa.array(windows.document),
            "sequence": pa.array(windows.sequence),
            "start": pa.array(windows.start.astype(np.int32)),
            "token_ids": ids,
        }
        return {self.windows_file: as_table(columns, WINDOWS)}

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        activations = np.ascontiguousarray(self._panel(record).activations[units])
        count, tokens = activations.shape
        offsets = np.arange(count + 1, dtype=np.int32) * tokens
        columns = constants(record, np.arange(first + units.start, first + units.stop))
        columns["activations"] = pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(activations.reshape(-1)), type=self.columns.field("activations").type
        )
        return as_table(columns, self.columns)

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        path, panel, windows = self.file(rows.key), self._panel(record), self.read_windows(rows)
        tokens, end = len(windows.token_ids), units.start
        found = np.empty((units.stop - units.start, tokens), np.float32)
        for table in rows.of_block(path, self.columns, units, ("unit", "activations")):
            values = matrix_of(table, range(end, end + len(table)), tokens, rows.index / path)
            found[end - units.start :][: len(table)] = values
            end += len(table)
        rows.must_be(path, end == units.stop)
        panel.merge(Panel(panel.most, panel.seed, windows, found))

    def check(self, laws: LayerLaws) -> None:
        """Windows are in the order of their hashes, and a unit has an activation for each of their tokens."""
        windows = self.read_windows(laws.rows)
        keep, ids = laws.rows.keep, windows.token_ids
        hashes = window_hashes(keep.seed, windows.document, windows.sequence, windows.start)
        ordered = np.array_equal(windows.order(), np.arange(len(windows)))
        for holds, broken in (
            (len(windows) <= keep.panel, f"it has {len(windows)} windows, more than {keep.panel}"),
            (np.array_equal(windows.hash, hashes), "a hash is not that of its window"),
            (ordered, "its windows are not in the order of their hashes"),
            (((ids >= 0) & (ids < len(laws.vocabulary))).all(), "a token is not one of the vocabulary's"),
            (
                np.isin(windows.document, laws.documents).all(),
                "a window is of a document that documents.parquet has not",
            ),
        ):
            if not holds:
                raise IndexerError(f"{laws.where}: the panel: {broken}")
        path, end = self.file(laws.key), 0
        for table in laws.rows.groups(path, self.columns):
            matrix_of(table, range(end, end + len(table)), len(ids), laws.rows.index / path)
            end += len(table)
        laws.rows.must_be(path, end == laws.units)

    def views(self, place: sql.Place, layers: Sequence[Key]) -> Iterator[str]:
        windows = sql.read(place(self.windows_file))
        shown = ", ".join(
            f'{sql.tokens_of("w.token_ids", place(schema.VOCABULARY_FILE))} AS "tokens"'
            if name == "tokens"
            else f'w."{name}"'
            for name in SHOWN.names
        )
        yield f"CREATE OR REPLACE VIEW {self.name} AS SELECT {shown} FROM {windows} AS w"
        # where the activations of each window end in those of a unit
        ends = 'SELECT "window", len(token_ids) AS length, sum(length) OVER (ORDER BY "window") AS last'
        files = sql.read(sql.list_of([place(self.file(key)) for key in layers]))
        yield (
            f"CREATE OR REPLACE VIEW {self.view} AS "
            'SELECT s.site, s.layer, s.unit, w."window", '
            "list_slice(s.activations, w.last - w.length + 1, w.last) AS activations "
            f"FROM {files} AS s CROSS JOIN ({ends} FROM {windows}) AS w"
        )

    def read_windows(self, rows: LayerRows) -> Windows:
        """The windows of an index; raises IndexerError where they are not as they are written."""
        import pyarrow.compute as pc

        table = pa.concat_tables([WINDOWS.empty_table(), *rows.groups(self.windows_file, WINDOWS)])
        ids = table["token_ids"].combine_chunks()
        length = pc.list_value_length(ids).to_numpy().astype(np.int64)
        names = ("window", "hash", "document", "sequence", "start")
        columns = {name: table[name].to_numpy() for name in names}
        start = columns["start"].astype(np.int64)
        right = np.array_equal(columns["window"], np.arange(len(table)))
        right &= bool(((length > 0) & (length <= WINDOW) & (start >= 0) & (start % WINDOW == 0)).all())
        rows.must_be(self.windows_file, right)
        return Windows(
            columns["hash"],
            columns["document"],
            columns["sequence"],
            start,
            length,
            ids.flatten().to_numpy(),
        )


PANELS = PanelActivations(PANEL), PanelActivations(TARGET_PANEL)


def panel_among(statistics: Collection[str]) -> PanelActivations | None:
    """The one that units of some statistics are shown on."""
    return next((codec for codec in PANELS if codec.name in statistics), None)


def matrix_of(table: pa.Table, units: range, tokens: int, path: Path) -> np.ndarray:
    """float32 [units, tokens] of rows of a file of activations.

    Raises IndexerError where they are not those of these units, or not of so many tokens each.
    """
    import pyarrow.compute as pc

    activations = table["activations"].combine_chunks()
    length = pc.list_value_length(activations).to_numpy()
    if not np.array_equal(table["unit"].to_numpy(), units) or not (length == tokens).all():
        raise IndexerError(f"{path}: its rows are not an activation for each token of the panel; {DAMAGED}")
    return activations.flatten().to_numpy().reshape(len(table), tokens)
