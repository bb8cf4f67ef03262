"""Finding a model's MLPs: one small forward pass, watched from outside, tells where the neurons are.

Three passes over two sequences of eight tokens: one is traced and its blocks are searched for MLPs; one with
other tokens at the end tells whether a token sees only those before it; one with the fused path in place of
the model's own MLPs has to return the same. What is not recognised is never guessed at: it is an error that
says what was found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from indexer_kernels.activations import activate
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models import recognise
from indexer.models.forward import TokensAloneError, call_model, embedding_rows, text_part
from indexer.models.fused import FusedForward, Group, Workspace, installed
from indexer.models.plan import FusedPlan, MlpLayer, is_linear
from indexer.models.trace import BlockTrace, traced

PROBE_SEQUENCES, PROBE_TOKENS = 2, 8
BY_HAND = "name the output projection by hand: --output-projection PATTERN, * being the layer number"


@dataclass(frozen=True)
class Structure:
    """layers: the MLPs in order. causal: whether a token's activations depend on no token after it.

    part: path of the part of the model that was run, empty where all of it was.
    """

    layers: tuple[MlpLayer, ...]
    causal: bool
    part: str = ""


@dataclass
class _Finding:
    """What the trace of one block gave: an MLP or a complaint, and how often the block ran."""

    layer: MlpLayer | None = None
    complaint: str = ""
    runs: int = 0


def find(model: nn.Module, output_projection: str | None = None) -> Structure:
    """The MLPs of a model in evaluation mode, or of its language model where it does not run on tokens alone.

    output_projection: pattern of their output projections' paths, * being the layer number, where the search
        is to look there alone.
    Raises IndexerError where the structure is not recognised, or the pattern fits nothing.
    Cost: three forward passes over 16 tokens; memory for the activations of one block.
    """
    with torch.inference_mode():
        try:
            return _found(model, "", output_projection)
        except TokensAloneError as error:
            part = text_part(model)
            if not part:
                raise
            wanted = error
        try:
            return _found(model, part, output_projection)
        except TokensAloneError:
            raise wanted from None


def _found(model: nn.Module, part: str, output_projection: str | None) -> Structure:
    runs = model.get_submodule(part)
    ids = probe_ids(runs)
    search = _Search(model, part, output_projection)
    with traced(search.blocks, search.finished):
        expected = call_model(runs, ids)
    layers = search.result()
    causal = is_causal(runs, ids, expected)
    return Structure(_verified(runs, layers, ids, expected), causal, part)


def probe_ids(model: nn.Module) -> Tensor:
    """int64 [2, 8] token ids, always the same, without the padding token, which some models treat apart."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    shape = (PROBE_SEQUENCES, PROBE_TOKENS)
    ids = torch.randint(0, embedding_rows(model), shape, generator=generator, device="cpu")
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    if isinstance(padding, int):
        ids[ids == padding] = padding - 1 if padding else 1
    return ids.to(device)


def is_causal(model: nn.Module, ids: Tensor, expected: Tensor) -> bool:
    """Whether the first half of each sequence comes out the same, bit for bit, when the second is changed."""
    half = PROBE_TOKENS // 2
    other = ids.clone()
    other[:, half:] = ids[:, half:].flip(1).roll(1, 0)
    return torch.equal(call_model(model, other)[:, :half], expected[:, :half])


