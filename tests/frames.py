"""Room for the frames of functions that a slow interpreter calls a million times.

CPython keeps frames in chunks of 16 kB, gets a chunk from the system where one is full and returns it as soon
as the call ends. Where the end of a chunk lies below a loop, every call in the loop does so, and the program
takes twice as long. A function with a frame larger than that gets a chunk of its own, with room behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

# eight bytes each: its chunk is of a mebibyte, of which a quarter is left for others
LOCALS = 100_000


@functools.cache
def _call() -> Callable[..., Any]:
    names = " = ".join(f"_{number}" for number in range(LOCALS))
    scope: dict[str, Any] = {}
    body = f"    if 0:\n        {names} = 0\n    return function(**arguments)"
    exec(f"def call(function, arguments):\n{body}", scope)
    call: Callable[..., Any] = scope["call"]
    return call


def with_room_for_frames(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which calls others without getting memory for their frames."""

    @functools.wraps(function)
    def roomy(**arguments: Any) -> Any:
        return _call()(function, arguments)

    return roomy
