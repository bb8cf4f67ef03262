"""Data sets of the Hugging Face hub, streamed through the `datasets` library.

Source: hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION][:SPLIT]; the split is `train` if none is named.
The revision is resolved to a commit before reading, so that the manifest says what was read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from indexer.corpus.pieces import Run
from indexer.corpus.policy import Reading
from indexer.corpus.sources import HUB_PREFIX
from indexer.corpus.tables import BATCH_ROWS, column_texts
from indexer.errors import IndexerError

PATTERN = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)"
    # the hub's own branches are the only ones with a slash that can be told from a configuration
    r"(@(?P<revision>refs/(convert|pr)/\w+|[\w.-]+))?"
    r"(/(?P<configuration>[\w.-]+))?(:(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True)
class HubSource:
    """What a source beginning with hf://datasets/ names."""

    name: str
    revision: str | None
    configuration: str | None
    split: str


def parse(source: str) -> HubSource:
    """Read a source. Raises IndexerError where it is not of the form above."""
    match = PATTERN.fullmatch(source.removeprefix(HUB_PREFIX).rstrip("/"))
    if match is None:
        raise IndexerError(
            f"corpus source {source}: write hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION][:SPLIT]"
        )
    return HubSource(match["name"], match["revision"], match["configuration"], match["split"] or "train")


def read_hub(run: Run, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of each row of a data set's split, in the order in which the library streams it.

    The digest is the SHA-256 of all texts in UTF-8, each followed by one zero byte. It is noted at the end,
    with the number of rows; the revision from the beginning. Where reading is continued there is none: rows
    that were read before are not fetched again.
    """
    file = run.file
    source = parse(file.source)
    digest = hashlib.sha256()
    row = run.skip
    try:
        commit = _commit(source)
        reading.note_digest(file, None, None, revision=commit, rows=None)
        for table in _tables(source, commit, run.skip):
            if reading.text_column not in table.column_names:
                raise reading.no_column(f"corpus {file.source}", table.column_names)
            column = table.column(reading.text_column)
            texts = column_texts(column, reading, lambda row: f"corpus {file.source}, row {row}", row)
            for number, text in texts:
                digest.update(text.encode("utf-8"))
                digest.update(b"\0")
                reading.see(file, number)
                yield number, text
            row += table.num_rows
            reading.see(file, row - 1)
    except IndexerError:
        raise
    except Exception as error:
        # the library's errors have no common base, and a user can cause most of them: name, network, format
        reason = " ".join(str(error).split()) or type(error).__name__
        raise IndexerError(f"corpus {file.source}: cannot be read ({reason[:600]})") from error
    whole = None if run.skip else digest.hexdigest()
    reading.note_digest(file, None, whole, revision=commit, rows=row)


def _commit(source: HubSource) -> str | None:
    """The commit that the revision stands for; None for a data set folder on this machine.

    The library takes such a folder for the data set whatever the hub has of that name.
    """
    if os.path.isdir(source.name):
        if source.revision is not None:
            raise IndexerError(
                f"corpus {HUB_PREFIX}{source.name}: revision {source.revision} is for data sets of the hub; "
                f"this is the folder {source.name} here"
            )
        return None
    from huggingface_hub import HfApi

    return HfApi().dataset_info(source.name, revision=source.revision).sha


def _tables(source: HubSource, commit: str | None, skip: int) -> Iterator[pa.Table]:
    # imported here: the library takes a second to load, and only this kind of source needs it
    from datasets import disable_progress_bars, load_dataset

    # bars for listing files would run into the one of the build
    disable_progress_bars()
    options: dict[str, Any] = {"revision": commit} if commit else {}
    data = load_dataset(source.name, source.configuration, split=source.split, streaming=True, **options)
    if skip:
        data = data.skip(skip)
    yield from data.with_format("arrow").iter(BATCH_ROWS)
