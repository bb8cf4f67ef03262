"""How the files of an index are encoded; every choice was measured on windows of 64 tokens of real text.

Windows are most of an index and most of the time to write and read it. Activations are byte streams, where
sign and exponent compress and mantissas do not have to; zstd at level -3 writes and reads them a fifth
faster than at level 1, for a tenth more bytes. Token ids are plain at level 1: a dictionary at level -3
takes half as many bytes again and is slower to read. A text takes about as many bytes as its token ids.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_LEVEL = 1
_LEVEL_OF_WINDOWS = -3
# A filter for what a row group can hold. Left to itself it is built for a million tokens and then shrunk,
# which costs more than writing all the rest.
_TOKENS_OF_A_GROUP = 8_192


def parquet_options(wanted: pa.Schema, page_values: int | None = None) -> dict[str, Any]:
    """Arguments for pyarrow.parquet.ParquetWriter to write a file of this schema.

    Statistics for what queries compare with, and a bloom filter that lets a search skip row groups without
    the token.
    page_values: how many elements of four bytes a page of a list column takes; a new page begins with the row
        after them.
    """
    leaf, encoding = {}, {}
    for field in wanted:
        is_list = pa.types.is_list(field.type)
        leaf[field.name] = f"{field.name}.list.element" if is_list else field.name
        encoding[field.name] = (field.metadata or {}).get(b"encoding", b"plain").decode()
    return {
        "compression": "zstd",
        "compression_level": {
            leaf[name]: _LEVEL_OF_WINDOWS if encoding[name] == "windows" else _LEVEL for name in leaf
        },
        "use_dictionary": [leaf[name] for name in leaf if encoding[name] == "dictionary"],
        "column_encoding": {
            leaf[name]: "BYTE_STREAM_SPLIT" for name in leaf if encoding[name] in ("split", "windows")
        },
        "write_statistics": [name for name in leaf if leaf[name] == name and name != "text"],
        "write_page_checksum": True,
        "write_page_index": True,
        # a page ends with the batch in which it has grown beyond its size
        "data_page_size": 3 * page_values if page_values else None,
        "write_batch_size": page_values,
        "store_schema": False,
        "bloom_filter_options": (
            {"token": {"ndv": _TOKENS_OF_A_GROUP, "fpp": 0.05}} if "token" in leaf else None
        ),
    }
