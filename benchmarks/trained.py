"""A small dictionary trained on MiniLM, indexed beside the neurons of its layer: which of them are cleaner.

The dictionary is a top-k SAE of what a block returns, in plain torch, saved as SAELens saves it. How clean a
unit is, its strongest examples tell: how many of their peaks are one word, and how much the words vary.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import indexer
from benchmarks.features import streams
from benchmarks.options import option, settings_of
from benchmarks.report import Report, Table, WrongResultError, say
from benchmarks.subject import Subject, prepare
from indexer.commands.demo import model_folder
from indexer.names import MLP, SAE

BATCH_ROWS = 1024
NAME = "trained"


@dataclass(frozen=True)
class Options:
    tokens: int = option(60_000, "of the corpus, to train on and to index", quick=600)
    layer: int = option(3, "whose output is encoded", quick=1)
    features: int = option(1536, "of the dictionary", quick=64)
    k: int = option(16, "features of a token", quick=4)
    steps: int = option(800, f"of training, of {BATCH_ROWS} tokens each", quick=3)
    top: int = option(20, "examples of a unit", quick=3)


def run(options: Options) -> Report:
    """Train, index, compare."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        begin = time.perf_counter()
        subject = prepare("minilm", "float32", options.tokens, folder)
        tensors, unexplained = _trained(_rows(subject, options.layer), options)
        _save(tensors, options, folder / NAME)
        seconds = time.perf_counter() - begin
        indexer.build(
            model=str(model_folder()), corpus=[str(folder / "corpus")], output=folder / "index",
            max_tokens=options.tokens, sae=str(folder / NAME), layers=options.layer, top=options.top,
            bottom=0, distinct=True, panel=0,
        )  # fmt: skip
        with indexer.open_index(folder / "index") as index:
            index.verify(full=True)
            cleanness = {site: _clean(index, site, options) for site in (f"{SAE}.{NAME}", MLP)}
            shown = _examples(index, options)
    results: dict[str, Any] = {
        "training_seconds": seconds, "unexplained": unexplained, "cleanness": cleanness, "examples": shown,
    }  # fmt: skip
    columns = ("site", "units", "peaks of one word", "bits of the words")
    rows = [(site, *(f"{value:,.3g}" for value in of.values())) for site, of in cleanness.items()]
    title = (
        f"MiniLM, layer {options.layer}, {options.tokens:,} tokens: {options.features:,} features, "
        f"{options.k} of a token, trained in {seconds:.0f} s; {unexplained:.0%} of the variance is left"
    )
    checks = ["the index was verified in full"]
    return Report(settings_of(options), checks, results, [Table(title, columns, rows)], shown)


def _rows(subject: Subject, layer: int) -> Tensor:
    """What the block returns at counted tokens, [tokens, channels]."""
    block: nn.Module = subject.loaded.model.encoder.layer[layer]  # type: ignore[index,union-attr,assignment]
    with torch.inference_mode():
        found = [x[torch.from_numpy(batch.counted[: len(x)])] for batch, x in streams(subject, block)]
    return torch.cat(found).clone()


def _trained(rows: Tensor, options: Options) -> tuple[dict[str, Tensor], float]:
    """The tensors of a top-k SAE, and which share of the rows' variance it leaves."""
    generator = torch.Generator().manual_seed(0)

    def some(number: int) -> Tensor:
        return rows[torch.randint(len(rows), (number,), generator=generator)]

    middle = rows.mean(dim=0)
    # directions of tokens: few features begin, or end, without any
    directions = nn.functional.normalize(some(options.features) - middle, dim=1)
    decoder, encoder = directions.clone().requires_grad_(), directions.t().clone().requires_grad_()
    b_dec, b_enc = middle.clone().requires_grad_(), torch.zeros(options.features, requires_grad=True)
    optimizer = torch.optim.Adam([decoder, encoder, b_dec, b_enc], lr=1e-3)
    variance, left = float(rows.var(dim=0).sum()), 0.0
    for step in range(options.steps):
        x = some(BATCH_ROWS)
        best = ((x - b_dec) @ encoder + b_enc).relu().topk(options.k, dim=1)
        values = x.new_zeros(len(x), options.features).scatter(1, best.indices, best.values)
        loss = (values @ decoder + b_dec - x).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        left = float(loss.detach()) / variance
        if step % 100 == 99:
            say(f"step {step + 1} of {options.steps}: {left:.1%} of the variance is left")
    made = {"W_enc": encoder, "W_dec": decoder, "b_enc": b_enc, "b_dec": b_dec}
    return {name: tensor.detach().contiguous() for name, tensor in made.items()}, left


def _save(tensors: dict[str, Tensor], options: Options, folder: Path) -> None:
    """As SAELens does."""
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    settings = {
        "architecture": "topk", "k": options.k, "d_in": len(tensors["W_enc"]), "d_sae": options.features,
        "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none",
        "sae_lens_version": "6.54.12",
        "metadata": {"hook_name": f"encoder.layer.{options.layer}", "hook_layer": options.layer},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(settings))


def _peaks(index: Any, site: str) -> dict[int, Counter[str]]:
    """By unit how many of its strongest examples, which are positive, peak at which word."""
    found: dict[int, Counter[str]] = {}
    rows = index.sql(f"SELECT unit, token FROM examples WHERE site = '{site}' AND kind = 'top' AND value > 0")
    for row in rows.to_pylist():
        found.setdefault(row["unit"], Counter())[row["token"].strip().lower()] += 1
    return found


def _clean(index: Any, site: str, options: Options) -> dict[str, float]:
    """Units with all examples, and of them the means: share of the commonest word, entropy in bits."""
    full = [words for words in _peaks(index, site).values() if words.total() == options.top]
    if not full:
        raise WrongResultError(f"no unit of {site} has {options.top} examples above 0")
    shares = [np.array(list(words.values())) / options.top for words in full]
    entropy = [-float((share * np.log2(share)).sum()) for share in shares]
    return {
        "units": len(full),
        "share": float(np.mean([share.max() for share in shares])),
        "bits": float(np.mean(entropy)),
    }


def _examples(index: Any, options: Options) -> list[str]:
    """The words that the first features with all examples peak at."""
    full = [
        (unit, words)
        for unit, words in sorted(_peaks(index, f"{SAE}.{NAME}").items())
        if words.total() == options.top
    ]
    return [
        f"feature {unit}: " + ", ".join(f"{word} ({number})" for word, number in words.most_common(4))
        for unit, words in full[:8]
    ]
