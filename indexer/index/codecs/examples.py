"""Examples: one row for each, with the window of tokens and activations around its peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from indexer_kernels import TopK
from indexer_kernels.examples import PLACE_FIELDS, ExampleRows
from indexer_kernels.topk import TIES, ranks_before

from indexer.errors import IndexerError
from indexer.index import schema, sql
from indexer.index.codecs.codec import Codec, as_table, constants, no_minus_zero
from indexer.index.laws import LayerLaws
from indexer.index.records import LayerRecord
from indexer.index.rows import LayerRows
from indexer.index.schema import column, list_of
from indexer.index.vocabulary import Vocabulary
from indexer.names import MLP, Key

# in the order of the rows, which is the order of the words
KINDS = ("bottom", "top")
# a page of fewer costs more to write and to scan than it saves
_VALUES_OF_A_PAGE = 4_096
_READ = (
    "unit", "kind", "rank", "value", "up", "document", "sequence", "position", "window_start", "token_ids",
    "activations",
)  # fmt: skip
_COMPARED = ("unit", "rank", "value", "document", "sequence", "position", "token_id", "window_start")


# What one unit's record is read from comes first, and its small columns before the windows.
_STORED = pa.schema(
    [
        *schema.UNIT,
        column("kind", pa.string(), "dictionary"),
        column("rank", pa.int32(), "dictionary"),
        column("value", pa.float32(), "split"),
        column("up", pa.float32(), "split", nullable=True),
        column("document", pa.int64(), "dictionary"),
        column("sequence", pa.int64()),
        column("position", pa.int32()),
        column("token_id", pa.int32(), "dictionary"),
        column("window_start", pa.int32()),
        column("token_ids", list_of(pa.int32())),
        column("activations", list_of(pa.float32()), "windows"),
        column("token", pa.string(), "dictionary"),
        column("text", pa.string()),
    ]
)
# what the view shows, in this order
_SHOWN = pa.schema(
    [
        *(_STORED.field(name) for name in _STORED.names[: _STORED.names.index("token_id") + 1]),
        _STORED.field("token"),
        _STORED.field("window_start"),
        _STORED.field("token_ids"),
        column("tokens", list_of(pa.string())),
        _STORED.field("activations"),
        _STORED.field("text"),
    ]
)


class Examples(Codec):
    """Sorted by unit, kind ('bottom' first), rank.

    `tokens` follow from `token_ids` and are not stored. So does `text`, which is: put together from tokens, a
    search through 1.5 million texts takes four times as long.
    """

    name = folder = view = "examples"
    states = ("top", "bottom")
    macros = ("top", "bottom")
    rows_of_a_group = 4_096
    columns = _STORED
    shown = _SHOWN

    def group_units(self, record: LayerRecord, units: int) -> int:
        places = max(record.top.k + record.bottom.k, 1)
        return -(-schema.rows_per_group(units * places, self.rows_of_a_group) // places)

    def page_values(self, record: LayerRecord) -> int:
        """Those of whole units, where all their places and windows are full."""
        places = record.top.k + record.bottom.k
        of_a_unit = max(places * (record.top.before + 1 + record.top.after), 1)
        return -(-_VALUES_OF_A_PAGE // of_a_unit) * of_a_unit

    def documents(self, record: LayerRecord) -> np.ndarray:
        return np.concatenate([end.document[end.taken] for end in (record.top, record.bottom)])

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        parts = [record.states[kind].ranked(units) for kind in KINDS]
        places = [part.k for part in parts]
        valid = np.concatenate([part.taken for part in parts], axis=1)  # [units, places]

        def join(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts], axis=1)[valid]

        def spread(per_place: np.ndarray) -> np.ndarray:
            return np.broadcast_to(per_place, valid.shape)[valid]

        number = np.arange(first + units.start, first + units.stop, dtype=np.int32)
        rank = np.concatenate([np.arange(1, count + 1, dtype=np.int32) for count in places])
        kind = np.repeat(np.arange(len(KINDS), dtype=np.int8), places)
        windows = self._windows(parts, valid, join("window_length"))
        columns = constants(record, np.broadcast_to(number[:, None], valid.shape)[valid]) | windows
        columns |= {
            "rank": pa.array(spread(rank)),
            "kind": pa.DictionaryArray.from_arrays(pa.array(spread(kind)), list(KINDS)),
            "value": pa.array(no_minus_zero(join("value"))),
            "up": pa.array(join("up"), from_pandas=True),
        }
        for name in ("document", "sequence", "position", "window_start"):
            columns[name] = pa.array(join(name))
        token_ids = windows["token_ids"]
        peak = token_ids.offsets.to_numpy()[:-1] + join("position") - join("window_start")
        columns["token_id"] = token_ids.values.take(pa.array(peak, pa.int32()))
        columns["token"] = vocabulary.token_strings(columns["token_id"])
        columns["text"] = vocabulary.texts(token_ids.values, token_ids.offsets)
        return as_table(columns, self.columns)

    def _windows(self, parts: list[TopK], valid: np.ndarray, length: np.ndarray) -> dict[str, pa.ListArray]:
        """The list columns: windows of the valid places, without what lies beyond their lengths."""
        offsets = np.concatenate([[0], np.cumsum(length, dtype=np.int64)]).astype(np.int32)
        width = max(part.token_ids.shape[-1] for part in parts)
        inside = None if (length == width).all() else np.arange(width, dtype=np.int32) < length[:, None]
        columns = {}
        for name in ("token_ids", "activations"):
            joined = np.empty((*valid.shape, width), getattr(parts[0], name).dtype)
            start = 0
            for part in parts:
                values = getattr(part, name)
                joined[:, start : start + part.k, : values.shape[-1]] = values
                start += part.k
            rows = joined.reshape(-1, width) if valid.all() else joined[valid]
            flat = rows.reshape(-1) if inside is None else rows[inside]
            columns[name] = pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(flat), type=self.columns.field(name).type
            )
        return columns

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        path = self.file(rows.key)
        kept = {"bottom": rows.keep.bottom, "top": rows.keep.top}
        # each unit's rows are in one row group, and come once
        ended = dict.fromkeys(KINDS, -1)
        widest = sum(rows.keep.window) + 1
        for table in rows.of_block(path, self.columns, units, _READ):
            ids, activations = (table[name].combine_chunks() for name in ("token_ids", "activations"))
            length = pc.list_value_length(ids).to_numpy()
            rows.must_be(path, np.array_equal(length, pc.list_value_length(activations).to_numpy()))
            fields = {name: table[name].to_numpy() for name in PLACE_FIELDS if name != "window_length"}
            fields["unit"] = table["unit"].to_numpy().astype(np.int64) - units.start
            fields["window_length"] = length
            fields["offset"] = np.cumsum(length, dtype=np.int64) - length
            tokens = {"token_ids": ids.flatten().to_numpy(), "activations": activations.flatten().to_numpy()}
            rank = table["rank"].to_numpy()
            for kind in KINDS:
                chosen = pc.equal(table["kind"], kind).to_numpy()
                part = ExampleRows(**{name: values[chosen] for name, values in fields.items()}, **tokens)
                if not len(part):
                    continue
                inside = ended[kind] < part.unit[0] and part.unit[-1] < units.stop - units.start
                rows.must_be(path, inside and bool((np.diff(part.unit) >= 0).all()))
                rows.must_be(path, np.array_equal(rank[chosen], _places(part.unit) + 1))
                rows.must_be(path, bool(rank[chosen].max() <= kept[kind] and part.width <= widest))
                ended[kind] = int(part.unit[-1])
                record.states[kind].offer(part)

    def check(self, laws: LayerLaws) -> None:
        """Examples are in the total order and within the extremes, and their windows hold the peaks."""
        last = (-1, -1, -1)
        for table in laws.rows.groups(self.file(laws.key), self.columns):
            columns = {name: table[name].to_numpy() for name in _COMPARED}
            unit = columns["unit"]
            if len(unit) and (unit.min() < 0 or unit.max() >= laws.units):
                raise IndexerError(f"{laws.where}: examples of a unit the layer has not")
            kind = pc.index_in(table["kind"], pa.array(KINDS)).to_numpy(zero_copy_only=False)
            last = _check_order(laws, columns, kind, last)
            value, first = columns["value"], columns["rank"] == 1
            laws.require(np.isfinite(value), "an example's value is not finite", unit)
            _check_up(laws, table["up"], value, unit)
            best = np.where(kind == KINDS.index("top"), laws.maximum[unit], laws.minimum[unit])
            laws.require(~first | (value == best), "its first example is not its minimum or maximum", unit)
            known = np.isin(columns["document"], laws.documents)
            laws.require(known, "an example points to a document that documents.parquet has not", unit)
            _check_windows(laws, table, columns)

    def views(self, place: sql.Place, layers: Sequence[Key]) -> Iterator[str]:
        files = sql.list_of([place(self.file(key)) for key in layers])
        yield "CREATE OR REPLACE VIEW examples AS " + self._query(files, place)
        here = [key.layer for key in layers if key.site == MLP]
        file = sql.path_of_layer(place(f"{self.folder}/{MLP}."), here)
        for kind in ("top", "bottom"):
            yield (
                f"CREATE OR REPLACE MACRO {kind}(layer, unit) AS TABLE SELECT e.* "
                f"FROM ({self._query(file, place)}) AS e "
                f"WHERE e.unit = unit AND e.kind = '{kind}' ORDER BY e.rank"
            )

    def _query(self, files: str, place: sql.Place) -> str:
        """A query for the examples of `files`, the expression of a path or of a list of them.

        Tokens are looked up in the vocabulary; a query that does not ask for them does not touch it.
        """
        tokens = sql.tokens_of("s.token_ids", place(schema.VOCABULARY_FILE))
        columns = ", ".join(
            f'{tokens} AS "tokens"' if name == "tokens" else f's."{name}"' for name in self.shown.names
        )
        return f"SELECT {columns} FROM {sql.read(files)} AS s"


def _places(unit: np.ndarray) -> np.ndarray:
    """Of each row, how many rows of the same unit are before it; unit: ascending."""
    return np.arange(len(unit)) - np.searchsorted(unit, unit)


def _check_order(
    laws: LayerLaws, columns: dict[str, np.ndarray], kind: np.ndarray, last: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Rows ascend by unit, kind, rank; ranks count from 1; places ascend by the total order.

    last: unit, kind and rank of the row before these; returns those of the last of them.
    """
    unit, rank = columns["unit"], columns["rank"]
    if not len(unit):
        return last
    before = [np.concatenate([[end], now[:-1]]) for end, now in zip(last, (unit, kind, rank), strict=True)]
    same = (unit == before[0]) & (kind == before[1])
    ascends = (unit > before[0]) | ((unit == before[0]) & (kind > before[1])) | same
    laws.require(ascends, "examples are not sorted by unit and kind", unit)
    laws.require(rank == np.where(same, before[2] + 1, 1), "ranks do not count from 1", unit)
    value = np.where(kind == KINDS.index("top"), -columns["value"], columns["value"])
    keys = [value, *(columns[name] for name in TIES)]
    ordered = ranks_before([key[:-1] for key in keys], [key[1:] for key in keys])
    laws.require(np.concatenate([[True], ordered | ~same[1:]]), "examples are not in the total order", unit)
    return int(unit[-1]), int(kind[-1]), int(rank[-1])


