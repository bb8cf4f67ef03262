"""Data sets of the Hugging Face hub, streamed; the `datasets` library tells which files they are.

Source: hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION][:SPLITS], or .../PATH/TO/FILE of one file. SPLITS
are `train` where none is named, else as `train`, `train+test`, `train[:1000]`, `train[1000:2000]+test`.
The revision is resolved to a commit before reading, so that the manifest says what was read.

Files of records are read by the readers of this package, so that only the column has to agree between files.
Others, and those that the data set wants read in a way of its own, `datasets` reads.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

from indexer.corpus.pieces import Run
from indexer.corpus.policy import Reading
from indexer.corpus.readers import READERS
from indexer.corpus.sources import HUB_PREFIX, CorpusFile, kind_of
from indexer.corpus.tables import BATCH_ROWS, contents, paths_of
from indexer.corpus.values import Content, Pair
from indexer.errors import IndexerError, package

PATTERN = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)"
    # the hub's own branches are the only ones with a slash that can be told from a configuration
    r"(@(?P<revision>refs/(convert|pr)/\w+|[\w.-]+))?"
    r"(/(?P<inside>[\w.-]+(/[\w.-]+)*))?(:(?P<splits>.+))?"
)
PART = re.compile(r"(?P<split>[\w.-]+)(\[(?P<first>\d*):(?P<end>\d*)\])?")
FORM = "hf://datasets/OWNER/NAME[@REVISION][/CONFIGURATION or /PATH/TO/FILE][:SPLIT]"
# settings of a data set that say what is read, not how
_NOT_HOW = {"name", "version", "data_dir", "data_files", "description", "features", "columns"}


@dataclass(frozen=True)
class Part:
    """Rows first to end - 1 of a split; to its last one where `end` is None."""

    split: str
    first: int = 0
    end: int | None = None


@dataclass(frozen=True)
class HubSource:
    """What a source beginning with hf://datasets/ names. file: the only one to be read, within it."""

    name: str
    revision: str | None
    configuration: str | None
    file: str | None
    parts: tuple[Part, ...]


def parse(source: str) -> HubSource:
    """Read a source. Raises IndexerError where it is not of the form above."""
    match = PATTERN.fullmatch(source.removeprefix(HUB_PREFIX).rstrip("/"))
    if match is None:
        raise IndexerError(f"corpus source {source}: write {FORM}")
    inside = match["inside"]
    is_file = inside is not None and ("/" in inside or kind_of(inside)[0] in READERS)
    if is_file and kind_of(inside)[0] not in READERS:
        raise IndexerError(
            f"corpus source {source}: {inside} is no file of records ({', '.join(READERS)}); write {FORM}"
        )
    parts = tuple(_part(source, text) for text in (match["splits"] or "train").split("+"))
    return HubSource(
        match["name"], match["revision"], None if is_file else inside, inside if is_file else None, parts
    )


def _part(source: str, text: str) -> Part:
    match = PART.fullmatch(text)
    if match is None:
        raise IndexerError(
            f"corpus source {source}: {text} is no split; write train, train+test or train[1000:2000], rows "
            "counted from 0, for how many there are is not known beforehand"
        )
    return Part(match["split"], int(match["first"] or 0), int(match["end"]) if match["end"] else None)


