"""What a build tells of itself: its plan, its cost, and the sections of the manifest."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from indexer_kernels import Keep
from indexer_kernels.dispatch import describe

from indexer import __version__
from indexer.index.unfinished import last_progress
from indexer.models import MlpLayer
from indexer.progress import in_bytes, in_tokens, peak_memory
from indexer.units import format_layers
from indexer.work.identity import tokenizer_digest

if TYPE_CHECKING:
    from indexer.pipeline import Build

# which sequences lie together in a batch
TOGETHER = {"equal": "without padding, of one length each", "single": "of one sequence"}
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "pyarrow", "duckdb")


def plan(build: Build, keep: Keep) -> Iterator[str]:
    """Lines before the work begins: what is indexed, and on a GPU what its memory is for."""
    units = sum(layer.units for layer in build.layers)
    fused = sum(_path(build, layer) == "fused" for layer in build.layers)
    files = len(build.corpus.files)
    yield (
        f"indexing {units:,} neurons of layers {format_layers([layer.layer for layer in build.layers])} "
        f"({fused} fused, {len(build.layers) - fused} by hook), {build.loaded.provenance['dtype']} on "
        f"{_device(build)}{', compiled' if build.config.compile else ''}, {files:,} "
        f"file{'s' if files != 1 else ''}, "
        f"{in_bytes(units * keep.bytes_per_unit())} of statistics" + _continued(build)
    )
    part = build.loaded.provenance["part"]
    if part:
        yield f"the model does not run on token ids alone; its part {part} is indexed"
    if build.batching.reason:
        yield f"batches {TOGETHER[build.batching.together]}: {build.batching.reason}"
    if build.memory.gpus:
        yield build.memory.line()


def _continued(build: Build) -> str:
    return f"; continuing after {build.tokens_before:,} tokens" if build.tokens_before else ""


def cost(build: Build, output: Path) -> Iterator[str]:
    """Lines after it is done: tokens, speed, shares of the time, memory; then what was odd."""
    totals, observer = build.totals, build.observer
    assert observer is not None
    seconds, model = build.seconds, max(build.model_seconds, 1e-9)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    padding = totals.padding / max(1, totals.padding + totals.tokens)
    yield (
        f"{totals.counted_tokens:,} tokens in {totals.sequences:,} sequences, "
        f"{in_tokens(totals.counted_tokens / model)} tokens/s; {seconds:.1f} s in all"
    )
    waited, padded = f"{build.waited / model:.1%}", f"padding {padding:.1%}"
    memory = f"peak memory {in_bytes(peak_memory())}"
    if _on_gpu(build):
        # the host knows when work was queued, not how long which part of it took
        yield f"the model waited for text {waited} of its time, {padded}"
        memory += f", on GPUs {in_bytes(_peak_gpu_memory())}"
    else:
        yield (
            f"activation functions with statistics took {observer.seconds / model:.1%} of the model's time, "
            f"it waited for text {waited}, {padded}"
        )
    yield f"{output}: {in_bytes(size)}; {memory}"
    counts = build.corpus.counts
    for what, number in (
        ("empty documents left out", counts.empty),
        ("documents left out for invalid UTF-8", counts.bad_text_skipped),
        ("documents in which U+FFFD replaces invalid UTF-8", counts.bad_text_replaced),
        ("files left out that are not text", counts.binary_skipped),
        ("files of records left out that lack the column", counts.no_column_skipped),
    ):
        if number:
            yield f"{what}: {number:,}"
    if build.corpus.without_column:
        yield f"the first of them: {build.corpus.without_column}"
    if observer.non_finite:
        yield (
            f"warning: {observer.non_finite:,} activations are NaN or infinite and enter nothing but their "
            f"count; the first is {observer.first_non_finite}"
        )


def interrupted(build: Build) -> str:
    """One line after Ctrl-C."""
    if build.published:
        return f"stopped when all was done: {build.config.output} is whole"
    kept = last_progress(build.work.path, "checkpoint").get("tokens", 0)
    if not kept:
        return f"stopped before there was anything to keep; {build.config.output} is as it was"
    return f"stopped; {kept:,} tokens are kept in {build.work.path}, and the same command continues there"


def manifest(build: Build) -> dict[str, Any]:
    """The sections of the manifest that the build knows; see index.manifest.SECTIONS."""
    tokenizer = build.loaded.tokenizer
    return {
        "model": {
            **build.loaded.provenance,
            "matmul": build.matmul,
            "batches": build.batching.together,
            "batches_reason": build.batching.reason or None,
            "layers": [_layer(build, layer) for layer in build.layers],
        },
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "vocabulary": len(tokenizer),
            "digest": tokenizer_digest(tokenizer),
        },
        "corpus": _corpus(build),
        "configuration": build.config.model_dump(mode="json"),
        "totals": _totals(build),
        "software": {
            "neuron-activation-indexer": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "kernels": describe(build.kernels),
            "device": build.loaded.device.type,
            "gpu": torch.cuda.get_device_name(build.loaded.device) if _on_gpu(build) else None,
            "threads": build.threads,
            "batch_tokens": build.batch_tokens,
            "machine": platform.machine(),
        },
    }


def _on_gpu(build: Build) -> bool:
    return build.loaded.device.type == "cuda"


def _device(build: Build) -> str:
    """Where the model runs, for people: cpu, the GPU's name, or how many of them."""
    if not _on_gpu(build):
        return "cpu"
    several = f"{build.memory.gpus} x " if build.memory.gpus > 1 else ""
    return several + torch.cuda.get_device_name(build.loaded.device)


def _peak_gpu_memory() -> int:
    """Bytes that tensors took at most, over all GPUs that this process sees."""
    return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))


def _path(build: Build, layer: MlpLayer) -> str:
    return "hook" if build.config.hooks else layer.path


def _layer(build: Build, layer: MlpLayer) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "projection": layer.projection,
        "path": _path(build, layer),
        "function": layer.function,
        "gated": layer.gated,
        "reason": "asked for" if build.config.hooks else layer.reason,
    }


def _corpus(build: Build) -> dict[str, Any]:
    counts = build.corpus.counts
    return {
        "listing": build.corpus.listing(build.before),
        "sources": [*build.before, *((file.source, file.bytes) for file in build.corpus.files)],
        "coverage": [asdict(covered) for covered in build.corpus.coverage()],
        "files": build.corpus.digests(),
        "documents": counts.documents,
        "empty_documents": counts.empty,
        "bad_text_replaced": counts.bad_text_replaced,
        "bad_text_skipped": counts.bad_text_skipped,
        "binary_files_skipped": counts.binary_skipped,
        "files_without_column_skipped": counts.no_column_skipped,
        "characters": counts.characters,
    }


def _totals(build: Build) -> dict[str, Any]:
    observer = build.observer
    assert observer is not None
    met = observer.first_non_finite
    return {
        **asdict(build.totals),
        "non_finite": observer.non_finite,
        "first_non_finite": None if met is None else asdict(met),
        "sequences_checked_alone": build.spotcheck.checked,
        "peak_difference_alone": float(f"{build.spotcheck.largest:.3g}"),
        "seconds": round(build.seconds, 3),
        "model_seconds": round(build.model_seconds, 3),
        "kernel_seconds": None if _on_gpu(build) else round(observer.seconds, 3),
        "waited_seconds": round(build.waited, 3),
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_memory_bytes": _peak_gpu_memory() if _on_gpu(build) else None,
    }
