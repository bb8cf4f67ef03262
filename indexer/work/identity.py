"""What decides the rows of an index: two builds agree in all of it, or neither continues the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from indexer.index.manifest import Manifest
from indexer.options import option_name

if TYPE_CHECKING:
    from indexer.pipeline import Build

# where and how a build runs, which moves no row
_FREE = {
    *("output", "overwrite", "append", "threads", "checkpoint_minutes"),
    *("workers", "ray", "shards", "storage"),
    # told by digests, and by what they lead to
    *("model", "revision", "corpus", "layers", "dtype", "device", "attention", "kernels", "padding"),
}


def options_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide rows, by their names on the command line; known before a model is loaded.

    configuration: BuildConfig as JSON values.
    """
    return {option_name(name): value for name, value in configuration.items() if name not in _FREE}


def identity(build: Build) -> dict[str, Any]:
    """All that decides rows, as JSON values by the names that people know them by."""
    return _named(
        build.config.model_dump(mode="json"),
        {**build.loaded.provenance, "batches": build.batching.together},
        tokenizer_digest(build.loaded.tokenizer),
        [layer.layer for layer in build.layers],
        build.loaded.device.type,
        build.kernels,
        build.corpus.listing(build.before),
    )


def identity_of(manifest: Manifest) -> dict[str, Any]:
    """The identity of the build that made an index."""
    corpus = manifest.corpus if isinstance(manifest.corpus, dict) else {}
    return _named(
        manifest.configuration,
        manifest.model,
        str(manifest.tokenizer.get("digest")),
        [entry.layer for entry in manifest.layers],
        manifest.software.get("device"),
        str(manifest.software.get("kernels", "")).split(" ")[0],
        corpus.get("listing"),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that a tokenizer does, its chat template included, in hexadecimal."""
    template = getattr(tokenizer, "chat_template", None)
    does = tokenizer.backend_tokenizer.to_str() + (json.dumps(template) if template else "")
    return hashlib.sha256(does.encode()).hexdigest()


def _named(
    configuration: Mapping[str, Any],
    model: Mapping[str, Any],
    tokenizer: str,
    layers: list[int],
    device: Any,
    kernels: str,
    listing: Any,
) -> dict[str, Any]:
    return {
        **options_of(configuration),
        "the model's digest": model.get("digest"),
        "the model's dtype": model.get("dtype"),
        "--attention": model.get("attention"),
        "which sequences lie together in a batch": model.get("batches"),
        "the tokenizer's digest": tokenizer,
        "--layers": layers,
        "--device": device,
        "--kernels": kernels,
        "the digest of the corpus's list of files and sizes": listing,
    }