def read_hub(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each row of the source, counted through all its parts, in the order of the data set.

    The digest is the SHA-256 of all texts in UTF-8, each followed by one zero byte, or of token ids as int32.
    It is noted at the end, with the number of rows; the revision from the beginning. Where reading is
    continued there is no digest, for not all is read again.
    """
    file = run.file
    source = parse(file.source)
    digest = hashlib.sha256()
    row = 0
    try:
        commit = _commit(source)
        reading.note_digest(file, None, None, revision=commit, rows=None)
        for part in source.parts:
            before = row - part.first
            for number, value in _split(
                source, commit, part, max(part.first, run.skip - before), run, reading
            ):
                past = part.end is not None and number >= part.end
                met = number + 1 if part.end is None else min(part.end, number + 1)
                if met <= part.first:
                    continue
                row = before + met
                reading.see(file, row - 1)
                if past:
                    break
                if value is not None:
                    for text in value if isinstance(value, Pair) else (value,):
                        digest.update(
                            text.encode() + b"\0" if isinstance(text, str) else text.astype("<i4").tobytes()
                        )
                    yield row - 1, value
    except IndexerError:
        raise
    except Exception as error:
        # the libraries' errors have no common base, and a user can cause most of them: name, network, format
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


def _split(
    source: HubSource, commit: str | None, part: Part, skip: int, run: Run, reading: Reading
) -> Iterator[tuple[int, Content | None]]:
    """(row of the split, content) from row `skip` on; and the last row of every file, with None."""
    paths = _paths(source, commit, part.split)
    if paths is None:
        yield from _rows_of_library(source, commit, part.split, skip, run, reading)
        return
    first = 0
    for path in paths:
        for number, value in _rows_of_file(path, max(0, skip - first), run, reading):
            if value is None or first + number >= skip:
                yield first + number, value
        first += number + 1


def _paths(source: HubSource, commit: str | None, split: str) -> list[str] | None:
    """The files of a split, on this machine or as URLs; None where the library has to read them."""
    if source.file is not None:
        return [
            f"{source.name}/{source.file}"
            if commit is None
            else f"{HUB_PREFIX}{source.name}@{commit}/{source.file}"
        ]
    # imported here: the library takes a second to load, and only this kind of source needs it
    datasets = package("datasets", "on the Hugging Face Hub")
    # bars for listing files would run into the one of the build
    datasets.disable_progress_bars()
    options: dict[str, Any] = {"revision": commit} if commit else {}
    config = datasets.load_dataset_builder(source.name, source.configuration, **options).config
    files = config.data_files
    # how to read them may be said by the data set
    how = [one for one in fields(config) if one.name not in _NOT_HOW]
    if not files or any(getattr(config, one.name) != one.default for one in how):
        return None
    if split not in files:
        has = ", ".join(str(name) for name in files)
        raise IndexerError(f"corpus {HUB_PREFIX}{source.name}: no split {split} (it has: {has})")
    paths = [str(path) for path in files[split]]
    return paths if all(kind_of(path)[0] in READERS for path in paths) else None


def _rows_of_file(path: str, skip: int, run: Run, reading: Reading) -> Iterator[tuple[int, Content | None]]:
    """(row, content) of one file, from row `skip` on; the number of its last row, with None, at the end."""
    kind, compression = kind_of(path)
    shown = os.path.relpath(path) if os.path.isabs(path) else path
    file = CorpusFile(run.file.ordinal, path, shown, kind, compression, None, True)
    own = replace(reading, digests={}, covered={}, left_out=set(), index=0)
    counts, bytes_before = reading.counts, reading.counts.bytes_read
    for row, value in READERS[kind](Run(file, 0, 1, 1, (0,), skip), own):
        # the bytes of the source are not known, so those read of it say nothing
        counts.bytes_read = bytes_before
        yield row, value
    counts.bytes_read = bytes_before
    met = own.covered.get(file.ordinal)
    yield met.end - 1 if met else -1, None


def _rows_of_library(
    source: HubSource, commit: str | None, split: str, skip: int, run: Run, reading: Reading
) -> Iterator[tuple[int, Content | None]]:
    datasets = package("datasets", "on the Hugging Face Hub")
    options: dict[str, Any] = {"revision": commit} if commit else {}
    data = datasets.load_dataset(source.name, source.configuration, split=split, streaming=True, **options)
    place = f"corpus {run.file.source}"
    row = skip
    table: pa.Table
    for table in data.skip(skip).with_format("arrow").iter(BATCH_ROWS):
        paths = paths_of(table.schema, reading, place)
        yield from contents(table, paths, reading, lambda row: f"{place}, row {row}", row)
        row += table.num_rows
        yield row - 1, None
