"""The tokens of one long text, read in pieces, equal to those of the whole text, in bounded memory.

A tokenizer looks at the text around each token, but not far. So the text is encoded in windows that overlap,
and two windows are joined in the middle of a stretch of tokens on which both agree in id and characters. What
follows the join is the later window's, which knows what comes next; what precedes it is the earlier one's,
which knows what came before.

Tokenizers split a text into words first, and encode each word by itself. The later window begins where a word
of the earlier one begins, and the join lies between two words, before the last one of the earlier window,
which may go on. Only byte-pair encoding is also joined within a word, where the overlap is one single word:
there a sequence of tokens is the encoding of its text if every two neighbours are that of theirs, and after
the join every two neighbours come from one window.

Where no join is found the earlier window grows, up to `solid` characters. Then the text is cut, and the cut
is counted in `forced`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from indexer.tokens.encode import Encoder

WINDOW_CHARACTERS = 1 << 17
SOLID_CHARACTERS = 1 << 20
# tokens that two windows share; text without words may need the larger number to fall into step
OVERLAP_TOKENS = (512, 4096)
# so many neighbouring tokens must be equal in both windows
AGREEING_TOKENS = 16
# a tokenizer may take the start of a text for that of a word; a later start then brings two windows into step
SHIFTS = 8


@dataclass(frozen=True)
class _Joint:
    """Take the earlier window's tokens before `last`, then the later window's from `first`."""

    last: int
    later: _Window
    first: int


class LongText:
    """Tokens of a text that comes in pieces; iterate once.

    window, solid: in characters; overlap: in tokens. Tests take smaller ones than the defaults.
    After iteration `characters` is the length of the text, and `forced` how often it was cut by force.
    """

    def __init__(
        self,
        encoder: Encoder,
        pieces: Iterator[str],
        *,
        window: int = WINDOW_CHARACTERS,
        solid: int = SOLID_CHARACTERS,
        overlaps: tuple[int, ...] = OVERLAP_TOKENS,
    ) -> None:
        self._encoder = encoder
        self._pieces = pieces
        self._window = window
        self._solid = solid
        self._overlaps = overlaps
        self._within_words = (False, True) if encoder.divides_words else (False,)
        self._waiting = ""
        self._ended = False
        self.characters = 0
        self.forced = 0

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        """int32 arrays whose sum is the tokens of the whole text."""
        window = _Window(self._encoder, self._read(self._window))
        first = 0
        while not self._ended:
            more = self._read(self._window)
            joint = self._joint(window, more)
            if joint is None and len(window.text) < self._solid:
                # doubling keeps the work linear in the text
                more += self._read(len(window.text) - len(more))
                grown = _Window(self._encoder, window.text + more)
                assert np.array_equal(grown.token_ids[:first], window.token_ids[:first])
                window = grown
                continue
            if joint is None:
                self.forced += 1
                joint = self._cut(window, more)
            yield window.token_ids[first : joint.last]
            window, first = joint.later, joint.first
        yield window.token_ids[first:]

    def _read(self, characters: int) -> str:
        """So many characters; fewer only at the end of the text, which is noticed with its last character."""
        parts = [self._waiting]
        count = len(self._waiting)
        while count <= characters and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
            else:
                parts.append(piece)
                count += len(piece)
                self.characters += len(piece)
        text = "".join(parts)
        cut = len(text) if self._ended else max(0, characters)
        self._waiting = text[cut:]
        return text[:cut]

    def _joint(self, window: _Window, more: str) -> _Joint | None:
        """Where the window that reaches on into `more` may take over, or None where they agree nowhere."""
        direct = True
        for within_words, overlap in product(self._within_words, self._overlaps):
            end = len(window) if within_words else window.last_word()
            token = window.cut_before(end - overlap, within_words)
            if token is None:
                continue
            for shift in range(SHIFTS):
                begin = window.start(token) + shift
                tail = window.text[begin:]
                stretch = _Stretch(window, token, end, begin, within_words)
                # the first try nearly always succeeds; later ones are made on the overlap alone
                if direct or stretch.agreement(_Window(self._encoder, tail)) is not None:
                    later = _Window(self._encoder, tail + more)
                    agreed = stretch.agreement(later)
                    if agreed is not None:
                        return _Joint(agreed[0], later, agreed[1])
                direct = False
        return None

    def _cut(self, window: _Window, more: str) -> _Joint:
        token = window.cut_before(len(window) - self._overlaps[0], within_words=True)
        if token is None:
            return _Joint(len(window), _Window(self._encoder, more), 0)
        return _Joint(token, _Window(self._encoder, window.text[window.start(token) :] + more), 0)


class _Window:
    """A stretch of text and its tokens: token_ids int32 [tokens]."""

    def __init__(self, encoder: Encoder, text: str) -> None:
        self.text = text
        self._encoding = encoder.encoding(text)
        self.token_ids: NDArray[np.int32] = np.array(self._encoding.ids, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.token_ids)

    def span(self, token: int) -> tuple[int, int]:
        """The characters of a token, as (first, last + 1)."""
        return self._encoding.token_to_chars(token)

    def start(self, token: int) -> int:
        return self.span(token)[0]

    def begins_word(self, token: int) -> bool:
        return self._encoding.token_to_word(token) != self._encoding.token_to_word(token - 1)

    def can_cut(self, token: int, within_words: bool) -> bool:
        """Whether a cut before this token, which is not the first, divides no character, and no word."""
        return self.start(token) >= self.span(token - 1)[1] and (within_words or self.begins_word(token))

    def cut_before(self, token: int, within_words: bool) -> int | None:
        """The last token up to this one before which the text can be cut, its start excepted."""
        while token > 0:
            if self.can_cut(token, within_words) and self.start(token) > 0:
                return token
            token -= 1
        return None

    def last_word(self) -> int:
        """The first token of the last word."""
        token = len(self) - 1
        while token > 0 and not self.begins_word(token):
            token -= 1
        return max(0, token)

    def spans(self, first: int, last: int, end: int, shift: int = 0) -> list[tuple[int, int, int]]:
        """(id, first character, last + 1), plus `shift`, of tokens first..last-1 that begin before `end`."""
        found = []
        for token in range(first, last):
            start, stop = self.span(token)
            if start >= end:
                break
            found.append((int(self.token_ids[token]), start + shift, stop + shift))
        return found


class _Stretch:
    """Tokens `token` to `end` - 1 of the earlier window, which a later one from character `begin` shares."""

    def __init__(self, earlier: _Window, token: int, end: int, begin: int, within_words: bool) -> None:
        self._earlier = earlier
        self._token = token
        self._begin = begin
        self._within_words = within_words
        self._spans = earlier.spans(token, end, len(earlier.text))

    def agreement(self, later: _Window) -> tuple[int, int] | None:
        """The middle of the longest stretch on which both agree, as (token of earlier, token of later)."""
        end = len(self._earlier.text) - self._begin
        theirs = {span: index for index, span in enumerate(later.spans(0, len(later), end, self._begin))}
        best_length = best_last = best_step = 0
        length = 0
        step = None
        for index, span in enumerate(self._spans):
            match = theirs.get(span)
            if match is None:
                length, step = 0, None
                continue
            length = length + 1 if match - index == step else 1
            step = match - index
            if length > best_length:
                best_length, best_last, best_step = length, index, step
        if best_length < AGREEING_TOKENS:
            return None
        # both sides of the join keep some of the stretch
        margin = AGREEING_TOKENS // 4
        middle = best_last - best_length // 2
        inner = range(best_last - best_length + margin, best_last - margin)
        for index in sorted(inner, key=lambda index: abs(index - middle)):
            ours, other = self._token + index, index + best_step
            if self._earlier.can_cut(ours, self._within_words) and later.can_cut(other, self._within_words):
                return ours, other
        return None
