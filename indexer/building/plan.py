"""What a build settles before its first batch: the corpus, the model, what of it is indexed, what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from indexer_kernels import Keep, KernelInputError
from indexer_kernels.dispatch import choose

from indexer.building.identity import (
    LISTING,
    differences,
    identity,
    identity_of,
    options_of,
    tokenizer_digest,
)
from indexer.config.build import CONTEXT, FEATURE_WINDOW, WINDOW, BuildConfig
from indexer.corpus import Corpus
from indexer.corpus.pieces import share_of
from indexer.errors import IndexerError
from indexer.index.manifest import Manifest, read_manifest
from indexer.index.output import check_output
from indexer.index.schema import MANIFEST
from indexer.index.vocabulary import Vocabulary
from indexer.models import LoadedModel, Probe, Runner, TakeAll, load
from indexer.models.alone import Batching, Plain, batching
from indexer.models.forward import embedding_rows
from indexer.models.matmul import uses_onednn
from indexer.models.memory import MemoryPlan, plan_memory
from indexer.models.placement import device_type
from indexer.names import EXPERTS, Key, kind_of, parse_layers
from indexer.sites import Asked, check_sites, find, with_dictionaries
from indexer.sites.sae.trained import trained
from indexer.tokens.chat import chat_writer

# Rows that a fused probe takes at a time on a CPU, so that its values stay in cache until they are projected.
CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class Plan:
    """Everything about a build that its first batch needs, and that does not change afterwards.

    before: (source, bytes) of the files of the index that this one will join, which come before this corpus.
    pieces: of the corpus, those that this build reads. probes: those that are indexed, in the model's order.
    threads: of the model and the kernels.
    trained: of the options of sequences those that dictionaries decide, and how.
    memory: what goes where, and how large a batch is. batching: which sequences lie together in one, and why.
    """

    config: BuildConfig
    trained: dict[str, Any]
    before: Sequence[tuple[str, int | None]]
    corpus: Corpus
    pieces: Sequence[Any]
    loaded: LoadedModel
    vocabulary: Vocabulary
    probes: list[Probe]
    kernels: str
    threads: int
    memory: MemoryPlan
    batching: Batching

    @property
    def keys(self) -> list[Key]:
        """What is indexed, in the order of an index."""
        return sorted(probe.key for probe in self.probes)

    @property
    def state_bytes(self) -> int:
        """Of all states, in the main memory."""
        return sum(probe.units * probe.keep.bytes_per_unit() for probe in self.probes)

    @property
    def targets(self) -> bool:
        """Whether the decoder reads a text of its own."""
        return self.config.target_column is not None

    @property
    def shapes(self) -> str:
        """Those of the batches, see tokens.Layout."""
        if self.batching.together != "padded":
            return self.batching.together
        return "fixed" if self.config.numerics == "reproducible" else "tight"

    @property
    def matmul(self) -> str:
        """What computes the products of matrices: compiled, onednn or torch."""
        if self.config.compile:
            return "compiled"
        return "onednn" if uses_onednn("auto", self.loaded.dtype, self.loaded.device) else "torch"

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides rows, as JSON values by the names that people know them by."""
        return identity(
            self.config.model_dump(mode="json"),
            {**self.loaded.provenance, "batches": self.batching.together, "dictionaries": self.dictionaries},
            tokenizer_digest(self.loaded.tokenizer),
            self.keys,
            self.loaded.device.type,
            self.kernels,
            self.corpus.listing(self.before),
        )

    @property
    def dictionaries(self) -> dict[str, str]:
        """Of every layer of features the digest of what they are encoded with."""
        facts = {str(probe.key): probe.provenance.get("digest") for probe in self.probes}
        return {key: digest for key, digest in facts.items() if digest is not None}

    @property
    def largest_block(self) -> int:
        """Bytes of the largest array that a forward pass makes again and again, about."""
        widest = max(probe.units for probe in self.probes)
        return self.memory.batch_tokens * widest * self.loaded.dtype.itemsize

    def runner(self, take: TakeAll, probes: Sequence[Probe] | None = None) -> Runner:
        """A runner of the model as this build runs it; probes: some of those that it indexes, all without."""
        return _runner(self.config, self.loaded, self.probes if probes is None else probes, take)


def threads_of(config: BuildConfig) -> int:
    """How many threads the model and the kernels take."""
    return config.threads or psutil.cpu_count(logical=False) or 1


def planned(config: BuildConfig, joins: Path | None = None) -> Plan:
    """Settle all of it. joins: an index that what is built will be merged into.

    What can be refused at once comes before the model, which takes seconds to load.
    Raises IndexerError for anything wrong with the request, the output, the model or the sources.
    """
    config, told = settled(config)
    _check_request(config)
    before = () if joins is None else sources_of(read_manifest(joins))
    kernels = _chosen_kernels(config)
    corpus = Corpus.of(config, first_ordinal=len(before), allow_empty=config.shard is not None)
    pieces = corpus.pieces(config.piece_bytes)
    loaded = load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        attention=config.attention,
        adapter=config.adapter,
    )
    _check_context(config, loaded)
    if config.target_column is not None and not loaded.stacks:
        raise IndexerError(
            f"--target-column {config.target_column}: the model {config.model} has no decoder beside an "
            "encoder that could read it; leave it out"
        )
    vocabulary = Vocabulary.from_tokenizer(loaded.tokenizer)
    corpus.write_chat = chat_writer(loaded.tokenizer)
    corpus.token_ids = min(embedding_rows(loaded.model), len(vocabulary))
    asked = Asked(
        keep=kept(config),
        hooks=config.hooks,
        output_projection=config.output_projection,
        dictionaries=config.sae,
        units=config.sae_units,
        features=kept(config, FEATURE_WINDOW),
    )
    every = find(loaded, with_dictionaries(config.sites, asked), asked)
    probes = _chosen(config, every)
    plan = Plan(
        config=config,
        trained=told,
        before=before,
        corpus=corpus,
        pieces=pieces if config.shard is None else share_of(pieces, *config.shard),
        loaded=loaded,
        vocabulary=vocabulary,
        probes=probes,
        kernels=kernels,
        threads=threads_of(config),
        memory=plan_memory(loaded, probes, context=config.sequence_tokens, batch_tokens=config.batch_tokens),
        batching=_batching(config, loaded, probes, every, kernels),
    )
    if joins is not None:
        _check_joins(plan, joins)
    return plan


