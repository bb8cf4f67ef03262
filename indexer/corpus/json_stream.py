"""Values out of JSON text that comes in blocks: of one array, or one after another.

What is held is the value being parsed and at most as much text again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

BLANK = " \t\n\r"
# a value cut off by the end of the text is reported this close to it (`tru`, `\\u12`), or as an open string
TAIL = 16


def values(blocks: Iterator[str]) -> Iterator[Any]:
    """The elements of the array if the text is one, else the values in it.

    Raises ValueError where the text is not JSON, RecursionError where it is nested too deeply.
    """
    text = _Text(blocks)
    if text.peek() != "[":
        while text.peek():
            yield text.value()
        return
    text.position += 1
    if text.peek() == "]":
        text.position += 1
    else:
        yield text.value()
        while (mark := text.peek()) == ",":
            text.position += 1
            yield text.value()
        if mark != "]":
            raise ValueError("Expecting ',' or ']'" if mark else "the array is cut off")
        text.position += 1
    if text.peek():
        raise ValueError("text after the end of the array")


class _Text:
    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self.position = 0

    def peek(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            text = self._text
            while self.position < len(text) and text[self.position] in BLANK:
                self.position += 1
            if self.position < len(text):
                return text[self.position]
            if not self._more():
                return ""

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, self.position = self._decode(self._text, self.position)
                return value
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self._text) - TAIL or error.msg.startswith("Unterminated string")
                if not (cut_off and self._more()):
                    raise

    def _more(self) -> bool:
        """Read as much again as is held, so that a value of n characters is parsed O(log n) times."""
        parts = [self._text[self.position :]]
        wanted = len(parts[0])
        count = 0
        for block in self._blocks:
            parts.append(block)
            count += len(block)
            if count > wanted:
                break
        self._text = "".join(parts)
        self.position = 0
        return count > 0
