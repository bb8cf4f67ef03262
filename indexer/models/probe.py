"""Where values come from: a probe is one site in one layer of a loaded model.

While a probe is attached, the running model hands its values over, a batch or a part of one at a time. They
are there already, or a function is still to be applied to them: then whoever takes them in computes them in
the same read, and the model goes on with what was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from indexer_kernels import Keep, Sequences, Statistics
from indexer_kernels.activations import activate
from indexer_kernels.routes import Routes
from torch import Tensor, nn

from indexer.errors import IndexerError
from indexer.models.stacks import behind_start
from indexer.names import DECODER, Experts, Key, stack_of


@dataclass(slots=True)
class Values:
    """A probe's values for some sequences, valid during the call that they are handed over by.

    A layer may come in parts, as by experts, whose units are some of its own and whose rows may be those of
    some tokens.

    matrix: [rows, units], any row stride, adjacent units; not to be written to.
    sequences: what its rows are. function: where it is not None, the values are function(matrix) * up, by the
    kernels' name of it, and are yet to be written into matrix; up: as matrix, None for one.
    first: which unit of the layer the first column is. rows_follow: whether more rows of the batch come for
    these units; parts_follow: whether other units of the layer come.
    source: [rows, any], what each row of all parts is made of, where that is less: two runs are told apart by
    it then, and not by values that may jump where it changes little.
    routes: where all parts of a layer come at once, on a GPU: which part and token each row is of. The matrix
    has the columns of one part then, and `sequences` is of all tokens.
    """

    matrix: Tensor
    sequences: Sequences
    function: str | None = None
    up: Tensor | None = None
    first: int = 0
    rows_follow: bool = False
    parts_follow: bool = False
    source: Tensor | None = None
    routes: Routes | None = None

    def into(self, statistics: Statistics, counted: bool = True) -> Tensor:
        """Take them in, computed in the same read where they are yet to be; returns them, [rows, units].

        statistics: of the layer. counted: False to compute them as these would, and to take nothing in.
        """
        routes = self.routes if counted else None
        statistics = statistics.part(self.first) if routes is None else statistics
        sequences = self.sequences if counted else Sequences.none(len(self.matrix))
        if self.function is not None:
            statistics.activate(self.function, self.matrix, self.up, sequences, self.matrix, routes)
            self.function = None
        elif counted:
            statistics.update(self.matrix, sequences, routes=routes)
        return self.matrix

    def parts(self) -> Iterator[Values]:
        """Part by part, where all of a layer came at once; else they themselves.

        Waits for the device, to learn which rows are whose.
        """
        if self.routes is None:
            yield self
            return
        width, up = self.matrix.shape[1], self.up
        for part, rows, at in self.routes.on_host():
            yield replace(
                self, matrix=self.matrix[rows], sequences=replace(self.sequences, at=at), first=part * width,
                up=None if up is None else up[rows], routes=None,
            )  # fmt: skip

    def made(self) -> Tensor:
        """The values, [rows, units]; by torch's own functions where nothing has computed them yet."""
        if self.function is not None:
            self.matrix.copy_(activate(self.function, self.matrix, self.up))
            self.function = None
        return self.matrix

    def leave(self) -> None:
        """Let the model go on without computing them: for a run of which only time or memory count."""
        self.function = None


# who is handed a probe's values
Take = Callable[[Values], None]


@dataclass(frozen=True)
class Group:
    """Some consecutive sequences of a batch: their rows in [tokens, units], and what those rows are."""

    first_row: int
    last_row: int
    sequences: Sequences


