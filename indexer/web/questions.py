"""Questions in SQL from a page, with limits of time, memory and size."""

from __future__ import annotations

import io
import threading
from typing import Any

from indexer.display.data import rows, write_csv
from indexer.errors import IndexerError
from indexer.index.query import Queries
from indexer.index.read import Index

SECONDS = 10.0
MEMORY = "1GB"
MOST_ROWS = 10_000
MOST_BYTES = 16 << 20
SHOWN = 200


class Questions:
    """Answers SELECTs over the views of an index, one at a time; see index.query for what a query may do.

    DuckDB is interrupted between two of its steps, and counts its own memory: neither limit holds for one
    value that a function makes, as repeat('a', 1000000000).
    """

    def __init__(self, index: Index, seconds: float = SECONDS, memory: str = MEMORY) -> None:
        self._queries = Queries(index.path.resolve(), index.manifest, memory)
        self._seconds = seconds
        self._lock = threading.Lock()

    def ask(self, query: str) -> dict[str, Any]:
        """The result: its columns, the first rows, how many there are at most, and all of them as CSV.

        `more` says that the result has more rows than MOST_ROWS, which are then left out.
        Raises IndexerError, one line, for a mistake and where a limit is passed.
        """
        with self._lock:
            table = self._queries.run(query, seconds=self._seconds, rows=MOST_ROWS + 1)
        if table.nbytes > MOST_BYTES:
            raise IndexerError(f"SQL: a result of {table.nbytes:,} bytes is too large for a page; add LIMIT")
        kept, out = table.slice(0, MOST_ROWS), io.StringIO()
        write_csv(kept, out)
        shown = [list(row.values()) for row in rows(kept.slice(0, SHOWN))]
        more = table.num_rows > MOST_ROWS
        told = {"columns": table.column_names, "rows": shown, "total": kept.num_rows}
        return told | {"more": more, "csv": out.getvalue()}
