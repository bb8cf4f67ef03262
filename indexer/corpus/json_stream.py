"""Values out of JSON text that comes in blocks: of one array, one after another, or of an array in an object.

What is held is the value being parsed and at most as much text again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

BLANK = " \t\n\r"
# a value cut off by the end of the text is reported this close to it (`tru`, `\\u12`), or as an open string
TAIL = 16
# an object that ends within so many characters is read before it is decided whether it is a record
LOOK_AHEAD = 4 << 20


def values(blocks: Iterator[str], is_record: Callable[[Any], bool] = lambda value: True) -> Iterator[Any]:
    """The elements of the array if the text is one, else the values in it.

    An object that is no record, and has one array whose first element is one, stands around the records: then
    its elements come, and nothing may follow the object.
    Raises ValueError where the text is not JSON, RecursionError where it is nested too deeply.
    """
    text = _Text(blocks)
    mark = text.peek()
    if mark == "[":
        yield from text.array()
        if text.peek():
            raise ValueError("text after the end of the array")
    elif mark == "{" and not text.holds_value(LOOK_AHEAD):
        yield from _long_object(text, is_record)
    elif mark:
        first = text.value()
        inner = None if is_record(first) or not isinstance(first, dict) else _around(first, is_record)
        yield from [first] if inner is None else inner
        if inner is not None and text.peek():
            raise ValueError("text after the end of the object around the records")
    while text.peek():
        yield text.value()


def _around(found: dict[str, Any], is_record: Callable[[Any], bool]) -> list[Any] | None:
    """The records that an object stands around, None where it does not."""
    names = [name for name, value in found.items() if _holds_records(value, is_record)]
    if len(names) > 1:
        raise ValueError(_several(names[0], names[1]))
    return found[names[0]] if names else None


def _long_object(text: _Text, is_record: Callable[[Any], bool]) -> Iterator[Any]:
    """What an object holds that is too long to be looked at first: itself, or the records in it."""
    record: dict[str, Any] = {}
    around: str | None = None
    for name in text.names():
        if around is None and text.peek() == "[" and not is_record(record):
            elements = text.array()
            head = list(islice(elements, 1))
            if _holds_records(head, is_record):
                around = name
                yield from chain(head, elements)
                continue
            record[name] = [*head, *elements]
            continue
        value = text.value()
        if around is None:
            record[name] = value
        elif is_record({name: value}) or _holds_records(value, is_record):
            raise ValueError(_several(around, name))
    if around is None:
        yield record
    elif text.peek():
        raise ValueError("text after the end of the object around the records")


def _holds_records(value: Any, is_record: Callable[[Any], bool]) -> bool:
    # texts without a name are records only of a file that holds nothing else
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and is_record(value[0])


def _several(one: str, other: str) -> str:
    return f'records in "{one}" and in "{other}"; write those to be indexed to a file of their own'


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

    def array(self) -> Iterator[Any]:
        """The elements of the array that begins here."""
        self.position += 1
        if self.peek() == "]":
            self.position += 1
            return
        yield self.value()
        while (mark := self.peek()) == ",":
            self.position += 1
            yield self.value()
        if mark != "]":
            raise ValueError("Expecting ',' or ']'" if mark else "the array is cut off")
        self.position += 1

    def names(self) -> Iterator[str]:
        """The names in the object that begins here; what each stands for is to be read before the next."""
        mark = ","
        self.position += 1
        while mark == ",":
            name = self.value() if self.peek() == '"' else None
            if name is None or self.peek() != ":":
                raise ValueError("Expecting a name in double quotes and ':'")
            self.position += 1
            yield name
            mark = self.peek()
            self.position += 1
        if mark != "}":
            raise ValueError("Expecting ',' or '}'" if mark else "the object is cut off")

    def holds_value(self, most: int) -> bool:
        """Whether the value that begins here ends within so many characters, about, or is no JSON."""
        while True:
            try:
                self._decode(self._text, self.position)
                return True
            except json.JSONDecodeError as error:
                if not self._is_cut_off(error):
                    return True
            if len(self._text) - self.position > most:
                return False
            if not self._more():
                return True

    def _is_cut_off(self, error: json.JSONDecodeError) -> bool:
        return error.pos >= len(self._text) - TAIL or error.msg.startswith("Unterminated string")

    def value(self) -> Any:
        """The value that begins here, or after blanks."""
        self.peek()
        while True:
            try:
                value, self.position = self._decode(self._text, self.position)
                return value
            except json.JSONDecodeError as error:
                if not (self._is_cut_off(error) and self._more()):
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
