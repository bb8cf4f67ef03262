"""Where a corpus is cut, and which pieces a shard has."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.corpus.pieces import Piece, pieces_of, share_of
from indexer.corpus.sources import CorpusFile


def some_files(sizes: list[int]) -> list[CorpusFile]:
    """Files that may be cut at even places of the list, and files that may not."""
    kinds = ("jsonl", "text")
    return [
        CorpusFile(number, f"{number}", f"{number}", kinds[number % 2], None, size, True)
        for number, size in enumerate(sizes)
    ]


@settings(deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 9))
def test_every_piece_is_in_one_shard(sizes: list[int], shards: int) -> None:
    pieces = pieces_of(some_files(sizes), 10)
    shares = [share_of(pieces, shard, shards) for shard in range(shards)]
    assert sorted(piece.number for share in shares for piece in share) == list(range(len(pieces)))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    for share in shares:
        assert [piece.number for piece in share] == sorted(piece.number for piece in share)
        cut = [part for piece in share for part in piece.slices if part.count > 1]
        for file in {part.file.ordinal for part in cut}:
            indices = [part.index for part in cut if part.file.ordinal == file]
            assert indices == list(range(indices[0], indices[0] + len(indices)))


def test_neighbours_are_in_different_shards() -> None:
    def numbers(pieces: list[Piece], shards: int) -> list[list[int]]:
        return [[piece.number for piece in share_of(pieces, shard, shards)] for shard in range(shards)]

    small = pieces_of(some_files([0, 20] * 6), 10)
    assert numbers(small, 2) == [[0, 2, 4], [1, 3, 5]]
    assert numbers(small, 4) == [[0, 4], [1, 5], [2], [3]]
    # seven slices of one file, a small file, five slices of another: who has one more has fewer of the next
    large = pieces_of(some_files([70, 1, 50]), 10)
    assert len(large) == 13
    assert numbers(large, 2) == [[0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7, 11, 12]]
