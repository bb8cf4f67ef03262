"""Which indexes may be merged, and the one line that says why others may not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import IndexerError
from indexer.index.manifest import read_manifest
from indexer.index.vocabulary import Vocabulary
from indexer.partials.merge import merge_indexes
from tests import partial_cases
from tests.partial_cases import (
    FILES,
    VOCABULARY,
    Change,
    record,
    some_index,
    some_parts,
    write_part,
)


def _set(section: str, **values: Any) -> Change:
    return lambda sections: sections[section].update(values)


def _drop(section: str, name: str) -> Change:
    return lambda sections: sections[section].pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("configuration", top=6), "--top is 5 and 6"),
        (_set("configuration", bottom=9), "--bottom is 3 and 9"),
        (_set("configuration", samples=1), "--samples is 2 and 1"),
        (_set("configuration", seed=5), "--seed is 4 and 5"),
        (_set("configuration", by="token"), "--by is sequence and token"),
        (_set("configuration", distinct=True), "--distinct is null and true"),
        (_set("configuration", window=[6, 4]), "--window is [6, 3] and [6, 4]"),
        (_set("configuration", context=100), "--context is 2000 and 100"),
        (_set("configuration", numerics="reproducible"), "--numerics is fast and reproducible"),
        (_set("configuration", count_special_tokens=True), "--count-special-tokens is null and true"),
        (_set("configuration", text_column="body"), "--text-column is null and body"),
        (_set("configuration", on_bad_text="skip"), "--on-bad-text is null and skip"),
        (_set("model", digest="3" * 64), f"the model's digest is {'0' * 64} and {'3' * 64}"),
        (_set("model", dtype="bfloat16"), "the model's dtype is float32 and bfloat16"),
        (_set("model", attention="eager"), "the model's attention is null and eager"),
        (_set("model", matmul="onednn"), "the model's matmul is torch and onednn"),
        (_set("tokenizer", digest="4" * 64), "the tokenizer's digest is "),
    ],
)
def test_parts_built_in_another_way_are_refused(change: Change, said: str, tmp_path: Path) -> None:
    one, other = some_index(tmp_path / "one", [0]), some_index(tmp_path / "other", [1], change)
    with pytest.raises(IndexerError, match=r"were built in different ways: .*\. Build them with") as error:
        merge_indexes([one, other], tmp_path / "merged")
    message = str(error.value)
    assert said in message
    assert str(one) in message
    assert str(other) in message
    assert "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_all_differences_are_told(tmp_path: Path) -> None:
    one = some_index(tmp_path / "one", [0])

    def change(sections: dict[str, Any]) -> None:
        sections["configuration"].update(by="token", context=9)
        sections["model"].update(dtype="float16")

    with pytest.raises(IndexerError) as error:
        merge_indexes([one, some_index(tmp_path / "other", [1], change)], tmp_path / "merged")
    for said in ("--by is sequence and token; --context is 2000 and 9; ", "dtype is float32 and float16"):
        assert said in str(error.value)


def test_what_decides_no_row_may_differ(tmp_path: Path) -> None:
    def change(sections: dict[str, Any]) -> None:
        free = {"threads": 7, "batch_tokens": 9, "device": "cuda", "overwrite": True, "shard": [1, 2]}
        sections["configuration"].update(free, model="elsewhere", corpus=["data", "more"], attention="sdpa")
        sections["model"].update(name="elsewhere", torch="3", weights_not_used=["lm_head.weight"])
        sections["software"].update(torch="3")

    one, other = some_index(tmp_path / "one", [0]), some_index(tmp_path / "other", [1], change)
    manifest = read_manifest(merge_indexes([one, other], tmp_path / "merged"))
    assert manifest.configuration["corpus"] == ["data", "more"]
    assert "torch" not in manifest.software


def test_other_layers_and_units_are_refused(tmp_path: Path) -> None:
    one = some_index(tmp_path / "one", [0])
    parts = some_parts(1)
    other = write_part(tmp_path / "other", [1], [record(parts)], parts)
    said = r'layers is \["mlp.0 of 12 units", "mlp.3 of 12 units"\] and \["mlp.0 of 12 units"\]'
    with pytest.raises(IndexerError, match=said):
        merge_indexes([one, other], tmp_path / "merged")


def test_other_vocabularies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = some_index(tmp_path / "one", [0])
    tokens = [f" {number}" for number in range(len(VOCABULARY))]
    monkeypatch.setattr(partial_cases, "VOCABULARY", Vocabulary([*tokens[:-1], "other"]))
    other = some_index(tmp_path / "other", [1])
    with pytest.raises(IndexerError, match=r"one and .*other: their vocabularies differ"):
        merge_indexes([one, other], tmp_path / "merged")


def test_rows_that_two_hold_are_refused(tmp_path: Path) -> None:
    one = some_index(tmp_path / "one", [0, 4])

    def change(sections: dict[str, Any]) -> None:
        sections["corpus"]["coverage"] = [{"file": 1, "first": 150, "end": 180}]

    other = some_index(tmp_path / "other", [1], change)
    said = (
        f"indexes {one} and {other} both hold rows 150 to 179 of 1.txt; merging would count them twice. "
        "Leave one of the two out"
    )
    for inputs in ([one, other], [other, one]):
        with pytest.raises(IndexerError, match=re.escape(said)):
            merge_indexes(inputs, tmp_path / "merged")
    twice = f"indexes {one} and {one} both hold rows 0 to 99 of 0.txt"
    with pytest.raises(IndexerError, match=re.escape(twice)):
        merge_indexes([one, one], tmp_path / "merged")


def test_ranges_that_touch_are_apart(tmp_path: Path) -> None:
    merged = merge_indexes(
        [some_index(tmp_path / "one", [0]), some_index(tmp_path / "other", [FILES])], tmp_path / "merged"
    )
    ranges = read_manifest(merged).corpus["coverage"]
    assert [(entry["file"], entry["first"], entry["end"]) for entry in ranges] == [(0, 0, 100), (0, 100, 200)]


def test_parts_of_different_lists_are_refused(tmp_path: Path) -> None:
    one = some_index(tmp_path / "one", [0])
    for number, sources in enumerate(([["0.txt", 11], ["1.txt", 10]], [], None)):
        change = _set("corpus", listing="5" * 64, sources=sources)
        other = some_index(tmp_path / f"other{number}", [1], change)
        with pytest.raises(IndexerError, match=r"over different lists of files.*--shard I/N.*--append"):
            merge_indexes([one, other], tmp_path / "merged")


def test_an_index_that_was_added_to_knows_the_earlier_list(tmp_path: Path) -> None:
    one = some_index(tmp_path / "one", [0, 1, 2])
    sources = [*read_manifest(one).corpus["sources"], ["3.txt", 5]]  # type: ignore[call-overload]

    def change(sections: dict[str, Any]) -> None:
        sections["corpus"].update(listing="6" * 64, sources=sources)
        sections["corpus"]["coverage"] = [{"file": 3, "first": 0, "end": 9}]

    added = some_index(tmp_path / "added", [3], change)
    for inputs in ([one, added], [added, one]):
        merged = read_manifest(merge_indexes(inputs, tmp_path / "merged", overwrite=True))
        assert (merged.corpus["listing"], merged.corpus["sources"]) == ("6" * 64, sources)
        assert [entry["file"] for entry in merged.corpus["coverage"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        _drop("corpus", "coverage"),
        _drop("corpus", "listing"),
    ],
)
def test_an_index_of_an_older_version_is_refused(change: Change, tmp_path: Path) -> None:
    old = some_index(tmp_path / "old", [0], change)
    with pytest.raises(IndexerError, match=r"old: it was built by an older version.*build it again to merge"):
        merge_indexes([old], tmp_path / "merged")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coverage", [{"file": 0, "first": 5, "end": 4}]),
        ("coverage", [{"file": 0, "first": -1, "end": 4}]),
        ("coverage", [{"file": 0, "first": 0}]),
        ("coverage", [7]),
        ("sources", 5),
        ("sources", [5]),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    index = some_index(tmp_path / "i", [0], _set("corpus", **{name: value}))
    with pytest.raises(IndexerError, match=rf"manifest\.json is damaged at corpus\.{name}: "):
        merge_indexes([index], tmp_path / "merged")


def test_nothing_and_no_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match="nothing to merge: give the folders"):
        merge_indexes([], tmp_path / "merged")
    with pytest.raises(IndexerError, match="nowhere: no such folder"):
        merge_indexes([tmp_path / "nowhere"], tmp_path / "merged")
    index = some_index(tmp_path / "i", [0])
    with pytest.raises(IndexerError, match="already exists"):
        merge_indexes([index], index)
