"""Names of places, `mlp.5`, of units there, `mlp.5.1733`, and ranges of layers, `0-5,7`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from indexer.errors import IndexerError

# the site of neurons, which is meant where a layer and a number are all that is given
MLP = "mlp"
EXPERTS, ATTN, HEADS, RESID, SAE = "experts", "attn", "heads", "resid", "sae"
# the stacks of a model that has two; their names stand before those of sites, as in `encoder.mlp`
ENCODER, DECODER = "encoder", "decoder"
STACKS = (ENCODER, DECODER)
# the statistic of what units do on a panel of the text, and of the targets where a decoder reads those
PANEL, TARGET_PANEL = "panel", "target_panel"
# one spelling per number: no sign, no leading zero, and small enough for the index's int32
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
# Becomes part of a file name. Words after dots are names that users chose, as in `sae.NAME`, or the kind of
# place in a stack, as in `encoder.mlp`.
_SITE = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
# Other people's names of a neuron: TransformerLens's hook, and Hugging Face's output projection, whose input
# it is. The projections are those that models of transformers have in an MLP.
_PLACES = r"mlp\.(?:down_proj|c_proj|dense_4h_to_h|fc_out|fc2)|output\.dense|fc2"
_SPELLINGS = [
    re.compile(pattern)
    for pattern in (
        r"(?P<layer>[0-9]+)/(?P<unit>[0-9]+)",
        r"blocks\.(?P<layer>[0-9]+)\.mlp\.hook_post\.(?P<unit>[0-9]+)",
        rf"(?:\w+\.)*(?:layers?|h|blocks?)\.(?P<layer>[0-9]+)\.(?:{_PLACES})\.(?P<unit>[0-9]+)",
    )
]
_EXPECTED = "expected SITE.LAYER.UNIT, for example mlp.5.1733"


class Key(NamedTuple):
    """One site of one layer, `mlp.5`: what is found, gathered, written and read together."""

    site: str
    layer: int

    def __str__(self) -> str:
        return f"{self.site}.{self.layer}"


@dataclass(frozen=True)
class Experts:
    """The routed experts of a layer, whose units are theirs in order; per_token: how many a token passes."""

    number: int
    per_token: int


@dataclass(frozen=True, order=True)
class Unit:
    """One scalar at one site of one layer; `str()` gives its name.

    expert: where it is not None, `unit` counts from the first one of that expert.
    """

    site: str
    layer: int
    unit: int
    expert: int | None = None

    def __str__(self) -> str:
        return f"{self.key}.{'' if self.expert is None else f'{self.expert}:'}{self.unit}"

    def of_layer(self, units: int, experts: Experts | None) -> Unit:
        """The same, counted from the first unit of a layer of so many.

        Raises IndexerError for an expert that the layer has not.
        """
        if self.expert is None:
            return self
        if experts is None or self.expert >= experts.number or self.unit >= units // experts.number:
            has = (
                f"experts 0-{experts.number - 1} of {units // experts.number} neurons each"
                if experts
                else "no experts"
            )
            raise IndexerError(f'unit "{self}": layer {self.key} has {has}')
        return Unit(self.site, self.layer, self.expert * (units // experts.number) + self.unit)

    @property
    def key(self) -> Key:
        """Where it is."""
        return Key(self.site, self.layer)


def parse_unit(name: str) -> Unit:
    """Read a unit's name, SITE.LAYER.UNIT, or that of a neuron as others write it.

    UNIT is a number, or EXPERT:NEURON as in `experts.5.12:345`. Others write `5/1733`, TransformerLens
    `blocks.5.mlp.hook_post.1733` and Hugging Face `model.layers.5.mlp.down_proj.1733`. Raises IndexerError
    where it is none of them.
    """
    spelled = next(filter(None, (spelling.fullmatch(name.strip()) for spelling in _SPELLINGS)), None)
    # from the right: the name of a site may hold dots
    parts = [MLP, spelled["layer"], spelled["unit"]] if spelled else name.strip().rsplit(".", 2)
    if len(parts) != 3:
        raise IndexerError(f'unit "{name}": {_EXPECTED}')
    site, layer, unit = parts
    check_site(site)
    expert, _, number = unit.rpartition(":")
    for word, part in (("layer", layer), ("expert", expert or "0"), ("unit", number)):
        if not _NUMBER.fullmatch(part):
            raise IndexerError(f'unit "{name}": the {word} "{part}" is not a whole number; {_EXPECTED}')
    return Unit(site, int(layer), int(number), int(expert) if expert else None)


def parse_key(name: str) -> Key:
    """Read the name of a layer, SITE.LAYER, as mlp.5; raises IndexerError where it is none."""
    site, _, layer = name.strip().rpartition(".")
    if not _NUMBER.fullmatch(layer):
        raise IndexerError(f'layer "{name}": expected SITE.LAYER, for example mlp.5')
    check_site(site)
    return Key(site, int(layer))


def stack_of(site: str) -> str:
    """The stack that a site is in, or nothing where the model has one stack."""
    first, _, rest = site.partition(".")
    return first if rest and first in STACKS else ""


def panel_of(site: str, targets: bool) -> str:
    """Which panel the units of a site are shown on. targets: whether a decoder reads a text of its own."""
    return TARGET_PANEL if targets and stack_of(site) == DECODER else PANEL


def kind_of(site: str) -> str:
    """The site, whatever stack it is in."""
    return site.removeprefix(f"{stack_of(site)}.")


def check_site(site: str) -> None:
    """Raise IndexerError unless `site` can be the name of a site and part of a file name."""
    if not _SITE.fullmatch(site):
        raise IndexerError(f'site "{site}": expected a name in small letters, for example mlp')


def parse_layers(text: str, layers: Sequence[int]) -> tuple[int, ...]:
    """Read a choice of layers, numbers and ranges `0-5,7`, of a model that has those of `layers`.

    Returns the chosen layers in ascending order, each once. Both ends of a range belong to it; numbers in
    between that the model does not have are no part of it.
    Raises IndexerError naming the part that cannot be read or lies outside the model.
    """
    there = set(layers)
    chosen: set[int] = set()
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(_NUMBER.fullmatch(end) for end in ends):
            raise IndexerError(
                f'layers "{text}": cannot read "{part.strip()}"; '
                "expected numbers and ranges, for example 0-5,7"
            )
        first, last = int(ends[0]), int(ends[-1])
        if first > last:
            raise IndexerError(
                f'layers "{text}": the range "{part.strip()}" runs backwards; write {last}-{first}'
            )
        found = {number for number in there if first <= number <= last}
        if not found or last > max(there):
            raise IndexerError(
                f'layers "{text}": layer {last} is out of range; the model has layers {format_layers(layers)}'
            )
        chosen |= found
    return tuple(sorted(chosen))


def by_site(keys: Iterable[Key]) -> dict[str, str]:
    """The layers of each site, as `parse_layers` reads them."""
    layers: dict[str, list[int]] = {}
    for site, layer in sorted(keys):
        layers.setdefault(site, []).append(layer)
    return {site: format_layers(numbers) for site, numbers in layers.items()}


def format_layers(layers: Sequence[int]) -> str:
    """Write layers as `parse_layers` reads them, `0-5,7`."""
    ranges: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1] = (ranges[-1][0], layer)
        else:
            ranges.append((layer, layer))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def named_unit(unit: Any, number: Any) -> Unit:
    """The unit of a name, or of the layer and number of a neuron."""
    if number is None and isinstance(unit, str | Unit):
        return parse_unit(unit) if isinstance(unit, str) else unit
    try:
        return Unit(MLP, operator.index(unit), operator.index(number))
    except TypeError:
        given = repr(unit) if number is None else f"{unit!r}, {number!r}"
        raise IndexerError(
            f'unit {given}: give a name, "mlp.5.1733", or a layer and a number, 5, 1733; '
            "how many examples is k, by its name: k=10"
        ) from None
