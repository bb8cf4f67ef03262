"""The whole build against a brute-force computation: plain hooks on the plain model, then NumPy in float64.

Two comparisons. From the very activations that the build saw, everything is equal, to the last bit and bin.
From a plain transformers model run sequence by sequence, everything is equal but where float32 rounding in
the model decides: values agree to a tolerance, and only values within it of each other, or of a bin's edge,
may change places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

import indexer
from indexer.building.run import build
from indexer.config.build import BuildConfig
from indexer.index.read import Index
from tests.real_model import minilm, standard_library
from tests.test_bands import brute_force, hashed

K, BEFORE, AFTER, CONTEXT = 6, 10, 4, 48
SAMPLES, SEED = 3, 11
# float32 rounding of the model's own matrix products, batched or alone, and of its activation function
ABSOLUTE, RELATIVE = 4e-6, 4e-6


@dataclass
class Sequence:
    """One sequence and the activations of its tokens, all layers."""

    document: int
    ordinal: int
    token_ids: list[int]
    counted: NDArray[np.bool_]
    activations: NDArray[np.float32]  # [layers, tokens, units]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A few documents of real text, cut short, one of them shorter than a window."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, (source, size) in enumerate(
        zip(standard_library("argparse.py", "ast.py", "this.py"), (4000, 2500, 60), strict=True)
    ):
        (folder / f"{number}.txt").write_text(Path(source).read_text()[:size])
    return [str(folder / f"{number}.txt") for number in range(3)]


@pytest.fixture(scope="module")
def built(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, list[Sequence]]:
    """An index, and the activations that it was made of as the kernels wrote them."""
    output = tmp_path_factory.mktemp("index") / "a.index"
    config = BuildConfig(
        model=str(minilm()), corpus=tuple(files), output=output, top=K, bottom=K, context=CONTEXT,
        window=(BEFORE, AFTER), samples=SAMPLES, seed=SEED, batch_tokens=512, threads=2,
    )  # fmt: skip
    seen: dict[tuple[int, int], Sequence] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.building.gathered.States", recording(seen))
        build(config)
    return indexer.open_index(output), list(seen.values())


def recording(seen: dict[tuple[int, int], Sequence]) -> type:
    """The states of the build, which also write down what they are shown."""
    from indexer.building.states import States

    class Recording(States):
        def take(self, key, values):  # type: ignore[no-untyped-def]
            super().take(key, values)
            result, sequences = values.made(), values.sequences
            for index in range(len(sequences)):
                rows = slice(sequences.start[index], sequences.start[index] + sequences.length[index])
                key = (int(sequences.document[index]), int(sequences.ordinal[index]))
                values = result[rows].float().numpy().copy()[None]
                if key in seen:
                    seen[key].activations = np.concatenate([seen[key].activations, values])
                else:
                    seen[key] = Sequence(
                        *key, sequences.token_ids[rows].tolist(), sequences.counted[rows], values
                    )

    return Recording


@pytest.fixture(scope="module")
def plain(files: list[str]) -> list[Sequence]:
    """The same from a plain model with plain hooks, each sequence run by itself."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    model = AutoModel.from_pretrained(minilm(), dtype=torch.float32).eval()
    caught: list[torch.Tensor] = []
    for layer in model.encoder.layer:
        layer.output.dense.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0][0]))
    sequences = []
    for number, file in enumerate(files):
        ids = tokenizer(Path(file).read_text(), add_special_tokens=False, verbose=False)["input_ids"]
        for ordinal, first in enumerate(range(0, len(ids), CONTEXT - 2)):
            piece = [tokenizer.cls_token_id, *ids[first : first + CONTEXT - 2], tokenizer.sep_token_id]
            caught.clear()
            with torch.inference_mode():
                model(input_ids=torch.tensor([piece]))
            counted = np.ones(len(piece), bool)
            counted[[0, -1]] = False
            sequences.append(Sequence(number << 40, ordinal, piece, counted, torch.stack(caught).numpy()))
    return sequences


