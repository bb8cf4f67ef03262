"""The questions that the query case asks."""

from __future__ import annotations

import pyarrow as pa

from indexer.index.read import Index

SEARCH = """
SELECT layer, unit, count(*) AS places, max(value) AS strongest FROM examples
WHERE kind = 'top' AND token = $token
GROUP BY ALL ORDER BY places DESC, strongest DESC, layer, unit LIMIT 20
"""
SCAN = """
SELECT layer, count(*) AS units, max(maximum) AS strongest, sum(active) AS active,
  count(*) FILTER (WHERE p999 > 4 * p90) AS selective
FROM units GROUP BY layer ORDER BY layer
"""


def four_calls(index: Index, unit: str) -> tuple[pa.Table, ...]:
    """A unit's row, histogram, top and bottom, each by its own call."""
    return index.unit(unit), index.histogram(unit), index.top(unit), index.bottom(unit)


def in_sql(index: Index, unit: str) -> tuple[pa.Table, ...]:
    """The same by the views and macros."""
    _, layer, number = unit.split(".")
    place = f"{layer}, {number}"
    return (
        index.sql(f"SELECT * FROM units WHERE layer = {layer} AND unit = {number}"),
        index.sql(f"SELECT * FROM histogram({place})"),
        index.sql(f"SELECT * FROM top({place})"),
        index.sql(f"SELECT * FROM bottom({place})"),
    )
