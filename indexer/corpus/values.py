"""What a record's column holds, as what is indexed: a text, a chat as a template writes it, or token ids.

Where a decoder reads a column of its own, a record is a pair of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.corpus.policy import Column, Reading
from indexer.errors import IndexerError

# between the paragraphs of a text that is a list of them
PARAGRAPH_GAP = "\n\n"
_MOST_ID = 2**31 - 1


class Chat(str):
    """A chat as the tokenizer's template writes it, the special tokens that it writes included."""


# token ids are int32 [tokens]
Text = str | NDArray[np.int32]


class Pair(NamedTuple):
    """What the encoder reads of a record, and what the decoder does."""

    source: Text
    target: Text


Content = Text | Pair


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


def joined(parts: Sequence[Text | None], reading: Reading, place: Callable[[], str]) -> Content | None:
    """What a record stands for whose wanted columns hold `parts`; None where the policy left one out.

    Raises IndexerError where there is a text and no target.
    """
    if len(parts) == 1:
        return parts[0]
    source, target = parts
    if source is None or target is None:
        return None
    # a chat is written later
    if len(source) and not len(target) and not isinstance(target, Chat):
        raise IndexerError(
            f'{place()}: column "{reading.columns[1].name}" holds no target for the decoder to read; '
            "fill it in, or leave this record out"
        )
    return Pair(source, target)


def content(value: Any, reading: Reading, place: Callable[[], str], column: Column) -> Text:
    """What a value of a column stands for; null and the empty list are an empty text.

    A list of texts is one text, PARAGRAPH_GAP between them. place: names the record.
    Raises IndexerError for a value of another kind, and for token ids that the model does not know.
    """
    if reading.ids:
        return token_ids([] if value is None else value, reading, place, column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if all(part is None or isinstance(part, str) for part in value):
            return PARAGRAPH_GAP.join(part for part in value if part)
        if all(isinstance(part, Mapping) and "role" in part for part in value):
            return _chat(value, reading, place, column)
    may_be_ids = isinstance(value, list) and type(value[0]) is int
    raise reading.not_wanted(place(), _kind(value), column, may_be_ids)


def token_ids(
    value: Any, reading: Reading, place: Callable[[], str], column: Column
) -> NDArray[np.int32]:
    """Token ids, int32, of a list or array of whole numbers; each is one that the model knows."""
    plain = isinstance(value, np.ndarray) and value.dtype.kind in "iu"
    if not plain and not (isinstance(value, list) and all(type(token) is int for token in value)):
        raise reading.not_wanted(place(), _kind(value), column)
    most = _MOST_ID if reading.known_ids is None else reading.known_ids - 1
    # numbers beyond 64 bits are refused as all that are too large
    ids = np.array(value, dtype=None if plain else object)
    bad = np.flatnonzero((ids < 0) | (ids > most))
    if len(bad):
        raise IndexerError(
            f'{place()}: token {bad[0]} of column "{column.name}" is {ids[bad[0]]}, and the model '
            f"and its tokenizer know token ids 0 to {most:,} alone; make the ids with that tokenizer"
        )
    return ids.astype(np.int32)


def _chat(messages: list[Any], reading: Reading, place: Callable[[], str], column: Column) -> Chat:
    if reading.write_chat is None:
        raise IndexerError(f"{place()}: a chat, and no tokenizer whose template could write it is at hand")
    # Parquet has every message's fields in all of them, as null
    plain = [{name: part for name, part in one.items() if part is not None} for one in messages]
    try:
        return Chat(reading.write_chat(plain))
    except IndexerError as error:
        raise IndexerError(f'{place()}: column "{column.name}" holds a chat, and {error}') from error


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object ({', '.join(list(columns(value))[:8])})"
    if isinstance(value, list):
        kinds = sorted({"object" if isinstance(part, Mapping) else type(part).__name__ for part in value})
        return f"a list of {' and '.join(kinds)}"
    return type(value).__name__
