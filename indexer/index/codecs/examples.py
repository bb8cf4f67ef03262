"""Examples: one row for each, with the window of tokens and activations around its peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from indexer_kernels import Bands
from indexer_kernels.bands import bands_of, lower_ends, octaves_of
from indexer_kernels.examples import PLACE_FIELDS, ExampleRows, passages_of
from indexer_kernels.hashes import scrambled, sequence_keys, unit_keys
from indexer_kernels.places import Places
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

# of each kind the state that holds it; in the order of the rows, which is the order of the words
STATES = {"bottom": "bottom", "sample": "samples", "top": "top"}
KINDS = tuple(STATES)
_SAMPLE = KINDS.index("sample")
# a page of fewer costs more to write and to scan than it saves
_VALUES_OF_A_PAGE = 4_096
# of a row without its window, and of a token in it: its id, its activation, its text
_ROW_BYTES, _TOKEN_BYTES = 80, 4 + 4 + 5
_READ = (
    "unit", "kind", "rank", "band", "value", "up", "document", "sequence", "position", "window_start",
    "token_ids", "activations",
)  # fmt: skip
_COMPARED = ("unit", "rank", "value", "document", "sequence", "position", "token_id", "window_start")


# What one unit's record is read from comes first, and its small columns before the windows.
_STORED = pa.schema(
    [
        *schema.UNIT,
        column("kind", pa.string(), "dictionary"),
        column("rank", pa.int32(), "dictionary"),
        column("band", pa.float32(), "dictionary", nullable=True),
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
    """Sorted by unit, kind ('bottom', 'sample', 'top'), band (the highest first), rank.

    `tokens` follow from `token_ids` and are not stored. So does `text`, which is: put together from tokens, a
    search through 1.5 million texts takes four times as long.
    """

    name = folder = view = "examples"
    states = tuple(STATES.values())
    macros = KINDS
    rows_of_a_group = 4_096
    columns = _STORED
    shown = _SHOWN

    def unit_bytes(self, record: LayerRecord) -> int:
        tokens = sum(record.keep.window) + 1
        return max(_places_of(record), 1) * (_ROW_BYTES + tokens * _TOKEN_BYTES)

    def least_group(self, record: LayerRecord) -> int:
        return -(-self.rows_of_a_group // max(_places_of(record), 1))

    def page_values(self, record: LayerRecord) -> int:
        """Those of whole units, where all their places and windows are full."""
        window = record.keep.window
        of_a_unit = max(_places_of(record) * (sum(window) + 1), 1)
        return -(-_VALUES_OF_A_PAGE // of_a_unit) * of_a_unit

    def documents(self, record: LayerRecord) -> np.ndarray:
        states = (record.states[name] for name in self.states)
        return np.concatenate([state.document[state.taken] for state in states])

    def table(self, record: LayerRecord, units: slice, first: int, vocabulary: Vocabulary) -> pa.Table:
        parts: list[Places] = [record.states[name].ranked(units) for name in self.states]
        valid = np.concatenate([part.taken for part in parts], axis=1)  # [units, places]

        def join(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts], axis=1)[valid]

        def spread(values: np.ndarray) -> np.ndarray:
            return np.broadcast_to(values, valid.shape)[valid]

        number = spread(np.arange(first + units.start, first + units.stop, dtype=np.int32)[:, None])
        kind = spread(np.repeat(np.arange(len(KINDS), dtype=np.int8), [part.places for part in parts]))
        band = lower_ends(np.concatenate([_octaves(part) for part in parts], axis=1)[valid])
        windows = self._windows(parts, valid, join("window_length"))
        columns = constants(record, number) | windows
        columns |= {
            "kind": pa.DictionaryArray.from_arrays(pa.array(kind), list(KINDS)),
            "rank": pa.array(_ranks(number, kind, band)),
            "band": pa.array(band, mask=kind != _SAMPLE),
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

    def _windows(self, parts: list[Places], valid: np.ndarray, length: np.ndarray) -> dict[str, pa.ListArray]:
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
                joined[:, start : start + part.places, : values.shape[-1]] = values
                start += part.places
            rows = joined.reshape(-1, width) if valid.all() else joined[valid]
            flat = rows.reshape(-1) if inside is None else rows[inside]
            columns[name] = pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(flat), type=self.columns.field(name).type
            )
        return columns

    def merge_into(self, record: LayerRecord, rows: LayerRows, units: slice) -> None:
        import pyarrow.compute as pc

        path = self.file(rows.key)
        kept = _kept(rows)
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
            peak = fields["position"] - fields["window_start"]
            rows.must_be(path, bool(((peak >= 0) & (peak < length)).all()))
            rank, band = table["rank"].to_numpy(), table["band"].fill_null(0).to_numpy()
            for kind, state in STATES.items():
                chosen = pc.equal(table["kind"], kind).to_numpy()
                part = ExampleRows(**{name: values[chosen] for name, values in fields.items()}, **tokens)
                if not len(part):
                    continue
                inside = ended[kind] < part.unit[0] and part.unit[-1] < units.stop - units.start
                rows.must_be(path, inside and bool((np.diff(part.unit) >= 0).all()))
                rows.must_be(path, np.array_equal(rank[chosen], _ranks(part.unit, band[chosen])))
                rows.must_be(path, bool(rank[chosen].max() <= kept[kind] and part.width <= widest))
                ended[kind] = int(part.unit[-1])
                record.states[state].offer(part)

    def check(self, laws: LayerLaws) -> None:
        """Examples are in order and within the extremes, samples in their bands; windows hold the peaks."""
        import pyarrow.compute as pc

        kept = np.array(list(_kept(laws.rows).values()))
        last = (-1, -1, np.inf, -1)
        seen = np.zeros((laws.units, len(KINDS)), bool)
        for table in laws.rows.groups(self.file(laws.key), self.columns):
            columns = {name: table[name].to_numpy() for name in _COMPARED}
            unit = columns["unit"]
            if len(unit) and (unit.min() < 0 or unit.max() >= laws.units):
                raise IndexerError(f"{laws.where}: examples of a unit the layer has not")
            kind = pc.index_in(table["kind"], pa.array(KINDS)).fill_null(-1).to_numpy()
            laws.require(kind >= 0, f"examples of a kind that is none of {', '.join(KINDS)}", unit)
            banded = table["band"].is_valid().to_numpy()
            laws.require(banded == (kind == _SAMPLE), "samples have a band and other examples none", unit)
            columns |= {"kind": kind, "band": table["band"].fill_null(0).to_numpy()}
            seen[unit, kind] = True
            last = _check_order(laws, columns, last)
            value, first = columns["value"], columns["rank"] == 1
            laws.require(columns["rank"] <= kept[kind], "more examples than are kept", unit)
            laws.require(np.isfinite(value), "an example's value is not finite", unit)
            _check_up(laws, table["up"], value, unit)
            best = np.where(kind == KINDS.index("top"), laws.maximum[unit], laws.minimum[unit])
            right = ~first | (kind == _SAMPLE) | (value == best)
            laws.require(right, "its first example is not its minimum or maximum", unit)
            _check_bands(laws, columns)
            known = np.isin(columns["document"], laws.documents)
            laws.require(known, "an example points to a document that documents.parquet has not", unit)
            _check_windows(laws, table, columns)
        for number, kind in enumerate(KINDS):
            there = seen[:, number] == (laws.histogram.any(axis=1) & bool(kept[number]))
            laws.require(there, f"it has values without an example of kind {kind}, or the other way round")

    def views(self, place: sql.Place, layers: Sequence[Key]) -> Iterator[str]:
        files = sql.list_of([place(self.file(key)) for key in layers])
        yield "CREATE OR REPLACE VIEW examples AS " + self._query(files, place)
        here = [key.layer for key in layers if key.site == MLP]
        file = sql.path_of_layer(place(f"{self.folder}/{MLP}."), here)
        for kind in self.macros:
            yield (
                f"CREATE OR REPLACE MACRO {kind}(layer, unit) AS TABLE SELECT e.* "
                f"FROM ({self._query(file, place)}) AS e "
                f"WHERE e.unit = unit AND e.kind = '{kind}' ORDER BY e.band DESC, e.rank"
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


def _places_of(record: LayerRecord) -> int:
    """Places of a unit."""
    return sum(record.states[name].places for name in STATES.values())


def _kept(rows: LayerRows) -> dict[str, int]:
    """The highest rank of each kind."""
    return {kind: getattr(rows.keep, name) for kind, name in STATES.items()}


def _octaves(part: Places) -> np.ndarray:
    """uint32 [units, places]: of samples the octaves of their bands, else 0."""
    return part.octave if isinstance(part, Bands) else np.zeros(part.value.shape, np.uint32)


def _ranks(*keys: np.ndarray) -> np.ndarray:
    """int32: of each row its place, from 1, among those with the same keys, which lie together."""
    number = np.arange(len(keys[0]), dtype=np.int32)
    begins = np.zeros(len(number), bool)
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return number - np.maximum.accumulate(np.where(begins, number, 0)) + 1


def _check_order(
    laws: LayerLaws, columns: dict[str, np.ndarray], last: tuple[int, int, float, int]
) -> tuple[int, int, float, int]:
    """Rows ascend by unit, kind and rank, and descend by band; ranks count from 1.

    Within a kind, extremes ascend by the total order; within a band, samples by their hashes.
    last: unit, kind, band and rank of the row before these; returns those of the last of them.
    """
    unit, kind, band, rank = (columns[name] for name in ("unit", "kind", "band", "rank"))
    if not len(unit):
        return last
    before = [np.append(end, now[:-1]) for end, now in zip(last, (unit, kind, -band, rank), strict=True)]
    place = [unit, kind, -band]
    same = np.logical_and.reduce([now == was for now, was in zip(place, before[:3], strict=True)])
    laws.require(same | ranks_before(before[:3], place), "examples are not sorted by unit, kind, band", unit)
    laws.require(rank == np.where(same, before[3] + 1, 1), "ranks do not count from 1", unit)
    value = np.where(kind == KINDS.index("top"), -columns["value"], columns["value"])
    keys = unit_keys(laws.rows.keep.seed, str(laws.key), laws.units)[unit]
    hashes = scrambled(keys ^ sequence_keys(columns["document"], columns["sequence"]))
    ties = [columns[name] for name in TIES]
    for ours, order, said in (
        (kind != _SAMPLE, [value, *ties], "examples are not in the total order"),
        (kind == _SAMPLE, [hashes, *ties], "samples are not in the order of their hashes"),
    ):
        ordered = ranks_before([key[:-1] for key in order], [key[1:] for key in order])
        laws.require(np.append(True, ordered | ~same[1:] | ~ours[1:]), said, unit)
    return int(unit[-1]), int(kind[-1]), float(-band[-1]), int(rank[-1])


def _check_bands(laws: LayerLaws, columns: dict[str, np.ndarray]) -> None:
    """Every sample's value lies in its band, and the highest band of a unit is that of its maximum."""
    chosen = columns["kind"] == _SAMPLE
    unit, value, band = (columns[name][chosen] for name in ("unit", "value", "band"))
    laws.require(value <= laws.maximum[unit], "a sample's value is beyond its maximum", unit)
    laws.require(value >= laws.minimum[unit], "a sample's value is beyond its minimum", unit)
    right = band == lower_ends(bands_of(unit, value))
    laws.require(right, "a sample's value is not in its band", unit)
    highest = lower_ends(octaves_of(laws.maximum))[unit]
    first = _ranks(unit) == 1
    laws.require(~first | (band == highest), "its samples do not begin in the band of its maximum", unit)


