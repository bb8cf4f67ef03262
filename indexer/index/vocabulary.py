"""Token strings by id, and the text of a run of tokens.

A token has two spellings. Its *token* is what people read and search for: `' the'`, `'##ing'`. Its *piece*
is what it adds to a text: `' the'`, `'ing'`. The text of a window is its pieces joined. A character may be
split over several tokens, so a piece writes bytes that are no character by themselves as %E2, and a percent
sign as %25; the joined pieces are then URL-decoded. A character cut by the window's edge becomes one U+FFFD.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa

from indexer.errors import IndexerError
from indexer.index import schema
from indexer.index.arrow import array_of, call, elements, functions

REPLACEMENT = "\ufffd"
# on joined pieces: bytes before the first whole character, and the start of a character that never ends
CUT_AT_START = r"^(?:%[89AB][0-9A-F])+"
CUT_AT_END = r"(?:%[CD][0-9A-F]|%E[0-9A-F](?:%[89AB][0-9A-F])?|%F[0-9A-F](?:%[89AB][0-9A-F]){0,2})$"
# what is left of split bytes where they do not make up characters
BROKEN = r"(?:%[89A-F][0-9A-F])+"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """The tokens of a tokenizer by id.

    tokens: string array [vocabulary], the token as people read it.
    pieces: string array [vocabulary], what it adds to a text, escaped as described above.
    spaced: whether pieces begin with the space between words, so that a text loses the first one.
    """

    def __init__(
        self, tokens: Iterable[str], pieces: Iterable[str] | None = None, spaced: bool = False
    ) -> None:
        self.tokens = pa.array(tokens, pa.string())
        self.pieces = _replaced(self.tokens, "%", "%25") if pieces is None else pa.array(pieces, pa.string())
        self.spaced = spaced
        if len(self.tokens) != len(self.pieces):
            raise IndexerError(f"vocabulary: {len(self.tokens)} tokens but {len(self.pieces)} pieces")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Read the vocabulary of a fast tokenizer of transformers, or of a `tokenizers.Tokenizer`.

        The decoder that belongs to it tells how its tokens are spelled. Ids without a token read as "".
        """
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        spell, spaced = _spelling(_decoder_steps(backend))
        by_id = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
        added = backend.get_added_tokens_decoder()
        size = max(max(by_id, default=-1), max(added, default=-1)) + 1
        tokens, pieces = [""] * size, [""] * size
        for number, token in by_id.items():
            tokens[number], pieces[number] = spell(token)
        # added tokens are written as they are, whatever the spelling of the others
        for number, token in added.items():
            if not _BYTE_TOKEN.fullmatch(token.content):
                tokens[number] = token.content
                pieces[number] = (" " if spaced else "") + _escape(token.content)
        return cls(tokens, pieces, spaced)

    @classmethod
    def from_table(cls, table: pa.Table) -> Vocabulary:
        """Read the one row of vocabulary.parquet."""
        _check_one_row(table)
        tokens, pieces = (elements(table.column(name).chunk(0)) for name in ("tokens", "pieces"))
        return cls(tokens, pieces, table.column("spaced")[0].as_py())

    def to_table(self, token_counts: np.ndarray) -> pa.Table:
        """The one row of vocabulary.parquet.

        token_counts: int64 [vocabulary], how often each token was counted. Raises IndexerError where it is
        not one count of at least zero for each token.
        """
        right = token_counts.shape == (len(self),) and token_counts.dtype == np.int64
        if not right or token_counts.min(initial=0) < 0:
            raise IndexerError(
                f"vocabulary: token counts {token_counts.dtype} {list(token_counts.shape)} are not one count "
                f"of at least 0 for each of {len(self)} tokens"
            )
        whole = pa.array([0, len(self)], pa.int32())
        lists = (
            pa.ListArray.from_arrays(whole, values, type=schema.VOCABULARY.field(name).type)
            for name, values in (
                ("tokens", self.tokens),
                ("pieces", self.pieces),
                ("counts", pa.array(token_counts)),
            )
        )
        return pa.Table.from_arrays([pa.array([self.spaced]), *lists], schema=schema.VOCABULARY)

    def token_strings(self, token_ids: np.ndarray | pa.Array) -> pa.Array:
        """The tokens of int32 ids [n] as a string array [n].

        Raises IndexerError for an id that is not a token's.
        """
        return self._take(self.tokens, token_ids)

    def texts(self, token_ids: np.ndarray | pa.Array, offsets: np.ndarray | Sequence[int]) -> pa.Array:
        """The texts of runs of tokens: a string array [runs].

        token_ids: int32 [n], the runs one after the other. offsets: int [runs + 1], where they begin and end.
        Cost: a take and a copy; texts with a split character are looked at one by one.
        """
        flat = self._take(self.pieces, token_ids)
        starts = np.frombuffer(flat.buffers()[1], np.int32)[flat.offset : flat.offset + len(flat) + 1]
        ends = np.ascontiguousarray(starts[np.asarray(offsets)])
        joined = pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), flat.buffers()[2])
        data = np.frombuffer(flat.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
        marks = np.flatnonzero(data == ord("%")) + ends[0]
        if len(marks):
            escaped = np.zeros(len(joined), bool)
            escaped[np.searchsorted(ends, marks, "right") - 1] = True
            mask = array_of(escaped)
            joined = call("replace_with_mask", joined, mask, _decoded(call("filter", joined, mask)))
        if not self.spaced:
            return joined
        return call("utf8_ltrim", joined, options=functions.TrimOptions(" "))

    def text(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """The text of one run of tokens."""
        return str(self.texts(np.asarray(token_ids, np.int32), [0, len(token_ids)])[0].as_py())

    def _take(self, strings: pa.Array, token_ids: np.ndarray | pa.Array) -> pa.Array:
        try:
            return call("take", strings, pa.array(token_ids, pa.int32()))
        except (pa.ArrowIndexError, IndexError):
            highest = int(np.max(np.abs(np.asarray(token_ids, np.int64))))
            raise IndexerError(
                f"vocabulary: token id {highest} is outside its {len(self)} tokens; "
                "tokenizer and index do not belong together"
            ) from None


def token_counts_of(table: pa.Table) -> np.ndarray:
    """How often each token was counted, int64 [vocabulary], from the one row of vocabulary.parquet."""
    _check_one_row(table)
    counts = elements(table.column("counts").chunk(0)).to_numpy()
    tokens = len(elements(table.column("tokens").chunk(0)))
    if len(counts) != tokens:
        raise IndexerError(
            f"{schema.VOCABULARY_FILE}: {tokens} tokens but {len(counts)} counts; build the index again"
        )
    return counts


def _check_one_row(table: pa.Table) -> None:
    if table.num_rows != 1:
        raise IndexerError(
            f"{schema.VOCABULARY_FILE}: {table.num_rows} rows instead of 1; build the index again"
        )


def _decoded(joined: pa.Array) -> pa.Array:
    """The texts that joined pieces stand for, all of which hold an escape."""
    marks, percents = (
        call("count_substring", joined, options=functions.MatchSubstringOptions(sought))
        for sought in ("%", "%25")
    )
    split = call("not_equal", marks, percents)
    some = pa.array(list(map(decode_pieces, call("filter", joined, split).to_pylist())), pa.string())
    return call("replace_with_mask", _replaced(joined, "%25", "%"), split, some)


def _replaced(strings: pa.Array, old: str, new: str) -> pa.Array:
    return call("replace_substring", strings, options=functions.ReplaceSubstringOptions(old, new))


def decode_pieces(joined: str) -> str:
    """The text that joined pieces stand for."""
    joined = re.sub(CUT_AT_START, REPLACEMENT, joined)
    joined = re.sub(CUT_AT_END, REPLACEMENT, joined)
    try:
        return unquote_to_bytes(joined).decode("utf-8")
    except UnicodeDecodeError:
        # no piece of a tokenizer leaves other bytes; those of a file made to harm may
        return unquote_to_bytes(re.sub(BROKEN, REPLACEMENT, joined)).decode("utf-8", "replace")


def _escape(text: str) -> str:
    return text.replace("%", "%25")


def _escape_bytes(data: bytes) -> str:
    """A piece from bytes: characters where they are whole, %E2 where they are not."""
    try:
        return _escape(data.decode("utf-8"))
    except UnicodeDecodeError:
        # surrogateescape keeps whole characters and turns each other byte b into U+DC00 + b.
        text = _escape(data.decode("utf-8", "surrogateescape"))
        return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's decoder, as its own JSON tells them.

    Some are saved without one; then its other parts tell what a decoder would undo. None where nothing does.
    """
    if backend.decoder is not None:
        return _steps(backend.decoder, "decoders")
    before = _steps(backend.normalizer, "normalizers") + _steps(backend.pre_tokenizer, "pretokenizers")
    steps = [step for step in before if step["type"] in ("ByteLevel", "Metaspace")]
    steps += [
        {"type": "Metaspace", "replacement": step["content"]}
        for step in before
        if step["type"] == "Replace" and step["pattern"] == {"String": " "}
    ]
    if type(backend.model).__name__ == "WordPiece":
        steps.append({"type": "WordPiece", "prefix": backend.model.continuing_subword_prefix})
    if getattr(backend.model, "byte_fallback", False):
        steps.append({"type": "ByteFallback"})
    return steps


def _steps(part: Any, several: str) -> list[dict[str, Any]]:
    """What a part of a tokenizer does, one entry per step; `several` is the key of a sequence's list."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return list(state[several]) if state["type"] == "Sequence" else [state]


def _spelling(steps: list[dict[str, Any]]) -> tuple[Any, bool]:
    """A function from the tokenizer's token to (token, piece), and whether pieces begin with a space."""
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        return _spell_bytes, False
    if "WordPiece" in kinds:
        return lambda token: _spell_word(token, kinds["WordPiece"]["prefix"]), True
    if "BPEDecoder" in kinds:
        suffix = kinds["BPEDecoder"]["suffix"]
        return lambda token: (token, _escape(re.sub(re.escape(suffix) + "$", " ", token))), False
    marks = {step["replacement"] for step in steps if step["type"] == "Metaspace"}
    marks |= {
        step["pattern"]["String"]
        for step in steps
        if step["type"] == "Replace" and step["content"] == " " and "String" in step["pattern"]
    }
    if marks or "ByteFallback" in kinds:
        return lambda token: _spell_marked(token, marks), False
    if steps:
        return lambda token: (token, _escape(token)), False
    # without a decoder the tokens are words, with a space between any two
    return lambda token: (token, " " + _escape(token)), True


# GPT-2 writes every byte as a printable character: itself where it is one, else the next free from U+0100.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {byte: byte for byte in _PRINTABLE} | {
    0x100 + place: byte for place, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))
}


def _spell_bytes(token: str) -> tuple[str, str]:
    try:
        data = bytes(_BYTE_OF[ord(character)] for character in token)
    except KeyError:
        # not written in the byte alphabet, so it stands for itself
        return token, _escape(token)
    return data.decode("utf-8", "replace"), _escape_bytes(data)


def _spell_word(token: str, prefix: str) -> tuple[str, str]:
    glued = token.startswith(prefix)
    return token, _escape(token[len(prefix) :]) if glued else " " + _escape(token)


def _spell_marked(token: str, marks: set[str]) -> tuple[str, str]:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        data = bytes.fromhex(byte[1])
        return (token if data[0] >= 0x80 else data.decode("ascii")), _escape_bytes(data)
    for mark in marks:
        token = token.replace(mark, " ")
    return token, _escape(token)
