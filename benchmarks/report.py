"""What a case hands back, and how it is shown: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

# The width of a page that goes to a file or a pipe.
PAGE = 120


class WrongResultError(Exception):
    """A result that is not what it must be: the case reports no figures. The message says what differs."""


@dataclass(frozen=True)
class Table:
    """A table for people: cells are text, the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Report:
    """One run of a case.

    settings: the options it ran with. checks: what was verified, a sentence each. results: plain values.
    notes: what a reader of the tables has to know.
    """

    settings: dict[str, Any]
    checks: list[str]
    results: dict[str, Any]
    tables: list[Table]
    notes: list[str] = field(default_factory=list)

    def to_json(self, case: str, record: dict[str, Any]) -> str:
        """One object: case, settings, checks, results, notes, record. Raises ValueError for a NaN in it."""
        whole = {
            "case": case,
            "settings": self.settings,
            "checks": self.checks,
            "results": self.results,
            "notes": self.notes,
            "record": record,
        }
        return json.dumps(whole, indent=2, allow_nan=False)

    def print(self, record: dict[str, Any]) -> None:
        """The tables, what was checked, and the machine, on stdout."""
        width = None if sys.stdout.isatty() else PAGE
        console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
        for table in self.tables:
            shown = RichTable(
                title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
            )
            for place, column in enumerate(table.columns):
                shown.add_column(column, justify="right" if place else "left", no_wrap=place == 0)
            for row in table.rows:
                shown.add_row(*row)
            console.print(shown)
        for line in (*self.notes, *(f"checked: {check}" for check in self.checks)):
            console.print(line)
        for name, value in record.items():
            console.print(f"{name}: {_shown(value)}", style="dim")


def say(message: str) -> None:
    """Talk, which goes to stderr: stdout is for figures."""
    print(message, file=sys.stderr, flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return str(value)
