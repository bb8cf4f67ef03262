"""The one kind of error a user can cause."""

from __future__ import annotations

import importlib
from typing import Any


class IndexerError(Exception):
    """A mistake in what was asked for, told in one line: what, where, the value, the way out.

    The command line prints it to stderr and exits with status 2; library callers catch it.
    """


def package(name: str, use: str) -> Any:
    """Import a package that only some uses of this program take.

    use: what is read with it, to end "reading what is ...". Raises IndexerError where it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise IndexerError(
            f"reading what is {use} takes the package {name}: pip install {name}"
        ) from None
