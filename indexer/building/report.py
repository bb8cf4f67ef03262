"""What a build tells of itself: its plan, its cost, and the sections of the manifest."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from indexer_kernels.dispatch import describe

from indexer.building.folder import WorkFolder
from indexer.building.gathered import Gathered
from indexer.building.identity import tokenizer_digest
from indexer.building.memory import planned_memory
from indexer.building.nonfinite import NonFinite
from indexer.building.plan import Plan
from indexer.building.progress import peak_memory
from indexer.index.manifest import read_manifest
from indexer.index.unfinished import last_progress
from indexer.models import Probe
from indexer.names import by_site
from indexer.talk import in_bytes, in_tokens, several
from indexer.tokens import Batches
from indexer.version import __version__, versions

# which sequences lie together in a batch
TOGETHER = {"equal": "without padding, of one length each", "single": "of one sequence"}
# what the manifest counts of the corpus, for people
LEFT_OUT = {
    "empty_documents": "empty documents left out",
    "bad_text_skipped": "documents left out for invalid UTF-8",
    "bad_text_replaced": "documents in which U+FFFD replaces invalid UTF-8",
    "documents_not_in_share": "documents left out by --share",
    "binary_files_skipped": "files left out that are not text",
    "files_without_column_skipped": "files of records left out that lack the column",
}
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "pyarrow", "duckdb")


def beginning(plan: Plan, gathered: Gathered) -> Iterator[str]:
    """Lines before the work begins: what is indexed, and what memory is for, which on the CPU is measured."""
    units = sum(probe.units for probe in plan.probes)
    fused = sum(probe.fused for probe in plan.probes)
    where = ", ".join(f"{site} of layers {layers}" for site, layers in by_site(plan.keys).items())
    before = gathered.tokens_before
    yield (
        f"indexing {units:,} units, {where} "
        f"({fused} fused, {len(plan.probes) - fused} by hook), {plan.loaded.provenance['dtype']} on "
        f"{_device(plan)}{', compiled' if plan.config.compile else ''}, "
        f"{several(len(plan.corpus.files), 'file')}, "
        f"{in_bytes(plan.state_bytes)} of statistics"
        + (f"; continuing after {before:,} tokens" if before else "")
    )
    part = plan.loaded.provenance["part"]
    if part:
        yield f"the model does not run on token ids alone; its part {part} is indexed"
    if any(probe.provenance.get("experts") == "not indexed" for probe in plan.probes):
        yield (
            "neurons of routed experts are not indexed, for which there is --sites mlp,experts: mlp is what "
            "every token passes, shared experts too"
        )
    if plan.trained:
        how = " ".join(f"--{name} {value}" for name, value in plan.trained.items())
        yield f"as the dictionary was trained, its files say: {how}; what is given holds instead"
    if plan.batching.reason:
        yield f"batches {TOGETHER[plan.batching.together]}: {plan.batching.reason}"
    if plan.memory.gpus:
        yield plan.memory.line()
    else:
        gathered.memory = planned_memory(plan, gathered.loaded)
        yield gathered.memory.line()


def cost(output: Path, without_column: str | None) -> Iterator[str]:
    """Lines after it is done: tokens, speed, shares of the time, memory; then what was odd.

    output: the finished index, whose manifest holds the figures. without_column: see Corpus.
    """
    found = read_manifest(output)
    totals: Any = found.totals
    corpus: Any = found.corpus
    model = max(totals["model_seconds"], 1e-9)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    padding = totals["padding"] / max(1, totals["padding"] + totals["tokens"])
    tokens = totals["counted_tokens"]
    yield (
        f"{several(tokens, 'token')} in {several(totals['sequences'], 'sequence')}, "
        f"{in_tokens(tokens / model)} tokens/s; {totals['seconds']:.1f} s in all"
    )
    waited, padded = f"{totals['waited_seconds'] / model:.1%}", f"padding {padding:.1%}"
    memory = f"peak memory {in_bytes(totals['peak_memory_bytes'])}"
    if totals["kernel_seconds"] is None:
        # on a GPU the host knows when work was queued, not how long which part of it took
        yield f"the model waited for text {waited} of its time, {padded}"
        memory += f", on GPUs {in_bytes(totals['peak_gpu_memory_bytes'])}"
    else:
        yield (
            f"activation functions with statistics took {totals['kernel_seconds'] / model:.1%} of the "
            f"model's time, it waited for text {waited}, {padded}"
        )
    if totals.get("peak_memory_planned_bytes"):
        memory += f" of {in_bytes(totals['peak_memory_planned_bytes'])} expected"
    yield f"{output}: {in_bytes(size)}; {memory}"
    if totals.get("pairs_cut_off"):
        yield f"pairs of texts cut off at --context, of one or both: {totals['pairs_cut_off']:,}"
    for name, what in LEFT_OUT.items():
        if corpus[name]:
            yield f"{what}: {corpus[name]:,}"
    if without_column:
        yield f"the first of them: {without_column}"
    if totals["non_finite"]:
        yield (
            f"warning: {totals['non_finite']:,} activations are NaN or infinite and enter nothing but their "
            f"count; the first is {NonFinite(**totals['first_non_finite'])}"
        )


def interrupted(folder: WorkFolder) -> str:
    """One line after Ctrl-C."""
    if folder.published:
        return f"stopped when all was done: {folder.output} is whole"
    kept = last_progress(folder.path, "checkpoint").get("tokens", 0)
    if not kept:
        return f"stopped before there was anything to keep; {folder.output} is as it was"
    return f"stopped; {kept:,} tokens are kept in {folder.path}, and the same command continues there"


def manifest(plan: Plan, gathered: Gathered, batches: Batches) -> dict[str, Any]:
    """The sections of the manifest that the build knows; see index.manifest.SECTIONS."""
    tokenizer = plan.loaded.tokenizer
    return {
        "model": {
            **plan.loaded.provenance,
            "matmul": plan.matmul,
            "batches": plan.batching.together,
            **({"dictionaries": plan.dictionaries} if plan.dictionaries else {}),
            "batches_reason": plan.batching.reason or None,
            "layers": [_layer(probe) for probe in plan.probes],
        },
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "vocabulary": len(tokenizer),
            "digest": tokenizer_digest(tokenizer),
        },
        "corpus": _corpus(plan),
        "configuration": plan.config.model_dump(mode="json"),
        "totals": _totals(plan, gathered, batches),
        "software": {
            "neuron-activation-indexer": __version__,
            "python": platform.python_version(),
            **versions(PACKAGES),
            "kernels": describe(plan.kernels),
            "device": plan.loaded.device.type,
            "gpu": torch.cuda.get_device_name(plan.loaded.device) if _on_gpu(plan) else None,
            "threads": plan.threads,
            "batch_tokens": gathered.batch_tokens,
            "machine": platform.machine(),
        },
    }


def _on_gpu(plan: Plan) -> bool:
    return plan.loaded.device.type == "cuda"


def _device(plan: Plan) -> str:
    """Where the model runs, for people: cpu, the GPU's name, or how many of them."""
    if not _on_gpu(plan):
        return "cpu"
    several = f"{plan.memory.gpus} x " if plan.memory.gpus > 1 else ""
    return several + torch.cuda.get_device_name(plan.loaded.device)


