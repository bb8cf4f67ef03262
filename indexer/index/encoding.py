"""How the files of an index are encoded; every choice was measured on windows of 64 tokens of real text.

Windows are most of an index and most of the time to write and read it. Activations are byte streams, where
sign and exponent compress and mantissas do not have to; zstd at level -3 writes and reads them a fifth
faster than at level 1, for a tenth more bytes. Token ids are plain at level 1: a dictionary at level -3
takes half as many bytes again and is slower to read. A text takes about as many bytes as its token ids.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from indexer.index import schema

_FLOATS = {"value", "activations", "minimum", "maximum", *schema.MOMENTS}
_REPEATING = {"site", "layer", "unit", "extreme", "rank", "document", "token_id", "token", "source"}
_REPEATING_BINS = {"lower", "upper", "count"}
_LEVEL = 1
_LEVEL_OF_ACTIVATIONS = -3
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
    return {
        "compression": "zstd",
        "compression_level": {
            leaf[name]: _LEVEL_OF_ACTIVATIONS if name == "activations" else _LEVEL for name in leaf
        },
        "use_dictionary": [leaf[name] for name in leaf if name in repeating],
        "column_encoding": {leaf[name]: "BYTE_STREAM_SPLIT" for name in leaf if name in _FLOATS},
        "write_statistics": [name for name in leaf if name not in lists and name != "text"],
        "write_page_checksum": True,
        "store_schema": False,
        "bloom_filter_options": (
            {"token": {"ndv": _TOKENS_OF_A_GROUP, "fpp": 0.05}} if "token" in leaf else None
        ),
    }
