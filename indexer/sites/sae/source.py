"""From what --sae names to dictionaries: where their files are, whose they are, and a name for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from indexer.errors import IndexerError
from indexer.sites.sae import circuit_tracer, dictionary_learning, gemma_scope, saelens, sparsify
from indexer.sites.sae.dictionary import Dictionary, Gated, Jump

_LAYERS = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?")
# by the library's name: whether a folder has dictionaries in files of its own, and what reads them
FORMATS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Iterator[Dictionary]]]] = {
    "SAELens": (saelens.is_one, saelens.read),
    "sparsify": (sparsify.is_one, sparsify.read),
    "circuit-tracer": (circuit_tracer.is_one, circuit_tracer.read),
    "Gemma Scope": (gemma_scope.is_one, gemma_scope.read),
    "dictionary_learning": (dictionary_learning.is_one, dictionary_learning.read),
}


def named(asked: str) -> tuple[str, str]:
    """SOURCE[=NAME] in its two parts; without a name that of the folder.

    Raises IndexerError where a name can be no part of a site's.
    """
    source, equals, name = asked.rpartition("=")
    if not equals or Path(asked).expanduser().exists():
        source, name = asked, Path(asked).expanduser().resolve().name
        return source, re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "dictionary"
    if not _NAME.fullmatch(name):
        raise IndexerError(
            f'--sae {asked}: the name "{name}" may have letters, digits, - and _, and dots between'
        )
    return source, name


def read(source: str) -> Iterator[Dictionary]:
    """The dictionaries of a folder, or the folder of a file; of those in it where it is none by itself.

    Raises IndexerError where there are none, or one cannot be read for certain.
    """
    path = _downloaded(source) if source.startswith("hf://") else Path(source).expanduser()
    if not path.exists():
        raise IndexerError(f"--sae {source}: there is no such folder or file")
    path = path.parent if path.is_file() else path
    folders = [path, *sorted(inner for inner in path.rglob("*") if inner.is_dir())]
    found = [(folder, reads) for folder in folders for is_one, reads in FORMATS.values() if is_one(folder)]
    if not found:
        raise IndexerError(
            f"--sae {source}: there is no dictionary in the files of a library that is read: "
            f"{', '.join(FORMATS)}"
        )
    for folder, reads in found:
        for dictionary in reads(folder):
            _check(dictionary)
            yield dictionary


def _check(dictionary: Dictionary) -> None:
    """Raise IndexerError where what a dictionary holds cannot be meant."""
    file, activation = dictionary.files[-1], dictionary.activation
    if not dictionary.weight.numel():
        raise IndexerError(f"{file}: it has no features, or reads no channels")
    bars = {Jump: "threshold", Gated: "b_gate"}
    bar = getattr(activation, bars.get(type(activation), ""), None)
    # its library takes all features behind such a one for 0, whatever else they are
    if bar is not None and bool(bar.isnan().any()):
        raise IndexerError(f"{file}: {bars[type(activation)]} has NaN among its numbers")
    if dictionary.layer is not None and not 0 <= dictionary.layer < _LAYERS:
        raise IndexerError(f"{file}: the layer {dictionary.layer} is none of a model's")


def _downloaded(source: str) -> Path:
    """The folder on this machine of hf://OWNER/NAME[@REVISION][/PATH], from the hub or its cache."""
    from huggingface_hub import snapshot_download

    parts = _HUB.fullmatch(source)
    if parts is None:
        raise IndexerError(f"--sae {source}: expected hf://OWNER/NAME[@REVISION][/PATH]")
    name, revision, path = parts.groups()
    patterns = None if path is None else [path, f"{path}/*"]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns)
    # the client passes on errors of whichever HTTP library it is built on
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise IndexerError(f"--sae {source}: the hub does not give it ({reason})") from error
    return Path(folder) / (path or "")
