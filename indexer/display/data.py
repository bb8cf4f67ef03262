"""Arrow tables as JSON, as CSV and as a table for people.

JSON and CSV are exact: a float32 is written with the fewest digits that give it back, a list stays a list (in
CSV as JSON within the cell), and nothing is cut. The table for people is cut to the terminal, and says so.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import IO, Any, TextIO

import msgspec
import pyarrow as pa
from rich.cells import cell_len, set_cell_size

from indexer.errors import IndexerError
from indexer.index.arrow import cast
from indexer.index.harmless import CUT, literal, one_line

# a cut column narrower than this says too little to be worth its place
_NARROWEST = 10
_GAP = 2


def write_json(table: pa.Table, out: TextIO) -> None:
    """Write an array of objects, one row per line."""
    out.write("[")
    for ordinal, row in enumerate(rows(table)):
        out.write(",\n " if ordinal else "\n ")
        out.write(json_text(row))
    out.write("\n]\n" if table.num_rows else "]\n")


def write_csv(table: pa.Table, out: TextIO) -> None:
    """Write a header and one line per row. NULL is the empty cell, infinity `inf`."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in rows(table):
        writer.writerow([_csv_cell(value) for value in row.values()])


def write_facts_csv(facts: Mapping[str, Any], out: TextIO) -> None:
    """Write nested facts as the two columns key and value; a key is the path to its value, with dots."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "value"])
    writer.writerows(_flat(facts, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, _plain(value)


def json_text(value: Any) -> str:
    """One line of strict JSON: NaN is null; infinity is 1e999, which readers take for infinity."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        return _json_with_infinity(value)


def json_bytes(value: Any) -> bytes:
    """What `json_text` says, without blanks and, where all is plain, in a fraction of the time."""
    # what has more digits than the numbers of a computer is left to Python
    with suppress(OverflowError):
        if _is_plain(value):
            return msgspec.json.encode(value)
    return json_text(value).encode()


def _is_plain(value: Any) -> bool:
    """Whether JSON has words for all within: no number is infinite or NaN, no value of another kind."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(map(_is_plain, value.values()))
    if kind is list or kind is tuple:
        # long lists hold one kind, and are not looked through value by value
        kinds = set(map(type, value))
        if kinds == {float}:
            return math.isfinite(sum(value))
        return kinds <= _PLAIN or all(map(_is_plain, value))
    return kind in _PLAIN


_PLAIN = {str, int, bool, type(None)}


def _json_with_infinity(value: Any) -> str:
    """JSON has no word for infinity; a number too large for a float64 is what its grammar has instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return "null" if math.isnan(value) else "1e999" if value > 0 else "-1e999"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(k))}: {_json_with_infinity(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json_with_infinity, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _csv_cell(value: Any) -> Any:
    return json_text(value) if isinstance(value, list | tuple | dict) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows as plain Python values, read in batches; a float32 as the shortest decimal that equals it."""
    names = _distinct(table.column_names)
    for batch in table.to_batches(max_chunksize=4096):
        columns = [_values(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))


def _distinct(names: list[str]) -> list[str]:
    """The names, a repeated one with a number behind it, so that no column hides another."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        distinct.append(f"{name}_{seen[name]}" if seen[name] else name)
    return distinct


def _values(column: pa.Array) -> list[Any]:
    # Arrow writes a float32 with the fewest digits; read back as float64 they are the value people typed.
    if pa.types.is_float32(column.type):
        return cast(cast(column, pa.string()), pa.float64()).to_pylist()
    if column.type == pa.list_(pa.float32()):
        return cast(cast(column, pa.list_(pa.string())), pa.list_(pa.float64())).to_pylist()
    try:
        return column.to_pylist()
    except OverflowError:
        raise IndexerError(
            "a date outside the years 1 to 9999 cannot be printed; cast it to VARCHAR in the query"
        ) from None


def number(value: float | int | None, digits: int = 4) -> str:
    """A number for people: whole numbers with thousands apart, others to `digits` significant digits."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def print_table(table: pa.Table, out: IO[str], tell: Callable[[str], None]) -> None:
    """Print a table no wider than the terminal; columns that do not fit are told, never silently dropped.

    A single row that does not fit becomes one line per column. On anything but a terminal nothing is cut.
    It does without rich, which takes longer to import than most queries.
    """
    names = [one_line(name) for name in _distinct(table.column_names)]
    cells = [[_cell(value) for value in row.values()] for row in rows(table)]
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    room = shutil.get_terminal_size().columns if out.isatty() else _total(widths)
    if table.num_rows == 1 and _total(widths) > room:
        out.writelines(f"{line}\n" for line in _fields(dict(zip(names, cells[0], strict=True)), room))
        return
    shown = _shown(widths, room)
    if shown < len(names):
        tell(f"{len(names) - shown} of {len(names)} columns do not fit: {', '.join(names[shown:])}")
    columns = list(zip(_fitted(widths[:shown], room), map(_is_number, table.schema.types), strict=False))
    header = _line(names, columns)
    plain = not out.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    out.write(f"{header}\n" if plain else f"\x1b[1m{header}\x1b[0m\n")
    out.write("─" * min(_total([width for width, _ in columns]), room) + "\n")
    out.writelines(f"{_line(row, columns)}\n" for row in cells)


def _line(row: list[str], columns: list[tuple[int, bool]]) -> str:
    """The cells of a row beside each other; columns: the width of each, and whether it holds numbers."""
    gap = " " * _GAP
    return gap.join(_sized(cell, *column) for cell, column in zip(row, columns, strict=False)).rstrip()


def _sized(cell: str, width: int, right: bool) -> str:
    missing = width - cell_len(cell)
    if missing < 0:
        return set_cell_size(cell, width - 1) + CUT
    return " " * missing + cell if right else cell + " " * missing


def _fields(fields: dict[str, str], room: int) -> Iterator[str]:
    """One line per field, the values below each other, no wider than the room."""
    width = max(map(cell_len, fields), default=0)
    for name, value in fields.items():
        line = _sized(name, width, False) + " " * _GAP + value
        yield line if cell_len(line) <= room else _sized(line, room, False)


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return literal(value) if isinstance(value, str) else one_line(str(_plain(value)))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _total(widths: list[int]) -> int:
    return sum(widths) + _GAP * max(len(widths) - 1, 0)


def _shown(widths: list[int], room: int) -> int:
    """How many leading columns fit, each cut to the narrowest readable width if it must."""
    for shown in range(len(widths), 1, -1):
        if _total([min(width, _NARROWEST) for width in widths[:shown]]) <= room:
            return shown
    return 1


def _fitted(widths: list[int], room: int) -> list[int]:
    """The widths under the largest common limit with which all of them fit."""
    for limit in range(min(max(widths, default=0), room), 1, -1):
        fitted = [min(width, limit) for width in widths]
        if _total(fitted) <= room:
            return fitted
    return [min(width, 1) for width in widths]
