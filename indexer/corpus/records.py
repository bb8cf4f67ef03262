"""Files of records: JSON Lines, JSON and CSV. Each record is one document, its row counted from 0.

The row of JSON Lines is that of the line, blank ones included; elsewhere blank lines are no records. All are
read as streams; what must fit in memory is one record.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count
from typing import Any

import numpy as np

from indexer.corpus.json_stream import values
from indexer.corpus.pieces import Run
from indexer.corpus.policy import BadByteError, Column, Reading, Utf8
from indexer.corpus.sources import CorpusFile
from indexer.corpus.streams import BLOCK_BYTES, opened, unreadable
from indexer.corpus.utf16 import is_utf16
from indexer.corpus.values import Content, Pair, columns, content, find, joined
from indexer.errors import IndexerError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DEFAULT_COLUMNS = (Column("text", "--text-column"),)
# so many are looked through for the ends of lines at a time
COUNTED_BYTES = 1 << 20


def read_jsonl(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each line of a JSON Lines file. Raises IndexerError naming the line.

    Lines before the run are counted; of them only the first record is parsed, which tells whether the file
    has the column.
    """
    file, size = run.file, run.file.bytes or 0
    begin, end = run.bound(run.first, size), run.bound(run.last, size)
    bound = run.bound(run.first + 1, size)
    before = _before(run, reading, begin)
    if before is None:
        reading.counts.bytes_read += end - begin
        return
    rows_before, offset = before
    first = offset == 0
    with opened(file, reading, run.whole, offset) as stream:
        for row, raw in enumerate(stream, rows_before):
            start, offset = offset, offset + reading.width(raw)
            blank = _is_blank(row, raw)
            if first and not blank:
                first = False
                if not file.named and _lacks_column(file, reading, row, raw, run.first == 0):
                    return
            if start < begin:
                # of these bytes the run's own share is none
                reading.counts.bytes_read -= offset - start
                continue
            if not run.whole and start >= end:
                break
            while start >= bound and reading.index < run.last - 1:
                reading.index += 1
                bound = run.bound(reading.index + 1, size)
            if blank:
                continue
            reading.see(file, row)
            if row < run.skip:
                continue
            found = _line(file, reading, row, start, raw)
            if found is not None:
                yield row, found


def _before(run: Run, reading: Reading, begin: int) -> tuple[int, int] | None:
    """How many lines begin before byte `begin` of a file, and where the next one does.

    Nothing of UTF-16, whose lines are found by reading them. None where the file is left out.
    """
    file = run.file
    if not begin:
        return 0, 0
    try:
        with open(file.path, "rb") as stream:
            if is_utf16(stream.peek(4)[:4]):
                return 0, 0
            if not file.named:
                filled = ((row, raw) for row, raw in enumerate(stream) if not _is_blank(row, raw))
                row, raw = next(filled, (0, b""))
                if raw and _lacks_column(file, reading, row, raw, False):
                    return None
                stream.seek(0)
            # the byte before the run ends a line, or lies in one that belongs to the run before
            rows, left = 1, begin - 1
            while left and (block := stream.read(min(left, COUNTED_BYTES))):
                rows += int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))
                left -= len(block)
            stream.readline()
            return rows, stream.tell()
    except OSError as error:
        raise unreadable(file, error) from None


def _is_blank(row: int, raw: bytes) -> bool:
    return not raw.removeprefix(BYTE_ORDER_MARK if row == 0 else b"").strip()


def _line(file: CorpusFile, reading: Reading, row: int, start: int, raw: bytes) -> Content | None:
    """What a line holds, None where the policy leaves it out. start: where it begins in the file."""

    def line() -> str:
        return f"corpus file {file.source}, line {row + 1}"

    mark = len(BYTE_ORDER_MARK) if row == 0 and raw.startswith(BYTE_ORDER_MARK) else 0

    def place(byte: int = 0) -> str:
        return f"{line()}, byte {start + reading.width(raw[: mark + byte])}"

    text = reading.decode(raw[mark:], place)
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(line(), error) from None
    found = _content(record, reading, line)
    # only an escape can smuggle a lone surrogate into a line that was valid UTF-8
    return _checked(found, reading, place()) if "\\u" in text else found


