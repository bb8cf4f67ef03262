"""The manifest of a merged index: what the manifests of its inputs say, added up."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexer.partials.agreement import Input, whole_list
from indexer.version import __version__, versions

_FIRST_NON_FINITE = ("document", "sequence", "position", "layer", "site", "unit")
_PACKAGES = ("numpy", "pyarrow")


def merged_sections(inputs: Sequence[Input], output: Path) -> dict[str, Any]:
    """The sections of the manifest, see index.manifest.SECTIONS; inputs: as `agreement.checked` returns them.

    Numbers are added, sizes of memory and the like are the largest, and what is the same in all stays.
    """
    first = inputs[0].manifest
    return {
        "model": first.model,
        "tokenizer": first.tokenizer,
        "corpus": _corpus(inputs),
        "configuration": _configuration(inputs, output),
        "totals": _totals(inputs),
        "software": _software(inputs),
    }


def _configuration(inputs: Sequence[Input], output: Path) -> dict[str, Any]:
    """That of one build over everything."""
    parts = [one.manifest.configuration for one in inputs]
    sources = [source for part in parts for source in part.get("corpus") or ()]
    whole = {**parts[0], "output": str(output)}
    replaced = {"corpus": list(dict.fromkeys(sources)), "shard": None, "append": False}
    return whole | {name: value for name, value in replaced.items() if name in whole}


def _corpus(inputs: Sequence[Input]) -> dict[str, Any]:
    whole = whole_list(inputs).corpus
    merged = _added([one.corpus for one in inputs])
    merged |= {name: whole[name] for name in ("listing", "sources") if name in whole}
    merged["coverage"] = sorted(
        (entry for one in inputs for entry in one.ranges), key=lambda entry: (entry["file"], entry["first"])
    )
    merged["files"] = _files(inputs)
    merged["merged_from"] = sorted(
        ({"index": one.path.name, "manifest": one.digest} for one in inputs),
        key=lambda entry: (entry["index"], entry["manifest"]),
    )
    return merged


def _files(inputs: Sequence[Input]) -> list[dict[str, Any]]:
    """Every file that was read, in the order of the list; bytes and digest where one input read it whole."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in inputs:
        # a list may name a file twice
        times: Counter[str] = Counter()
        for entry in one.corpus.get("files") or ():
            key = (entry["source"], times[entry["source"]])
            times[entry["source"]] += 1
            before = found.get(key)
            found[key] = dict(entry) if before is None else before | {"bytes": None, "sha256": None}
    place = {source: number for number, (source, *_) in enumerate(whole_list(inputs).sources)}
    return sorted(found.values(), key=lambda entry: (place.get(entry["source"], len(place)), entry["source"]))


def _totals(inputs: Sequence[Input]) -> dict[str, Any]:
    parts = [one.manifest.totals for one in inputs]
    merged = _added(parts)
    met = [part["first_non_finite"] for part in parts if part.get("first_non_finite")]
    if any("first_non_finite" in part for part in parts):
        merged["first_non_finite"] = min(
            met, key=lambda place: tuple(place[name] for name in _FIRST_NON_FINITE), default=None
        )
    return merged


def _software(inputs: Sequence[Input]) -> dict[str, Any]:
    """What all inputs were made with, and what merged them."""
    return _common([one.manifest.software for one in inputs]) | {
        "neuron-activation-indexer": __version__,
        "python": platform.python_version(),
        **versions(_PACKAGES),
        "machine": platform.machine(),
    }


def _added(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Numbers added, what begins with `peak_` the largest, and of the rest what is the same in all parts."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            if name.startswith("peak_"):
                merged[name] = max(values)
                continue
            total = sum(values)
            merged[name] = round(total, 3) if isinstance(total, float) else total
    return merged | {name: value for name, value in _common(parts).items() if name not in merged}


def _common(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, *others = parts
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }
