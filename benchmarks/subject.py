"""What the overhead case runs: a model, and batches of real text collected once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from indexer.building.plan import kept
from indexer.commands.demo import model_folder, write_corpus
from indexer.config.build import BuildConfig
from indexer.corpus import Corpus
from indexer.errors import IndexerError
from indexer.models import LoadedModel, Probe, adapt, load
from indexer.models.loading import DTYPES, quiet_transformers
from indexer.models.memory import CPU_BATCH_TOKENS
from indexer.sites import Asked, find
from indexer.tokens import Batch, Batches, TokenTotals

# A token of source code has fewer: the corpus is larger than what is taken of it.
CHARACTERS_PER_TOKEN = 5


@dataclass(frozen=True)
class Subject:
    """A loaded model with the configuration of its build, and the very batches that the build will make."""

    loaded: LoadedModel
    config: BuildConfig
    batches: list[Batch]
    totals: TokenTotals

    @cached_property
    def probes(self) -> list[Probe]:
        return find(self.loaded, self.config.sites, asked=Asked(kept(self.config)))

    @property
    def units(self) -> int:
        return sum(probe.units for probe in self.probes)


def prepare(
    model: str, dtype: str, tokens: int, folder: Path, *, small: bool = False, **config: Any
) -> Subject:
    """Load the model, write a corpus into `folder` and collect its batches.

    model: "minilm", the packaged one; "gpt2", the shape of GPT-2 small with random weights of a fixed seed
    and the packaged tokenizer, whose ids it has embeddings for; or a model's folder. tokens: counted ones.
    small: cut the shape down to two layers. config: further fields of BuildConfig.
    Raises IndexerError where the text does not last for so many tokens.
    """
    if model == "gpt2":
        loaded = _gpt2(dtype, small)
    else:
        loaded = load(str(model_folder()) if model == "minilm" else model, dtype=dtype)
    corpus = write_corpus(folder / "corpus", tokens * CHARACTERS_PER_TOKEN)
    made = BuildConfig(
        model=model,
        corpus=corpus,
        output=folder / "benchmark.index",
        max_tokens=tokens,
        overwrite=True,
        **config,
    )
    with Batches(
        Corpus(made.corpus, text_column=made.text_column, on_bad_text=made.on_bad_text),
        loaded.tokenizer,
        context=made.sequence_tokens,
        batch_tokens=made.batch_tokens or CPU_BATCH_TOKENS,
        count_special_tokens=made.count_special_tokens,
        max_tokens=made.max_tokens,
    ) as batches:
        collected = list(batches)
    # a last sequence that would pass the bound is left out whole
    if batches.totals.counted_tokens < tokens - made.sequence_tokens:
        raise IndexerError(
            f"--tokens {tokens}: the standard library has {batches.totals.counted_tokens:,}; ask for fewer"
        )
    return Subject(loaded, made, collected, batches.totals)


def _gpt2(dtype: str, small: bool) -> LoadedModel:
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        torch.manual_seed(0)
        model = GPT2Model(GPT2Config(n_layer=2) if small else GPT2Config())
    return adapt(
        torch.nn.Module.to(model, DTYPES[dtype]), tokenizer, name="GPT-2 small's shape, random weights"
    )
