"""Where in a model a dictionary reads: names of TransformerLens, found by what modules compute, or modules.

A block adds to the residual stream what its attention makes of it, then what its MLP does. In a small forward
pass every module's part is known by its values: `mlp_out` is what some module returns, which added to a
stream that another one was given is, bit for bit, what the block returns. So norms behind an MLP or an
attention (Gemma, OLMo 2) belong to `mlp_out` and `attn_out`, as TransformerLens has it, and no name is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import torch
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models import LoadedModel
from indexer.models.forward import call_model
from indexer.models.trace import BlockTrace, traced
from indexer.sites import attn, resid
from indexer.sites.asked import Asked
from indexer.sites.hook import Hook
from indexer.sites.linear import is_linear

# names of TransformerLens within a block
HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "mlp.hook_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "hook_attn_out": "attn_out",
    "attn.hook_z": "hook_z",
}
# of these there are two that go by one name
AMBIGUOUS = {
    "hook_mlp_in": "is what enters the norm before the MLP in TransformerLens, and what leaves it in others",
    "ln2.hook_normalized": "depends on how TransformerLens loaded the model",
    "mlp.hook_out": "is not what the MLP adds to the stream where a norm follows it",
}
_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_OF_MODULE = re.compile(r"(.+?)(?:\.(input|output))?")


@dataclass(frozen=True)
class Place:
    """What a dictionary reads: what a module is given, or with `returned` returns.

    layer: of the block, or the first number in the module's path; None where there is none.
    written: whether it is the residual stream, or added to it; None where that is not known.
    """

    path: str
    module: nn.Module
    returned: bool
    layer: int | None
    across: bool = False
    written: bool | None = None


class Points:
    """The read points of a loaded model, each found when it is first asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.name = f"model {loaded.provenance['architecture']}"
        self._blocks: dict[int, _Block] = {}

    def find(self, point: str, where: str) -> Place:
        """The place that a name means. where: the files that say it, for messages.

        Raises IndexerError where the model has no such place, or more than one.
        """
        in_block = _IN_BLOCK.fullmatch(point)
        if in_block is None:
            return self._of_module(point, where)
        layer, hook = int(in_block[1]), in_block[2]
        if hook in AMBIGUOUS:
            raise IndexerError(f"{where}: it reads {point}, which {AMBIGUOUS[hook]}; that is not guessed")
        if hook not in HOOKS:
            raise IndexerError(
                f"{where}: it reads {point}; of a block is read: {', '.join(HOOKS)}, or a module by its path"
            )
        try:
            if HOOKS[hook] == "hook_z":
                return self._heads(layer)
            return self._block(layer).place(HOOKS[hook])
        except IndexerError as error:
            raise IndexerError(f"{where}: it reads {point}; {error}") from error

    def _of_module(self, point: str, where: str) -> Place:
        """A module of transformers by its path, which may be that in another class of the same model."""
        found = _OF_MODULE.fullmatch(point)
        if found is None or not point.isprintable():
            raise IndexerError(f"{where}: it reads {point!a}, which is no name of a place")
        path, end = found[1], found[2]
        modules = dict(self.loaded.modules())
        parts = path.split(".")
        tails = (".".join(parts[first:]) for first in range(len(parts)))
        exact = next((tail for tail in tails if tail in modules), None)
        ending = [name for name in modules if name.endswith(f".{path}")]
        if exact is None and len(ending) != 1:
            what = f"several modules that end in it: {', '.join(ending[:3])}" if ending else "no such module"
            raise IndexerError(f"{where}: it reads {point}, and {self.name} has {what}")
        name = exact if exact is not None else ending[0]
        number = re.search(r"\.(\d+)(?:\.|$)", f".{name}")
        return Place(name, modules[name], end != "input", int(number[1]) if number else None)

    def _heads(self, layer: int) -> Place:
        probe = next((probe for probe in self._attention if probe.key.layer == layer), None)
        if probe is None:
            raise IndexerError(f"{self.name} has no attention in layer {layer}")
        return Place(probe.place, probe.module, False, layer, probe.across, written=False)

    @cached_property
    def _attention(self) -> list[Hook]:
        return list(attn.find(self.loaded, Asked()))

    def _attends(self, path: str) -> bool:
        """Whether the attention's output projection is the module of a path, or within it."""
        return any(f"{probe.place}.".startswith(f"{path}.") for probe in self._attention)

    @cached_property
    def _streams(self) -> list[Hook]:
        return resid.find(self.loaded, Asked())

    def _block(self, layer: int) -> _Block:
        if layer >= len(self._streams):
            raise IndexerError(f"{self.name} has blocks 0 to {len(self._streams) - 1}")
        if layer not in self._blocks:
            block = self._streams[layer]

            def finished(path: str, trace: BlockTrace) -> None:
                self._blocks[layer] = _Block.of(self.loaded, block, trace, self._attends)

            with traced({block.place: block.module}, finished):
                call_model(self.loaded.model, self.loaded.sample.token_ids)
        return self._blocks[layer]


@dataclass(frozen=True)
class _Tensor:
    """What a module is given or returns in the forward pass, of the residual stream's shape."""

    path: str
    returned: bool
    value: Tensor


