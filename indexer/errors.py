"""The one kind of error a user can cause."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

# what running a model takes
MODELS = ("torch", "transformers", "safetensors", "psutil")


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


def check_installed(what: str, *names: str) -> None:
    """Raise IndexerError where one of some packages is missing; what: they are for, to begin the message."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise IndexerError(f"{what} needs {', '.join(missing)}: pip install {' '.join(missing)}")
