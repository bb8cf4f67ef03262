"""Running batches through a model for the sake of its MLPs' activations.

Batches are padded on the right. A causal model needs no mask for that, since what comes after a token has no
part in its activations; other models are given one, unless nothing is padded. Either way every sequence is
run as if alone.
The forward stops at the last layer asked for, as soon as its activations are made: no projection, no head.
On a GPU `run` queues its work and returns; nothing in it waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from indexer_kernels.staging import to_device
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models.forward import call_model, embedding_rows, one_sequence_a_row
from indexer.models.fused import (
    Activate,
    FusedForward,
    Group,
    LastLayerDone,
    Workspace,
    check_rows,
    forward_of,
    installed,
)
from indexer.models.loading import LoadedModel, quiet_transformers
from indexer.models.matmul import Matmul, OnednnForward, is_plain_linear, uses_onednn
from indexer.models.plan import MlpLayer
from indexer.models.traced import InPlace, blocks, traced

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
        """Whether the batch's shape may depend on its own sequences alone (reproducible numerics)."""

    def sequences(self) -> Sequences:
        """Where they lie in the [rows * width] rows of the flattened batch."""


@dataclass(frozen=True)
class Part:
    """Some consecutive sequences of a batch, as a batch."""

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    rows: Sequences
    fixed: bool = False

    def sequences(self) -> Sequences:
        return self.rows


