"""A synthetic index of any size, obeying every law that `verify --full` checks; for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from indexer_kernels.histogram import BINS, ZERO_BIN, bin_edges, bins_of

from indexer.index.moments import POWERS, exact_sums
from indexer.index.records import Examples, LayerRecord
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter

_POSITIONS = 512
_CONTEXT = 1_024


@dataclass(frozen=True)
class Size:
    """How large a synthetic index is."""

    layers: int = 2
    units: int = 64
    top: int = 20
    bottom: int = 20
    window: int = 64
    vocabulary: int = 30_000
    count: int = 1_000_000
    documents: int = 4_096
    first_document: int = 0


def write_synthetic(
    output: Path, size: Size | None = None, *, seed: int = 0, overwrite: bool = False
) -> Path:
    """Write a synthetic index; returns its path. The same size and seed give the same rows."""
    size = size or Size()
    with IndexWriter(output, synthetic_vocabulary(size.vocabulary), overwrite=overwrite) as writer:
        for record in synthetic_records(size, seed):
            writer.add_layer(record)
        sections: dict[str, Any] = {name: {"name": "synthetic"} for name in ("model", "tokenizer")}
        sections |= {
            "corpus": {"name": f"synthetic, seed {seed}"},
            "configuration": configuration(size),
            "totals": {"counted_tokens": size.count},
            "software": {},
        }
        return writer.publish(sections, synthetic_documents(size), synthetic_token_counts(size))


def configuration(size: Size) -> dict[str, Any]:
    """What a build's configuration says of the shape of examples."""
    before = size.window * 3 // 4
    window = [before, size.window - before - 1]
    return {"top": size.top, "bottom": size.bottom, "by": "sequence", "window": window, "context": _CONTEXT}


def synthetic_vocabulary(size: int) -> Vocabulary:
    """Distinct tokens of a few letters, most of them with a space before them; token 1 is ' the'."""
    letters = "etaoinshrdlucmfw"
    tokens = []
    for number in range(size):
        word, rest = "", number
        while rest or not word:
            word, rest = word + letters[rest % 16], rest // 16
        tokens.append(word if number % 4 == 3 else " " + word)
    tokens[1:2] = [" the"][: max(size - 1, 0)]
    return Vocabulary(tokens)


def synthetic_token_counts(size: Size) -> np.ndarray:
    """How often each token was counted, int64 [vocabulary]: few are frequent and most are rare."""
    share = (np.arange(size.vocabulary + 1) / size.vocabulary) ** (1 / 6)
    return np.diff((size.count * share).astype(np.int64))


def synthetic_documents(size: Size) -> pa.Table:
    """All documents that examples may point to."""
    count = size.documents
    ids = np.arange(size.first_document, size.first_document + count)
    return pa.table(
        {
            "document": ids,
            "source": pa.repeat("synthetic.txt", count),
            "row": ids,
            "characters": ids * 10,
        }
    )


def synthetic_records(size: Size, seed: int = 0) -> Iterator[LayerRecord]:
    """The layers' records one after the other."""
    random = np.random.default_rng(seed)
    for layer in range(size.layers):
        top = _examples(random, size, size.top, 1)
        bottom = _examples(random, size, size.bottom, -1)
        maximum = top.value[:, 0] if size.top else np.full(size.units, 4, np.float32)
        minimum = bottom.value[:, 0] if size.bottom else np.full(size.units, -4, np.float32)
        histogram = _histogram(random, size, minimum, maximum)
        yield LayerRecord(
            site="mlp",
            layer=layer,
            count=size.count,
            nan=np.zeros(size.units, np.int64),
            inf=np.zeros(size.units, np.int64),
            minimum=minimum,
            maximum=maximum,
            sums=_sums(histogram, minimum, maximum),
            histogram=histogram,
            top=top,
            bottom=bottom,
        )


def _examples(random: np.random.Generator, size: Size, places: int, sign: int) -> Examples:
    shape = (size.units, places)
    magnitude = 4 + 4 * random.random(shape, np.float32)
    value = -np.sort(-magnitude, axis=1) * np.float32(sign)
    position = random.integers(0, _POSITIONS, shape, np.int32)
    before = size.window * 3 // 4
    window_start = np.maximum(position - before, 0)
    activations = random.random((*shape, size.window), np.float32) - np.float32(0.5)
    peak = (position - window_start)[..., None]
    np.put_along_axis(activations, peak, value[..., None], axis=2)
    # few tokens are frequent and most are rare, as in any text
    tokens = size.vocabulary * random.random((*shape, size.window), np.float32) ** 6
    return Examples(
        filled=np.full(size.units, places, np.int32),
        value=value,
        document=size.first_document + np.sort(random.integers(0, size.documents, shape), axis=1),
        # one place for each sequence
        sequence=np.broadcast_to(np.arange(places), shape) + places * random.integers(0, 30, shape),
        position=position,
        window_start=window_start,
        window_length=np.full(shape, size.window, np.int32),
        token_ids=np.minimum(tokens.astype(np.int32), size.vocabulary - 1),
        activations=activations,
    )


def _histogram(
    random: np.random.Generator, size: Size, minimum: np.ndarray, maximum: np.ndarray
) -> np.ndarray:
    """int64 [units, BINS]: some 150 bins and those of the extremes; what is left is zeros."""
    histogram = np.zeros((size.units, BINS), np.int64)
    middle = slice(ZERO_BIN - 75, ZERO_BIN + 76)
    highest = max(size.count // 400, 1)
    histogram[:, middle] = random.integers(0, highest, (size.units, middle.stop - middle.start))
    unit = np.arange(size.units)
    histogram[unit, bins_of(minimum)] += 1
    histogram[unit, bins_of(maximum)] += 1
    histogram[:, ZERO_BIN] = 0
    histogram[:, ZERO_BIN] = size.count - histogram.sum(axis=1)
    return histogram


def _sums(histogram: np.ndarray, minimum: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """The sums of values that lie in the middle of their bins, or at the extreme where it is nearer."""
    lower, upper = bin_edges()
    middle = (lower + upper) / 2
    value = np.clip(middle, minimum[:, None], maximum[:, None]).astype(np.float64)
    return exact_sums(
        np.stack([(histogram * value**power).sum(axis=1) for power in range(1, POWERS + 1)], axis=1)
    )
