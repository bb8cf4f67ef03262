"""Arrow tables as JSON, CSV and tables for people."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexer.display.data import json_bytes, json_text, number, print_table, write_csv, write_json
from indexer.errors import IndexerError

VALUES = np.array([0.1, np.inf, -np.inf, np.nan, 1e-45, 3.4028235e38, -0.0], np.float32)


def table() -> pa.Table:
    return pa.table(
        {
            "unit": pa.array(range(7), pa.int64()),
            "value": pa.array(VALUES, pa.float32()),
            "activations": pa.array(
                [[0.1, 2.5], [], None, [math.inf], [0.3], [1e-8], [7.0]], pa.list_(pa.float32())
            ),
            "text": ["plain", 'quote " and, comma', "line\nbreak", None, "\x1b[31m", "日本", ""],
            "total": pa.array([Decimal(10) ** 20] * 7, pa.decimal128(38, 0)),
        }
    )


def test_json_reads_back() -> None:
    out = io.StringIO()
    write_json(table(), out)
    read = json.loads(out.getvalue(), parse_constant=pytest.fail)
    assert [row["unit"] for row in read] == list(range(7))
    assert read[0]["value"] == 0.1
    assert read[1]["value"] == math.inf
    assert read[2]["value"] == -math.inf
    assert read[3]["value"] is None
    assert all(np.float32(row["value"]) == VALUES[i] for i, row in enumerate(read) if i != 3)
    assert [row["activations"] for row in read[:4]] == [[0.1, 2.5], [], None, [math.inf]]
    assert [row["text"] for row in read] == table()["text"].to_pylist()
    assert read[0]["total"] == 10**20


INFINITY = math.inf


@pytest.mark.parametrize(
    "value",
    [
        1.5, -0.0, 1e-7, 1e22, INFINITY, -INFINITY, [1.0, INFINITY], [[1.5, -INFINITY, 3]], [math.nan],
        [None, INFINITY], {"a": [1, None, "x", {"b": (1, 2.5, INFINITY)}], "c": True}, [1e308, 1e308], {},
        [[]], 2**63, -(2**70), [2**1100], [2.5, 2**1100], Decimal("1.5"), [Decimal(2**80)], b"ab", {1: 2},
        np.float64(2.5), [np.float32(0.1)], datetime(2026, 1, 2, tzinfo=UTC), "\u2028</script>\x00é日",
    ],
)  # fmt: skip
def test_json_in_less_time_says_the_same(value: Any) -> None:
    assert json.loads(json_bytes(value)) == json.loads(json_text(value))


def test_json_of_nothing_is_an_empty_list() -> None:
    out = io.StringIO()
    write_json(table().slice(0, 0), out)
    assert json.loads(out.getvalue()) == []


def test_csv_reads_back() -> None:
    out = io.StringIO(newline="")
    write_csv(table(), out)
    out.seek(0)
    read = list(csv.DictReader(out))
    assert read[0]["value"] == "0.1"
    assert read[1]["value"] == "inf"
    assert json.loads(read[0]["activations"]) == [0.1, 2.5]
    assert read[2]["activations"] == ""
    assert [row["text"] for row in read] == [text or "" for text in table()["text"].to_pylist()]
    assert read[0]["total"] == str(10**20)


def test_equal_names_do_not_hide_each_other() -> None:
    doubled = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    out = io.StringIO()
    write_json(doubled, out)
    assert json.loads(out.getvalue()) == [{"a": 1, "a_1": 2}]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(shown: pa.Table, terminal: bool, width: int) -> tuple[str, list[str]]:
    out, told = Screen() if terminal else io.StringIO(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("NO_COLOR", "1")
        print_table(shown, out, told.append)
    return out.getvalue(), told


def test_table_is_never_wider_than_the_terminal() -> None:
    text, told = printed(table(), terminal=True, width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert told == ["1 of 5 columns do not fit: total"]
    assert "…" in text
    assert "\x1b" not in text


def test_table_off_the_terminal_is_whole() -> None:
    text, told = printed(table(), terminal=False, width=10)
    assert told == []
    assert "…" not in text
    assert "100000000000000000000" in text
    assert r"\x1b[31m" in text
    assert "NULL" in text


def test_one_wide_row_stands_upright() -> None:
    wide = pa.table({f"column_{i}": [f"value {i}"] for i in range(20)})
    text, told = printed(wide, terminal=True, width=60)
    assert text.splitlines() == [f"{f'column_{i}':<9}  value {i}" for i in range(20)]
    assert told == []


def test_table_without_rows_or_columns() -> None:
    assert "text" in printed(table().slice(0, 0), terminal=True, width=80)[0]
    printed(pa.table({}), terminal=True, width=80)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (1234567, "1,234,567"), (0.123456, "0.1235"), (12345.6, "1.235e+04")]
)
def test_numbers_for_people(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_a_date_that_python_has_not_gets_one_line() -> None:
    late = pa.table({"day": pa.array([40_000_000], pa.date32())})
    with pytest.raises(IndexerError, match="outside the years 1 to 9999"):
        write_csv(late, io.StringIO())
