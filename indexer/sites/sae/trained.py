"""On what sequences dictionaries were trained, as far as their files tell it: how long, with BOS or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexer.errors import IndexerError
from indexer.sites.sae.source import named, read

# by option of a build the key in which files tell it
KEYS = {"context": "context_size", "bos": "prepend_bos"}
_KINDS = {"context": int, "bos": bool}


def trained(asked: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """What the dictionaries tell of some options, by the names of KEYS; nothing of what none tells.

    asked: of each SOURCE[=NAME].
    Raises IndexerError where one cannot be read, and where two of them tell different things.
    """
    found: dict[str, Any] = {}
    whose: dict[str, str] = {}
    for source, _ in map(named, asked):
        for dictionary in read(source):
            for option in options:
                value = dictionary.facts.get(KEYS[option])
                if value is None:
                    continue
                if type(value) is not _KINDS[option] or (isinstance(value, int) and value < 0):
                    raise IndexerError(f"{dictionary.files[0]}: the key {KEYS[option]} is {value!r}")
                if found.setdefault(option, value) != value:
                    raise IndexerError(
                        f"--sae: {whose[option]} was trained with {KEYS[option]} {found[option]}, and "
                        f"{source} with {value}; say which holds with --{option}"
                    )
                whose.setdefault(option, source)
    return found
