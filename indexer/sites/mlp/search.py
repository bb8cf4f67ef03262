"""Finding a model's MLPs: one small forward pass, watched from outside, tells where the neurons are.

Its blocks are traced and searched for MLPs by what they compute. What is not recognised is never guessed at:
it is an error that says what was found.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from indexer_kernels import Keep
from torch import nn

from indexer.errors import IndexerError
from indexer.models.forward import call_model
from indexer.models.loading import LoadedModel
from indexer.models.trace import BlockTrace, traced
from indexer.names import MLP, Key
from indexer.sites.asked import Asked
from indexer.sites.blocks import block_lists, blocks_of, listed, ran, ran_once
from indexer.sites.hook import Hook
from indexer.sites.linear import is_linear, is_of_dbrx
from indexer.sites.mlp import recognise
from indexer.sites.mlp.fused import FusedMlp, without_up
from indexer.sites.mlp.mixing import Projecting, without_mlp
from indexer.sites.mlp.plan import FusedPlan

BY_HAND = "name the output projection by hand: --output-projection PATTERN, * being the layer number"


def find(loaded: LoadedModel, asked: Asked) -> list[Hook]:
    """The MLPs of a model, in the order of its blocks.

    Blocks that run several times are a layer each time. Where a block has several MLPs, one is `mlp`, and the
    others have names of their own.
    Raises IndexerError where the structure is not recognised, or --output-projection fits nothing.
    Cost: a forward pass over 16 tokens, two where some blocks have no MLP; memory for the activations of one
    block.
    """
    search = _Search(loaded, asked)
    with traced(search.blocks, search.finished):
        call_model(loaded.model, loaded.sample.token_ids)
    return search.result()


@dataclass(frozen=True)
class _Mlp:
    """One MLP of a block: its neurons are the input channels of its output projection.

    projection: path of that within the block. function: the activation, by the kernels' name, None where it
    has none; gated: whether it is multiplied by a second linear layer's output. plan: how to compute it in
    one pass, or why that cannot be done. across: see Hook.
    """

    projection: str
    module: nn.Module
    units: int
    function: str | None
    gated: bool
    plan: FusedPlan | str
    across: bool = False

    def probe(self, key: Key, block: str, call: int | None, keep: Keep, facts: dict[str, Any]) -> Hook:
        """block: its path in the model. call: see Hook. facts: of the model, for the manifest."""
        facts = {"function": self.function, "gated": self.gated, **facts}
        place: dict[str, Any] = {
            "key": key,
            "units": self.units,
            "keep": keep,
            "place": f"{block}.{self.projection}",
            "module": self.module,
            "call": call,
            "across": self.across,
        }
        plan = self.plan if call is None else "several layers run it"
        if isinstance(plan, str):
            return Hook(**place, facts=without_up(facts), reason=plan)
        return FusedMlp(**place, facts=facts, plan=plan)


@dataclass
class _Finding:
    """What the trace of one block gave: MLPs or a complaint, and how often the block ran.

    projecting: where there is no MLP, what the block's only projection was given. experts: the path of its
    routed experts, empty where it has none. only_experts: whether it has no MLP beside them.
    """

    mlps: list[_Mlp] = field(default_factory=list)
    complaint: str = ""
    projecting: Projecting | None = None
    experts: str = ""
    only_experts: bool = False
    runs: int = 0


class _Search:
    """The blocks to be traced, and what was found in them."""

    def __init__(self, loaded: LoadedModel, asked: Asked) -> None:
        self.loaded, self.asked = loaded, asked
        self.name = loaded.provenance["architecture"]
        pattern = asked.output_projection
        self.by_hand = None if pattern is None else _fitting(loaded, pattern)
        self.lists = block_lists(loaded)
        self.blocks = blocks_of(self.lists)
        if self.by_hand is not None:
            self.blocks = {
                path: loaded.module(path) for path in {block for block, _ in self.by_hand.values()}
            }
        elif not self.blocks:
            raise IndexerError(f"model {self.name}: it has no list of repeated blocks to look for MLPs in")
        users = Counter(id(module) for block in self.blocks.values() for module in set(block.modules()))
        self.shared = {module for module, count in users.items() if count > 1}
        self.findings = {path: _Finding() for path in self.blocks}
        # paths of blocks, each as often as it ran
        self.order: list[str] = []

    def finished(self, path: str, trace: BlockTrace) -> None:
        finding = self.findings[path]
        finding.runs += 1
        self.order.append(path)
        # again it is the same block
        if finding.runs > 1:
            return
        only = None
        if self.by_hand is not None:
            only = next(within for block, within in self.by_hand.values() if block == path)
        across = _is_across(trace, self.loaded.rows)
        found = recognise.matches(trace, self.loaded.rows[::-1] if across else self.loaded.rows, only)
        # without its two dimensions it could not be turned
        found = [match for match in found if not across or _dimensions(trace, match) == 3]
        finding.experts = _experts(trace.block)
        if only is not None and not found:
            finding.mlps, finding.complaint = _unmatched(trace, self.loaded.rows, only)
        elif not found and _is_nan(trace):
            finding.complaint = (
                "all it returns is NaN; its weights, or those before it, are damaged, or overflow in this "
                "--dtype"
            )
        elif not found and finding.experts and len(_projections(trace, finding.experts)) < 2:
            finding.only_experts = True
            finding.complaint = (
                f"{finding.experts} is a mixture of experts, and its neurons are indexed by --sites experts"
            )
        elif not found:
            finding.complaint = (
                f"no linear layer is fed f(gate) or f(gate) * up; there is {_linear_layers(trace)}"
            )
            projections = _projections(trace)
            if len(projections) == 1:
                finding.projecting = Projecting.of(trace, projections[0])
        else:
            finding.mlps = [_mlp(trace, match, self.shared, across) for match in found]

    def result(self) -> list[Hook]:
        """The probes of all layers, or IndexerError."""
        layers = self._layers()
        # routed experts are no MLP, for not every token passes them; a shared one beside them is
        found = [(number, path) for number, path in layers if not self.findings[path].only_experts]
        candidates = {path: self.findings[path].projecting for _, path in found}
        blocks = {path: projecting for path, projecting in candidates.items() if projecting is not None}
        if blocks and any(self.findings[path].mlps for _, path in found):
            without = without_mlp(self.loaded, blocks)
            found = [(number, path) for number, path in found if path not in without]
        return self._probes(found or layers)

    def _layers(self) -> list[tuple[int, str]]:
        """Numbers of the layers and paths of their blocks, in the order in which they run."""
        if self.by_hand is not None:
            numbers = {block: number for number, (block, _) in self.by_hand.items()}
        else:
            numbers = {path: number for number, path in enumerate(blocks_of(self._body()))}
        order = [path for path in self.order if path in numbers]
        not_run = [path for path in numbers if path not in order] if self.by_hand is not None else []
        if not_run:
            raise self._error(f"{not_run[0]} does not run; a layer has to")
        if len(set(order)) < len(order):
            return list(enumerate(order))
        return [(numbers[path], path) for path in order]

    def _body(self) -> dict[str, nn.ModuleList]:
        """The list of blocks that has the MLPs; several only where the blocks of each run again and again."""
        runs = {path: finding.runs for path, finding in self.findings.items()}
        lists = ran_once(self.lists, runs) or ran(self.lists, runs)
        if not lists:
            raise self._error(f"no list of blocks runs (lists: {listed(self.lists)})")
        body = next(iter(lists))
        holding = {name: lists[name] for name in lists if name == body or self._holds(name, lists[name])}
        often = all(any(runs[path] > 1 for path in blocks_of({name: holding[name]})) for name in holding)
        if len(holding) > 1 and not often:
            raise self._error(
                f"MLPs lie in more than one list of blocks ({listed(holding)}), of which one is indexed"
            )
        return holding

    def _holds(self, name: str, blocks: nn.ModuleList) -> bool:
        found = (self.findings[path] for path in blocks_of({name: blocks}))
        return any(finding.mlps or finding.experts for finding in found)

    def _probes(self, layers: list[tuple[int, str]]) -> list[Hook]:
        """layers: see _layers."""
        experts = not self.asked.experts and any(finding.experts for finding in self.findings.values())
        facts = {"experts": "not indexed"} if experts else {}
        found = []
        for number, path in layers:
            finding = self.findings[path]
            if not finding.mlps:
                block = type(self.blocks[path]).__name__
                raise self._error(f"no MLP recognised in {path} ({block}): {finding.complaint}")
            found += [(Key(self._site(finding, mlp), number), path, mlp) for mlp in finding.mlps]
        uses = Counter(id(mlp.module) for _, _, mlp in found)
        calls: Counter[int] = Counter()
        probes = []
        for key, path, mlp in found:
            used = id(mlp.module)
            call = calls[used] if uses[used] > 1 else None
            calls[used] += 1
            probes.append(mlp.probe(key, path, call, self.asked.keep, facts))
        return probes

    def _site(self, finding: _Finding, mlp: _Mlp) -> str:
        """The name of an MLP's site: `mlp` for one alone, and for that of several that most blocks have.

        Of those that as many blocks have, it is the widest, and then the one whose path is the shortest.
        """
        blocks = Counter(other.projection for finding in self.findings.values() for other in finding.mlps)
        first = max(
            finding.mlps, key=lambda other: (blocks[other.projection], other.units, -len(other.projection))
        )
        return MLP if mlp is first else f"{MLP}.{mlp.projection.replace('.', '_')}"

    def _error(self, what: str) -> IndexerError:
        way_out = "" if self.by_hand is not None else f". To index it all the same, {BY_HAND}"
        return IndexerError(f"model {self.name}: {what}{way_out}")


def _mlp(trace: BlockTrace, match: recognise.Match, shared: set[int], across: bool) -> _Mlp:
    module = trace.modules[match.projection]
    plan = "its tokens come before its sequences" if across else recognise.plan(trace, match, shared)
    return _Mlp(match.projection, module, match.units, match.function, match.gated, plan, across)


def _dimensions(trace: BlockTrace, match: recognise.Match) -> int:
    call = trace.once(match.projection)
    return 0 if call is None else call.inputs[0].ndim


def _is_across(trace: BlockTrace, rows: tuple[int, int]) -> bool:
    """Whether what a block returns is [tokens, sequences, channels]. rows: sequences, and tokens of each."""
    block = trace.once("")
    return block is not None and block.output is not None and block.output.shape[:-1] == rows[::-1]


def _unmatched(trace: BlockTrace, tokens: tuple[int, int], path: str) -> tuple[list[_Mlp], str]:
    """A projection named by hand, with an unrecognised activation: read by hook, if it sees every token.

    tokens: see recognise.matches.
    """
    call = trace.once(path)
    if call is None or len(call.inputs) != 1:
        times = len(trace.calls.get(path, []))
        return (
            [],
            f"{path} runs {times} times per forward pass, or not with one tensor alone; it has to run once",
        )
    (*rows, units), module = call.inputs[0].shape, trace.modules[path]
    if not recognise.is_by_token(call.inputs[0], tokens):
        return (
            [],
            f"{path} was given rows of shape {rows} for {tokens[0]} sequences of {tokens[1]} "
            "tokens; only what every token passes, in order, can be indexed",
        )
    reason = "named by hand; what feeds it was not recognised"
    return [_Mlp(path, module, units, None, False, reason)], ""


def _fitting(loaded: LoadedModel, pattern: str) -> dict[int, tuple[str, str]]:
    """Layer number -> (path of the block, path within it) of the modules that a pattern names."""
    if pattern.count("*") != 1:
        raise IndexerError(
            f"--output-projection {pattern}: it takes exactly one *, which stands for the layer number"
        )
    expression = re.compile(r"(?:.*\.)?" + re.escape(pattern).replace(r"\*", r"(?P<layer>\d+)"))
    found: dict[int, tuple[str, str]] = {}
    for name, _ in loaded.modules():
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
        linear = [name for name, module in loaded.modules() if is_linear(module)]
        kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in linear)
        there = ", ".join(list(kinds)[:12]) or "no linear layers"
        model = loaded.provenance["architecture"]
        raise IndexerError(f"--output-projection {pattern}: no module of {model} fits (there is: {there})")
    return found


def _experts(block: nn.Module) -> str:
    """The path of a module that holds the weights of several experts in one parameter each, or nothing.

    By three dimensions alone it is not told: a recurrence or an attention may have parameters of three.
    """
    for path, module in block.named_modules():
        stacked = any(weight.ndim == 3 for weight in module.parameters(recurse=False))
        if (stacked and any("experts" in name for name in vars(module))) or is_of_dbrx(module):
            return path or type(module).__name__
    return ""


def _projections(trace: BlockTrace, experts: str = "") -> list[str]:
    """Linear layers beside a block's experts that may project something back: attention has one, an MLP too.

    They return what is as wide as the block's output, and none of the others is given what they are.
    """
    block = trace.once("")
    calls = {path: trace.once(path) for path in recognise.linear_paths(trace)}
    given = {path: call for path, call in calls.items() if call is not None and len(call.inputs) == 1}
    wide = block.output.shape[-1] if block is not None and block.output is not None else 0
    return [
        path
        for path, call in given.items()
        if not (experts and path.startswith(f"{experts}."))
        and call.output is not None
        and call.output.shape[-1] == wide
        and not any(
            recognise.same(call.inputs[0], other.inputs[0]) for name, other in given.items() if name != path
        )
    ]


def _is_nan(trace: BlockTrace) -> bool:
    """Whether a block returned nothing but NaN, in which every two tensors look the same."""
    block = trace.once("")
    return block is not None and block.output is not None and bool(block.output.isnan().all())


def _linear_layers(trace: BlockTrace) -> str:
    paths = recognise.linear_paths(trace)
    calls = {path: trace.once(path) for path in paths}
    found = [
        f"{path} ({call.inputs[0].shape[-1]} -> {call.output.shape[-1]})"
        for path, call in calls.items() if call is not None and call.output is not None
    ]  # fmt: skip
    return ", ".join(found) or "no linear layer that runs once"
