"""Text to token ids through the model's own fast tokenizer, without the special tokens it adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError

PROBE = "a"


class Encoder:
    """A private copy of a tokenizer, with truncation and padding off.

    tokenizer: a transformers fast tokenizer; it is left as it is.
    prefix, suffix: int32, the special tokens that the tokenizer puts before and after one sequence.
    padding: the id that fills up a row; any valid id, for no statistic looks at it.
    Raises IndexerError where the tokenizer is not a fast one, or cannot be copied.
    """

    def __init__(self, tokenizer: Any) -> None:
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
        self.prefix, self.suffix = self._around()
        padding = getattr(tokenizer, "pad_token_id", None)
        self.padding = int(padding) if padding is not None else 0
        self._special = _special_table(tokenizer, self._backend)

    @property
    def wrapping(self) -> int:
        """How many special tokens the tokenizer puts around one sequence."""
        return len(self.prefix) + len(self.suffix)

    def token_ids(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The tokens of all texts, one after another (int32), and how many each has (int64 [texts]).

        Runs without the interpreter lock for all but the copying of ids, about 3% of the time.
        """
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        length = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        return np.concatenate(ids) if ids else np.empty(0, np.int32), length

    def encoding(self, text: str) -> Any:
        """The library's Encoding of one text, which knows the characters of each token."""
        return self._backend.encode_batch([text], add_special_tokens=False)[0]

    def is_special(self, token_ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which tokens are special ones, such as an `<|endoftext|>` that the text itself spells out."""
        return self._special.take(token_ids, mode="clip")

    def _around(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        bare = self._backend.encode(PROBE, add_special_tokens=False).ids
        whole = self._backend.encode(PROBE, add_special_tokens=True)
        mask = np.array(whole.special_tokens_mask, dtype=bool)
        ids = np.array(whole.ids, dtype=np.int32)
        own = np.flatnonzero(~mask)
        if not bare:
            raise IndexerError(
                "tokenizer: it makes no token of text; its files are missing in the model's folder, or are "
                "those of another tokenizer"
            )
        if len(own) == 0 or ids[own[0] : own[-1] + 1].tolist() != bare:
            raise IndexerError(
                f"tokenizer: the special tokens it adds ({ids.tolist()} for {bare}) are not around the text"
            )
        return ids[: own[0]], ids[own[-1] + 1 :]


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
