"""A synthetic index of any size, obeying every law that `verify --full` checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from indexer_kernels import Keep, TopK
from indexer_kernels.bands import BANDS, OCTAVES
from indexer_kernels.examples import ExampleRows
from indexer_kernels.histogram import BINS, ZERO_BIN, bin_edges, bins_of
from indexer_kernels.moments import LIMBS, LOWEST, POWERS, settle_carries
from indexer_kernels.panel import WINDOW, Panel, Windows, window_hashes

from benchmarks.states import rows_of
from indexer.index.records import LayerRecord
from indexer.index.vocabulary import Vocabulary
from indexer.index.write import IndexWriter
from indexer.names import MLP, Key

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
    samples: int = 2
    panel: int = 0


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
    kept = {"top": size.top, "bottom": size.bottom, "samples": size.samples, "by": "sequence"}
    return kept | {"window": window, "context": _CONTEXT, "seed": 0}


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
    before = size.window * 3 // 4
    window = before, size.window - before - 1
    keep = Keep(size.top, size.bottom, window, samples=size.samples)
    for layer in range(size.layers):
        record = LayerRecord.empty(Key(MLP, layer), size.units, keep)
        record.count[:] = size.count
        _fill(random, size, record.top, 1)
        _fill(random, size, record.bottom, -1)
        moments = record.moments
        moments.maximum[:] = record.top.value[:, 0] if size.top else 4
        moments.minimum[:] = record.bottom.value[:, 0] if size.bottom else -4
        if size.samples:
            record.samples.offer(_candidates(random, size, moments.maximum, keep))
        counts = _histogram(random, size, moments.minimum, moments.maximum)
        record.histogram.add(..., counts)
        moments.sums[:] = _sums(counts, moments.minimum, moments.maximum)
        states = {"panel": _panel(random, size)} if size.panel else {}
        yield replace(record, states={**record.states, **states})


def _panel(random: np.random.Generator, size: Size) -> Panel:
    """What the units do on windows of which every other one is short."""
    # the text is the same for all layers
    text = np.random.default_rng(0)
    document = size.first_document + np.sort(text.integers(0, size.documents, size.panel))
    start = WINDOW * np.arange(size.panel)
    length = np.resize([WINDOW, WINDOW // 2], size.panel)
    ids = text.integers(0, size.vocabulary, length.sum()).astype(np.int32)
    hashes = window_hashes(0, document, start * 0, start)
    windows = Windows(hashes, document, start * 0, start, length, ids)
    activations = random.random((size.units, len(ids)), np.float32) - np.float32(0.5)
    return Panel(size.panel, 0, windows.taken(windows.order()), activations)


def _candidates(
    random: np.random.Generator, size: Size, maximum: np.ndarray, keep: Keep
) -> ExampleRows:
    """As many sequences of every band as are kept."""
    state = TopK.empty(size.units, BANDS * size.samples, largest=True, window=keep.window)
    _fill(random, size, state, 1)
    # octaves down from that of the maximum, and below zero
    state.value[:] = maximum[:, None] * np.repeat([*0.5 ** np.arange(OCTAVES), -0.25], size.samples)
    peak = (state.position - state.window_start)[..., None]
    np.put_along_axis(state.activations, peak, state.value[..., None], axis=2)
    return rows_of(state)


def _fill(random: np.random.Generator, size: Size, state: TopK, sign: int) -> None:
    """Take all places of one end, in rank order."""
    shape = (size.units, state.k)
    magnitude = 4 + 4 * random.random(shape, np.float32)
    state.filled[:] = state.k
    state.value[:] = -np.sort(-magnitude, axis=1) * np.float32(sign)
    state.up[:] = random.standard_normal(shape, np.float32)
    state.position[:] = random.integers(0, _POSITIONS, shape, np.int32)
    state.window_start[:] = np.maximum(state.position - state.before, 0)
    state.window_length[:] = size.window
    state.activations[:] = random.random((*shape, size.window), np.float32) - np.float32(0.5)
    peak = (state.position - state.window_start)[..., None]
    np.put_along_axis(state.activations, peak, state.value[..., None], axis=2)
    # few tokens are frequent and most are rare, as in any text
    tokens = size.vocabulary * random.random((*shape, size.window), np.float32) ** 6
    state.token_ids[:] = np.minimum(tokens.astype(np.int32), size.vocabulary - 1)
    state.document[:] = size.first_document + np.sort(random.integers(0, size.documents, shape), axis=1)
    # one place for each sequence
    state.sequence[:] = np.broadcast_to(np.arange(state.k), shape) + state.k * random.integers(0, 30, shape)


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


def exact_sums(values: np.ndarray) -> np.ndarray:
    """Settled sums equal to the given numbers, as far as they are multiples of 2^-150; int64 [..., LIMBS].

    values: finite float64 below 2^127. What lies below 2^-150 is cut off.
    """
    fraction, exponent = np.frexp(values)
    # 53 bits in two parts of 26 and 27: shifted by up to 15, neither leaves 64 bits
    mantissa = np.ldexp(fraction, 53).astype(np.int64)
    sums = np.zeros((*np.shape(values), LIMBS), np.int64)
    for part, place in ((mantissa >> 27, exponent - 26), (mantissa & ((1 << 27) - 1), exponent - 53)):
        bit = place - LOWEST
        part = part >> np.clip(-bit, 0, 63)
        bit = np.maximum(bit, 0)
        limb = (bit >> 4)[..., None]
        term = (part << (bit & 15))[..., None]
        np.put_along_axis(sums, limb, np.take_along_axis(sums, limb, axis=-1) + term, axis=-1)
    settle_carries(sums)
    return sums