def _check_up(laws: LayerLaws, up: pa.ChunkedArray, value: np.ndarray, unit: np.ndarray) -> None:
    import pyarrow.compute as pc

    unknown = pc.is_null(up).to_numpy()
    factor = up.to_numpy()
    laws.require(unknown | np.isfinite(factor), "an example's up is not finite", unit)
    laws.require((factor != 0) | (value == 0), "an example's up is 0 and its value is not", unit)


def _check_windows(laws: LayerLaws, table: pa.Table, columns: dict[str, np.ndarray]) -> None:
    import pyarrow.compute as pc

    ids, activations = (table[name].combine_chunks() for name in ("token_ids", "activations"))
    length = pc.list_value_length(ids).to_numpy()
    unit = columns["unit"]
    same = length == pc.list_value_length(activations).to_numpy()
    laws.require(same, "windows of unequal length", unit)
    inside = columns["position"] - columns["window_start"]
    laws.require((inside >= 0) & (inside < length), "a window does not hold its peak", unit)
    offset = np.cumsum(length) - length
    peak = offset + inside
    at_peak = ids.flatten().to_numpy()[peak]
    if laws.rows.keep.distinct:
        passage = passages_of(ids.flatten().to_numpy(), offset, inside)
        _check_distinct(laws, columns, passage)
    laws.require(at_peak == columns["token_id"], "a window has another token at its peak", unit)
    value = activations.flatten().to_numpy()[peak]
    laws.require(value == columns["value"], "a window has another value at its peak", unit)
    spelled = pc.equal(laws.vocabulary.token_strings(at_peak), table["token"].combine_chunks())
    laws.require(spelled.to_numpy(zero_copy_only=False), "a token is not that of its id", unit)
    texts = pc.equal(laws.vocabulary.texts(ids.values, ids.offsets), table["text"].combine_chunks())
    laws.require(texts.to_numpy(zero_copy_only=False), "a text is not that of its token ids", unit)


def _check_distinct(laws: LayerLaws, columns: dict[str, np.ndarray], passage: np.ndarray) -> None:
    """No two of a unit's strongest, or lowest, examples show the same passage; passage: their hashes."""
    ends = columns["kind"] != _SAMPLE
    keys = np.stack([passage, columns["unit"].astype(np.uint64), columns["kind"].astype(np.uint64)])[:, ends]
    order = np.lexsort(keys)
    other = (keys[:, order[1:]] != keys[:, order[:-1]]).any(axis=0)
    laws.require(other, "two of its examples show the same passage", columns["unit"][ends][order[1:]])
