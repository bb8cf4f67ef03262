"""A unit's examples as they are stored, made into rows of `examples`; each token's share of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index.arrow import array_of, call, elements, rows_where
from indexer.index.codecs import EXAMPLES
from indexer.index.files import DAMAGED
from indexer.index.vocabulary import Vocabulary

# what a unit's examples are read from; the rest is known beforehand or cheaper to look up than to decode
STORED = [name for name in EXAMPLES.columns.names if name not in ("site", "layer", "unit", "token", "text")]


def spelled(rows: pa.Table, vocabulary: Vocabulary, path: Path) -> dict[str, Any]:
    """Columns of examples as they are stored, with tokens and text from the vocabulary."""
    columns = {name: rows[name] for name in STORED}
    windows, activations = (rows[name].combine_chunks() for name in ("token_ids", "activations"))
    ids, values = elements(windows), elements(activations)
    length = call("list_value_length", windows).to_numpy()
    # Arrow takes offsets on trust: values that end before them would be read from other memory
    if not np.array_equal(length, call("list_value_length", activations).to_numpy()):
        raise IndexerError(f"{path}: a window has not one activation for every token; {DAMAGED}")
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    _check_peaks(columns, ids, values, offsets, path)
    lists = {"token_ids": ids, "tokens": vocabulary.token_strings(ids), "activations": values}
    for name, found in lists.items():
        columns[name] = pa.ListArray.from_arrays(array_of(offsets), found)
    columns["token"] = vocabulary.token_strings(rows["token_id"].combine_chunks())
    columns["text"] = vocabulary.texts(ids, offsets)
    return columns


def _check_peaks(
    columns: dict[str, Any], ids: pa.Array, activations: pa.Array, offsets: np.ndarray, path: Path
) -> None:
    """Raise IndexerError where windows are not those of their rows; a page index has no checksum."""
    position, start = (columns[name].to_numpy() for name in ("position", "window_start"))
    peak = offsets[:-1] + position - start
    right = bool(((peak >= offsets[:-1]) & (peak < offsets[1:])).all())
    pairs = ((ids, "token_id"), (activations, "value"))
    if not right or not all(
        np.array_equal(values.to_numpy()[peak], columns[name].to_numpy(), equal_nan=True)
        for values, name in pairs
    ):
        raise IndexerError(f"{path}: a window does not hold its peak; {DAMAGED}")


def of_kind(examples: pa.Table, kind: str, k: int | None) -> pa.Table:
    """Those of one kind; with k, the first k of them, or of each of their bands."""
    if k is not None and k < 1:
        raise IndexerError(f"k = {k}: ask for at least one example")
    # rows are sorted by kind
    kinds = examples["kind"].to_numpy()
    first, last = np.searchsorted(kinds, kind), np.searchsorted(kinds, kind, "right")
    rows = examples.slice(int(first), int(last - first))
    return rows if k is None else rows_where(rows, call("less_equal", rows["rank"], pa.scalar(k)))


def spell(tokens: Sequence[str], text: str) -> tuple[str, ...]:
    """Each token's share of the text: joined they are the text again.

    A token may differ from what it adds to the text by a leading space or a WordPiece `##`; the text decides.
    Where a character is split over several tokens, the first of them has it and the others have nothing.
    """
    if "".join(tokens) == text:
        # as of most tokenizers, and much faster
        return tuple(tokens)
    shares: list[str] = []
    cursor = 0
    for ordinal, token in enumerate(tokens):
        end = _end_of(token, text, cursor)
        if end is None:
            end = _next_found(tokens[ordinal + 1 :], text, cursor)
        shares.append(text[cursor:end])
        cursor = end
    if shares:
        shares[-1] += text[cursor:]
    return tuple(shares)


def _end_of(token: str, text: str, cursor: int) -> int | None:
    """Where the token ends that stands at the cursor; None where it does not stand there."""
    starts = (cursor, cursor + 1) if text.startswith(" ", cursor) else (cursor,)
    for start in starts:
        if text.startswith(token, start):
            return start + len(token)
    for spelling in (token.removeprefix("##"), token.removeprefix(" ")):
        for start in starts:
            if text.startswith(spelling, start):
                return start + len(spelling)
    return None


def _next_found(tokens: Sequence[str], text: str, cursor: int) -> int:
    """Where the next token stands that the text has again; the cursor where it has none of them."""
    for ordinal, token in enumerate(tokens):
        spelling = token.removeprefix("##")
        # one character is split over a few tokens at most; farther on the same word is another one
        found = text.find(spelling, cursor, cursor + len(spelling) + 2 * (ordinal + 2))
        if spelling.strip() and found >= 0:
            return found
    return len(text) if not tokens else cursor
