"""Corpus text as a terminal may show it.

The promise: whatever a corpus holds, what comes out has no control, bidirectional or other invisible
formatting character and no line break, so it can neither drive the terminal nor reorder a line.
"""

from __future__ import annotations

import re
import unicodedata

CUT = "…"

# characters with a sign of their own; every other one of the classes below is written as its escape
_SIGNS = {"\n": "↵", "\t": "⇥", "\u00ad": "\\xad"}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_HIDDEN_CLASSES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SUSPECT = re.compile(r"[^\x20-\x7e]")


def visible(text: str) -> str:
    """The text with every control, bidi, zero-width and line-breaking character made visible."""
    return _SUSPECT.sub(_visible_character, text)


def one_line(text: str) -> str:
    """The text as one harmless line: runs of white space become one space, the rest is made visible."""
    return visible(" ".join(text.split()))


def literal(text: str) -> str:
    """The text as it is where one line shows all of it; else in quotes, as Python and JSON write it.

    So blanks at the ends, line breaks and the empty text can be seen: `" def"`, `"\\n"`.
    """
    if text and text[0] != '"' and one_line(text) == text:
        return text
    return '"' + visible(text.translate(_ESCAPES)) + '"'


def _visible_character(match: re.Match[str]) -> str:
    character = match.group()
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character) not in _HIDDEN_CLASSES:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
