"""A text of the reader's own, run by the model of an index: what every unit does at every token."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from indexer_kernels import Sequences
from numpy.typing import NDArray

from indexer.errors import IndexerError
from indexer.index.read import Index
from indexer.index.spelled import spell
from indexer.models import LoadedModel, Probe, Runner, Values, load
from indexer.models.runner import Part
from indexer.names import MLP, Key, Unit, parse_unit
from indexer.sites import Asked, find, with_dictionaries
from indexer.tokens.encode import Encoder
from indexer.web.rarity import Rarity, most_changed, rarest

MOST_CHARACTERS = 20_000
UNITS_OF_A_TOKEN = 12
Shares = dict[Key, NDArray[np.float32]]


@dataclass(frozen=True)
class Text:
    """A text that was run. values: float32 [tokens, units], of each layer of the index."""

    token_ids: NDArray[np.int32]
    counted: NDArray[np.bool_]
    pieces: tuple[str, ...]
    cut: bool
    values: dict[Key, NDArray[np.float32]]


class Model:
    """A loaded model, and the options that say how it was loaded; texts run through it one at a time."""

    def __init__(self, loaded: LoadedModel, asked: tuple[object, ...]) -> None:
        self.loaded, self.asked, self.lock = loaded, asked, threading.Lock()

    @classmethod
    def of(cls, index: Index, model: str, before: Iterable[Model] = ()) -> Model:
        """The model as the build of an index loaded it; that of `before` which was loaded like it, if any.

        model: a folder, or a name on the hub. Raises IndexerError where it cannot be loaded.
        """
        manifest = index.manifest
        options: dict[str, Any] = manifest.configuration
        dtype, attention = str(manifest.model.get("dtype", "auto")), str(options.get("attention", "auto"))
        revision, adapter = options.get("revision"), options.get("adapter")
        asked = (model, dtype, revision, attention, adapter)
        for one in before:
            if one.asked == asked:
                return one
        loaded = load(
            model, dtype=dtype, device="cpu", revision=revision, attention=attention, adapter=adapter
        )
        return cls(loaded, asked)


class Live:
    """The model of an index, ready to run texts as its build ran them; one at a time.

    Raises IndexerError where the model is not that of the index.
    """

    def __init__(self, index: Index, model: Model) -> None:
        """model: see Model.of; indexes of the same model share it."""
        manifest, self.loaded = index.manifest, model.loaded
        options: dict[str, Any] = manifest.configuration
        wanted, found = manifest.model.get("digest"), self.loaded.provenance.get("digest")
        if wanted != found:
            raise IndexerError(
                f"model {model.asked[0]}: its weights are not those that the index was made of (SHA-256 "
                f"{str(found)[:12]}, the index has {str(wanted)[:12]}); give the same model with --model"
            )
        if manifest.model.get("adapter_digest") != self.loaded.provenance.get("adapter_digest"):
            raise IndexerError(f"adapter {options['adapter']}: the index was made with another one")
        self._units = {entry.key: entry.units for entry in manifest.layers}
        units = options.get("sae_units")
        asked = Asked(
            hooks=True,
            output_projection=options.get("output_projection"),
            dictionaries=tuple(options.get("sae") or ()),
            units=None if units is None else (units[0], units[1]),
        )
        probes = [
            probe
            for probe in find(self.loaded, with_dictionaries(options.get("sites", [MLP]), asked), asked)
            if probe.key in self._units
        ]
        _check_dictionaries(probes, manifest.model.get("dictionaries") or {})
        self.context = int(options.get("context", 256))
        wrapped = not options.get("no_special_tokens") and options.get("ids_column") is None
        self.encoder = Encoder(self.loaded.tokenizer, wrapped, options.get("bos", "tokenizer"))
        self.rarity = Rarity(index)
        self._count_special = bool(options.get("count_special_tokens", False))
        self._index = index
        self._runner = Runner(self.loaded, probes, self._take)
        self._values: dict[Key, NDArray[np.float32]] = {}
        self._lock = model.lock

    def run(self, text: str) -> Text:
        """Run a text, as a sequence of its own; what is longer than the context of the index is cut off."""
        if len(text) > MOST_CHARACTERS:
            raise IndexerError(
                f"text of {len(text):,} characters: at most {MOST_CHARACTERS:,} are run at once"
            )
        body, _ = self.encoder.token_ids([text])
        room = self.context - self.encoder.wrapping
        ids = np.concatenate([self.encoder.prefix, body[:room], self.encoder.suffix]).astype(np.int32)
        special = self.encoder.is_special(ids)
        special[: len(self.encoder.prefix)] = True
        special[len(ids) - len(self.encoder.suffix) :] = True
        counted = np.ones(len(ids), bool) if self._count_special else ~special
        values: dict[Key, NDArray[np.float32]] = {}
        if len(ids):
            rows = Sequences.from_offsets(
                np.array([0, len(ids)]), np.zeros(1, np.int64), np.zeros(1, np.int64), ids
            )
            with self._lock:
                self._values = {}
                self._runner.run(Part(ids[None].astype(np.int64), np.array([len(ids)]), rows))
                values = self._values
        before, after = len(self.encoder.prefix), len(ids) - len(self.encoder.suffix)
        vocabulary = self._index.vocabulary
        tokens = vocabulary.token_strings(ids).to_pylist()
        within = spell(tokens[before:after], vocabulary.text(ids[before:after]))
        pieces = (*tokens[:before], *within, *tokens[after:])
        return Text(ids, counted, pieces, len(body) > room, values)

    def answer(self, text: str, pinned: list[str]) -> dict[str, Any]:
        """A text's tokens, each with the units whose activation is rarest there, and what pinned units do."""
        ran = self.run(text)
        return self._told(ran, self._shares(ran), pinned)

    def both(self, texts: Sequence[str], pinned: list[str]) -> dict[str, Any]:
        """Two texts side by side: `texts`, each as `answer` has it, and `pairs` of their tokens.

        Of a pair `places` are those of the tokens that belong together, None where a text has none, and
        `units` those whose rarity differs most between them, with their values and shares in both.
        """
        ran = [self.run(text) for text in texts]
        shares = [self._shares(one) for one in ran]
        pairs = [
            {"places": pair, "units": self._changed(ran, shares, pair)}
            for pair in aligned(*(one.token_ids.tolist() for one in ran))
        ]
        told = [self._told(one, found, pinned) for one, found in zip(ran, shares, strict=True)]
        return {"texts": told, "pairs": pairs}

    def _told(self, ran: Text, shares: Shares, pinned: list[str]) -> dict[str, Any]:
        tokens = [
            {
                "piece": piece,
                "id": int(ran.token_ids[place]),
                "counted": bool(ran.counted[place]),
                "units": self._rarest(ran, shares, place) if ran.counted[place] else [],
            }
            for place, piece in enumerate(ran.pieces)
        ]
        pins = [self._pinned(ran, shares, parse_unit(name)) for name in pinned[:50]]
        return {"tokens": tokens, "pinned": pins, "cut": ran.cut, "context": self.context}

    def _shares(self, ran: Text) -> Shares:
        return {key: self.rarity.above(key, found) for key, found in ran.values.items()}

    def _changed(
        self, ran: list[Text], shares: list[Shares], pair: tuple[int | None, int | None]
    ) -> list[dict[str, Any]]:
        one, other = pair
        if one is None or other is None or not (ran[0].counted[one] and ran[1].counted[other]):
            return []
        # half a token, so that what never occurred is rarer than what occurred once
        least = 0.5 / max(int(self._index.manifest.totals.get("counted_tokens") or 0), 1)
        values = [text.values for text in ran]
        return [
            {
                "name": f"{key}.{unit}",
                "values": _plain(np.array([values[0][key][one, unit], values[1][key][other, unit]])),
                "shares": _plain(np.array([shares[0][key][one, unit], shares[1][key][other, unit]])),
            }
            for key, unit in most_changed(shares, values, (one, other), least, UNITS_OF_A_TOKEN)
        ]

    def _rarest(self, ran: Text, shares: Shares, place: int) -> list[dict[str, Any]]:
        found = rarest(shares, ran.values, place, UNITS_OF_A_TOKEN)
        return [
            {
                "name": f"{key}.{unit}",
                "value": _plain(ran.values[key][place, unit : unit + 1])[0],
                "share": float(shares[key][place, unit]),
            }
            for key, unit in found
        ]

    def _pinned(self, ran: Text, shares: Shares, unit: Unit) -> dict[str, Any]:
        entry = self._index.manifest.layer(unit.key)
        if entry is None or not 0 <= unit.unit < entry.units:
            raise IndexerError(f'unit "{unit}": the index has no such unit')
        if unit.key not in ran.values:
            return {"name": str(unit), "values": [], "shares": [], "minimum": None, "maximum": None}
        values, found = ran.values[unit.key][:, unit.unit], shares[unit.key][:, unit.unit]
        row = self._index.unit(unit)
        ends = {name: row[name][0].as_py() for name in ("minimum", "maximum")}
        return {"name": str(unit), "values": _plain(values), "shares": _plain(found), **ends}

    def _take(self, key: Key, values: Values) -> None:
        """Keep the rows of the sequence; experts come one by one, with the tokens routed to each."""
        sequences, made = values.sequences, values.made().float().numpy()
        # a decoder has a row before the sequence, that of its start token
        begin, length = int(sequences.start[0]), int(sequences.length[0])
        at = np.arange(len(made)) if sequences.at is None else sequences.at
        inside = (at >= begin) & (at < begin + length)
        if key not in self._values:
            self._values[key] = np.zeros((length, self._units[key]), np.float32)
        units = slice(values.first, values.first + made.shape[1])
        self._values[key][at[inside] - begin, units] = made[inside]


