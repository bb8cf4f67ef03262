"""Running batches through a model for the sake of some values in it, which probes hand over.

Batches are padded on the right. A causal model needs no mask for that, since what comes after a token has no
part in its values; other models are given one, unless nothing is padded. Either way every sequence is run as
if alone.
The forward stops at the last probe, as soon as its values are taken: no projection, no head.
On a GPU `run` queues its work and returns; nothing in it waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from indexer_kernels import Sequences
from indexer_kernels.staging import to_device
from numpy.typing import NDArray
from torch import nn

from indexer.errors import IndexerError
from indexer.models.forward import call_model, embedding_rows, one_sequence_a_row
from indexer.models.loading import LoadedModel, quiet_transformers
from indexer.models.matmul import Matmul, OnednnForward, is_plain_linear, uses_onednn
from indexer.models.probe import Probe, Take, Values, Workspace, forward_of
from indexer.names import Key

# Who is handed the values of all probes; within one thread, and of each probe in the order of the batch.
TakeAll = Callable[[Key, Values], None]


class LastProbeDone(Exception):  # noqa: N818 - a signal, no error
    """Raised out of the model's forward once the last probe's values are taken."""


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

    @property
    def target(self) -> Batch | None:
        """What a decoder reads beside each sequence, where that is another text."""

    def sequences(self) -> Sequences:
        """Where they lie in the [rows * width] rows of the flattened batch."""


@dataclass(frozen=True)
class Part:
    """Some consecutive sequences of a batch, as a batch."""

    token_ids: NDArray[np.int64]
    length: NDArray[np.int64]
    rows: Sequences
    fixed: bool = False
    target: Part | None = None

    @classmethod
    def of(cls, batch: Batch, first: int, last: int) -> Part:
        """Sequences first to last - 1, as wide as the batch is."""
        rows = batch.sequences().rows(first, last)
        target = None if batch.target is None else cls.of(batch.target, first, last)
        return cls(batch.token_ids[first:last], batch.length[first:last], rows, target=target)

    def sequences(self) -> Sequences:
        return self.rows


class Runner:
    """Runs batches of a model, whose probes hand their values over.

    The probes are attached while the runner is used as a context manager; the model is as it was afterwards.
    probes: at least one, in the order in which the model reaches them, see indexer.sites.find.
    take: called for every probe with all values of a batch, in one part or several.
    chunk_tokens: rows that a probe which computes its values takes at a time, in whole sequences, so that
        they stay in cache; 0 for all.
    matmul: "torch" for the linear layers as torch computes them, "onednn" for the float32 ones on the CPU
        through oneDNN, "auto" for oneDNN where it can be; see indexer.models.matmul.
    compiled: let torch.compile fuse what stands around the probes, block by block.
    most_tokens: the largest batch, padding included, that is run at once; what does not fit into the memory
        of a GPU is halved, and so is every larger batch from then on.
    Raises IndexerError for a probe that cannot be compiled. `run` raises it where a probe meets more or fewer
    rows than the batch has, and where the model does not reach one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        probes: Sequence[Probe],
        take: TakeAll,
        chunk_tokens: int = 0,
        matmul: Matmul = "auto",
        compiled: bool = False,
    ) -> None:
        self.loaded = loaded
        self.probes = probes
        self.take = take
        # a compiled block takes the batch at once
        self.chunk_tokens = 0 if compiled else chunk_tokens
        self.most_tokens = sys.maxsize
        onednn = not compiled and uses_onednn(matmul, loaded.dtype, loaded.device)
        if compiled:
            _check_compiled(probes)
        self._vocabulary = embedding_rows(loaded.model)
        self._workspace = Workspace(loaded.model, onednn, compiled)
        # parts of probes, by their first units, whose statistics hold the rows that are being run already
        self._taken: set[tuple[Key, int]] = set()
        self._stack: ExitStack | None = None

    @property
    def onednn(self) -> bool:
        """Whether linear layers go through oneDNN."""
        return self._workspace.onednn

    @property
    def compiled(self) -> bool:
        """Whether torch.compile makes graphs of the blocks."""
        return self._workspace.compiled

    def __enter__(self) -> Runner:
        model, last = self.loaded.model, self.probes[-1]
        with ExitStack() as stack:
            # transformers advises masks for padding, where we know that none is needed
            stack.enter_context(quiet_transformers())
            stack.enter_context(one_sequence_a_row())
            if self.onednn:
                for module in filter(is_plain_linear, model.modules()):
                    stack.enter_context(forward_of(module, OnednnForward(module)))
            for probe in self.probes:
                workspace = self._workspace.of(probe.key.site)
                take = self._taking(probe.key, workspace, probe is last)
                stack.enter_context(probe.attach(take, workspace, probe is last))
            if self.compiled:
                for block in blocks(model, last.module):
                    stack.enter_context(forward_of(block, torch.compile(block.forward, dynamic=True)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None
        self._workspace.scratch.clear()

    def run(self, batch: Batch) -> None:
        """Run one batch; the values of every probe have been taken when this returns.

        Raises IndexerError for a token id that the model has no embedding for, and for a sequence that alone
        is too long for the memory of the GPU.
        """
        if self._stack is None:
            with self:
                self.run(batch)
            return
        largest = max(int(text.token_ids.max()) for text in _texts(batch))
        if largest >= self._vocabulary:
            raise IndexerError(
                f"token id {largest}: the model has embeddings for {self._vocabulary} tokens; "
                "its tokenizer does not belong to it"
            )
        self._run(batch, set())

    @contextmanager
    def handing_to(self, take: TakeAll) -> Iterator[None]:
        """Within the block another one is handed the values."""
        own, self.take = self.take, take
        try:
            yield
        finally:
            self.take = own

    def run_for(self, batch: Batch, take: TakeAll) -> None:
        """Run one batch for another one to be handed the values."""
        with self.handing_to(take):
            self.run(batch)

    def _run(self, batch: Batch, taken: set[tuple[Key, int]]) -> None:
        """Run a batch, of which some probes' values have been taken, whole or in halves."""
        tokens, alone = max(text.token_ids.size for text in _texts(batch)), len(batch.length) == 1
        if tokens <= self.most_tokens or alone:
            self._taken = set(taken)
            if self._fits(batch):
                return
            # no reference to what the failed forward made is left now
            torch.cuda.empty_cache()
            _check_halves(batch, self.loaded)
            self.most_tokens, taken = tokens // 2, set(self._taken)
        count = len(batch.length)
        for first, last in ((0, count // 2), (count // 2, count)):
            self._run(Part.of(batch, first, last), taken)

    def _fits(self, batch: Batch) -> bool:
        """Run a batch at once; False where the memory of the GPU did not do for it."""
        texts = [(text.sequences(), text.token_ids.shape[1]) for text in _texts(batch)]
        self._workspace.begin(texts[0][0], self.chunk_tokens, texts[0][1], *texts[1:])
        target = None if batch.target is None else np.ascontiguousarray(batch.target.token_ids)
        given = [np.ascontiguousarray(batch.token_ids), self._mask(batch), target]
        tensors = iter(to_device([array for array in given if array is not None], self.loaded.device))
        ids, mask, of_target = (None if array is None else next(tensors) for array in given)
        assert ids is not None
        with torch.inference_mode():
            try:
                call_model(self.loaded.model, ids, mask, of_target)
            except LastProbeDone:
                self._check_all_taken()
                return True
            except torch.OutOfMemoryError:
                return False
        raise self._not_reached(self.probes[-1])

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

    def _taking(self, key: Key, workspace: Workspace, last: bool) -> Take:
        """What a probe hands its values to."""

        def take(values: Values) -> None:
            if (key, values.first) in self._taken:
                # the model wants them once more, and the statistics do not
                values.sequences, values.routes = Sequences.none(len(values.matrix)), None
            self.take(key, values)
            # the model goes on with them, whatever was done with them
            values.made()
            if not values.rows_follow:
                self._taken.add((key, values.first))
                if last and not values.parts_follow:
                    raise LastProbeDone

        return take

    def _check_all_taken(self) -> None:
        taken = {key for key, _ in self._taken}
        if len(taken) < len(self.probes):
            raise self._not_reached(next(probe for probe in self.probes if probe.key not in taken))

    def _not_reached(self, probe: Probe) -> IndexerError:
        return IndexerError(
            f"{probe.place}: the model ran a batch without it; this model, or this layer (see --layers), "
            "cannot be indexed"
        )


def _texts(batch: Batch) -> list[Batch]:
    """A batch, and that of targets."""
    return [batch] if batch.target is None else [batch, batch.target]


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


def _check_compiled(probes: Sequence[Probe]) -> None:
    for probe in probes:
        if not probe.fused or probe.experts:
            how = "of routed experts" if probe.experts else "read by a hook"
            raise IndexerError(
                f"--compile: {probe.key} is {how}, which torch.compile runs into; leave it out"
            )


def blocks(model: nn.Module, last: nn.Module) -> list[nn.Module]:
    """The model's blocks before the one that holds a module; empty where it is in no list."""
    for parent in model.modules():
        for place, block in enumerate(parent if isinstance(parent, nn.ModuleList) else ()):
            if any(module is last for module in block.modules()):
                return list(parent)[:place]  # type: ignore[call-overload]
    return []
