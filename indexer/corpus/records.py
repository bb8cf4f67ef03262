"""Files of records: JSON Lines, JSON and CSV. Each record is one document, its row counted from 0.

Blank lines are no records. All are read as streams; what must fit in memory is one record.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

from indexer.corpus.json_stream import values
from indexer.corpus.pieces import Run
from indexer.corpus.policy import BadByteError, Reading, Utf8, bad_text
from indexer.corpus.sources import CorpusFile
from indexer.corpus.streams import BLOCK_BYTES, opened
from indexer.errors import IndexerError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(run: Run, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of each line of a JSON Lines file. Raises IndexerError naming the line.

    Lines before the run are counted, not parsed.
    """
    row = -1
    offset = 0
    loads = json.loads
    file, size = run.file, run.file.bytes or 0
    begin, end = run.bound(run.first, size), run.bound(run.last, size)
    bound = run.bound(run.first + 1, size)
    with opened(file, reading, run.whole) as stream:
        for number, raw in enumerate(stream, 1):
            start, offset = offset, offset + len(raw)
            if start < begin:
                # of these bytes the run's own share is none
                reading.counts.bytes_read -= len(raw)
                row += not raw.removeprefix(BYTE_ORDER_MARK if number == 1 else b"").isspace()
                continue
            if not run.whole and start >= end:
                break
            while start >= bound and reading.index < run.last - 1:
                reading.index += 1
                bound = run.bound(reading.index + 1, size)
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                raw, start = raw[3:], 3
            if raw.isspace():
                continue
            row += 1
            reading.see(file, row)
            if row < run.skip:
                continue

            def place(byte: int = 0, number: int = number, start: int = start) -> str:
                return f"corpus file {file.source}, line {number}, byte {start + byte}"

            line = reading.decode(raw, place)
            if line is None:
                continue
            try:
                record = loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_json(f"corpus file {file.source}, line {number}", error) from None
            text: str | None = _text(record, reading, f"corpus file {file.source}, line {number}")
            # only an escape can smuggle a lone surrogate into a line that was valid UTF-8
            if text and "\\u" in line:
                text = reading.checked(text, place())
            if text is not None:
                yield row, text


def read_json(run: Run, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of each object of a JSON file: an array of objects, or objects one after another."""
    file = run.file
    with opened(file, reading) as stream:
        records = values(_decoded(file, reading, stream))
        for row in itertools.count():
            place = f"corpus file {file.source}, record {row}"
            try:
                record = next(records)
            except StopIteration:
                return
            except (ValueError, RecursionError) as error:
                raise _not_json(place, error) from None
            reading.see(file, row)
            if row < run.skip:
                continue
            text = reading.checked(_text(record, reading, place), place, escaped=True)
            if text is not None:
                yield row, text


def read_csv(run: Run, reading: Reading) -> Iterator[tuple[int, str]]:
    """(row, text) of each record of a CSV file (.tsv: tab-separated) whose first line names the columns."""
    file = run.file
    # the limit belongs to the process; a document may be longer than the 131,072 characters it starts with
    csv.field_size_limit((1 << 31) - 1)
    with opened(file, reading) as stream:
        delimiter = "\t" if file.kind == "tsv" else ","
        # strict, else a quote that is never closed makes one text of all that follows it
        rows = csv.reader(_lines(file, reading, stream), delimiter=delimiter, strict=True)
        try:
            header = next(rows, None)
            if header is None:
                return
            if reading.text_column not in header:
                raise reading.no_column(f"corpus file {file.source}", header)
            column = header.index(reading.text_column)
            row = -1
            for fields in rows:
                if not fields:
                    continue
                row += 1
                reading.see(file, row)
                if row < run.skip:
                    continue
                place = f"corpus file {file.source}, line {rows.line_num}"
                if len(fields) <= column:
                    raise IndexerError(
                        f'{place}: {len(fields)} fields, so no column "{reading.text_column}" '
                        f"(the header has {len(header)}); correct this line"
                    )
                text = reading.checked(fields[column], place, escaped=True)
                if text is not None:
                    yield row, text
        except csv.Error as error:
            place = f"corpus file {file.source}, line {rows.line_num}"
            raise IndexerError(f"{place}: not CSV ({error})") from None


def _text(record: Any, reading: Reading, place: str) -> str:
    """The text of one record; null is an empty document."""
    if not isinstance(record, dict):
        raise IndexerError(f"{place}: a JSON {type(record).__name__}, not an object with named columns")
    try:
        value = record[reading.text_column]
    except KeyError:
        raise reading.no_column(place, record) from None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise reading.not_text(place, type(value).__name__)
    return value


def _decoded(file: CorpusFile, reading: Reading, stream: io.BufferedReader) -> Iterator[str]:
    """The stream as text; bytes that are not UTF-8 pass as surrogates, unless they are an error."""
    decoder = Utf8()
    errors = "strict" if reading.on_bad_text == "error" else "surrogateescape"
    final = False
    while not final:
        block = stream.read(BLOCK_BYTES)
        final = not block
        try:
            yield decoder.decode(block, errors, final)
        except BadByteError as error:
            raise bad_text(f"corpus file {file.source}, byte {error.offset}", error.byte) from None


def _lines(file: CorpusFile, reading: Reading, stream: io.BufferedReader) -> Iterator[str]:
    """The stream as lines with their ends, decoded as by `_decoded`."""
    decoder = Utf8()
    errors = "strict" if reading.on_bad_text == "error" else "surrogateescape"
    try:
        for raw in stream:
            # a line feed ends every character before it, so no line leaves bytes behind
            yield decoder.decode(raw, errors, True)
    except BadByteError as error:
        raise bad_text(f"corpus file {file.source}, byte {error.offset}", error.byte) from None


def _not_json(place: str, error: Exception) -> IndexerError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    return IndexerError(f"{place}: not JSON ({reason})")