class _Search:
    """The blocks to be traced, and what was found in them."""

    def __init__(self, model: nn.Module, part: str, pattern: str | None) -> None:
        self.model = model
        self.by_hand = None if pattern is None else _fitting(model, pattern)
        self.lists = _block_lists(model, f"{part}." if part else "")
        self.blocks = {
            f"{name}.{i}": block for name, blocks in self.lists.items() for i, block in enumerate(blocks)
        }
        if self.by_hand is not None:
            self.blocks = {
                path: model.get_submodule(path) for path in {block for block, _ in self.by_hand.values()}
            }
        elif not self.blocks:
            raise IndexerError(
                f"model {type(model).__name__}: it has no list of repeated blocks to look for MLPs in"
            )
        users = Counter(id(module) for block in self.blocks.values() for module in set(block.modules()))
        self.shared = {module for module, count in users.items() if count > 1}
        self.findings = {path: _Finding() for path in self.blocks}

    def finished(self, path: str, trace: BlockTrace) -> None:
        finding = self.findings[path]
        finding.runs += 1
        # a block that runs again is refused, whatever it holds
        if finding.runs > 1:
            return
        only = None
        if self.by_hand is not None:
            only = next(within for block, within in self.by_hand.values() if block == path)
        found = recognise.matches(trace, (PROBE_SEQUENCES, PROBE_TOKENS), only)
        experts = _experts(trace.block)
        if only is not None and not found:
            finding.layer, finding.complaint = _unmatched(trace, only)
        elif only is None and experts:
            finding.complaint = f"{experts} is a mixture of experts, whose neurons are not indexed"
        elif len(found) > 1:
            paths = ", ".join(match.projection for match in found)
            finding.complaint = f"more than one linear layer projects an MLP's activations ({paths})"
        elif not found and _is_nan(trace):
            finding.complaint = (
                "all it returns is NaN; its weights, or those before it, are damaged, or overflow in this "
                "--dtype"
            )
        elif not found:
            finding.complaint = (
                f"no linear layer is fed f(gate) or f(gate) * up; there is {_linear_layers(trace)}"
            )
        else:
            finding.layer = _layer(trace, found[0], self.shared)

    def result(self) -> list[MlpLayer]:
        """The layers with their numbers and full paths, or IndexerError."""
        if self.by_hand is not None:
            places = [(number, block) for number, (block, _) in sorted(self.by_hand.items())]
        else:
            ran = {name: blocks for name, blocks in self.lists.items() if self._ran(name, len(blocks))}
            if not ran:
                listed = ", ".join(f"{name} ({len(blocks)})" for name, blocks in self.lists.items())
                raise self._error(
                    f"no list of blocks runs each of them once per forward pass (lists: {listed})"
                )
            # a model may hold further lists, of adapters or auxiliary layers: the body is the heaviest
            name = max(ran, key=lambda name: sum(weight.numel() for weight in ran[name].parameters()))
            holding = [other for other in ran if other == name or self._holds(other, len(ran[other]))]
            if len(holding) > 1:
                listed = ", ".join(f"{name} ({len(ran[name])})" for name in holding)
                raise self._error(
                    f"MLPs lie in more than one list of blocks ({listed}), of which one is indexed"
                )
            places = [(i, f"{name}.{i}") for i in range(len(ran[name]))]
        return [self._numbered(number, path) for number, path in places]

    def _ran(self, name: str, blocks: int) -> bool:
        return all(self.findings[f"{name}.{i}"].runs == 1 for i in range(blocks))

    def _holds(self, name: str, blocks: int) -> bool:
        return any(self.findings[f"{name}.{i}"].layer is not None for i in range(blocks))

    def _numbered(self, number: int, path: str) -> MlpLayer:
        finding = self.findings[path]
        if finding.runs != 1:
            raise self._error(f"{path} runs {finding.runs} times per forward pass; a layer has to run once")
        if finding.layer is None:
            block = type(self.blocks[path]).__name__
            raise self._error(f"no MLP recognised in {path} ({block}): {finding.complaint}")
        return replace(finding.layer, layer=number, projection=f"{path}.{finding.layer.projection}")

    def _error(self, what: str) -> IndexerError:
        way_out = "" if self.by_hand is not None else f". To index it all the same, {BY_HAND}"
        return IndexerError(f"model {type(self.model).__name__}: {what}{way_out}")


def _layer(trace: BlockTrace, match: recognise.Match, shared: set[int]) -> MlpLayer:
    plan = recognise.plan(trace, match, shared)
    reason = plan if isinstance(plan, str) else ""
    return MlpLayer(
        layer=0,
        units=match.units,
        projection=match.projection,
        path="hook" if reason else "fused",
        function=match.function,
        gated=match.gated,
        reason=reason,
        module=trace.modules[match.projection],
        plan=plan if isinstance(plan, FusedPlan) else None,
    )


def _unmatched(trace: BlockTrace, path: str) -> tuple[MlpLayer | None, str]:
    """A projection named by hand, with an unrecognised activation: read by hook, if it sees every token."""
    call = trace.once(path)
    if call is None or len(call.inputs) != 1:
        times = len(trace.calls.get(path, []))
        return (
            None,
            f"{path} runs {times} times per forward pass, or not with one tensor alone; it has to run once",
        )
    (*rows, units), module = call.inputs[0].shape, trace.modules[path]
    if not recognise.is_by_token(call.inputs[0], (PROBE_SEQUENCES, PROBE_TOKENS)):
        return (
            None,
            f"{path} was given rows of shape {rows} for {PROBE_SEQUENCES} sequences of {PROBE_TOKENS} "
            "tokens; only what every token passes, in order, can be indexed",
        )
    reason = "named by hand; what feeds it was not recognised"
    return MlpLayer(0, units, path, "hook", None, False, reason, module), ""


