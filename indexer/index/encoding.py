"""How the files of an index are encoded; every choice was measured on windows of 64 tokens of real text.

Windows are most of an index and most of the time to write and read it. zstd at level -3 writes and reads
them a fifth faster than at level 1, for a tenth more bytes; without compression reading gains another
fifth, for half as much again. Token ids as a dictionary; activations as byte streams, where sign and
exponent compress and mantissas do not have to.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from indexer.index import schema

_FLOATS = {"value", "activations", "minimum", "maximum", *schema.MOMENTS}
_REPEATING = {
    "site",
    "layer",
    "unit",
    "extreme",
    "rank",
    "document",
    "token_id",
    "token",
    "token_ids",
    "source",
}
_REPEATING_BINS = {"lower", "upper", "count"}
_LEVEL = 1
_LEVEL_OF_WINDOWS = -3
# A filter for what a row group can hold. Left to itself it is built for a million tokens and then shrunk,
# which costs more than writing all the rest.
_TOKENS_OF_A_GROUP = 8_192


def parquet_options(wanted: pa.Schema) -> dict[str, Any]:
    """Arguments for pyarrow.parquet.ParquetWriter to write a file of this schema.

    Statistics for what queries compare with, and a bloom filter that lets a search skip row groups without
    the token.
    """
    lists = {field.name for field in wanted if pa.types.is_list(field.type)}
    leaf = {
        field.name: f"{field.name}.list.element" if field.name in lists else field.name for field in wanted
    }
    repeating = _REPEATING | (_REPEATING_BINS if wanted is schema.HISTOGRAMS else set())
    windows = lists if wanted is schema.EXAMPLES_STORED else set()
    return {
        "compression": "zstd",
        "compression_level": {leaf[name]: _LEVEL_OF_WINDOWS if name in windows else _LEVEL for name in leaf},
        "use_dictionary": [leaf[name] for name in leaf if name in repeating],
        "column_encoding": {leaf[name]: "BYTE_STREAM_SPLIT" for name in leaf if name in _FLOATS},
        "write_statistics": [name for name in leaf if name not in lists],
        "write_page_checksum": True,
        "store_schema": False,
        "bloom_filter_options": (
            {"token": {"ndv": _TOKENS_OF_A_GROUP, "fpp": 0.05}} if "token" in leaf else None
        ),
    }