def ranking(
    sequences: list[Sequence], layer: int, unit: int, sign: int
) -> Iterator[tuple[float, Sequence, int]]:
    """(value, sequence, position) of each sequence's peak, best first under the total order."""
    peaks = []
    for sequence in sequences:
        values = np.where(
            sequence.counted, sign * sequence.activations[layer, :, unit].astype(np.float64), -np.inf
        )
        position = int(np.argmax(values))
        peaks.append((-values[position], sequence.document, sequence.ordinal, position, sequence))
    for negated, _, _, position, sequence in sorted(peaks, key=lambda peak: peak[:4]):
        yield -negated * sign + 0.0, sequence, position


def counted_values(sequences: list[Sequence], layer: int) -> NDArray[np.float64]:
    """[tokens, units]"""
    return np.concatenate([s.activations[layer][s.counted] for s in sequences]).astype(np.float64)


def rows_of(index: Index, extreme: str, layer: int, unit: int) -> list[dict]:
    return getattr(index, extreme)(layer, unit, k=K).to_pylist()


def test_how_often_each_token_was_counted_is_exact(built: tuple[Index, list[Sequence]]) -> None:
    index, sequences = built
    counted = np.concatenate([np.array(s.token_ids)[s.counted] for s in sequences])
    found = index.sql("SELECT token_id, count FROM vocabulary ORDER BY token_id").to_pydict()
    assert found["token_id"] == list(range(len(index.vocabulary)))
    np.testing.assert_array_equal(found["count"], np.bincount(counted, minlength=len(index.vocabulary)))


UNITS = [(0, 0), (0, 1535), (2, 77), (3, 1000), (5, 640), (5, 1111)]


@pytest.mark.parametrize(("layer", "unit"), UNITS)
@pytest.mark.parametrize("extreme", ["top", "bottom"])
def test_examples_are_exact(built: tuple[Index, list[Sequence]], extreme: str, layer: int, unit: int) -> None:
    index, sequences = built
    rows = rows_of(index, extreme, layer, unit)
    expected = list(ranking(sequences, layer, unit, 1 if extreme == "top" else -1))[:K]
    assert len(rows) == K
    for rank, (row, (value, sequence, position)) in enumerate(zip(rows, expected, strict=True), start=1):
        assert row["rank"] == rank
        assert_row(row, value, sequence, position)


def assert_row(row: dict, value: float, sequence: Sequence, position: int) -> None:
    place = row["document"], row["sequence"], row["position"]
    assert place == (sequence.document, sequence.ordinal, position)
    assert row["value"] == value
    first, last = max(0, position - BEFORE), min(len(sequence.token_ids) - 1, position + AFTER)
    assert row["window_start"] == first
    assert row["token_id"] == sequence.token_ids[position]
    assert row["token_ids"] == sequence.token_ids[first : last + 1]
    window = sequence.activations[row["layer"], first : last + 1, row["unit"]]
    np.testing.assert_array_equal(np.array(row["activations"], np.float32), window)
    assert row["tokens"][position - first] == row["token"]


@pytest.mark.parametrize(("layer", "unit"), UNITS)
def test_samples_are_exact(built: tuple[Index, list[Sequence]], layer: int, unit: int) -> None:
    index, sequences = built
    peaks = {(s.document, s.ordinal): (value, s, p) for value, s, p in ranking(sequences, layer, unit, 1)}
    maxima = [
        (value, hashed(SEED, f"mlp.{layer}", unit, *place), *place) for place, (value, *_) in peaks.items()
    ]
    expected = brute_force(maxima, SAMPLES)
    rows = index.samples(layer, unit).to_pylist()
    assert [(row["document"], row["sequence"]) for row in rows] == [sample[2:] for sample in expected]
    for row in rows:
        assert_row(row, *peaks[row["document"], row["sequence"]])
    # within the bands they are as many as can be, by the places of their hashes
    counted = Counter(row["band"] for row in rows)
    assert [row["rank"] for row in rows] == [rank for n in counted.values() for rank in range(1, n + 1)]
    assert max(counted.values()) == SAMPLES
    assert all(row["band"] <= row["value"] < 2 * row["band"] for row in rows if row["band"])
    lowest = min((row["band"] for row in rows if row["band"]), default=np.inf)
    assert all(row["value"] < lowest for row in rows if not row["band"])


