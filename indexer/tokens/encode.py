"""Text to token ids through the model's own fast tokenizer, without the special tokens it adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError

# one letter makes a token with nearly every vocabulary; those of games and sequences have to be asked
PROBE = "a"
MOST_PROBES = 10_000


class Encoder:
    """A private copy of a tokenizer, with truncation and padding off.

    tokenizer: a transformers fast tokenizer; it is left as it is.
    special_tokens: whether sequences get the special tokens that the tokenizer puts around a text.
    bos: "yes" for a BOS at their beginning, "no" for none, "tokenizer" for what is among those.
    prefix, suffix: int32, the special tokens before and after one sequence.
    padding: the id that fills up a row; any valid id, for no statistic looks at it.
    Raises IndexerError where the tokenizer is not a fast one, cannot be copied, or has no BOS to be put.
    """

    def __init__(self, tokenizer: Any, special_tokens: bool = True, bos: str = "tokenizer") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise IndexerError(
                f"tokenizer {type(tokenizer).__name__}: not a fast tokenizer; "
                "the model folder needs a tokenizer.json (save it with AutoTokenizer.save_pretrained)"
            )
        try:
            self._backend = type(backend).from_str(backend.to_str())
        except Exception as error:
            # the library raises bare Exception, for parts written in Python that cannot be saved
            reason = " ".join(str(error).split())
            raise IndexerError(
                f"tokenizer {type(tokenizer).__name__}: cannot be copied ({reason})"
            ) from error
        self._backend.encode_special_tokens = backend.encode_special_tokens
        self._backend.no_truncation()
        self._backend.no_padding()
        # the parts of a word depend on their neighbours alone; see indexer.tokens.long
        self.divides_words = type(self._backend.model).__name__ == "BPE"
        self._own = tokens_around(self._backend)
        first = getattr(tokenizer, "bos_token_id", None)
        if bos == "yes":
            self._own = _with_bos(self._own[0], first), self._own[1]
        self.prefix, self.suffix = self._own if special_tokens else (self._own[0][:0], self._own[1][:0])
        if bos == "no":
            self.prefix = self.prefix[self.prefix != (-1 if first is None else first)]
        padding = getattr(tokenizer, "pad_token_id", None)
        self.padding = int(padding) if padding is not None else 0
        self._special = _special_table(tokenizer, self._backend)

    @property
    def wrapping(self) -> int:
        """How many special tokens are put around one sequence."""
        return len(self.prefix) + len(self.suffix)

    @property
    def own_wrapping(self) -> int:
        """How many special tokens the tokenizer itself puts around a text, wanted or not."""
        return len(self._own[0]) + len(self._own[1])

    def token_ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The tokens of all texts, one after another (int32), and how many each has (int64 [texts]).

        Runs without the interpreter lock for all but the copying of ids, about 3% of the time.
        """
        with _in_one_line():
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        length = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        return np.concatenate(ids) if ids else np.empty(0, np.int32), length

    def encoding(self, text: str) -> Any:
        """The library's Encoding of one text, which knows the characters of each token."""
        with _in_one_line():
            return self._backend.encode_batch([text], add_special_tokens=False)[0]

    def begins_wrapped(self, token_ids: NDArray[np.int32]) -> int:
        """How many tokens at the beginning are the tokenizer's own there; all of these or none."""
        count = len(self._own[0])
        return count if np.array_equal(token_ids[:count], self._own[0]) else 0

    def ends_wrapped(self, token_ids: NDArray[np.int32]) -> int:
        """How many tokens at the end are the tokenizer's own there; all of these or none."""
        count = len(self._own[1])
        return count if count and np.array_equal(token_ids[-count:], self._own[1]) else 0

    def is_special(self, token_ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which tokens are special ones, such as an `<|endoftext|>` that the text itself spells out."""
        return self._special.take(token_ids, mode="clip")


def tokens_around(backend: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The special tokens that a `tokenizers.Tokenizer` puts before and after a text, int32 each.

    Raises IndexerError where it makes no token of text, or puts some in the middle of it.
    """
    probe = next((text for text in _probes(backend) if _makes_token(backend, text)), None)
    if probe is None:
        raise IndexerError(
            "tokenizer: it makes no token of text; its files are missing in the model's folder, or are "
            "those of another tokenizer"
        )
    bare, whole = (backend.encode(probe, add_special_tokens=special) for special in (False, True))
    # a tokenizer may be set to fill up its texts
    real = np.array(whole.attention_mask, dtype=bool)
    ids = np.array(whole.ids, dtype=np.int32)[real]
    own = np.flatnonzero(~np.array(whole.special_tokens_mask, dtype=bool)[real])
    text = [number for number, kept in zip(bare.ids, bare.attention_mask, strict=True) if kept]
    if len(own) == 0 or ids[own[0] : own[-1] + 1].tolist() != text:
        raise IndexerError(
            f"tokenizer: the special tokens it adds ({ids.tolist()} for {text}) are not around the text"
        )
    return ids[: own[0]], ids[own[-1] + 1 :]


def _with_bos(prefix: NDArray[np.int32], bos: int | None) -> NDArray[np.int32]:
    """The special tokens before a sequence, BOS among them. Raises IndexerError where there is none."""
    if bos is None:
        raise IndexerError(
            "--bos yes, or auto with a dictionary that was trained with BOS: the tokenizer of the model has "
            "no such token; take --bos tokenizer"
        )
    return prefix if bos in prefix else np.append(np.int32(bos), prefix).astype(np.int32)


def _probes(backend: Any) -> Iterator[str]:
    """Texts of which one at least makes a token, if any does."""
    yield PROBE
    special = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=False)
    ordinary = (token for token, number in vocabulary.items() if number not in special)
    yield from sorted(islice(ordinary, MOST_PROBES))


def _makes_token(backend: Any, text: str) -> bool:
    try:
        found = backend.encode(text, add_special_tokens=False)
    except Exception:
        # a vocabulary without a token for unknown words refuses one; the library raises bare Exception
        return False
    special = [own for own, real in zip(found.special_tokens_mask, found.attention_mask, strict=True) if real]
    return bool(special) and not any(special)


@contextmanager
def in_target_mode(tokenizer: Any) -> Iterator[None]:
    """Within the block a tokenizer puts around a text what it puts around one that a decoder reads.

    Some name the language of a text there, and know that of targets; others make no difference.
    """
    to_target, back = (
        getattr(tokenizer, f"_switch_to_{mode}_mode", lambda: None) for mode in ("target", "input")
    )
    to_target()
    try:
        yield
    finally:
        back()


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What the tokenizer refuses as one line; the library raises bare Exception."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise IndexerError(
            f"tokenizer: it cannot encode a text of the corpus ({reason}); the corpus has words that the "
            "model does not know, or is for another model"
        ) from error


def _special_table(tokenizer: Any, backend: Any) -> NDArray[np.bool_]:
    """bool by token id; the entry after the last special one is False and stands for all ids beyond."""
    special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
    special.update(token for token in tokenizer.all_special_ids if token is not None)
    # an unknown word is text, not structure, unless the same token has another role as well
    roles = ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id", "mask_token_id")
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown not in {getattr(tokenizer, role, None) for role in roles}:
        special.discard(unknown)
    table = np.zeros(max(special, default=0) + 2, dtype=bool)
    table[list(special)] = True
    return table
