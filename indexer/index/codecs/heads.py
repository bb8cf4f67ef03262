"""What attention heads look at: one row for each head of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from indexer_kernels.heads import ON_WINDOWS, REPEATED, HeadScores
from indexer_kernels.panel import Windows

from indexer.errors import IndexerError
from indexer.index import schema, sql
from indexer.index.codecs.codec import Codec, as_table, constants
from indexer.index.codecs.panel import panel_among
from indexer.index.files import DAMAGED
from indexer.index.laws import LayerLaws
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.schema import column, list_of
from indexer.index.vocabulary import Vocabulary
from indexer.names import Key, Unit

SHOWN = pa.schema(
    [
        column("site", pa.string()),
        column("layer", pa.int32()),
        column("head", pa.int32()),
        *(column(name, pa.float32(), nullable=True) for name in (*REPEATED, *ON_WINDOWS)),
    ]
)
# what rounding of weights may add to a share
_ROUNDING = 0.02


class Heads(Codec):
    """Shares on repeated tokens as numbers; scores on the panel as lists of one for each window."""

    name = folder = view = "heads"
    states = ("scores",)
    columns = pa.schema(
        [
            *schema.UNIT,
            *(column(name, pa.float32(), nullable=True) for name in REPEATED),
            column("tokens", list_of(pa.int32())),
            *(column(name, list_of(pa.float32()), nullable=True) for name in ON_WINDOWS),
        ]
    )

    def documents(self, record: LayerRecord) -> np.ndarray:
        return _scores(record).windows.document

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        scores = _scores(record)
        repeated, on_windows = scores.repeated[units], scores.on_windows[units]
        number = np.arange(first + units.start, first + units.stop)
        columns = constants(record, number)
        columns |= {name: pa.array(repeated[:, at], from_pandas=True) for at, name in enumerate(REPEATED)}
        columns["tokens"] = self._lists("tokens", np.tile(scores.windows.length, (len(number), 1)))
        columns |= {name: self._lists(name, on_windows[:, at]) for at, name in enumerate(ON_WINDOWS)}
        return as_table(columns, self.columns)

    def _lists(self, name: str, values: np.ndarray) -> pa.ListArray:
        """A row of [units, windows] as a list, null where one of its values is unknown."""
        kind = self.columns.field(name).type
        rows = [None if np.isnan(row).any() else row.tolist() for row in values]
        return pa.array(rows, kind)

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        path, scores = self.file(rows.key), _scores(record)
        panel = panel_among(rows.statistics)
        windows = panel.read_windows(rows) if panel else Windows.none()
        found = HeadScores(
            scores.most,
            windows,
            np.full_like(scores.repeated, np.nan),
            np.full((record.units, len(ON_WINDOWS), len(windows)), np.nan, np.float32),
        )
        end = units.start
        for table in rows.of_block(path, self.columns, units, self.columns.names):
            here = slice(end - units.start, end - units.start + len(table))
            rows.must_be(path, np.array_equal(table["unit"].to_numpy(), np.arange(end, end + len(table))))
            for at, name in enumerate(REPEATED):
                found.repeated[here, at] = table[name].to_numpy()
            lengths = windows.length.tolist()
            rows.must_be(path, all(row == lengths for row in table["tokens"].to_pylist()))
            for at, name in enumerate(ON_WINDOWS):
                for place, values in enumerate(table[name].to_pylist(), here.start):
                    rows.must_be(path, values is None or len(values) == len(windows))
                    found.on_windows[place, at] = np.nan if values is None else values
            end += len(table)
        rows.must_be(path, end == units.stop)
        scores.merge(found)

    def check(self, laws: LayerLaws) -> None:
        """Shares are from 0 to 1, entropies and distances not negative, and there is one for each window."""
        record = LayerRecord.empty(laws.key, laws.units, laws.rows.keep)
        self.merge_into(record, laws.rows, slice(0, laws.units))
        scores = _scores(record)
        known = dict(zip(REPEATED, scores.repeated.T[:, :, None], strict=True))
        known |= dict(zip(ON_WINDOWS, scores.on_windows.transpose(1, 0, 2), strict=True))
        for name, values in known.items():
            most = np.inf if name in ("entropy", "distance") else 1 + _ROUNDING
            # what is not known is in order, too
            wrong = ((values < 0) | (values > most)).any(axis=1)
            laws.require(~wrong, f"its {name} is out of range")

    def views(self, place: sql.Place, layers: Sequence[Key]) -> Iterator[str]:
        means = ", ".join(f"{_mean(name)} AS {name}" for name in ON_WINDOWS)
        files = sql.read(sql.list_of([place(self.file(key)) for key in layers]))
        yield (
            f"CREATE OR REPLACE VIEW heads AS SELECT s.site, s.layer, s.unit AS head, "
            f"{', '.join(f's.{name}' for name in REPEATED)}, {means} FROM {files} AS s"
        )


def shown_of(unit: Unit, rows: pa.Table, path: Path) -> pa.Table:
    """The row of a file as that of the view; rows: those of one head.

    Raises IndexerError where they are not one, with a score for each window.
    """
    found = rows.to_pylist()
    lists = [row[name] for row in found for name in ON_WINDOWS if row[name] is not None]
    if len(found) != 1 or any(len(values) != len(found[0]["tokens"]) for values in lists):
        raise IndexerError(f"{path}: it has not a score of {unit} for each window; {DAMAGED}")
    row = found[0]
    tokens = np.array(row["tokens"], np.float64)
    means = {
        name: float(np.dot(row[name], tokens) / tokens.sum()) if row[name] else None for name in ON_WINDOWS
    }
    shares = {name: row[name] for name in REPEATED}
    name = {"site": unit.site, "layer": unit.layer, "head": unit.unit}
    return pa.Table.from_pylist([name | shares | means], schema=SHOWN)


def _mean(name: str) -> str:
    """SQL: the mean over the tokens of all windows."""
    # of lists that are all empty or null DuckDB says that they hold nulls
    product = f"CASE WHEN len(s.{name}) > 0 THEN list_inner_product(s.{name}, s.tokens::FLOAT[]) END"
    return f"({product} / list_sum(s.tokens))::FLOAT"


def _scores(record: LayerRecord) -> HeadScores:
    return record.states["scores"]