def _block_lists(model: nn.Module, within: str) -> dict[str, nn.ModuleList]:
    """The lists of blocks, which have parts, without lists within blocks; by path.

    within: what their paths begin with.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module)
            and not isinstance(module[0], nn.ModuleList)
            and any(True for _ in module[0].children())
            and name.startswith(within)
            and not any(name.startswith(f"{o}.") for o in lists)
        ):
            lists[name] = module
    return lists


def _fitting(model: nn.Module, pattern: str) -> dict[int, tuple[str, str]]:
    """Layer number -> (path of the block, path within it) of the modules that a pattern names."""
    if pattern.count("*") != 1:
        raise IndexerError(
            f"--output-projection {pattern}: it takes exactly one *, which stands for the layer number"
        )
    expression = re.compile(r"(?:.*\.)?" + re.escape(pattern).replace(r"\*", r"(?P<layer>\d+)"))
    found: dict[int, tuple[str, str]] = {}
    for name, _ in model.named_modules():
        fit = expression.fullmatch(name)
        if fit is None:
            continue
        number, split = int(fit["layer"]), fit.end("layer")
        if number in found:
            raise IndexerError(
                f"--output-projection {pattern}: more than one module fits layer {number} ({name})"
            )
        found[number] = (name[:split], name[split + 1 :])
    if not found or any(not within for _, within in found.values()):
        linear = [name for name, module in model.named_modules() if is_linear(module)]
        kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in linear)
        there = ", ".join(list(kinds)[:12]) or "no linear layers"
        raise IndexerError(
            f"--output-projection {pattern}: no module of {type(model).__name__} fits (there is: {there})"
        )
    return found


def _experts(block: nn.Module) -> str:
    """The path of a module that holds the weights of several experts in one parameter, or nothing.

    By three dimensions alone it is not told: a recurrence or an attention may have parameters of three.
    """
    for path, module in block.named_modules():
        stacked = any(weight.ndim == 3 for weight in module.parameters(recurse=False))
        if stacked and any("experts" in name for name in vars(module)):
            return path or type(module).__name__
    return ""


def _is_nan(trace: BlockTrace) -> bool:
    """Whether a block returned nothing but NaN, in which every two tensors look the same."""
    block = trace.once("")
    return block is not None and block.output is not None and bool(block.output.isnan().all())


def _linear_layers(trace: BlockTrace) -> str:
    paths = recognise.linear_paths(trace)
    calls = {path: trace.once(path) for path in paths}
    told = [
        f"{path} ({call.inputs[0].shape[-1]} -> {call.output.shape[-1]})"
        for path, call in calls.items() if call is not None and call.output is not None
    ]  # fmt: skip
    return ", ".join(told) or "no linear layer that runs once"


def _verified(
    model: nn.Module, layers: Sequence[MlpLayer], ids: Tensor, expected: Tensor
) -> tuple[MlpLayer, ...]:
    """The layers as they are if the fused path leaves the model's output as it is; read by hook otherwise."""
    workspace = Workspace(groups=[Group(0, ids.numel(), _no_sequences())])
    with ExitStack() as stack:
        for layer in layers:
            if layer.plan is not None:
                forward = FusedForward(layer.plan, layer.projection, _reference, workspace)
                stack.enter_context(installed(layer.plan, forward))
        try:
            output = call_model(model, ids)
        except IndexerError as error:
            return _by_hook(layers, f"computed in one pass, the model fails: {error}")
    # a model may overflow by itself: what it makes no number of says nothing
    finite = expected.isfinite()
    wanted = expected[finite].float()
    if not len(wanted):
        return tuple(layers)
    difference = float((output[finite].float() - wanted).abs().max())
    # rounding differs by a few eps per layer; another function or order of factors shows in the first digits
    share = min(0.1, 64 * torch.finfo(expected.dtype).eps ** 0.75)
    bound = share * max(1.0, float(wanted.abs().max()))
    if difference <= bound:
        return tuple(layers)
    return _by_hook(layers, f"computed in one pass, the model's output differs by {difference:.2g}")


def _by_hook(layers: Sequence[MlpLayer], reason: str) -> tuple[MlpLayer, ...]:
    return tuple(
        layer if layer.plan is None else replace(layer, path="hook", plan=None, reason=reason)
        for layer in layers
    )


def _reference(function: str, gate: Tensor, up: Tensor | None, sequences: Any, out: Tensor) -> Tensor:
    return out.copy_(activate(function, gate, up))


def _no_sequences() -> Any:
    """The probe keeps no statistics, so nothing asks where its sequences are."""
    return np.empty(0)
