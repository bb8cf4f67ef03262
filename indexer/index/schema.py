"""The index on disk, format version 2: which files there are, their columns, and how their rows are grouped.

Files of one row per example or bin are sorted by unit and grouped so that a row group holds whole units; one
unit's rows are then found from the footer alone. At most 64 row groups per file, because readers parse the
footer of every file they touch at some 25 us per row group.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

import pyarrow as pa
from indexer_kernels.histogram import QUANTILES
from indexer_kernels.moments import POWERS

from indexer.index.sums import PACKED
from indexer.names import Key

FORMAT: Final = "neuron activation index"
VERSION = 2

MANIFEST = "manifest.json"
VIEWS = "views.sql"
# what happened during the build, where it was one of a model: not of a merge
LOG = "build.log.jsonl"
UNITS_FILE = "units.parquet"
DOCUMENTS_FILE = "documents.parquet"
VOCABULARY_FILE = "vocabulary.parquet"
EXAMPLES_FOLDER = "examples"
HISTOGRAMS_FOLDER = "histograms"
SUMS_FOLDER = "sums"
FOLDERS = (EXAMPLES_FOLDER, HISTOGRAMS_FOLDER, SUMS_FOLDER)

# A row group is read in part for one unit and skipped or read whole by a scan: small groups serve the
# one, large groups the other. Below this many rows a group costs more in the footer than it saves.
MOST_ROW_GROUPS = 64
EXAMPLE_ROWS = 4_096
HISTOGRAM_ROWS = 16_384
UNIT_ROWS = 4_096
DOCUMENT_ROWS = 16_384


def examples_file(key: Key) -> str:
    """Path of a layer's examples within the index."""
    return str(PurePosixPath(EXAMPLES_FOLDER) / f"{key}.parquet")


def histograms_file(key: Key) -> str:
    """Path of a layer's histograms within the index."""
    return str(PurePosixPath(HISTOGRAMS_FOLDER) / f"{key}.parquet")


def sums_file(key: Key) -> str:
    """Path of a layer's sums of powers within the index."""
    return str(PurePosixPath(SUMS_FOLDER) / f"{key}.parquet")


def rows_per_group(rows: int, wanted: int) -> int:
    """Rows of a row group: `wanted`, or more where that would make more than MOST_ROW_GROUPS."""
    return max(wanted, -(-rows // MOST_ROW_GROUPS), 1)


def _schema(*columns: tuple[str, pa.DataType], nullable: frozenset[str] = frozenset()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in nullable) for name, kind in columns])


def _list(kind: pa.DataType) -> pa.DataType:
    # elements that cannot be null need one definition level less: faster to write and to read
    return pa.list_(pa.field("element", kind, nullable=False))


_UNIT = (("site", pa.string()), ("layer", pa.int32()), ("unit", pa.int32()))
MOMENTS = ("mean", "variance", "skewness", "kurtosis")

UNITS = _schema(
    *_UNIT,
    *((name, pa.int64()) for name in ("count", "positive", "active", "nan", "inf")),
    *((name, pa.float32()) for name in ("minimum", "maximum")),
    *((name, pa.float64()) for name in MOMENTS),
    *((name, pa.float32()) for name in QUANTILES),
    nullable=frozenset(("minimum", "maximum", *MOMENTS, *QUANTILES)),
)

# What the view `examples` shows, in this order. `tokens` follow from `token_ids` and are not stored. So does
# `text`, which is: put together from tokens, a search through 1.5 million texts takes four times as long.
EXAMPLES = _schema(
    *_UNIT,
    ("extreme", pa.string()),
    ("rank", pa.int32()),
    ("value", pa.float32()),
    ("document", pa.int64()),
    ("sequence", pa.int64()),
    ("position", pa.int32()),
    ("token_id", pa.int32()),
    ("token", pa.string()),
    ("window_start", pa.int32()),
    ("token_ids", _list(pa.int32())),
    ("tokens", _list(pa.string())),
    ("activations", _list(pa.float32())),
    ("text", pa.string()),
)
EXAMPLES_STORED = pa.schema([field for field in EXAMPLES if field.name != "tokens"])

HISTOGRAMS = _schema(*_UNIT, ("lower", pa.float32()), ("upper", pa.float32()), ("count", pa.int64()))

# The exact sums of x, x^2, x^3 and x^4, of which the columns of `units` are rounded: what merging adds up.
# Each is a little-endian two's complement integer in units of 2^-150; see sums.py.
SUM_NAMES = tuple(f"sum{power}" for power in range(1, POWERS + 1))
OVERFLOWED_NAMES = tuple(f"overflowed{power}" for power in range(1, POWERS + 1))
SUMS = _schema(
    *_UNIT,
    *((name, pa.binary(PACKED)) for name in SUM_NAMES),
    *((name, pa.int64()) for name in OVERFLOWED_NAMES),
)

DOCUMENTS = _schema(
    ("document", pa.int64()),
    ("source", pa.string()),
    ("row", pa.int64()),
    ("characters", pa.int64()),
    # unknown where reading stopped within the document
    nullable=frozenset(("characters",)),
)

# One row. Its lists have one entry per token id: the token as people read it, what it adds to a text (see
# vocabulary.py), and how often it was counted.
VOCABULARY = _schema(
    ("spaced", pa.bool_()),
    ("tokens", _list(pa.string())),
    ("pieces", _list(pa.string())),
    ("counts", _list(pa.int64())),
)
# what is the same for every index of a tokenizer
SPELLING = ("spaced", "tokens", "pieces")
