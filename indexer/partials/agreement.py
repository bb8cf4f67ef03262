"""Whether indexes are parts of one: made in the same way, over one list of files, no row of it twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from indexer.config.build import Reach, options_reaching
from indexer.config.options import option_name
from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.files import RowFile
from indexer.index.manifest import Manifest, check_files, read_manifest, sha256

# facts about the model that decide no activation, or that options and layers stand for
_OF_THE_MODEL = frozenset(
    {
        *("name", "revision", "transformers", "torch", "layers", "weights_not_used", "code_not_run"),
        *("batches_reason", "adapter"),
    }
)
_WAY_OUT = "build them all over one list of files, with --shard I/N, or add to an index with build --append"


@dataclass(frozen=True)
class Input:
    """One of the indexes to merge.

    digest: SHA-256 of its manifest.json. ranges: its coverage, as the manifest has it.
    sources: (source, bytes) of all files of the list that it was built over, if the manifest has them.
    """

    path: Path
    manifest: Manifest
    digest: str
    corpus: dict[str, Any]
    ranges: list[dict[str, Any]]
    sources: list[list[Any]]

    @classmethod
    def open(cls, path: Path) -> Input:
        """Raises IndexerError where it is no index, damaged, or does not tell what it covers."""
        manifest = read_manifest(path)
        check_files(path, manifest)
        corpus = manifest.corpus
        ranges = corpus.get("coverage")
        if not isinstance(ranges, list) or not isinstance(corpus.get("listing"), str):
            raise IndexerError(
                f"index {path}: it was built by an older version, which did not note the rows that it "
                "covers; build it again to merge it"
            )
        sources = corpus.get("sources") or []
        if not isinstance(sources, list) or not all(isinstance(entry, list) and entry for entry in sources):
            raise _damaged(path, "sources", sources)
        for entry in ranges or []:
            _check_range(path, entry)
        return cls(path, manifest, sha256(path / schema.MANIFEST), corpus, ranges or [], sources)


def checked(paths: Sequence[Path]) -> list[Input]:
    """The inputs, in the order of what they cover. Raises IndexerError where they do not belong together."""
    if not paths:
        raise IndexerError("nothing to merge: give the folders of one index or more")
    inputs = [Input.open(path) for path in paths]
    inputs.sort(key=lambda one: ([(entry["file"], entry["first"]) for entry in one.ranges][:1], one.digest))
    for other in inputs[1:]:
        _check_same_way(inputs[0], other)
        _check_vocabulary(inputs[0].path, other.path)
    longest = whole_list(inputs)
    for other in inputs:
        _check_listing(longest, other)
    _check_apart(inputs)
    return inputs


def merged_into(index: Path) -> list[str]:
    """SHA-256 of the manifests of what an index was merged from; nothing where it was not, or is none."""
    if not (index / schema.MANIFEST).is_file():
        return []
    corpus = read_manifest(index).corpus
    entries = corpus.get("merged_from") if isinstance(corpus, dict) else None
    return [str(entry.get("manifest")) for entry in entries or () if isinstance(entry, dict)]


def is_merged(inputs: Sequence[Path], output: Path) -> bool:
    """Whether `output` is what merging `inputs` gives; it may itself have been one of them before."""
    others = [path for path in inputs if path.resolve() != output.resolve()]
    merged = merged_into(output)
    if len(merged) != len(inputs) or not all((path / schema.MANIFEST).is_file() for path in others):
        return False
    return not Counter(sha256(path / schema.MANIFEST) for path in others) - Counter(merged)


def whole_list(inputs: Sequence[Input]) -> Input:
    """The input whose list of files is the longest: an index that was added to knows the earlier ones."""
    return max(inputs, key=lambda one: len(one.sources))


def _check_range(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise _damaged(path, "coverage", entry)
    numbers = [entry.get(name) for name in ("file", "first", "end")]
    whole = [number for number in numbers if isinstance(number, int) and number >= 0]
    if len(whole) < len(numbers) or whole[1] > whole[2]:
        raise _damaged(path, "coverage", entry)


def _damaged(path: Path, where: str, value: Any) -> IndexerError:
    return IndexerError(f"index {path}: {schema.MANIFEST} is damaged at corpus.{where}: {_shown(value)}")


def _check_same_way(first: Input, other: Input) -> None:
    differing = list(_differences(first.manifest, other.manifest))
    if differing:
        raise IndexerError(
            f"indexes {first.path} and {other.path} were built in different ways: {'; '.join(differing)}. "
            "Build them with the same model and options to merge them"
        )


def _differences(one: Manifest, other: Manifest) -> Iterator[str]:
    """What differs, each with both values."""
    ignored = options_reaching(Reach.RUN, Reach.PART)
    yield from _differing(
        {option_name(name): value for name, value in one.configuration.items() if name not in ignored},
        {option_name(name): value for name, value in other.configuration.items() if name not in ignored},
    )
    sides = [
        {
            **{f"the model's {key}": value for key, value in side.model.items() if key not in _OF_THE_MODEL},
            "the tokenizer's digest": side.tokenizer.get("digest"),
            "layers": [f"{entry.key} of {entry.units} units" for entry in side.layers],
            "experts": {str(entry.key): asdict(entry.experts) for entry in side.layers if entry.experts},
            "statistics": {site.site: sorted(site.statistics) for site in side.sites},
            "what is kept": {site.site: asdict(site.keep) for site in side.sites},
        }
        for side in (one, other)
    ]
    yield from _differing(*sides)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            yield f"{name} is {_shown(one.get(name))} and {_shown(other.get(name))}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _check_vocabulary(first: Path, other: Path) -> None:
    tables = []
    for path in (first, other):
        file = RowFile(path / schema.VOCABULARY_FILE, schema.VOCABULARY)
        try:
            tables.append(file.row(0, schema.SPELLING))
        finally:
            file.close()
    if not tables[0].equals(tables[1]):
        raise IndexerError(
            f"indexes {first} and {other}: their vocabularies differ; only indexes of one tokenizer merge"
        )


def _check_listing(whole: Input, other: Input) -> None:
    if other.corpus["listing"] == whole.corpus["listing"]:
        return
    if other.sources and whole.sources[: len(other.sources)] == other.sources:
        return
    raise IndexerError(
        f"indexes {whole.path} and {other.path} were built over different lists of files, so their documents "
        f"cannot be told apart; {_WAY_OUT}"
    )


def _check_apart(inputs: Sequence[Input]) -> None:
    ranges = sorted(
        (entry["file"], entry["first"], entry["end"], number)
        for number, one in enumerate(inputs)
        for entry in one.ranges
        if entry["first"] < entry["end"]
    )
    for (file, _, end, one), (next_file, first, next_end, other) in pairwise(ranges):
        if file == next_file and first < end:
            raise IndexerError(
                f"indexes {inputs[one].path} and {inputs[other].path} both hold rows {first} to "
                f"{min(end, next_end) - 1} of {_name_of(file, inputs)}; merging would count them twice. "
                "Leave one of the two out"
            )


def _name_of(file: int, inputs: Sequence[Input]) -> str:
    sources = whole_list(inputs).sources
    return str(sources[file][0]) if file < len(sources) else f"corpus file {file}"
