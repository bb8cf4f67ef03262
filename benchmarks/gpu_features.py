"""Features of one dictionary on a GPU: what their statistics cost beside encoding them, form by form.

A dictionary with random weights reads what the middle block of GPT-2's shape returns. Sides as in
gpu_pipeline; `forward` encodes the same features and takes no statistics, `plain` is the model alone. Of
every form the activation function is computed as a build computes it: ReLU in the read that takes the
statistics, after a step of torch over a block of features where there is a threshold or a gate; top-k by
torch alone, over all blocks before the first is handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from indexer_kernels import Keep
from torch import Tensor, nn

from benchmarks.gpu_kernels import interpreter
from benchmarks.gpu_pipeline import Bench, Figures
from benchmarks.measure import measured_parts
from benchmarks.report import say
from indexer.models import LoadedModel, Probe
from indexer.models.forward import call_model
from indexer.names import SAE, Key
from indexer.sites.sae.dictionary import Activation, Dictionary, Gated, Jump, Relu, TopK
from indexer.sites.sae.probe import Features
from indexer.tokens import Batch

MODEL = "gpt2"
FEATURES, DRY_FEATURES = 65_536, 70
# a feature is active where it is beyond so many standard deviations, at 0.13% of tokens
BEYOND = 3.0
FORMS = ("relu", "jumprelu", "gated", "topk")


def measure(device: torch.device, *, dry: bool, save: Callable[[Figures], None]) -> Figures:
    """Figures of each of FORMS, by its name, as gpu_pipeline.measure gives them of a loop; and `checks`.

    save: called with the figures so far after every form. A form that fails has its traceback in
    FORM_failure. Raises WrongResultError where statistics differ from the reference.
    """
    figures: Figures = {"features": DRY_FEATURES if dry else FEATURES, "dry": int(dry)}
    checks: list[str] = []

    def of(form: str) -> Figures:
        def probes(loaded: LoadedModel, batch: Batch) -> list[Probe]:
            return [_probe(loaded, batch, form, dry)]

        with ExitStack() as installed:
            bench = Bench.of(MODEL, device, dry, installed, probes)
            bench.prepare()
            found = bench.loop()
            checks.extend(f"{form}: {check}" for check in bench.checks)
        return {form: found}

    with interpreter() if dry else nullcontext():
        parts = {form: partial(of, form) for form in FORMS}
        measured_parts(parts, figures, lambda: save(figures | {"checks": checks}))
    return figures | {"checks": checks}


def _probe(loaded: LoadedModel, batch: Batch, form: str, dry: bool) -> Features:
    blocks: nn.ModuleList = loaded.model.h  # type: ignore[assignment]
    layer = len(blocks) // 2
    read = _returned(loaded, blocks[layer], batch)
    generator = torch.Generator(read.device).manual_seed(0)
    features = DRY_FEATURES if dry else FEATURES
    weight = torch.randn(features, read.shape[1], generator=generator, device=read.device).to(read.dtype)
    spread = (read[:512] @ weight.t()).float().std(dim=0).to(read.dtype)
    bias, activation = _form(form, BEYOND * spread)
    say(f"{form}: {features:,} features of what block {layer} returns")
    dictionary = Dictionary(
        files=(Path("random"),), form=form, point="", layer=layer, weight=weight, bias=bias,
        activation=activation, rounds_between=False,
    )  # fmt: skip
    keep = Keep(top=1, bottom=0, window=(1, 1)) if dry else Keep(top=20, bottom=0, window=(24, 7), samples=2)
    return Features(
        key=Key(f"{SAE}.{form}", layer), units=features, keep=keep, place=f"h.{layer}", module=blocks[layer],
        returned=True, dictionary=dictionary,
    )  # fmt: skip


def _form(form: str, threshold: Tensor) -> tuple[Tensor | None, Activation]:
    """Bias and activation function by which features are active above a threshold."""
    if form == "jumprelu":
        return torch.zeros_like(threshold), Jump(threshold)
    if form == "gated":
        return None, Gated(-threshold, torch.ones_like(threshold), torch.zeros_like(threshold))
    return -threshold, TopK(min(64, len(threshold))) if form == "topk" else Relu()


def _returned(loaded: LoadedModel, block: nn.Module, batch: Batch) -> Tensor:
    """What a block returns for a batch, [tokens, channels]."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep)
    try:
        with torch.inference_mode():
            call_model(loaded.model, torch.from_numpy(batch.token_ids).to(loaded.device))
    finally:
        handle.remove()
    return kept[0].flatten(0, 1)
