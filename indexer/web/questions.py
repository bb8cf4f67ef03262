"""Questions in SQL from a page, each answered by a process of its own, within time, memory and size."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from indexer.display.data import json_text, rows, write_csv
from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.query import Queries
from indexer.index.read import Index

SECONDS = 10.0
# what DuckDB may take, and addresses for all of the process, of which libraries reserve more than they use
MEMORY, ADDRESSES = "1GB", 6 << 30
MOST_ROWS = 10_000
MOST_BYTES = 16 << 20
SHOWN = 200


class Questions:
    """Answers SELECTs over the views of an index, one at a time; see index.query for what a query may do."""

    def __init__(self, index: Index, seconds: float = SECONDS, memory: str = MEMORY) -> None:
        self._index, self._seconds, self._memory = index, seconds, memory
        self._lock = threading.Lock()

    def ask(self, query: str) -> dict[str, Any]:
        """The result: its columns, the first rows, how many there are at most, and all of them as CSV.

        `more` says that the result has more rows than MOST_ROWS, which are then left out.
        Raises IndexerError, one line, for a mistake and where a limit is passed.
        Cost: the start of a process, half a second.
        """
        # -P: what lies in the present folder is not imported
        command = [sys.executable, "-P", "-m", __name__, str(self._index.path.resolve()), self._memory]
        with self._lock:
            try:
                done = subprocess.run(
                    command, input=query, capture_output=True, encoding="utf-8", timeout=self._seconds
                )
            except subprocess.TimeoutExpired:
                raise IndexerError(
                    f"SQL: the query took more than {self._seconds:g} s; ask for less"
                ) from None
        if done.returncode:
            raise IndexerError("SQL: the query's process ended, out of memory as a rule; ask for less")
        found: dict[str, Any] = json.loads(done.stdout)
        if "error" in found:
            raise IndexerError(found["error"])
        return found


def answer(path: Path, query: str, memory: str) -> dict[str, Any]:
    """What `Questions.ask` returns; raises what it does but for the time."""
    table = Queries(path, read_manifest(path), memory).run(query, rows=MOST_ROWS + 1)
    if table.nbytes > MOST_BYTES:
        raise IndexerError(f"SQL: a result of {table.nbytes:,} bytes is too large for a page; add LIMIT")
    kept, out = table.slice(0, MOST_ROWS), io.StringIO()
    write_csv(kept, out)
    shown = [list(row.values()) for row in rows(kept.slice(0, SHOWN))]
    more = table.num_rows > MOST_ROWS
    told = {"columns": table.column_names, "rows": shown, "total": kept.num_rows}
    return told | {"more": more, "csv": out.getvalue()}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        print(json_text(answer(Path(sys.argv[1]), sys.stdin.read(), sys.argv[2])))
    except IndexerError as error:
        print(json_text({"error": str(error)}))
