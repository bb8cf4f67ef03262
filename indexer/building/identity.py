"""Everything that decides the rows of an index: a build is continued only by one with equal values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from indexer.config.build import Reach, options_reaching
from indexer.config.options import option_name
from indexer.index.manifest import Manifest
from indexer.names import Key, by_site

LISTING = "the digest of the corpus's list of files and sizes"


def options_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide rows, by their names on the command line; known before a model is loaded.

    configuration: BuildConfig as JSON values.
    """
    free = options_reaching(Reach.RUN)
    return {option_name(name): value for name, value in configuration.items() if name not in free}


def identity_of(manifest: Manifest) -> dict[str, Any]:
    """The identity of the build that made an index."""
    corpus = manifest.corpus
    return identity(
        manifest.configuration,
        manifest.model,
        str(manifest.tokenizer.get("digest")),
        [entry.key for entry in manifest.layers],
        manifest.software.get("device"),
        str(manifest.software.get("kernels", "")).split(" ")[0],
        corpus.get("listing"),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that a tokenizer does, its chat template included, in hexadecimal."""
    template = getattr(tokenizer, "chat_template", None)
    does = tokenizer.backend_tokenizer.to_str() + (json.dumps(template) if template else "")
    return hashlib.sha256(does.encode()).hexdigest()


def identity(
    configuration: Mapping[str, Any],
    model: Mapping[str, Any],
    tokenizer: str,
    keys: Sequence[Key],
    device: Any,
    kernels: str,
    listing: Any,
) -> dict[str, Any]:
    """All that decides rows, as JSON values by the names that people know them by.

    configuration, model: as in the manifest. tokenizer: see tokenizer_digest. listing: see Corpus.listing.
    """
    return {
        **options_of(configuration),
        "the model's digest": model.get("digest"),
        "the adapter's digest": model.get("adapter_digest"),
        "the model's dtype": model.get("dtype"),
        "the dictionaries' digests": model.get("dictionaries") or None,
        "--attention": model.get("attention"),
        "which sequences lie together in a batch": model.get("batches"),
        "the tokenizer's digest": tokenizer,
        "--layers of each site": by_site(keys),
        "--device": device,
        "--kernels": kernels,
        LISTING: listing,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities, for people; empty where nothing does."""
    changes = []
    for name in sorted({*before, *now}):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            changes.append(f"{name} was {_shown(was)} and is {_shown(is_now)}")
    return ", ".join(changes)


def reconciled(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """`now`, but for what may change in the middle of a build: how bad text is met, where none was."""
    free = ["--on-bad-text"] if before.get("--on-bad-text") == "error" else []
    return {**now, **{name: before[name] for name in free}}


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