def _peak_gpu_memory() -> int:
    """Bytes that tensors took at most, over all GPUs that this process sees."""
    return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))


def _layer(probe: Probe) -> dict[str, Any]:
    return {**probe.key._asdict(), "units": probe.units, **probe.provenance}


def _corpus(plan: Plan) -> dict[str, Any]:
    corpus, counts = plan.corpus, plan.corpus.counts
    return {
        "listing": corpus.listing(plan.before),
        "sources": [*plan.before, *((file.source, file.bytes) for file in corpus.files)],
        "coverage": [asdict(covered) for covered in corpus.coverage()],
        "files": corpus.digests(),
        "documents": counts.documents,
        "empty_documents": counts.empty,
        "bad_text_replaced": counts.bad_text_replaced,
        "bad_text_skipped": counts.bad_text_skipped,
        "documents_not_in_share": counts.not_in_share,
        "binary_files_skipped": counts.binary_skipped,
        "files_without_column_skipped": counts.no_column_skipped,
        "characters": counts.characters,
    }


def _totals(plan: Plan, gathered: Gathered, batches: Batches) -> dict[str, Any]:
    states, clock = gathered.states, gathered.clock
    met = states.first_non_finite
    return {
        **asdict(batches.totals),
        "non_finite": states.non_finite,
        "first_non_finite": None if met is None else asdict(met),
        "sequences_checked_alone": gathered.spotcheck.checked,
        "peak_difference_alone": float(f"{gathered.spotcheck.largest:.3g}"),
        "seconds": round(clock.seconds, 3),
        "model_seconds": round(clock.model, 3),
        "kernel_seconds": None if _on_gpu(plan) else round(states.seconds, 3),
        "waited_seconds": round(clock.waited, 3),
        "panel_seconds": round(clock.panel, 3),
        "peak_memory_bytes": peak_memory(),
        "peak_memory_planned_bytes": None if gathered.memory is None else gathered.memory.whole,
        "peak_gpu_memory_bytes": _peak_gpu_memory() if _on_gpu(plan) else None,
    }
