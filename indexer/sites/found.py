"""The probes of a model, of all sites that are asked for: found, tried, in the order of its forward pass.

Every probe is tried in a small forward pass: each has to hand over every token once, and the model has to
return what it returns without them. A probe that computes a part of the model, and changes what comes of it,
is replaced by one that reads the same values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from indexer_kernels import Sequences
from torch import Tensor

from indexer.errors import IndexerError
from indexer.models.forward import call_model
from indexer.models.loading import LoadedModel, quiet_transformers
from indexer.models.probe import Probe, Values, Workspace
from indexer.names import ATTN, EXPERTS, HEADS, MLP, RESID, SAE, STACKS, Key, kind_of, stack_of
from indexer.sites import attn, experts, heads, mlp, resid, sae
from indexer.sites.asked import Asked

# All there are, by name. A site's function returns its probes, none where the model has no such place, and
# raises IndexerError where it cannot tell.
SITES: dict[str, Callable[[LoadedModel, Asked], Sequence[Probe]]] = {
    MLP: mlp.find,
    EXPERTS: experts.find,
    ATTN: attn.find,
    HEADS: heads.find,
    RESID: resid.find,
    SAE: sae.find,
}


def check_sites(names: Sequence[str]) -> None:
    """Raises IndexerError for a name that is no site."""
    for name in names:
        if kind_of(name) not in SITES:
            raise IndexerError(
                f'--sites: no site "{name}"; there is: {", ".join(SITES)}, and of a model with two stacks '
                f"those of one alone, as {STACKS[0]}.{MLP}"
            )


def with_dictionaries(sites: Sequence[str], asked: Asked) -> tuple[str, ...]:
    """The sites that are asked for, and that of dictionaries where there are some."""
    return (*sites, SAE) if asked.dictionaries and SAE not in sites else tuple(sites)


def find(loaded: LoadedModel, sites: Sequence[str] = (MLP,), asked: Asked | None = None) -> list[Probe]:
    """The probes of some sites, in the order in which the running model reaches them.

    Of a model with two stacks a site is that of both, `encoder.mlp` and `decoder.mlp`, or the one named so.
    Raises IndexerError for a site that does not exist, and where one cannot tell where it is in this model.
    Cost: what the sites need, `mlp` a forward pass over 16 tokens; and another one, seldom two.
    """
    check_sites(sites)
    asked = replace(asked or Asked(), experts=any(kind_of(site) == EXPERTS for site in sites))
    with torch.inference_mode(), quiet_transformers():
        probes = [probe for part in loaded.parts() for probe in _of_part(part, sites, asked)]
        if asked.hooks:
            probes = [probe.read("asked for") for probe in probes]
        trial = _Trial(loaded, probes)
        fault = trial.fault()
        if fault:
            trial = _Trial(loaded, [probe.read(f"computed in one pass, {fault}") for probe in probes])
            # experts can be read in no other way
            fault = trial.fault()
            if fault:
                raise IndexerError(
                    f"model {loaded.provenance['architecture']}: where its experts are computed one by one, "
                    f"{fault}; leave {EXPERTS} out of --sites"
                )
        return trial.in_order()


def _of_part(part: LoadedModel, names: Sequence[str], asked: Asked) -> list[Probe]:
    """The probes of a model with one stack, or of the stack that is looked at."""
    wanted: dict[str, None] = {}
    for name in names:
        stack = stack_of(name)
        if stack and not part.stack:
            model = f"model {part.provenance['architecture']}"
            raise IndexerError(f"--sites {name}: {model} has one stack; leave {stack} out")
        if stack in ("", part.stack):
            wanted[kind_of(name)] = None
    if not part.stack:
        return [probe for site in wanted for probe in SITES[site](part, asked)]
    (other,) = {*STACKS} - {part.stack}
    probes: list[Probe] = []
    for site in wanted:
        try:
            probes += [probe.within(part.stack) for probe in SITES[site](part, asked)]
        except IndexerError as error:
            raise IndexerError(f"{error}; or index the {other} alone: --sites {other}.{site}") from error
    return probes


class _Trial:
    """One forward pass over the model's sample with probes attached."""

    def __init__(self, loaded: LoadedModel, probes: Sequence[Probe]) -> None:
        self.loaded, self.probes = loaded, probes
        self.workspace = Workspace(loaded.model)
        # in the order of the last values handed over
        self.rows: Counter[Key] = Counter()

    def run(self) -> Tensor:
        """What the model returns. Raises IndexerError where it fails."""
        ids = self.loaded.sample.token_ids
        with ExitStack() as stack:
            for probe in self.probes:
                workspace = self.workspace.of(probe.key.site)
                stack.enter_context(probe.attach(self._taking(probe.key), workspace, last=False))
            self.workspace.begin(Sequences.none(ids.numel()), width=ids.shape[1])
            return call_model(self.loaded.model, ids)

    def fault(self) -> str:
        """What those that compute a part of the model do to it, empty for nothing."""
        fused = any(probe.fused for probe in self.probes)
        try:
            output = self.run()
        except IndexerError as error:
            if not fused:
                raise
            return f"the model fails: {error}"
        if not fused:
            return ""
        expected = self.loaded.sample.output
        # a model may overflow by itself: what it makes no number of says nothing
        finite = expected.isfinite()
        wanted = expected[finite].float()
        if not len(wanted):
            return ""
        difference = float((output[finite].float() - wanted).abs().max())
        # rounding differs by a few eps per layer; another function shows in the first digits
        share = min(0.1, 64 * torch.finfo(expected.dtype).eps ** 0.75)
        near = difference <= share * max(1.0, float(wanted.abs().max()))
        return "" if near else f"the model's output differs by {difference:.2g}"

    def in_order(self) -> list[Probe]:
        """The probes as the model reached them. Raises IndexerError for one that not every token passes."""
        for probe in self.probes:
            rows, tokens = self.rows[probe.key], self.workspace.of(probe.key.site).sequences.tokens
            if rows != tokens:
                raise IndexerError(
                    f"{probe.place}: the model runs {rows} rows through it for a batch of {tokens} "
                    "tokens; only what every token passes, once, can be indexed"
                )
        place = {key: number for number, key in enumerate(self.rows)}
        return sorted(self.probes, key=lambda probe: place[probe.key])

    def _taking(self, key: Key) -> Callable[[Values], None]:
        def take(values: Values) -> None:
            before = self.rows.pop(key, 0)
            values.made()
            # of parts each has rows of some tokens, and all together stand for all of them
            self.rows[key] = before + (0 if values.parts_follow else values.sequences.tokens)

        return take
