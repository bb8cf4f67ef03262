"""Distinct examples: of those that show the same passage the best alone is kept, whatever comes when."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_kernels import KernelInputError, Sequences, TopK
from indexer_kernels.examples import ExampleRows
from indexer_kernels.hashes import passage_hashes

from indexer.engines import build, merge
from indexer.errors import IndexerError
from indexer.index.manifest import sealed
from indexer.index.verify import verify_index
from tests.kernel_cases import DTYPES, KEEP, assert_equal, merged_statistics, repetitive
from tests.test_pipeline import tables
from tests.test_resume import options, stopped_after
from tests.test_statistics import Batches, gathered, pieces, some_batches

KEEP = dataclasses.replace(KEEP, distinct=True)
SHAPES = [(63, 7), (300, 33), (600, 64)]
BY = ["sequence", "token"]
Row = tuple[float, int, int, int]


def brute_force(batches: Batches, unit: int, by: str, *, largest: bool, tokens: int) -> list[Row]:
    """The best row of every passage, best first; value is negated where the largest wins."""
    best: dict[tuple[int, ...], Row] = {}
    for activations, sequences in batches:
        values = activations[:, unit].float().numpy()
        for index in range(len(sequences)):
            begin = int(sequences.start[index])
            rows = [
                (-float(values[row]) + 0.0 if largest else float(values[row]) + 0.0, row - begin)
                for row in range(begin, begin + int(sequences.length[index]))
                if sequences.counted[row] and np.isfinite(values[row])
            ]
            for value, position in [min(rows)] if by == "sequence" and rows else rows:
                ids = sequences.token_ids[begin : begin + position + 1]
                row = (value, int(sequences.document[index]), int(sequences.ordinal[index]), position)
                passage = tuple(ids[-tokens:].tolist())
                best[passage] = min(best.get(passage, row), row)
    return sorted(best.values())


def rows_of(state: TopK, unit: int) -> list[Row]:
    ranked = state.ranked()
    value = -ranked.value if state.largest else ranked.value
    columns = (value + np.float32(0), ranked.document, ranked.sequence, ranked.position)
    return list(zip(*(column[unit, : ranked.filled[unit]].tolist() for column in columns), strict=True))


def assert_is_brute_force(statistics: object, batches: Batches, by: str) -> None:
    for name in ("top", "bottom"):
        state: TopK = getattr(statistics, name)
        for unit in range(state.units):
            found = brute_force(batches, unit, by, largest=state.largest, tokens=min(8, state.before + 1))
            assert rows_of(state, unit) == found[: state.k]


@pytest.mark.parametrize("window", [(6, 3), (12, 0), (0, 2)], ids=str)
@pytest.mark.parametrize("by", BY)
def test_the_reference_is_the_definition(by: str, window: tuple[int, int]) -> None:
    batches = repetitive(some_batches(150, 5, number=3))
    keep = dataclasses.replace(KEEP, by=by, window=window)
    statistics = gathered(5, batches, "reference", keep)
    assert_is_brute_force(statistics, batches, by)
    # and something was set aside
    plain = gathered(5, batches, "reference", dataclasses.replace(keep, distinct=False))
    assert any(rows_of(plain.top, unit) != rows_of(statistics.top, unit) for unit in range(5))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("by", BY)
def test_kernel_equals_reference(
    shape: tuple[int, int], dtype: torch.dtype, by: str, instruction_set: str
) -> None:
    batches = repetitive(some_batches(*shape, dtype))
    keep = dataclasses.replace(KEEP, by=by)
    statistics = gathered(shape[1], batches, "cpp", keep, threads=2)
    assert_equal(statistics, gathered(shape[1], batches, "reference", keep))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kernels", ["cpp", "reference"])
def test_any_order_split_and_merge_give_the_same_bits(by: str, kernels: str) -> None:
    batches = repetitive(some_batches(200, 9, number=4))
    keep = dataclasses.replace(KEEP, by=by)
    whole = gathered(9, batches, kernels, keep)
    assert_is_brute_force(whole, batches, by)
    alone = pieces(batches)
    for seed in range(4):
        random.Random(seed).shuffle(alone)
        assert_equal(gathered(9, alone, kernels, keep), whole)
        cut = 1 + len(alone) // (2 + seed)
        parts = [gathered(9, some, kernels, keep) for some in (alone[:cut], alone[cut:])]
        assert_equal(merged_statistics(parts[::-1], kernels), whole)
        # a state goes on after a merge, and what comes twice is held once
        left = merged_statistics([parts[0], parts[0]], kernels)
        for name in ("top", "bottom"):
            again = dataclasses.replace(getattr(left, name), _native=None)
            assert [rows_of(again, unit) for unit in range(9)] == [
                rows_of(getattr(parts[0], name), unit) for unit in range(9)
            ]
        left = merged_statistics(parts[:1], kernels)
        for batch in alone[cut:]:
            left.update(*batch)
        assert_equal(left, whole)


PLACE = st.tuples(st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.5]), *[st.integers(0, 3)] * 4)


@given(st.booleans(), st.integers(1, 4), st.lists(st.lists(PLACE, max_size=6), max_size=5))
@settings(max_examples=100, deadline=None)
def test_winners_are_the_best_of_each_passage(
    largest: bool, k: int, offered: list[list[tuple[float, int, int, int, int]]]
) -> None:
    places = TopK.empty(2, k, largest=largest, by="token", distinct=True, window=(0, 0))
    best: dict[int, Row] = {}
    for rows in offered:
        columns = (np.array(one) for one in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 5
        value, document, sequence, position, token = columns
        ones = np.ones(len(rows), np.int32)
        places.offer(
            ExampleRows(
                unit=ones.astype(np.int64), value=value.astype(np.float32), up=value.astype(np.float32),
                document=document.astype(np.int64), sequence=sequence.astype(np.int64),
                position=position.astype(np.int32), window_start=position.astype(np.int32),
                window_length=ones, offset=np.arange(len(rows)), token_ids=token.astype(np.int32),
                activations=value.astype(np.float32),
            )
        )  # fmt: skip
        for value, *place, token in rows:
            row = (-value if largest else value, *place)
            best[token] = min(best.get(token, row), row)
    assert rows_of(places, 1) == sorted(best.values())[:k]


def test_passages_are_hashed_as_the_page_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    names: dict[str, Any] = {}
    for title in ("samples", "passages"):
        section = page.split(f"\n## The hash of {title}\n")[1].split("\n## ")[0]
        exec(section.split("```python\n")[1].split("```")[0], names)
    given = re.search(r"`passage_hash\((.*?)\)` is (0x[0-9A-F]{16})", section)
    assert given
    told = names["passage_hash"]
    assert told(json.loads(given[1])) == int(given[2], 16)
    ids = np.array([[9, 9, 5], [9, 5, 0], [1, 2, 3]], np.int32)
    found = passage_hashes(ids, np.array([1, 2, 3])).tolist()
    assert found == [told([5]), told([5, 0]), told([1, 2, 3])]


def test_documents_cannot_be_told_apart_beside_passages() -> None:
    with pytest.raises(KernelInputError, match="distinct examples are by sequence or token"):
        TopK.empty(1, 1, largest=True, by="document", distinct=True)


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("by", ["token", pytest.param("sequence", marks=pytest.mark.slow)])
def test_triton_equals_reference(by: str) -> None:
    pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
    batches = repetitive(some_batches(40, 2, torch.bfloat16))
    keep = dataclasses.replace(KEEP, top=3, bottom=2, by=by)
    expected = gathered(2, batches, "reference", keep)
    assert_equal(gathered(2, batches[::-1], "triton", keep), expected)
    going_on = merged_statistics([gathered(2, batches[:1], "triton", keep)], "triton")
    going_on.update(*batches[1])
    assert_equal(going_on, expected)


@pytest.mark.usefixtures("triton_interpreter")
def test_a_sequence_of_several_blocks_competes_with_its_peak_alone() -> None:
    pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal((560, 1)).astype(np.float32))
    # 300 tokens with the peak in the second block, 260 with the lowest value there
    values[290], values[20], values[559], values[310] = 9, 8, -9, -8
    sequences = Sequences.from_offsets(
        np.array([0, 300, 560]), np.arange(2), np.zeros(2, np.int64), rng.integers(0, 2, 560)
    )
    keep = dataclasses.replace(KEEP, top=2, bottom=2)
    statistics = gathered(1, [(values, sequences)], "triton", keep)
    assert_equal(statistics, gathered(1, [(values, sequences)], "reference", keep))
    assert rows_of(statistics.top, 0)[0] == (-9.0, 0, 0, 290)


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Documents that say the same lines again, each somewhere else in its sequence."""
    rng = random.Random(0)
    lines = [
        f"The {word} is kept by its owner, who cannot do without it. " for word in ("cat", "house", "sea")
    ]
    folder = tmp_path_factory.mktemp("corpus")
    texts = ["".join(rng.choice(lines) for _ in range(rng.randint(1, 20))) for _ in range(40)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return [str(folder)]


def ends(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in found["examples"] if row["kind"] != "sample"]


@pytest.mark.parametrize("by", ["sequence", pytest.param("token", marks=pytest.mark.slow)])
def test_an_index_holds_the_best_of_each_passage_that_was_met(
    by: str, repeating: list[str], tmp_path: Path
) -> None:
    settings = {"by": by, "sites": "heads", "samples": 1, "panel": 0, "max_tokens": 600}
    settings["checkpoint_minutes"] = 5
    # of so few tokens all have a place
    whole = options(tmp_path / "all.index", repeating, **settings | {"top": 700, "bottom": 700})
    every = tables(build(whole))
    best: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    shown: set[tuple[Any, ...]] = set()
    for row in ends(every):
        place = row["unit"], row["kind"]
        peak = row["position"] - row["window_start"] + 1
        passage = (*place, *row["token_ids"][max(peak - 8, 0) : peak])
        # rows come best first
        if passage not in shown and len(best.setdefault(place, [])) < (3 if row["kind"] == "top" else 2):
            best[place].append(row | {"rank": len(best[place]) + 1})
        shown.add(passage)
    found = tables(build(options(tmp_path / "a.index", repeating, distinct=True, **settings)))
    assert ends(found) == [row for place in sorted(best) for row in best[place]]
    assert len(shown) < len(ends(every))
    verify_index(tmp_path / "a.index", full=True)
    kept = [row for row in found["examples"] if row["kind"] == "sample"]
    assert kept == [row for row in every["examples"] if row["kind"] == "sample"]
    # what is not distinct cannot pass for it
    manifest = json.loads((whole.output / "manifest.json").read_text())
    manifest["sites"][0]["keep"]["distinct"] = True
    (whole.output / "manifest.json").write_text(sealed(manifest))
    with pytest.raises(IndexerError, match=r"heads\.1\.\d+: two of its examples show the same passage"):
        verify_index(whole.output, full=True)


@pytest.mark.slow
def test_parts_and_continued_builds_are_one(
    repeating: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(tmp_path / "a.index", repeating, sites="heads", distinct=True, panel=0, piece_bytes=2000)
    parts = [
        build(config.model_copy(update={"shard": (shard, 3), "output": tmp_path / f"{shard}.index"}))
        for shard in range(3)
    ]
    merged = merge(parts[::-1], tmp_path / "merged.index")
    stopped_after(config, 2, monkeypatch)
    assert tables(build(config)) == tables(merged)
    verify_index(merged, full=True)
    plain = config.model_copy(update={"distinct": False, "shard": (1, 3), "output": tmp_path / "plain.index"})
    with pytest.raises(IndexerError, match=r"--distinct is (true and false|false and true)"):
        merge([parts[0], build(plain)], tmp_path / "c.index")
    with pytest.raises(IndexerError, match="--distinct"):
        build(config.model_copy(update={"distinct": False, "append": True}))
