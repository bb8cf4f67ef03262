"""States of plain values and NumPy arrays as two files: JSON, and .npz for the arrays."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

_ARRAY = "array:"


def packed(state: dict[str, Any]) -> tuple[bytes, bytes]:
    """A JSON text in which each array is replaced by its name, and the arrays as .npz.

    state: dicts with string keys, lists, tuples (which come back as lists), numbers, strings, None, arrays.
    """
    arrays: dict[str, np.ndarray] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            name = f"{_ARRAY}{len(arrays)}"
            arrays[name] = value
            return name
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return value.item() if isinstance(value, np.generic) else value

    text = json.dumps(plain(state), ensure_ascii=True, allow_nan=False)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return text.encode("ascii"), buffer.getvalue()


def unpacked(text: bytes, arrays: bytes) -> dict[str, Any]:
    """The state of `packed`. Raises ValueError where the two do not belong together."""
    with np.load(io.BytesIO(arrays), allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files}

    def whole(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_ARRAY):
            if value not in found:
                raise ValueError(f"there is no {value}")
            return found[value]
        if isinstance(value, dict):
            return {key: whole(part) for key, part in value.items()}
        if isinstance(value, list):
            return [whole(part) for part in value]
        return value

    state = whole(json.loads(text))
    if not isinstance(state, dict):
        raise ValueError("a state is an object")
    return state