def _plain(values: NDArray[np.float32]) -> list[float | None]:
    """As JSON has them, with the fewest digits that tell a float32; None for what is not finite."""
    return [float(str(value)) if np.isfinite(value) else None for value in values]


def _check_dictionaries(probes: Sequence[Probe], digests: dict[str, str]) -> None:
    """Raise IndexerError where a dictionary is another one now than the index was made of."""
    for probe in probes:
        wanted, found = digests.get(str(probe.key)), probe.provenance.get("digest")
        if wanted != found:
            raise IndexerError(
                f"{probe.provenance['source']}: it is not the dictionary that {probe.key} was made of "
                f"(SHA-256 {str(found)[:12]}, the index has {str(wanted)[:12]})"
            )


def aligned(first: Sequence[int], second: Sequence[int]) -> list[tuple[int | None, int | None]]:
    """Places of tokens of two texts that belong together, in their order; None where a text has none.

    first, second: token ids. Equal runs belong together, as `difflib` finds them; of tokens that stand in the
    place of others the first two do, the second two, and so on.
    """
    found: list[tuple[int | None, int | None]] = []
    for _, a, a_end, b, b_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for step in range(max(a_end - a, b_end - b)):
            found.append((a + step if a + step < a_end else None, b + step if b + step < b_end else None))
    return found
