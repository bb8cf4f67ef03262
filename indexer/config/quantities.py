"""Whole numbers as people write them: 1_000, 1e6, 10M, 64MiB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from math import isfinite
from numbers import Integral
from typing import Any

_NUMBER = re.compile(
    r"([+-]?[0-9](?:_?[0-9]){0,40}(?:\.[0-9]{1,40})?(?:e[+-]?[0-9]{1,2})?) ?([a-z]*)", re.IGNORECASE
)
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
# what may stand behind a number of things, in small letters; b: a billion
COUNTS = {**_THOUSANDS, "b": 10**9}
# and behind a number of bytes
BYTES = {
    **_THOUSANDS,
    **{f"{letter}b": size for letter, size in _THOUSANDS.items()},
    **{"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40},
}


def whole_number(value: object, units: Mapping[str, int] = COUNTS) -> int | None:
    """The number that a text or a number stands for; None where that is not a whole one.

    units: by what each unit multiplies, in small letters.
    """
    number: Any = value
    if isinstance(value, str) and (found := _NUMBER.fullmatch(value.strip())):
        size = units.get(found[2].lower())
        # exact, as no float is
        number = None if size is None else Fraction(found[1]) * size
    if isinstance(number, Integral) and not isinstance(number, bool):
        number = Fraction(int(number))
    if not isinstance(number, float | Fraction) or not isfinite(number):
        return None
    return int(number) if number == int(number) else None