def settled(config: BuildConfig) -> tuple[BuildConfig, dict[str, Any]]:
    """The options of sequences as they hold, and of these what dictionaries decide, by its name.

    Raises IndexerError where a dictionary cannot be read, or two tell different things.
    """
    fixed = config.ids_column is not None or config.no_special_tokens
    asked = (("context", config.context is None), ("bos", config.bos == "auto" and not fixed))
    told = trained(config.sae, [name for name, auto in asked if auto])
    values: dict[str, Any] = {"context": config.context or CONTEXT, "bos": config.bos} | told
    if isinstance(values["bos"], bool):
        values["bos"] = "yes" if values["bos"] else "no"
    if values["bos"] == "auto":
        values["bos"] = "tokenizer"
    return config.model_copy(update=values), {name: values[name] for name in told}


def kept(config: BuildConfig, window: tuple[int, int] = WINDOW) -> Keep:
    """What is kept of a unit; window: where none is asked for."""
    names = ("top", "bottom", "by", "distinct", "samples", "panel", "seed")
    keep = Keep(window=config.window or window, **{name: getattr(config, name) for name in names})
    return keep.within(config.sequence_tokens)


def sources_of(index: Manifest) -> tuple[tuple[str, int | None], ...]:
    """(source, bytes) of the files that an index was built over, in order."""
    corpus: Any = index.corpus
    return tuple((str(source), size) for source, size in corpus["sources"])


def _check_request(config: BuildConfig) -> None:
    """Raise IndexerError for unknown sites and for options that do not fit them.

    And for an output that cannot be made and is not what is asked.
    """
    check_sites(config.sites)
    if any(kind_of(site) == EXPERTS for site in config.sites) and config.numerics == "reproducible":
        raise IndexerError(
            "--numerics reproducible: how many tokens of a batch an expert meets decides how its products "
            "are rounded; leave it out, or leave experts out of --sites"
        )
    output, overwrite = config.output, config.overwrite
    if overwrite or not (output / MANIFEST).is_file():
        check_output(output, overwrite)
        return
    found = read_manifest(output)
    check_same(config, options_of(found.configuration), options_of(config.model_dump(mode="json")))


def check_same(config: BuildConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise IndexerError where what is at the output differs from what is asked for."""
    differing = differences(before, now)
    if differing:
        raise IndexerError(
            f"output {config.output}: already exists, and differs: {differing}. Choose another "
            "--output, or replace it with --overwrite"
        )


def _check_joins(plan: Plan, index: Path) -> None:
    """Raise IndexerError where what is to be built cannot be merged into an index."""
    before, now = identity_of(read_manifest(index)), plan.identity
    same = now.keys() - {"--shard", "--device", "--kernels", LISTING}
    differing = differences({name: before.get(name) for name in same}, {name: now[name] for name in same})
    if differing:
        raise IndexerError(f"--append: {index} was built in another way: {differing}; give the same options")


def _runner(config: BuildConfig, loaded: LoadedModel, probes: Sequence[Probe], take: TakeAll) -> Runner:
    # parts of a batch of a fixed shape would have shapes that are not
    whole = loaded.device.type != "cpu" or config.numerics == "reproducible"
    return Runner(
        loaded, probes, take, chunk_tokens=0 if whole else CHUNK_TOKENS, compiled=config.compile
    )


def _batching(
    config: BuildConfig, loaded: LoadedModel, probes: Sequence[Probe], every: Sequence[Probe], kernels: str
) -> Batching:
    """Which sequences of this model may lie together in a batch of this build."""
    found = batching(
        lambda some: _runner(config, loaded, some, Plain(kernels).take),
        loaded,
        probes,
        every,
        context=config.sequence_tokens,
        kernels=kernels,
        padding=config.padding == "auto",
    )
    # of one length is a shape that follows from a sequence's own, but how many there are is not
    single = found.together == "equal" and config.numerics == "reproducible"
    return replace(found, together="single") if single else found


def _chosen_kernels(config: BuildConfig) -> str:
    try:
        return choose(config.kernels, device_type(config.device))
    except KernelInputError as error:
        raise IndexerError(str(error)) from error


def _chosen(config: BuildConfig, every: list[Probe]) -> list[Probe]:
    """Those of the layers that are asked for."""
    if config.layers is None:
        return every
    layers = parse_layers(config.layers, [probe.key.layer for probe in every])
    return [probe for probe in every if probe.key.layer in layers]


def _check_context(config: BuildConfig, loaded: LoadedModel) -> None:
    if loaded.context is not None and config.sequence_tokens > loaded.context:
        raise IndexerError(
            f"--context {config.sequence_tokens}: the model {config.model} takes at most {loaded.context} "
            f"tokens; use --context {loaded.context} or less"
        )
