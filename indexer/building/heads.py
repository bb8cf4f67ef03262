"""What the heads of a build look at: on the panel, while that is filled, and on random tokens, repeated.

Random tokens say nothing, so a head that looks there at the token before, at the same token earlier, or at
what came after that, does so whatever a text says (Olsson et al. 2022, "In-context Learning and Induction
Heads").
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import torch
from indexer_kernels.hashes import unit_keys
from indexer_kernels.heads import ON_WINDOWS, REPEATED, HeadScores
from torch import Tensor

from indexer.building.panel import Chosen, one_sequence
from indexer.building.plan import Plan
from indexer.models import Runner, Values
from indexer.models.alone import Plain
from indexer.models.runner import Part
from indexer.names import DECODER, HEADS, Key, kind_of, panel_of, stack_of
from indexer.sites.patterns import Patterns
from indexer.tokens.encode import Encoder

# random tokens of a sequence, which stand there twice, and how many sequences there are
TOKENS, SEQUENCES = 64, 8


class Scoring(Plain):
    """Scores of every head that is indexed. While it is entered, a running model's attention is looked at.

    `take` is for a Runner that runs one of the sequences of random tokens.
    """

    # of such a sequence: how many tokens are before the random ones, and how many these are
    _repeats: tuple[int, int]

    def __init__(self, plan: Plan, panels: Mapping[str, Chosen]) -> None:
        """panels: by their names, see indexer.names.panel_of."""
        super().__init__(plan.kernels)
        self.plan = plan
        self.heads = {probe.key: probe.units for probe in plan.probes if kind_of(probe.key.site) == HEADS}
        # without heads there is nothing to look at
        self._patterns = Patterns() if self.heads else None
        self.panels = {key: panels[panel_of(key.site, plan.targets)] for key in self.heads}
        self._on_windows = {
            key: np.full((heads, len(ON_WINDOWS), len(self.panels[key].windows)), np.nan, np.float32)
            for key, heads in self.heads.items()
        }
        self._repeated = {
            key: np.zeros((heads, len(REPEATED)), np.float64) for key, heads in self.heads.items()
        }

    def __enter__(self) -> Scoring:
        if self._patterns:
            self._patterns.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._patterns:
            self._patterns.__exit__(kind, error, traceback)

    def watch(self, key: Key, sequence: Part) -> None:
        """Score a layer on the panel's windows in a sequence that is being run; see building.panel.Watch."""
        if key not in self.heads:
            return
        weights = self._weights(key, len(sequence.rows.token_ids))
        if weights is None:
            return
        scores = _of_tokens(weights)
        counted = np.flatnonzero(sequence.rows.counted)
        windows = self.panels[key].windows
        (document,), (ordinal,) = sequence.rows.document, sequence.rows.ordinal
        here = (windows.document == document) & (windows.sequence == ordinal)
        for number in np.flatnonzero(here).tolist():
            start, length = int(windows.start[number]), int(windows.length[number])
            shown = counted[start : start + length]
            self._on_windows[key][:, :, number] = scores[:, :, shown].mean(axis=2)

    def look(self, key: Key, values: Values) -> None:
        if key not in self.heads:
            return
        first, tokens = self._repeats
        # a decoder reads a start token before all others
        first += stack_of(key.site) == DECODER
        weights = self._weights(key, values.sequences.tokens)
        if weights is None:
            self._repeated[key][:] = np.nan
            return
        twice = weights[:, first : first + 2 * tokens, first : first + 2 * tokens]
        # how far back a score looks, and from which token on: two need that it has been there before
        for score, (back, begin) in enumerate([(1, 1), (tokens, tokens), (tokens - 1, tokens)]):
            share = twice.diagonal(-back, dim1=1, dim2=2)[:, begin - back :].mean(dim=1)
            self._repeated[key][:, score] += share.double().cpu().numpy() / SEQUENCES

    def of(self, runner: Runner) -> dict[Key, HeadScores]:
        """The scores of all heads; runs the sequences of random tokens."""
        if not self.heads:
            return {}
        before, tokens, after = _repeated_tokens(self.plan)
        self._repeats = len(before), tokens.shape[1]
        if tokens.shape[1] > 1:
            for number, ids in enumerate(tokens):
                whole = np.concatenate([before, ids, ids, after]).astype(np.int32)
                runner.run_for(one_sequence(0, number, (whole, np.ones(len(whole), bool))), self.take)
        else:
            self._repeated = {key: np.full_like(found, np.nan) for key, found in self._repeated.items()}
        return {
            key: HeadScores(
                panel.most, panel.windows, self._repeated[key].astype(np.float32), self._on_windows[key]
            )
            for key, panel in self.panels.items()
        }

    def _weights(self, key: Key, tokens: int) -> Tensor | None:
        """float32 [heads, tokens, tokens] of a layer; None where a model's attention has no such weights."""
        assert self._patterns is not None
        weights = self._patterns.weights
        # behind the keys there may be one more, a sink without a token
        if weights is None or weights.shape not in {
            (self.heads[key], tokens, keys) for keys in (tokens, tokens + 1)
        }:
            return None
        return weights[:, :, :tokens].float()


def _of_tokens(weights: Tensor) -> np.ndarray:
    """float32 [heads, 3, queries]: see ON_WINDOWS. weights: float32 [heads, tokens, tokens]."""
    position = torch.arange(len(weights[0]), device=weights.device)
    distance = (position[:, None] - position).abs()
    scores = [weights[:, :, 0], torch.special.entr(weights).sum(dim=2), (weights * distance).sum(dim=2)]
    return torch.stack(scores, dim=1).cpu().numpy()


def _repeated_tokens(plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Special tokens before, random tokens of every sequence, int [SEQUENCES, tokens], special tokens after.

    Random tokens are any but special ones: number `hash mod how many there are`, hashes being SplitMix64's.
    """
    config, known = plan.config, plan.corpus.token_ids
    assert known is not None
    special = not config.no_special_tokens and config.ids_column is None
    encoder = Encoder(plan.loaded.tokenizer, special, config.bos)
    every = np.arange(known)
    ordinary = every[~encoder.is_special(every)]
    tokens = min(TOKENS, (config.sequence_tokens - encoder.wrapping) // 2) if len(ordinary) else 0
    hashes = unit_keys(config.seed, "repeated tokens", SEQUENCES * tokens)
    chosen = ordinary[(hashes % np.uint64(max(len(ordinary), 1))).astype(np.int64)]
    return encoder.prefix, chosen.reshape(SEQUENCES, tokens), encoder.suffix