@dataclass
class Workspace:
    """What all probes share while a model runs: the present batch, and scratch memory.

    onednn: whether linear layers go through oneDNN. compiled: whether torch.compile makes graphs of blocks.
    groups: the batch's sequences in order, cut into parts whose values stay in cache.
    batch: how many there have been, so that a probe can tell one forward pass from the next.
    """

    model: nn.Module
    onednn: bool = False
    compiled: bool = False
    groups: Sequence[Group] = ()
    batch: int = 0
    scratch: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)
    _sequences: Sequences | None = None
    _decoder: Workspace | None = None

    def of(self, site: str) -> Workspace:
        """This one, or the one with the same memory that a site of a decoder is told its rows by."""
        if stack_of(site) != DECODER:
            return self
        self._decoder = self._decoder or replace(self)
        return self._decoder

    def begin(
        self,
        sequences: Sequences,
        chunk_tokens: int = 0,
        width: int = 1,
        target: tuple[Sequences, int] | None = None,
    ) -> None:
        """Go on to a batch. chunk_tokens: rows of a group, about; 0 for all of them. width: of the batch.

        target: sequences and width of what a decoder reads, where that is another text.
        """
        self._sequences, self.groups = sequences, groups_of(sequences, chunk_tokens)
        self.batch += 1
        if self._decoder is not None:
            self._decoder.begin(behind_start(*(target or (sequences, width))), chunk_tokens)

    @property
    def sequences(self) -> Sequences:
        """All of the batch."""
        assert self._sequences is not None, "no batch is being run"
        return self._sequences

    def check_rows(self, place: str, rows: int) -> None:
        """Raises IndexerError where a module is not given one row for every token of the batch.

        place: its path.
        """
        tokens = self.sequences.tokens
        if rows != tokens:
            raise IndexerError(
                f"{place}: the model gives it {rows} rows for a batch of {tokens} tokens, so which row is "
                "which token cannot be told; this model, or this layer (see --layers), cannot be indexed"
            )

    def take(self, slot: int, rows: int, width: int, like: Tensor) -> Tensor:
        """Uninitialised [rows, width], dtype and device as `like`; valid until the slot is taken again."""
        memory = self.scratch.get((slot, like.device))
        wanted = rows * width
        if memory is None or memory.numel() < wanted or memory.dtype != like.dtype:
            # what there is goes first, so that memory need not hold both
            self.scratch.pop((slot, like.device), None)
            memory = None
            memory = torch.empty(wanted, dtype=like.dtype, device=like.device)
            self.scratch[slot, like.device] = memory
        return memory[:wanted].view(rows, width)


class Probe(Protocol):
    """One site in one layer of a loaded model.

    experts: where its units are those of routed experts, each of which meets tokens of its own.
    width: units that are handed over together, where not all of the layer are; the last ones may be fewer.
    keep: what is kept of every unit. module: where in the model it is; place: its path there.
    fused: whether it computes a part of the model's forward pass, so that values and statistics are one read;
    only such a one can lie within a block that torch.compile makes a graph of.
    provenance: facts for the manifest and `info`, as JSON values.
    """

    @property
    def key(self) -> Key: ...
    @property
    def units(self) -> int: ...
    @property
    def experts(self) -> Experts | None: ...
    @property
    def width(self) -> int | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def keep(self) -> Keep: ...
    @property
    def place(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def fused(self) -> bool: ...
    @property
    def provenance(self) -> dict[str, Any]: ...

    def attach(self, take: Take, workspace: Workspace, last: bool) -> AbstractContextManager[None]:
        """Within the block every forward pass of the model hands its values to `take`, each row once.

        Of units in parts they are handed over part by part: of experts those that meet tokens, or one with no
        rows.

        last: whether the forward pass ends there, by an exception out of `take`; what would be done with the
        values is not needed then.
        Raises IndexerError, while the model runs, where rows are not those of the batch.
        """

    def within(self, stack: str) -> Probe:
        """The same as one of a stack of the model, whose name stands before that of the site."""

    def read(self, reason: str) -> Probe:
        """The same values, read after the model computed them. reason: why, for the manifest."""


def groups_of(sequences: Sequences, chunk_tokens: int) -> list[Group]:
    """A batch cut between sequences into groups of about chunk_tokens rows, at least one sequence each."""
    count, total = len(sequences.start), len(sequences.counted)
    if chunk_tokens <= 0 or total <= chunk_tokens or count <= 1:
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


@contextmanager
def forward_of(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replaces `module.forward` on this one instance."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
