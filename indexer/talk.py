"""What is said on stderr, and how numbers are said there."""

from __future__ import annotations

import sys


def tell(message: str) -> None:
    """Say something to the person at the terminal, out of the data's way."""
    print(message, file=sys.stderr, flush=True)


def several(number: int, noun: str) -> str:
    """So many things, each called by a noun: 1 file, 2 files."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def in_bytes(number: float) -> str:
    """A number of bytes as people read it: 812 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def in_tokens(number: float) -> str:
    """A number of tokens as people read it: 12.3k."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}" if number < 100 or not unit else f"{number:.0f}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def in_time(seconds: float) -> str:
    """A duration as people read it: 12 min."""
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