def _check_up(laws: LayerLaws, up: pa.ChunkedArray, value: np.ndarray, unit: np.ndarray) -> None:
    unknown = pc.is_null(up).to_numpy()
    factor = up.to_numpy()
    laws.require(unknown | np.isfinite(factor), "an example's up is not finite", unit)
    laws.require((factor != 0) | (value == 0), "an example's up is 0 and its value is not", unit)


def _check_windows(laws: LayerLaws, table: pa.Table, columns: dict[str, np.ndarray]) -> None:
    ids, activations = (table[name].combine_chunks() for name in ("token_ids", "activations"))
    length = pc.list_value_length(ids).to_numpy()
    unit = columns["unit"]
    same = length == pc.list_value_length(activations).to_numpy()
    laws.require(same, "windows of unequal length", unit)
    inside = columns["position"] - columns["window_start"]
    laws.require((inside >= 0) & (inside < length), "a window does not hold its peak", unit)
    peak = np.cumsum(length) - length + inside
    at_peak = ids.flatten().to_numpy()[peak]
    laws.require(at_peak == columns["token_id"], "a window has another token at its peak", unit)
    value = activations.flatten().to_numpy()[peak]
    laws.require(value == columns["value"], "a window has another value at its peak", unit)
    spelled = pc.equal(laws.vocabulary.token_strings(at_peak), table["token"].combine_chunks())
    laws.require(spelled.to_numpy(zero_copy_only=False), "a token is not that of its id", unit)
    texts = pc.equal(laws.vocabulary.texts(ids.values, ids.offsets), table["text"].combine_chunks())
    laws.require(texts.to_numpy(zero_copy_only=False), "a text is not that of its token ids", unit)
