"""Thrift's compact protocol, as far as Parquet's footers and page indexes are written in it.

A struct is a dict of (kind, value) by field number, a list (kind, values), a string bytes; other kinds are
whole numbers and bools. Of a file that was made to harm, decoding raises IndexError, ValueError or
RecursionError and nothing else.
"""

from __future__ import annotations

from typing import Any

Struct = dict[int, tuple[int, Any]]
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
TRUE, _FALSE, _BYTE, _I16, _DOUBLE = 1, 2, 3, 4, 7


def decode(data: bytes, at: int) -> tuple[Struct, int]:
    """The struct that begins at a byte, and where it ends."""
    struct: Struct = {}
    field = 0
    while head := data[at]:
        if head >> 4:
            field += head >> 4
            at += 1
        else:
            field, at = _number(data, at + 1)
        kind = head & 15
        value, at = (kind == TRUE, at) if kind in (TRUE, _FALSE) else _value(data, at, kind)
        struct[field] = kind, value
    return struct, at + 1


def skip(data: bytes, at: int) -> int:
    """Where the struct that begins at a byte ends; many times as fast as decoding it."""
    while head := data[at]:
        at += 1
        if head < 16:
            at = _skip_varint(data, at)
        kind = head & 15
        # most fields of a footer are small numbers and short strings: nothing is called for them
        if kind in (_I16, I32, I64):
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == BINARY and data[at] < 128:
            at += 1 + data[at]
        elif kind > _FALSE:
            at = _skip_value(data, at, kind)
    return at + 1


def find(data: bytes, at: int, wanted: int) -> int:
    """Where the value of a field begins; raises ValueError where the struct that begins there has none."""
    field = 0
    while head := data[at]:
        at += 1
        if head < 16:
            field, at = _number(data, at)
        else:
            field += head >> 4
        if field == wanted:
            return at
        if head & 15 > _FALSE:
            at = _skip_value(data, at, head & 15)
    raise ValueError(f"a struct without its field {wanted}")


def list_at(data: bytes, at: int) -> tuple[int, int, int]:
    """Of the list that begins at a byte: the kind of its values, their number, where the first one begins."""
    head = data[at]
    if head >> 4 < 15:
        return head & 15, head >> 4, at + 1
    number, at = _varint(data, at + 1)
    return head & 15, number, at


def encode(struct: Struct) -> bytes:
    """The bytes of a struct."""
    out = bytearray()
    _put_struct(out, struct)
    return bytes(out)


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_I16, I32, I64):
        return _number(data, at)
    if kind == BINARY:
        size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("a string reaches beyond the end")
        return data[at : at + size], at + size
    if kind == STRUCT:
        return decode(data, at)
    if kind == LIST:
        kind, number, at = list_at(data, at)
        values = []
        for _ in range(number):
            value, at = (data[at], at + 1) if kind <= _BYTE else _value(data, at, kind)
            values.append(value)
        return (kind, values), at
    if kind == _BYTE:
        return data[at], at + 1
    if kind == _DOUBLE:
        return data[at : at + 8], at + 8
    raise ValueError(f"no kind of value has the number {kind}")


def _skip_value(data: bytes, at: int, kind: int) -> int:
    if kind in (_I16, I32, I64):
        return _skip_varint(data, at)
    if kind == BINARY:
        size, at = _varint(data, at)
        return at + size
    if kind == STRUCT:
        return skip(data, at)
    if kind == LIST:
        kind, number, at = list_at(data, at)
        if kind <= _BYTE:
            return at + number
        for _ in range(number):
            at = _skip_value(data, at, kind)
        return at
    return at + {_BYTE: 1, _DOUBLE: 8}[kind]


def _skip_varint(data: bytes, at: int) -> int:
    while data[at] > 127:
        at += 1
    return at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _put_struct(out: bytearray, struct: Struct) -> None:
    last = 0
    for field, (kind, value) in sorted(struct.items()):
        if kind in (TRUE, _FALSE):
            kind = TRUE if value else _FALSE
        if 0 < field - last < 16:
            out.append((field - last) << 4 | kind)
        else:
            out.append(kind)
            _put_number(out, field)
        last = field
        if kind > _FALSE:
            _put_value(out, kind, value)
    out.append(0)


def _put_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in (_I16, I32, I64):
        _put_number(out, value)
    elif kind == BINARY:
        _put_varint(out, len(value))
        out += value
    elif kind == STRUCT:
        _put_struct(out, value)
    elif kind == LIST:
        inner, values = value
        if len(values) < 15:
            out.append(len(values) << 4 | inner)
        else:
            out.append(15 << 4 | inner)
            _put_varint(out, len(values))
        for one in values:
            if inner <= _BYTE:
                out.append(one)
            else:
                _put_value(out, inner, one)
    elif kind == _BYTE:
        out.append(value)
    else:
        out += value


def _put_varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _put_number(out: bytearray, value: int) -> None:
    _put_varint(out, value << 1 if value >= 0 else ~(value << 1))
