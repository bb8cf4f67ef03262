"""What is asked of the sites of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from indexer_kernels import Keep


@dataclass(frozen=True)
class Asked:
    """keep: what is kept of a unit, where a site has no reason to keep something else.

    hooks: read values after the model computed them, also where they could be computed together with their
    statistics. output_projection: pattern of the paths of the MLPs' output projections, * being the layer
    number, for models whose MLPs are not recognised. experts: whether routed experts are a site of their own.
    dictionaries: of features, as SOURCE[=NAME]; units: the first and the last of each to be indexed, or all;
    features: what is kept of one.
    """

    keep: Keep = field(default_factory=Keep)
    hooks: bool = False
    output_projection: str | None = None
    experts: bool = False
    dictionaries: tuple[str, ...] = ()
    units: tuple[int, int] | None = None
    features: Keep = field(default_factory=Keep)
