"""The site `sae.NAME`: features of a sparse dictionary, each layer that it is for.

docs/features.md says which dictionaries are read, and how they are encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from indexer_kernels import Keep

from indexer.errors import IndexerError
from indexer.models import LoadedModel
from indexer.models.weights import digest
from indexer.names import Key
from indexer.sites.asked import Asked
from indexer.sites.sae.dictionary import Dictionary
from indexer.sites.sae.points import Place, Points
from indexer.sites.sae.probe import Features
from indexer.sites.sae.source import named, read

__all__ = ["find"]


def find(loaded: LoadedModel, asked: Asked) -> Sequence[Features]:
    """The features of every dictionary that was asked for.

    Raises IndexerError where one cannot be read, or is not for this model.
    Cost: reading the dictionaries twice, once for their SHA-256; a forward pass over 16 tokens for each block
    that one reads within.
    """
    if not asked.dictionaries:
        raise IndexerError("--sites sae: there is no dictionary; give one with --sae SOURCE[=NAME]")
    if loaded.stack:
        raise IndexerError(
            f"--sae: model {loaded.provenance['architecture']} has two stacks, and which one a dictionary is "
            "for, none says; leave --sae out"
        )
    points = Points(loaded)
    probes: dict[Key, Features] = {}
    for source, name in map(named, asked.dictionaries):
        dictionaries = list(read(source))
        # where nothing is negative, all that is lowest is 0; of all layers of a site the same is kept
        signed = any(dictionary.activation.signed for dictionary in dictionaries)
        keep = asked.features if signed else replace(asked.features, bottom=0)
        for dictionary in dictionaries:
            place = points.find(dictionary.point, str(dictionary.files[0]))
            device = next(place.module.parameters(), loaded.sample.token_ids).device
            chosen = _fitted(dictionary, place).chosen(asked.units).on(device)
            probe = _probe(chosen, name, place, keep)
            if probe.key in probes:
                other = probes[probe.key].facts["source"]
                raise IndexerError(
                    f"--sae: both {other} and {source} would be {probe.key}; give one of them another name, "
                    "--sae SOURCE=NAME"
                )
            probes[probe.key] = replace(probe, facts={"source": str(source), **probe.facts})
    return list(probes.values())


def _fitted(dictionary: Dictionary, place: Place) -> Dictionary:
    """As it is to be encoded there."""
    if not dictionary.centred or place.written:
        return dictionary
    if place.written is None:
        raise IndexerError(
            f"{dictionary.files[0]}: the model's writing weights were centred (center_writing_weights), and "
            f"whether {dictionary.point} is written to the residual stream is not known"
        )
    return replace(dictionary, centred=False)


def _probe(dictionary: Dictionary, name: str, place: Place, keep: Keep) -> Features:
    file = dictionary.files[0]
    layer = place.layer if place.layer is not None else dictionary.layer
    if layer is None:
        raise IndexerError(f"{file}: it reads {dictionary.point}, and neither that nor a key tells its layer")
    first = dictionary.first
    facts: dict[str, Any] = {
        "dictionary": dictionary.form,
        "reads": dictionary.point,
        "formula": dictionary.formula,
        "dtype": str(dictionary.weight.dtype).removeprefix("torch."),
        "digest": digest(dictionary.files),
        **({"first_feature": first} if first else {}),
        **dictionary.facts,
    }
    site = f"sae.{name}.from{first}" if first else f"sae.{name}"
    return Features(
        key=Key(site, layer), units=len(dictionary.units), keep=keep, place=place.path, module=place.module,
        returned=place.returned, across=place.across, facts=facts, dictionary=dictionary,
    )  # fmt: skip
