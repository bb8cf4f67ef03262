"""What the pages ask of an index, as values that JSON can hold. Knows nothing of HTTP.

Every answer is what the Python API says, with names instead of tables: numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from indexer.display.data import rows
from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.index.results import source_name
from indexer.index.spelled import spell
from indexer.names import Unit

# columns of `units` that a list can be sorted and filtered by
NUMBERS = (
    "layer", "unit", "count", "positive", "active", "nan", "inf", "minimum", "maximum", "mean", "variance",
    "skewness", "kurtosis", "p01", "p10", "p50", "p90", "p99", "p999", "p9999",
)  # fmt: skip
MOST_ROWS = 200
PEAKS = 5
_WAYS = {
    "token": "token = ?",
    "text": "text ILIKE ? ESCAPE '\\'",
    "pattern": "regexp_matches(text, ?)",
}


class Answers:
    """Answers about one index. Safe for use by several threads."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def about(self) -> dict[str, Any]:
        """What the index holds and how it was made, its layers among it."""
        layers = [
            {"name": str(entry.key), "site": entry.key.site, "layer": entry.key.layer, "units": entry.units}
            for entry in self.index.manifest.layers
        ]
        return self.index.info() | {"layers": layers}

    def unit(self, name: str) -> dict[str, Any]:
        """All of a unit: its row of `units`, its bins, its examples of each kind, and where these are from.

        `head` are the scores of an attention head, None for other units.

        Of an example `pieces` are its tokens' shares of the text: joined they are the text. Documents are
        texts, for JavaScript rounds numbers from 2^53 on.
        Raises IndexerError for a unit that the index has not.
        """
        record = self.index.record(name)
        examples = _examples({"top": record.top, "samples": record.samples, "bottom": record.bottom})
        keep = self.index.keep(record.unit)
        return {
            "name": str(record.unit),
            "numbers": next(rows(record.statistics)),
            "bins": [[row["lower"], row["upper"], row["count"]] for row in rows(record.histogram)],
            **examples,
            "documents": self._documents(examples),
            "window": list(keep.window),
            "neighbours": self._neighbours(record.unit),
            "head": None if record.head is None else next(rows(record.head)),
        }

    def units(
        self,
        sort: str = "maximum",
        descending: bool = True,
        where: Sequence[tuple[str, str, float]] = (),
        site: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """Rows of `units` in some order, and how many there are.

        where: of each condition a column, ">=" or "<=", and a number.
        Raises IndexerError for a column or a condition that there is not.
        """
        _check_column(sort)
        conditions: list[str] = []
        parameters: list[Any] = []
        for column, comparison, bound in where:
            _check_column(column)
            if comparison not in (">=", "<="):
                raise IndexerError(f'condition "{comparison}": there are >= and <=')
            conditions.append(f'"{column}" {comparison} ?')
            parameters.append(bound)
        if site is not None:
            conditions.append("site = ?")
            parameters.append(site)
        given = f"FROM units WHERE {' AND '.join(conditions) or 'true'}"
        order = f'"{sort}" {"DESC" if descending else "ASC"} NULLS LAST, site, layer, unit'
        limit, offset = min(max(limit, 1), MOST_ROWS), max(offset, 0)
        found = self.index.sql(f"SELECT * {given} ORDER BY {order} LIMIT {limit} OFFSET {offset}", parameters)
        total = self.index.sql(f"SELECT count(*) AS n {given}", parameters)["n"][0].as_py()
        return {"total": total, "offset": offset, "rows": list(rows(found))}

    def briefly(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Of some units their bins, and the tokens at the peaks of their strongest examples."""
        found = []
        for name in names[:MOST_ROWS]:
            bins = [[row["lower"], row["upper"], row["count"]] for row in rows(self.index.histogram(name))]
            tokens = self.index.top(name, k=PEAKS)["token"].to_pylist()
            found.append({"name": name, "bins": bins, "tokens": tokens})
        return found

    def layers(self) -> list[dict[str, Any]]:
        """Of each layer how many units it has, how many are never active, and what is usual there."""
        found = self.index.sql(
            "SELECT site, layer, count(*) AS units, count(*) FILTER (active = 0) AS dead, "
            'median(active / "count") AS density, median(maximum) AS maximum, max(maximum) AS highest, '
            "median(kurtosis) AS kurtosis FROM units GROUP BY site, layer ORDER BY site, layer"
        )
        return list(rows(found))

    def search(
        self, way: str, words: str, least: float | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """Units by their strongest examples, those with most that are sought first.

        way: "token" for those whose peak is at a token, "text" for those whose text holds `words`, whatever
            the case of letters, "pattern" for those in whose text a regular expression (RE2) is found.
        least: the activation that an example has at its peak, at least.
        Of each unit `value` is the highest of them, `text` that example's, and `found` what is sought in it.
        Raises IndexerError for what is no regular expression.
        """
        given: list[Any] = [words, *([] if least is None else [least])]
        if way == "text":
            escaped = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            given[0] = f"%{escaped}%"
        found = self.index.sql(
            f"SELECT *, {'regexp_extract(text, ?)' if way == 'pattern' else '?'} AS found FROM ("
            "SELECT site, layer, unit, count(*) AS examples, max(value) AS value, "
            "arg_max(text, value) AS text "
            f"FROM examples WHERE kind = 'top' AND {_WAYS[way]} {'' if least is None else 'AND value >= ?'} "
            "GROUP BY site, layer, unit ORDER BY examples DESC, value DESC, site, layer, unit LIMIT ?"
            ") ORDER BY examples DESC, value DESC, site, layer, unit",
            [words, *given, min(limit, MOST_ROWS)],
        )
        return list(rows(found))

    def document(self, number: int, target: bool = False) -> dict[str, Any]:
        """The whole text of a document, from its source; raises IndexerError where that cannot be reached.

        target: what the decoder reads of it, where that is a text of its own.
        """
        return {"document": number, "text": self.index.document(number, target=target)}

    def _documents(self, examples: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        wanted = {int(example["document"]) for some in examples.values() for example in some}
        return {
            str(row["document"]): {"name": source_name(row["source"], row["row"]), **row}
            | {"document": str(row["document"])}
            for row in rows(self.index.documents(wanted))
        }

    def _neighbours(self, unit: Unit) -> dict[str, str | None]:
        """The units before and after it, and those of its number in the layers below and above."""
        layers = [entry for entry in self.index.manifest.layers if entry.key.site == unit.site]
        place = next(number for number, entry in enumerate(layers) if entry.key == unit.key)

        def named(where: int, number: int) -> str | None:
            there = 0 <= where < len(layers) and 0 <= number < layers[where].units
            return f"{layers[where].key}.{number}" if there else None

        return {
            "before": named(place, unit.unit - 1),
            "after": named(place, unit.unit + 1),
            "below": named(place - 1, unit.unit),
            "above": named(place + 1, unit.unit),
        }


def _examples(tables: dict[str, pa.Table]) -> dict[str, list[dict[str, Any]]]:
    # together: there are few of each, and each column costs something however short it is
    wanted = [table.select([*_KEPT, "tokens", "token_ids", "text"]) for table in tables.values()]
    every = rows(pa.concat_tables(wanted).combine_chunks())
    return {kind: [_example(row) for row in islice(every, table.num_rows)] for kind, table in tables.items()}


def _example(row: dict[str, Any]) -> dict[str, Any]:
    row["pieces"] = spell(row.pop("tokens"), row.pop("text"))
    row["ids"] = row.pop("token_ids")
    row["document"] = str(row["document"])
    return row


_KEPT = (
    "kind", "rank", "band", "value", "up", "document", "sequence", "position", "window_start", "token",
    "activations",
)  # fmt: skip


def _check_column(name: str) -> None:
    if name not in NUMBERS:
        raise IndexerError(f'column "{name}": a list is sorted and filtered by {", ".join(NUMBERS)}')
