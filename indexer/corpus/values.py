"""What a record's column holds, as what is indexed: a text, a chat as a template writes it, or token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.corpus.policy import Reading
from indexer.errors import IndexerError

# between the paragraphs of a text that is a list of them
PARAGRAPH_GAP = "\n\n"
_MOST_ID = 2**31 - 1


class Chat(str):
    """A chat as the tokenizer's template writes it, the special tokens that it writes included."""


# token ids are int32 [tokens]
Content = str | NDArray[np.int32]


def find(record: Mapping[str, Any], path: str) -> Any:
    """A column of a record; `a.b` is column b of the object a, unless there is a column of that very name.

    null within the path is null. Raises KeyError where there is no such column.
    """
    if path in record:
        return record[path]
    for place, character in enumerate(path):
        if character == "." and path[:place] in record:
            inner = record[path[:place]]
            if inner is None:
                return None
            if isinstance(inner, Mapping):
                return find(inner, path[place + 1 :])
    raise KeyError(path)


def columns(record: Mapping[str, Any]) -> Iterator[str]:
    """The names that `find` knows, those within objects one level deep."""
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def content(value: Any, reading: Reading, place: Callable[[], str]) -> Content:
    """What a value of the column stands for; null and the empty list are an empty text.

    A list of texts is one text, PARAGRAPH_GAP between them. place: names the record.
    Raises IndexerError for a value of another kind, and for token ids that the model does not know.
    """
    if reading.ids:
        return token_ids([] if value is None else value, reading, place)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if all(part is None or isinstance(part, str) for part in value):
            return PARAGRAPH_GAP.join(part for part in value if part)
        if all(isinstance(part, Mapping) and "role" in part for part in value):
            return _chat(value, reading, place)
    raise reading.not_wanted(
        place(), _kind(value), may_be_ids=isinstance(value, list) and type(value[0]) is int
    )


def token_ids(value: Any, reading: Reading, place: Callable[[], str]) -> NDArray[np.int32]:
    """Token ids, int32, of a list or array of whole numbers; each is one that the model knows."""
    plain = isinstance(value, np.ndarray) and value.dtype.kind in "iu"
    if not plain and not (isinstance(value, list) and all(type(token) is int for token in value)):
        raise reading.not_wanted(place(), _kind(value))
    most = _MOST_ID if reading.known_ids is None else reading.known_ids - 1
    # numbers beyond 64 bits are refused as all that are too large
    ids = np.array(value, dtype=None if plain else object)
    bad = np.flatnonzero((ids < 0) | (ids > most))
    if len(bad):
        raise IndexerError(
            f'{place()}: token {bad[0]} of column "{reading.column}" is {ids[bad[0]]}, and the model '
            f"and its tokenizer know token ids 0 to {most:,} alone; make the ids with that tokenizer"
        )
    return ids.astype(np.int32)


def _chat(messages: list[Any], reading: Reading, place: Callable[[], str]) -> Chat:
    if reading.write_chat is None:
        raise IndexerError(f"{place()}: a chat, and no tokenizer whose template could write it is at hand")
    # Parquet has every message's fields in all of them, as null
    plain = [{name: part for name, part in one.items() if part is not None} for one in messages]
    try:
        return Chat(reading.write_chat(plain))
    except IndexerError as error:
        raise IndexerError(f'{place()}: column "{reading.column}" holds a chat, and {error}') from error


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object ({', '.join(list(columns(value))[:8])})"
    if isinstance(value, list):
        kinds = sorted({"object" if isinstance(part, Mapping) else type(part).__name__ for part in value})
        return f"a list of {' and '.join(kinds)}"
    return type(value).__name__
