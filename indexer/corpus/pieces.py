"""Where a corpus may be cut: at places that follow from the list of files and their sizes alone.

So every worker cuts alike without reading anything. A piece is some files, or a slice of one large file:
uncompressed JSON Lines are cut by bytes (a line belongs where its first byte lies), Parquet by rows. A
document is never in two pieces, and no batch holds documents of two pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from indexer.corpus.sources import CorpusFile

PIECE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Slice:
    """Slice `index` of a file that is cut into `count`."""

    file: CorpusFile
    index: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive slices of files. bytes: on disk, about; 0 where that is not known."""

    number: int
    slices: tuple[Slice, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive slices of one file, read in one go: first to last - 1 of `count`.

    pieces: the number of each slice's piece. skip: rows below this one were read before.
    """

    file: CorpusFile
    first: int
    last: int
    count: int
    pieces: tuple[int, ...]
    skip: int = 0

    @property
    def whole(self) -> bool:
        """Whether the file is read to its end."""
        return self.last == self.count

    def bound(self, index: int, size: int) -> int:
        """Where slice `index` begins in a file of `size` bytes or rows."""
        return size * index // self.count


def pieces_of(files: Sequence[CorpusFile], piece_bytes: int) -> list[Piece]:
    """The files in pieces of about `piece_bytes`, at most twice as large where they can be cut."""
    pieces: list[Piece] = []
    held: list[Slice] = []
    size = 0

    def close(slices: list[Slice], size: int) -> None:
        if slices:
            pieces.append(Piece(len(pieces), tuple(slices), size))

    for file in files:
        count = _slices(file, piece_bytes)
        if count > 1 or file.bytes is None:
            close(held, size)
            held, size = [], 0
            for index in range(count):
                close([Slice(file, index, count)], (file.bytes or 0) // count)
            continue
        held.append(Slice(file))
        size += file.bytes
        if size >= piece_bytes:
            close(held, size)
            held, size = [], 0
    close(held, size)
    return pieces


def share_of(pieces: Sequence[Piece], shard: int, shards: int) -> list[Piece]:
    """The pieces of one of several shards: as many in one as in another, or one more.

    Neighbours are alike - one folder's code, another's prose - so they are dealt out in turns. Of a file that
    is cut, a shard has slices in a row, so that what it covers of the file is one range of rows.
    """
    share: list[Piece] = []
    turn = 0
    for _, group in groupby(pieces, key=lambda piece: piece.slices[0].file.ordinal):
        slices = list(group)
        whole, left = divmod(len(slices), shards)
        # the `left` slices that remain go one each to the shards turn, turn + 1, ..., and on from shard 0
        end = turn + left
        before = max(0, min(shard, end) - turn) + min(shard, max(0, end - shards))
        has_more = turn <= shard < end or shard < end - shards
        first = shard * whole + before
        share += slices[first : first + whole + has_more]
        turn = end % shards
    return share


def runs_of(pieces: Sequence[Piece]) -> Iterator[Run]:
    """Pieces in order as files to be read, each once; those of one file follow one another."""
    slices = [(piece.number, part) for piece in pieces for part in piece.slices]
    first = 0
    while first < len(slices):
        file, last = slices[first][1].file, first
        while last < len(slices) and slices[last][1].file is file:
            last += 1
        numbers = tuple(number for number, _ in slices[first:last])
        begin, end = slices[first][1], slices[last - 1][1]
        yield Run(file, begin.index, end.index + 1, begin.count, numbers)
        first = last


def _slices(file: CorpusFile, piece_bytes: int) -> int:
    if file.bytes is None or file.compression or file.kind not in ("jsonl", "parquet"):
        return 1
    return max(1, file.bytes // piece_bytes)
