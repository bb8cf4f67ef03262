"""Running batches through a model for the sake of its MLPs' activations.

Batches are padded on the right. A causal model needs no mask for that, since what comes after a token has no
part in its activations; other models are given one, unless nothing is padded. Either way every sequence is
run as if alone.
The forward stops at the last layer asked for, as soon as its activations are made: no projection, no head.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models.forward import call_model, embedding_rows
from indexer.models.fused import (
    Activate,
    FusedForward,
    Group,
    LastLayerDone,
    Workspace,
    forward_of,
    installed,
)
from indexer.models.loading import LoadedModel, quiet_transformers
from indexer.models.matmul import Matmul, OnednnForward, is_plain_linear, uses_onednn
from indexer.models.plan import MlpLayer

if TYPE_CHECKING:
    from indexer_kernels.sequences import Sequences


class Observer(Protocol):
    """Who takes the activations of a layer; called in order of layers, within one thread."""

    def update(self, layer: int, activations: Tensor, sequences: Sequences) -> None:
        """Take activations that the model computed.

        activations: [tokens, units], any row stride; valid during the call, and not to be written to.
        """

    def activate(
        self, layer: int, function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
    ) -> Tensor:
        """Write f(gate), or f(gate) * up, into out and take it as `update` would; returns out.

        gate, up: [tokens, units], any row stride, valid during the call. out is gate.
        """


class Batch(Protocol):
    """Sequences padded on the right to one width; see indexer.tokens."""

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """int64 [rows, width]; what stands in the padding, and in rows beyond the last, does not matter."""

    @property
    def length(self) -> NDArray[np.int64]:
        """int64 [sequences], at least 1."""

    @property
    def fixed(self) -> bool:
        """Whether a sequence is to be computed in the same way whatever lies beside it."""

    def sequences(self) -> Sequences:
        """Where they lie in the [rows * width] rows of the flattened batch."""


class Runner:
    """Runs batches and hands the activations of the chosen layers to an observer.

    The model's MLPs are replaced while the runner is used as a context manager, and as they were afterwards.
    chunk_tokens: rows that an MLP takes at a time, in whole sequences, so that its activations stay in cache;
    0 for all.
    force_hooks: read activations after the model computed them, also where they could be computed together
        with their statistics.
    matmul: "torch" for the linear layers as torch computes them, "onednn" for the float32 ones on the CPU
        through oneDNN, "auto" for oneDNN where it can be; see indexer.models.matmul.
    Raises IndexerError for a layer that the model does not have.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[int] | None,
        observer: Observer,
        chunk_tokens: int = 0,
        force_hooks: bool = False,
        matmul: Matmul = "auto",
    ) -> None:
        self.loaded = loaded
        self.layers = loaded.select(layers)
        self.observer = observer
        self.chunk_tokens = chunk_tokens
        self.force_hooks = force_hooks
        self.onednn = uses_onednn(matmul, loaded.dtype, loaded.device)
        self._vocabulary = embedding_rows(loaded.model)
        self._workspace = Workspace()
        self._sequences: Sequences | None = None
        self._stack: ExitStack | None = None

    def __enter__(self) -> Runner:
        with ExitStack() as stack:
            # transformers advises masks for padding, where we know that none is needed
            stack.enter_context(quiet_transformers())
            if self.onednn:
                for module in filter(is_plain_linear, self.loaded.model.modules()):
                    stack.enter_context(forward_of(module, OnednnForward(module)))
            for layer in self.layers:
                self._install(layer, stack, last=layer is self.layers[-1])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None
        self._workspace.scratch.clear()

    def run(self, batch: Batch) -> None:
        """Run one batch; the observer has been called for every chosen layer when this returns.

        Raises IndexerError for a token id that the model has no embedding for.
        """
        if self._stack is None:
            with self:
                self.run(batch)
            return
        largest = int(batch.token_ids.max())
        if largest >= self._vocabulary:
            raise IndexerError(
                f"token id {largest}: the model has embeddings for {self._vocabulary} tokens; "
                "its tokenizer does not belong to it"
            )
        sequences = batch.sequences()
        self._sequences = sequences
        self._workspace.groups = _groups(sequences, self.chunk_tokens)
        device = self.loaded.device
        with torch.inference_mode():
            ids = torch.from_numpy(np.ascontiguousarray(batch.token_ids)).to(device)
            mask = self._mask(batch)
            try:
                call_model(self.loaded.model, ids, None if mask is None else mask.to(device))
            except LastLayerDone:
                return
        raise AssertionError(f"the forward pass ended without reaching {self.layers[-1].projection}")

    def _mask(self, batch: Batch) -> Tensor | None:
        """int64 [rows, width], 1 for tokens, or None where nothing has to be kept from being seen."""
        rows, width = batch.token_ids.shape
        whole = len(batch.length) == rows and bool((batch.length == width).all())
        # with a mask and without one attention may round differently
        if self.loaded.causal or (whole and not batch.fixed):
            return None
        # a row without a sequence sees all of itself: where nothing is seen there are no numbers
        length = np.concatenate([batch.length, np.full(rows - len(batch.length), width)])
        return torch.from_numpy((np.arange(width) < length[:, None]).astype(np.int64))

    def _install(self, layer: MlpLayer, stack: ExitStack, last: bool) -> None:
        if layer.plan is not None and not self.force_hooks:
            forward = FusedForward(
                layer.plan, self._activate(layer.layer), self._workspace, last, self.onednn
            )
            stack.enter_context(installed(layer.plan, forward))
            return
        handle = layer.module.register_forward_pre_hook(self._hook(layer, last), with_kwargs=True)
        stack.callback(handle.remove)

    def _activate(self, layer: int) -> Activate:
        def activate(
            function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
        ) -> Tensor:
            return self.observer.activate(layer, function, gate, up, sequences, out)

        return activate

    def _hook(self, layer: MlpLayer, last: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            (x,) = args or kwargs.values()
            assert self._sequences is not None
            # the same matrix that the projection reads: a view, unless a model hands on something transposed
            activations = x.reshape(-1, layer.units)
            if activations.stride(1) != 1:
                activations = activations.contiguous()
            self.observer.update(layer.layer, activations, self._sequences)
            if last:
                raise LastLayerDone

        return hook


def _groups(sequences: Sequences, chunk_tokens: int) -> list[Group]:
    """The batch cut between sequences into groups of about chunk_tokens rows, at least one sequence each."""
    count, total = len(sequences.start), len(sequences.counted)
    if chunk_tokens <= 0 or total <= chunk_tokens or count == 1:
        return [Group(0, total, sequences)]
    ends = [*sequences.start[1:].tolist(), total]
    groups, first, first_row = [], 0, 0
    for last, end in enumerate(ends, 1):
        # closing here is nearer to the size asked for than taking the next sequence in
        following = ends[last] if last < count else end
        if last == count or following - first_row > chunk_tokens:
            groups.append(Group(first_row, end, sequences.rows(first, last)))
            first, first_row = last, end
    return groups
