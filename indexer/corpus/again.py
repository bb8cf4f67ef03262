"""A document of an index, read from its source again, and held against what the index says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from indexer.corpus.corpus import Corpus
from indexer.corpus.sources import HUB_PREFIX
from indexer.corpus.values import Pair, Text
from indexer.errors import IndexerError

_HOW = ("text_column", "ids_column", "target_column", "on_bad_text", "quoting")


def read_again(
    document: Mapping[str, Any],
    corpus: Mapping[str, Any],
    options: Mapping[str, Any],
    target: bool = False,
) -> Text:
    """The text of a document, or its token ids, int32 [tokens].

    document: its row of the index's `documents`. corpus, options: the sections `corpus` and `configuration`
        of the manifest. target: what a decoder reads of it, where that is another column.
    A source with a relative path is looked for from the present folder.
    Raises IndexerError where the source cannot be read, or is not what it was: of another size, of another
    SHA-256 where all of it is read, or without a document of so many characters in that row.
    Cost: that of reading the file up to the document; Parquet from its row group on.
    """
    source, row = document["source"], document["row"]
    name = f"document {document['document']}: its source {source}"
    if not (source.startswith(HUB_PREFIX) or os.path.isfile(os.path.expanduser(source))):
        raise IndexerError(f"{name} is not there; read from the folder that the index was built from")
    again = Corpus([source], **{name: options[name] for name in _HOW if name in options})
    was: dict[str, Any] = next((file for file in corpus["files"] if file["source"] == source), {})
    size = again.files[0].bytes
    if was.get("bytes") not in (None, size):
        raise IndexerError(f"{name} has changed: {size} bytes, and it had {was['bytes']}")
    found = again.content_at(row)
    if found is None:
        raise IndexerError(f"{name} has changed: there is no document in row {row}")
    found, written = found if isinstance(found, Pair) else (found, found)
    characters = document["characters"]
    if isinstance(found, str) and characters not in (None, len(found)):
        raise IndexerError(
            f"{name} has changed: {len(found)} characters in row {row}, and it had {characters}"
        )
    for now in again.digests():
        if None not in (now["sha256"], was.get("sha256")) and now["sha256"] != was["sha256"]:
            raise IndexerError(f"{name} has changed: its SHA-256 is another")
    return written if target else found