class Runner:
    """Runs batches and hands the activations of the chosen layers to an observer.

    The model's MLPs are replaced while the runner is used as a context manager, and as they were afterwards.
    chunk_tokens: rows that an MLP takes at a time, in whole sequences, so that its activations stay in cache;
    0 for all.
    force_hooks: read activations after the model computed them, also where they could be computed together
        with their statistics.
    matmul: "torch" for the linear layers as torch computes them, "onednn" for the float32 ones on the CPU
        through oneDNN, "auto" for oneDNN where it can be; see indexer.models.matmul.
    compiled: let torch.compile fuse what stands around the MLPs, block by block.
    most_tokens: the largest batch, padding included, that is run at once; what does not fit into the memory
        of a GPU is halved, and so is every larger batch from then on.
    Raises IndexerError for a layer that the model does not have, and for one that cannot be compiled. `run`
    raises it where an MLP is given more or fewer rows than the batch has.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[int] | None,
        observer: Observer,
        chunk_tokens: int = 0,
        force_hooks: bool = False,
        matmul: Matmul = "auto",
        compiled: bool = False,
    ) -> None:
        self.loaded = loaded
        self.layers = loaded.select(layers)
        self.observer = observer
        # a compiled block takes the batch at once
        self.chunk_tokens = 0 if compiled else chunk_tokens
        self.force_hooks = force_hooks
        self.compiled = compiled
        self.most_tokens = sys.maxsize
        self.onednn = not compiled and uses_onednn(matmul, loaded.dtype, loaded.device)
        if compiled:
            _check_compiled(self.layers, force_hooks)
        self._vocabulary = embedding_rows(loaded.model)
        self._workspace = Workspace()
        self._sequences: Sequences | None = None
        # layers whose statistics hold the rows that are being run already
        self._taken: set[int] = set()
        self._stack: ExitStack | None = None

    def __enter__(self) -> Runner:
        with ExitStack() as stack:
            # transformers advises masks for padding, where we know that none is needed
            stack.enter_context(quiet_transformers())
            stack.enter_context(one_sequence_a_row())
            if self.onednn:
                for module in filter(is_plain_linear, self.loaded.model.modules()):
                    stack.enter_context(forward_of(module, OnednnForward(module)))
            for layer in self.layers:
                self._install(layer, stack, last=layer is self.layers[-1])
            if self.compiled:
                for block in blocks(self.loaded.model, self.layers[-1].module):
                    stack.enter_context(forward_of(block, torch.compile(block.forward, dynamic=True)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None
        self._workspace.scratch.clear()

    def run(self, batch: Batch) -> None:
        """Run one batch; the observer has been called for every chosen layer when this returns.

        Raises IndexerError for a token id that the model has no embedding for, and for a sequence that alone
        is too long for the memory of the GPU.
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
        self._run(batch, set())

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """Within the block another observer takes the activations."""
        own, self.observer = self.observer, observer
        try:
            yield
        finally:
            self.observer = own

    def run_for(self, batch: Batch, observer: Observer) -> None:
        """Run one batch for another observer."""
        with self.observed_by(observer):
            self.run(batch)

    def _run(self, batch: Batch, taken: set[int]) -> None:
        """Run a batch, of which some layers have taken the activations, whole or in halves."""
        tokens, alone = batch.token_ids.size, len(batch.length) == 1
        if tokens <= self.most_tokens or alone:
            self._taken = set(taken)
            if self._fits(batch):
                return
            # no reference to what the failed forward made is left now
            torch.cuda.empty_cache()
            _check_halves(batch, self.loaded)
            self.most_tokens, taken = tokens // 2, set(self._taken)
        sequences, count = batch.sequences(), len(batch.length)
        for first, last in ((0, count // 2), (count // 2, count)):
            length = batch.length[first:last]
            self._run(Part(batch.token_ids[first:last], length, sequences.rows(first, last)), taken)

    def _fits(self, batch: Batch) -> bool:
        """Run a batch at once; False where the memory of the GPU did not do for it."""
        sequences = batch.sequences()
        self._sequences = sequences
        self._workspace.groups = _groups(sequences, self.chunk_tokens)
        mask = self._mask(batch)
        arrays = [np.ascontiguousarray(batch.token_ids)] + ([] if mask is None else [mask])
        with torch.inference_mode():
            try:
                call_model(self.loaded.model, *to_device(arrays, self.loaded.device))
            except LastLayerDone:
                return True
            except torch.OutOfMemoryError:
                return False
        raise AssertionError(f"the forward pass ended without reaching {self.layers[-1].projection}")

    def _mask(self, batch: Batch) -> NDArray[np.int64] | None:
        """int64 [rows, width], 1 for tokens, or None where nothing has to be kept from being seen."""
        rows, width = batch.token_ids.shape
        whole = len(batch.length) == rows and bool((batch.length == width).all())
        # with a mask and without one attention may round differently
        if self.loaded.causal or (whole and not batch.fixed):
            return None
        # a row without a sequence sees all of itself: where nothing is seen there are no numbers
        length = np.concatenate([batch.length, np.full(rows - len(batch.length), width)])
        return (np.arange(width) < length[:, None]).astype(np.int64)

    def _install(self, layer: MlpLayer, stack: ExitStack, last: bool) -> None:
        if layer.plan is None or self.force_hooks:
            handle = layer.module.register_forward_pre_hook(self._hook(layer, last), with_kwargs=True)
            stack.callback(handle.remove)
            return
        # an exception, which ends the forward in the last layer, would break a compiled graph
        if self.compiled and not last:
            stack.enter_context(traced(self.loaded.model, layer.plan, self._in_place(layer)))
            return
        activate = self._activate(layer.layer)
        forward = FusedForward(layer.plan, layer.projection, activate, self._workspace, last, self.onednn)
        stack.enter_context(installed(layer.plan, forward))

    def _activate(self, layer: int) -> Activate:
        def activate(
            function: str, gate: Tensor, up: Tensor | None, sequences: Sequences, out: Tensor
        ) -> Tensor:
            if layer in self._taken:
                return self.observer.activate(layer, function, gate, up, _none_of(sequences), out)
            result = self.observer.activate(layer, function, gate, up, sequences, out)
            if sequences is self._workspace.groups[-1].sequences:
                self._taken.add(layer)
            return result

        return activate

    def _in_place(self, layer: MlpLayer) -> InPlace:
        activate = self._activate(layer.layer)

        def take(function: str, gate: Tensor, up: Tensor | None) -> None:
            check_rows(layer.projection, gate.shape[0], self._workspace.rows)
            activate(function, gate, up, self._workspace.groups[-1].sequences, gate)

        return take

    def _hook(self, layer: MlpLayer, last: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # some are told more, as by what a quantised layer's input is scaled
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            assert self._sequences is not None
            # the same matrix that the projection reads: a view, unless a model hands on something transposed
            activations = x.reshape(-1, layer.units)
            check_rows(layer.projection, activations.shape[0], self._sequences.tokens)
            if activations.stride(1) != 1:
                activations = activations.contiguous()
            if layer.layer not in self._taken:
                self.observer.update(layer.layer, activations, self._sequences)
                self._taken.add(layer.layer)
            if last:
                raise LastLayerDone

        return hook


def _none_of(sequences: Sequences) -> Sequences:
    return type(sequences).none(sequences.tokens)


def _check_halves(batch: Batch, loaded: LoadedModel) -> None:
    """Raises IndexerError where a batch that does not fit cannot be halved."""
    rows, width = batch.token_ids.shape
    what = f"out of memory on {loaded.device} with {rows} x {width} tokens"
    if batch.fixed:
        raise IndexerError(
            f"{what}, and --numerics reproducible keeps the shapes of batches; take a smaller --context, or "
            "--numerics fast"
        )
    if len(batch.length) == 1:
        raise IndexerError(
            f"{what}: not even one sequence fits; take a smaller --context, --dtype bfloat16, or a smaller "
            "--top, --bottom and --window"
        )


def _check_compiled(layers: Sequence[MlpLayer], force_hooks: bool) -> None:
    hooked = [layer.layer for layer in layers if layer.plan is None or force_hooks]
    if hooked:
        raise IndexerError(
            f"--compile: layer {hooked[0]} is read by a hook, which torch.compile runs into; leave it out"
        )


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
