"""Hashes of 64 bits: that by which sequences are sampled, and that by which passages of text are told apart.

The first is of seed, site, layer, unit, document and sequence.

All arithmetic is modulo 2^64. The constants, and `mixed`, are those of SplitMix64 (Steele, Lea and Flood
2014). A layer's seed is the first eight bytes, little-endian, of the SHA-256 of "SEED LAYER", such as
"0 mlp.5"; the keys of its units are what SplitMix64 gives from there. The keys of a document's sequences are
what it gives from `mixed(document)`. The hash of a unit and a sequence is `scrambled(unit key xor sequence
key)`: three products, and shifts by 32, which cost nothing where a 64-bit number is two registers.

The hash of a passage begins with 0; each of its tokens, the first one first, makes of it
`mixed(hash + (token + 1) GOLDEN)`.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def unit_keys(seed: int, layer: str, units: int) -> NDArray[np.uint64]:
    """uint64 [units], the keys of a layer's units; layer: its site and number, such as "mlp.5".

    Those of a part of the units are a part of these.
    """
    digest = hashlib.sha256(f"{seed} {layer}".encode()).digest()
    begin = np.array(int.from_bytes(digest[:8], "little"), np.uint64)
    return mixed(begin + np.arange(1, units + 1, dtype=np.uint64) * GOLDEN)


def sequence_keys(document: NDArray[np.int64], sequence: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64, the keys of sequences; document, sequence: int64, their documents and ordinals therein."""
    ordinal = sequence.astype(np.uint64) + np.uint64(1)
    return mixed(mixed(document.astype(np.uint64)) + ordinal * GOLDEN)


def passage_hashes(token_ids: NDArray[np.int32], length: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [passages]; token_ids: int32 [passages, most], each passage at the end of its row.

    length: int64 [passages], its tokens.
    """
    found = np.zeros(len(token_ids), np.uint64)
    most = token_ids.shape[1]
    for column in range(most):
        after = mixed(found + (token_ids[:, column].astype(np.uint64) + np.uint64(1)) * GOLDEN)
        found = np.where(column >= most - length, after, found)
    return found


def mixed(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What SplitMix64 makes of its counter."""
    number = (number ^ (number >> np.uint64(30))) * FIRST
    number = (number ^ (number >> np.uint64(27))) * SECOND
    return number ^ (number >> np.uint64(31))


def scrambled(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hash of a unit's key xor a sequence's."""
    number = number * FIRST
    number = (number ^ (number >> np.uint64(32))) * SECOND
    return (number ^ (number >> np.uint64(32))) * FIRST
