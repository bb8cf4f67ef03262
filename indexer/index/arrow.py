"""Functions of Arrow, by their names there.

`pyarrow.compute` makes a function of Python for each of some 300 when it is imported, and methods of arrays
such as `take`, `filter` and `cast` import it. That takes longer than most questions to an index, so what
answers them calls the functions by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

try:
    from pyarrow import _compute as functions
except ImportError:
    # another version of Arrow may keep them elsewhere
    import pyarrow.compute as functions


def call(name: str, *values: Any, options: Any = None) -> Any:
    """What a function makes of arrays, tables or scalars; options: as pyarrow.compute has them."""
    return functions.call_function(name, list(values), options)


def cast(values: Any, kind: pa.DataType) -> Any:
    """Values of another type; raises pyarrow.ArrowInvalid for one that it does not hold."""
    return call("cast", values, options=functions.CastOptions.safe(kind))


def array_of(values: np.ndarray) -> pa.Array:
    """Numbers of NumPy as an array of Arrow, without a copy; `pa.array` imports NumPy's masked arrays."""
    kind = pa.from_numpy_dtype(values.dtype)
    # Arrow has eight truth values in a byte
    held = np.packbits(values, bitorder="little") if kind == pa.bool_() else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(held)])


def elements(lists: Any) -> Any:
    """The elements of all lists, one after the other."""
    return call("list_flatten", lists)


def rows_where(table: pa.Table, chosen: Any) -> pa.Table:
    """Those rows of a table for which a boolean array is true."""
    return call("filter", table, chosen)


def is_in(values: Any, wanted: pa.Array) -> Any:
    """Of each value whether it is among those wanted."""
    return call("is_in", values, options=functions.SetLookupOptions(wanted))