def test_counts_and_moments_are_exact(built: tuple[Index, list[Sequence]]) -> None:
    index, sequences = built
    for layer in range(6):
        values = counted_values(sequences, layer)
        units = index.sql(f"SELECT * FROM units WHERE layer = {layer} ORDER BY unit").to_pydict()
        assert set(units["count"]) == {len(values)}
        np.testing.assert_array_equal(units["positive"], (values > 0).sum(axis=0))
        np.testing.assert_array_equal(units["active"], (values >= 2.0**-10).sum(axis=0))
        np.testing.assert_array_equal(units["minimum"], values.min(axis=0))
        np.testing.assert_array_equal(units["maximum"], values.max(axis=0))
        centred = values - values.mean(axis=0)
        variance = (centred**2).mean(axis=0)
        np.testing.assert_allclose(units["mean"], values.mean(axis=0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(units["variance"], variance, rtol=1e-4)
        np.testing.assert_allclose(
            units["skewness"], (centred**3).mean(axis=0) / variance**1.5, rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(units["kurtosis"], (centred**4).mean(axis=0) / variance**2, rtol=1e-3)
        for name, share in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
            exact = np.sort(values, axis=0)[int(np.ceil(share * len(values))) - 1]
            inside = (np.abs(exact) >= 2.0**-10) & (np.abs(exact) < 2.0**14)
            np.testing.assert_allclose(np.array(units[name])[inside], exact[inside], rtol=1 / 16 + 1e-6)


@pytest.mark.parametrize(("layer", "unit"), UNITS)
def test_every_histogram_bin_is_exact(built: tuple[Index, list[Sequence]], layer: int, unit: int) -> None:
    index, sequences = built
    values = counted_values(sequences, layer)[:, unit]
    covered = 0
    for row in index.histogram(f"mlp.{layer}.{unit}").to_pylist():
        lower, upper = row["lower"], row["upper"]
        if lower == upper == 0:
            inside = values == 0
        elif upper > 0:
            inside = (values >= lower) & (values < upper) & (values != 0)
        else:
            inside = (values > lower) & (values <= upper) & (values != 0)
        assert row["count"] == inside.sum(), (lower, upper)
        covered += row["count"]
    assert covered == len(values)


@pytest.mark.parametrize(("layer", "unit"), UNITS)
def test_plain_model_agrees_but_for_rounding(
    built: tuple[Index, list[Sequence]], plain: list[Sequence], layer: int, unit: int
) -> None:
    index, _ = built
    peaks = {(s.document, s.ordinal): (s, v, p) for v, s, p in ranking(plain, layer, unit, 1)}
    expected = [value for value, _, _ in ranking(plain, layer, unit, 1)][:K]
    for row, value in zip(rows_of(index, "top", layer, unit), expected, strict=True):
        near = ABSOLUTE + RELATIVE * abs(value)
        assert abs(row["value"] - value) <= near
        sequence, own_peak, _ = peaks[row["document"], row["sequence"]]
        # another example at this rank, or another position in it, only where rounding can tell them apart
        assert abs(own_peak - value) <= 2 * near
        assert abs(sequence.activations[layer, row["position"], unit] - own_peak) <= near
    values = counted_values(plain, layer)[:, unit]
    histogram = index.histogram(f"mlp.{layer}.{unit}").to_pylist()
    for edge in {row["lower"] for row in histogram} - {-np.inf}:
        at_least = sum(row["count"] for row in histogram if row["lower"] >= edge and row["upper"] > edge)
        near = ABSOLUTE + RELATIVE * abs(edge)
        assert (values > edge + near).sum() <= at_least + (abs(values - edge) <= near).sum()
        assert at_least <= (values >= edge - near).sum()


def test_no_sequence_is_missing(built: tuple[Index, list[Sequence]], plain: list[Sequence]) -> None:
    _, sequences = built
    ours = {(s.document, s.ordinal): s.token_ids for s in sequences}
    assert ours == {(s.document, s.ordinal): s.token_ids for s in plain}