def _lacks_column(file: CorpusFile, reading: Reading, row: int, raw: bytes, first: bool) -> bool:
    """Whether a file is left out since its first record lacks the column; one that is no JSON is no such."""
    try:
        record = json.loads(raw.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        return False
    error = _missing(record, reading, f"corpus file {file.source}, line {row + 1}")
    if error is not None:
        reading.leave_out(file, error, first)
    return error is not None


def read_json(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each record of a JSON file: an array of records, or records one after another.

    An object may stand around the array. A file that was found in a folder, and whose first value is no
    record with the column, or no JSON, as in a project's settings, is left out.
    """
    file = run.file

    def is_record(value: Any) -> bool:
        return _missing(value, reading, "") is None

    with opened(file, reading) as stream:
        records = values(_decoded(file, reading, stream), is_record)
        for row in count():

            def place(row: int = row) -> str:
                return f"corpus file {file.source}, record {row + 1}"

            mistake = None
            try:
                record = next(records)
                mistake = _missing(record, reading, place()) if row == 0 else None
            except StopIteration:
                return
            except (ValueError, RecursionError) as error:
                mistake = _not_json(place(), error)
                if row > 0:
                    raise mistake from None
            if mistake is not None:
                reading.leave_out(file, mistake, True)
                return
            reading.see(file, row)
            if row < run.skip:
                continue
            found = _checked(_content(record, reading, place), reading, place(), escaped=True)
            if found is not None:
                yield row, found


def read_csv(run: Run, reading: Reading) -> Iterator[tuple[int, Content]]:
    """(row, content) of each record of a CSV file (.tsv: tab-separated) whose first line names the columns.

    Lines may end in CR, LF or both. With reading.quoting `none` quotes are text, and each line is a record.
    """
    file = run.file
    # the limit belongs to the process; a document may be longer than the 131,072 characters it starts with
    csv.field_size_limit((1 << 31) - 1)
    if reading.ids:
        error = f"corpus file {file.source}: token ids are read from JSON, Parquet and Arrow, not from CSV"
        reading.leave_out(file, IndexerError(error), True, file.bytes or 0)
        return
    with opened(file, reading) as stream:
        # strict, else a quote that is never closed makes one text of all that follows it
        rows = csv.reader(
            _lines(file, reading, stream),
            delimiter="\t" if file.kind == "tsv" else ",",
            quoting=csv.QUOTE_NONE if reading.quoting == "none" else csv.QUOTE_MINIMAL,
            strict=True,
        )
        try:
            yield from _rows(run, reading, rows)
        except csv.Error as error:
            place = f"corpus file {file.source}, line {rows.line_num}"
            way_out = "; where quotes are text, give --quoting none" if reading.quoting == "standard" else ""
            raise IndexerError(f"{place}: not CSV ({error}){way_out}") from None


def _rows(run: Run, reading: Reading, rows: Any) -> Iterator[tuple[int, Content]]:
    file = run.file
    header = next(rows, None)
    if header is None:
        return
    for wanted in reading.columns:
        if wanted.name not in header:
            reading.leave_out(file, reading.no_column(f"corpus file {file.source}", header, wanted), True)
            return
    places = [header.index(wanted.name) for wanted in reading.columns]
    for row, fields in enumerate(fields for fields in rows if fields):
        reading.see(file, row)
        if row < run.skip:
            continue
        place = f"corpus file {file.source}, line {rows.line_num}"
        if len(fields) <= max(places):
            raise IndexerError(
                f'{place}: {len(fields)} fields, so no column "{header[max(places)]}" '
                f"(the header has {len(header)}); correct this line"
            )
        texts = [reading.checked(fields[column], place, escaped=True) for column in places]
        found = joined(texts, reading, partial(str, place))
        if found is not None:
            yield row, found


def _missing(record: Any, reading: Reading, place: str) -> IndexerError | None:
    """The error for a record without a wanted column, None where it has all."""
    if isinstance(record, str) and reading.columns == DEFAULT_COLUMNS:
        return None
    if not isinstance(record, dict):
        kind = type(record).__name__
        return IndexerError(f"{place}: a JSON {kind}, not an object with named columns")
    for column in reading.columns:
        try:
            find(record, column.name)
        except KeyError:
            return reading.no_column(place, columns(record), column)
    return None


def _content(record: Any, reading: Reading, place: Callable[[], str]) -> Content | None:
    """What one record stands for; a bare text is a record without names."""
    if type(record) is dict:
        try:
            found = [(find(record, column.name), column) for column in reading.columns]
        except KeyError:
            pass
        else:
            parts = [content(value, reading, place, column) for value, column in found]
            return joined(parts, reading, place)
    error = _missing(record, reading, place())
    if error is not None:
        raise error
    return str(record)


def _checked(
    found: Content | None, reading: Reading, place: str, escaped: bool = False
) -> Content | None:
    """What the policy makes of a record's texts, see Reading.checked."""
    if isinstance(found, Pair):
        source, target = (_checked(part, reading, place, escaped) for part in found)
        return None if source is None or target is None else Pair(source, target)  # type: ignore[arg-type]
    return reading.checked(found, place, escaped) if isinstance(found, str) else found


def _decoded(file: CorpusFile, reading: Reading, stream: io.BufferedReader) -> Iterator[str]:
    """The stream as text; bytes that are not UTF-8 pass as surrogates, unless they are an error."""
    decoder = Utf8(reading.width)
    errors = "strict" if reading.on_bad_text == "error" else "surrogateescape"
    final = False
    while not final:
        block = stream.read(BLOCK_BYTES)
        final = not block
        try:
            yield decoder.decode(block, errors, final)
        except BadByteError as error:
            raise reading.bad_text(f"corpus file {file.source}, byte {error.offset}", error.byte) from None


def _lines(file: CorpusFile, reading: Reading, stream: io.BufferedReader) -> Iterator[str]:
    """The stream as lines with their ends, whatever these are, decoded as by `_decoded`."""
    newlines = io.IncrementalNewlineDecoder(None, translate=False)
    parts: list[str] = []
    for block in chain(_decoded(file, reading, stream), ("",)):
        # a CR that ends a block waits for its LF
        parts.append(newlines.decode(block, final=not block))
        if "\n" in parts[-1] or "\r" in parts[-1]:
            lines = io.StringIO("".join(parts), newline="").readlines()
            parts = [] if lines[-1][-1] in "\r\n" else [lines.pop()]
            yield from lines
    if any(parts):
        yield "".join(parts)


def _not_json(place: str, error: Exception) -> IndexerError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    return IndexerError(f"{place}: not JSON ({reason})")
