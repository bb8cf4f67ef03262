"""Reading text: files, folders, globs and hub data sets become a stream of documents."""

from __future__ import annotations

from indexer.corpus.corpus import Corpus, CorpusCounts, Document, Mark
from indexer.corpus.coverage import Covered
from indexer.corpus.pieces import Piece
from indexer.corpus.sources import CorpusFile

__all__ = ["Corpus", "CorpusCounts", "CorpusFile", "Covered", "Document", "Mark", "Piece"]
