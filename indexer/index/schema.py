"""The index on disk, format version 2: the files that every index has, their columns, how rows are grouped.

The files of a statistic are its codec's, see `codecs`. Files are sorted by unit and a row group holds whole
units, so one unit's rows are found from the footer alone. There are at most 64 row groups per file, because
readers parse the footer of every file they touch at some 25 us per row group; more of them only where each
would take much memory to write and to read.
"""

from __future__ import annotations

from typing import Final, Literal

import pyarrow as pa
from indexer_kernels.histogram import QUANTILES

FORMAT: Final = "neuron activation index"
VERSION = 2

MANIFEST = "manifest.json"
VIEWS = "views.sql"
# what happened during the build, where it was one of a model: not of a merge
LOG = "build.log.jsonl"
UNITS_FILE = "units.parquet"
DOCUMENTS_FILE = "documents.parquet"
VOCABULARY_FILE = "vocabulary.parquet"

# A row group is read in part for one unit and skipped or read whole by a scan: small groups serve the
# one, large groups the other. Below this many rows a group costs more in the footer than it saves.
MOST_ROW_GROUPS = 64
UNIT_ROWS = 2_048
# of the rows of a layer's row group, as they lie in memory, at most; and of those that are made at a time
GROUP_BYTES = 24 << 20
TABLE_BYTES = 4 << 20
DOCUMENT_ROWS = 16_384

# how a column is encoded: see encoding.py, which says why
Encoding = Literal["plain", "dictionary", "split", "windows"]


def rows_per_group(rows: int, wanted: int) -> int:
    """Rows of a row group: `wanted`, or more where that would make more than MOST_ROW_GROUPS."""
    return max(wanted, -(-rows // MOST_ROW_GROUPS), 1)


def column(name: str, kind: pa.DataType, encoding: Encoding = "plain", *, nullable: bool = False) -> pa.Field:
    """A column of a file of the index. The elements of a list are never null."""
    return pa.field(name, kind, nullable, {"encoding": encoding})


def list_of(kind: pa.DataType) -> pa.DataType:
    """The type of lists without nulls; they need one definition level less: faster to write and to read."""
    return pa.list_(pa.field("element", kind, nullable=False))


# what every row of a statistic begins with
UNIT = (
    column("site", pa.string(), "dictionary"),
    column("layer", pa.int32(), "dictionary"),
    column("unit", pa.int32(), "dictionary"),
)

UNITS = pa.schema(
    [
        *UNIT,
        *(column(name, pa.int64()) for name in ("count", "positive", "active", "nan", "inf")),
        *(column(name, pa.float32(), "split", nullable=True) for name in ("minimum", "maximum")),
        *(
            column(name, pa.float64(), "split", nullable=True)
            for name in ("mean", "variance", "skewness", "kurtosis")
        ),
        *(column(name, pa.float32(), nullable=True) for name in QUANTILES),
    ]
)

DOCUMENTS = pa.schema(
    [
        column("document", pa.int64(), "dictionary"),
        column("source", pa.string(), "dictionary"),
        column("row", pa.int64()),
        # unknown where reading stopped within the document
        column("characters", pa.int64(), nullable=True),
    ]
)

# One row. Its lists have one entry per token id: the token as people read it, what it adds to a text (see
# vocabulary.py), and how often it was counted.
VOCABULARY = pa.schema(
    [
        column("spaced", pa.bool_()),
        column("tokens", list_of(pa.string())),
        column("pieces", list_of(pa.string())),
        column("counts", list_of(pa.int64())),
    ]
)
# what is the same for every index of a tokenizer
SPELLING = ("spaced", "tokens", "pieces")