@dataclass(frozen=True)
class _Block:
    """A block's values: of every module called once in it, in the order of their returns.

    before, after: of the stream. attends: whether a module, by its path, is attention, or holds it.
    """

    name: str
    path: str
    layer: int
    modules: dict[str, nn.Module]
    given: list[_Tensor]
    returned: list[_Tensor]
    before: Tensor
    after: Tensor
    attends: Callable[[str], bool]

    @classmethod
    def of(
        cls, loaded: LoadedModel, block: Hook, trace: BlockTrace, attends: Callable[[str], bool]
    ) -> _Block:
        own = trace.once("")
        assert own is not None, "resid.find takes blocks that run once"
        assert own.output is not None
        after = own.output
        given: list[_Tensor] = []
        returned: list[_Tensor] = []
        for path in filter(None, trace.calls):
            call = trace.once(path)
            if call is None:
                continue
            given += [_Tensor(path, False, x) for x in call.inputs[:1] if x.shape == after.shape]
            if call.output is not None and call.output.shape == after.shape:
                returned.append(_Tensor(path, True, call.output))
        # a block is given its stream first
        before = next((x for x in own.inputs if x.shape == after.shape), None)
        name = f"model {loaded.provenance['architecture']}"
        if before is None:
            raise IndexerError(f"{name}: {block.place} is not given a row of its width for every token")
        return cls(
            name, block.place, block.key.layer, trace.modules, given, returned, before, after, attends
        )

    def place(self, kind: str) -> Place:
        """The place of a kind among HOOKS but hook_z. Raises IndexerError where it is not there."""
        self._check_sums()
        if kind == "resid_pre":
            return self._place(_Tensor("", False, self.before), written=True)
        if kind == "resid_post":
            return self._place(_Tensor("", True, self.after), written=True)
        middle, attention, mlp = self._sums
        if kind == "attn_out":
            return self._place(attention, written=True)
        if kind == "mlp_out":
            return self._place(mlp, written=True)
        if middle is None:
            raise IndexerError(
                f"{self.name}: its attention and MLP read the same stream, so there is no {kind} of its own"
            )
        if kind == "resid_mid":
            return self._place(middle, written=True)
        return self._place(self._normed(middle), written=False)

    def _place(self, tensor: _Tensor, written: bool) -> Place:
        module = self.modules[tensor.path]
        return Place(self._full(tensor.path), module, tensor.returned, self.layer, written=written)

    def _full(self, path: str) -> str:
        return ".".join(filter(None, (self.path, path)))

    def _check_sums(self) -> None:
        """Raise IndexerError where the block ends with a norm: its stream then is two things by one name."""
        last = next((one for one in self.returned if torch.equal(one.value, self.after)), None)
        if last is not None and not any(
            one.path == last.path and torch.equal(one.value, self.after) for one in self.given
        ):
            raise IndexerError(
                f"{self.name}: {self.path} ends with {last.path}, before and behind which the stream is "
                f"another; name the module instead, as {self.path}"
            )

    @cached_property
    def _sums(self) -> tuple[_Tensor | None, _Tensor, _Tensor]:
        """The stream between attention and MLP, None where they read the same, and what both add to it."""
        before, after = self.before, self.after
        for middle in self.given:
            first, last = self._added(before, middle.value), self._added(middle.value, after)
            if first is not None and last is not None and not torch.equal(middle.value, before):
                return self._outermost(middle, self.given), first, last
        for one, other in permutations(self.returned, 2):
            sums = (one.value + other.value + before, one.value + before + other.value)
            if any(torch.equal(made, after) for made in sums):
                first, last = self._outermost(one, self.returned), self._outermost(other, self.returned)
                is_attention = [self.attends(self._full(part.path)) for part in (first, last)]
                if is_attention in ([True, False], [False, True]):
                    return (None, first, last) if is_attention[0] else (None, last, first)
        raise IndexerError(
            f"{self.name}: what {self.path} returns is not the sum of what it was given and what two of its "
            "modules return, so what attention and MLP add is not told apart; name a module instead"
        )

    def _added(self, stream: Tensor, total: Tensor) -> _Tensor | None:
        """What a module returns, which added to a stream is the total."""
        found = next((one for one in self.returned if torch.equal(stream + one.value, total)), None)
        return None if found is None else self._outermost(found, self.returned)

    def _outermost(self, tensor: _Tensor, among: list[_Tensor]) -> _Tensor:
        """Of the modules that have the same, the outermost: what is within it may be computed by us."""
        same = [one for one in among if torch.equal(one.value, tensor.value)]
        return min(same, key=lambda one: one.path.count("."))

    def _normed(self, middle: _Tensor) -> _Tensor:
        """What the MLP reads: what a norm makes of the middle, or the middle where the MLP is given that."""
        if any(is_linear(module) for module in self.modules[middle.path].modules()):
            return middle
        readers = {one.path for one in self.given if torch.equal(one.value, middle.value)}
        found = [one for one in self.returned if one.path in readers]
        if len(found) != 1:
            raise IndexerError(
                f"{self.name}: {len(found)} modules of {self.path} read the stream before the MLP, where one "
                "would be its norm; name a module instead"
            )
        return found[0]
